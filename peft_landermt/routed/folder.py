"""An adapter folder: `adapter_config.json` beside `adapter_model.safetensors`, on disk or on the Hub."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from ..errors import AdapterError

PREFIX = "base_model.model."
"""What keys of an adapter file begin with."""


class AdapterFolder:
    """Where an adapter is read from.

    Args:
        name: Path of a folder, or id of a Hub repository.
        subfolder: Folder in it.
        download_options: `revision`, `token` and the like; for the Hub only.
    """

    def __init__(self, name: str | os.PathLike[str], subfolder: str | None = None, **download_options: Any) -> None:
        self.name, self.subfolder, self.download_options = str(name), subfolder, download_options

    @property
    def path(self) -> Path | None:
        """The folder on disk; None on the Hub."""
        path = Path(self.name, self.subfolder or "")
        return path if path.is_dir() else None

    def check(self) -> None:
        """Check that the files of a folder on disk can be read; what is on the Hub is looked at when it is loaded.

        Raises:
            AdapterError: A file is truncated or damaged, or there are only pickled weights, which are never read.
        """
        if self.path is None:
            return
        if (self.path / CONFIG_NAME).is_file():
            self._check_config(self.path / CONFIG_NAME)
        if (self.path / SAFETENSORS_WEIGHTS_NAME).exists():
            self.keys()
        elif (self.path / WEIGHTS_NAME).exists():
            raise AdapterError(
                "adapter",
                str(self.path / WEIGHTS_NAME),
                f"may run code when read; only {SAFETENSORS_WEIGHTS_NAME} is read.",
            )

    def _check_config(self, path: Path) -> None:
        try:
            values = json.loads(path.read_bytes())
        except (ValueError, RecursionError, OSError) as error:
            raise AdapterError("adapter", str(path), f"is no JSON ({error}); save or download it anew.") from error
        if not isinstance(values, dict):
            raise AdapterError("adapter", str(path), "is no JSON object; save or download it anew.")

    def weights(self) -> Path:
        """Find the weights, and download them from the Hub.

        Raises:
            AdapterError: There are none.
        """
        if self.path is None:
            try:
                return Path(
                    hf_hub_download(
                        self.name, SAFETENSORS_WEIGHTS_NAME, subfolder=self.subfolder, **self.download_options
                    )
                )
            except OSError as error:
                raise AdapterError(
                    "adapter", self.name, f"has no {SAFETENSORS_WEIGHTS_NAME} ({error}); name another repository."
                ) from error
        path = self.path / SAFETENSORS_WEIGHTS_NAME
        if not path.is_file():
            raise AdapterError(
                "adapter",
                str(path),
                "is missing; save or download the adapter anew. For a fresh adapter with this config, set "
                "config.source = None.",
            )
        return path

    def check_digest(self) -> None:
        """Check that config and weights were saved together and not changed since; warn where that cannot be told.

        Raises:
            AdapterError: They were not.
        """
        weights = self.weights()
        path = weights.with_name(CONFIG_NAME)  # the Hub's client keeps the files of a revision together
        values = json.loads(path.read_bytes()) if path.is_file() else {}
        if values.get("digest") is None:
            warnings.warn(
                f"{path.parent} has no digest, as folders that were saved by an earlier version: whether its config "
                "and weights belong together cannot be checked.",
                stacklevel=3,
            )
        elif values["digest"] != digest_of(values, weights):
            raise AdapterError(
                "digest",
                values["digest"],
                f"the config and weights in {path.parent} were not saved together, or were changed or damaged since; "
                "save or download both anew. If you changed the config yourself, take the digest out of it.",
            )

    def keys(self) -> list[str]:
        """List the names of the tensors.

        Raises:
            AdapterError: The file is missing, truncated or damaged.
        """
        path = self.weights()
        try:
            with safe_open(path, framework="pt") as file:
                return list(file.keys())
        except (SafetensorError, OSError) as error:
            raise _damaged(path, error) from error

    def tensors(self) -> dict[str, torch.Tensor]:
        """Read all tensors, onto the CPU.

        Raises:
            AdapterError: The file is missing, truncated or damaged.
        """
        path = self.weights()
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise _damaged(path, error) from error
        mapping = getattr(_thread, "key_mapping", None) or {}
        return {_renamed(key, mapping): tensor for key, tensor in tensors.items()}


_thread = threading.local()


@contextmanager
def keys_renamed(key_mapping: Mapping[str, str] | None) -> Iterator[None]:
    """Inside, have adapter files read as PEFT reads them when it is given a `key_mapping`."""
    before = getattr(_thread, "key_mapping", None)
    _thread.key_mapping = key_mapping
    try:
        yield
    finally:
        _thread.key_mapping = before


def _renamed(key: str, key_mapping: Mapping[str, str]) -> str:
    """A key after the first pattern that is found in what follows PEFT's prefix."""
    start = len(PREFIX) if key.startswith(PREFIX) else 0
    for pattern, replacement in key_mapping.items():
        renamed, count = re.subn(pattern, replacement, key[start:])
        if count:
            return key[:start] + renamed
    return key


class LoadedState:
    """Tensors of an adapter that are in memory, under the keys of an adapter file.

    Args:
        state: The tensors.
    """

    name = "memory"

    def __init__(self, state: Mapping[str, torch.Tensor]) -> None:
        self._state = state

    def tensors(self) -> Mapping[str, torch.Tensor]:
        """The tensors."""
        return self._state

    def check_digest(self) -> None:
        """Do nothing: no file is read."""


def _damaged(path: Path, error: Exception) -> AdapterError:
    return AdapterError("adapter", str(path), f"is truncated or damaged ({error}); save or download it anew.")


def digest_of(values: Mapping[str, Any], weights: Path) -> str:
    """Bind a config to its weights: 64 hexadecimal digits that change with every byte of the weights and every field.

    Fields that say where the base is and how the adapter is used may change; the others decide what it computes.
    """
    free = {
        "digest",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "auto_mapping",
        "verify_base",
        "save_dtype",
    }
    bound = {name: value for name, value in values.items() if name not in free}
    found = hashlib.sha256(json.dumps(bound, sort_keys=True).encode())
    with open(weights, "rb") as file:
        while piece := file.read(1 << 20):
            found.update(piece)
    return found.hexdigest()


def bind_to_weights(config: Path, weights: Path) -> None:
    """Write the digest of a config and its weights into the config."""
    values = json.loads(config.read_bytes())
    values["digest"] = digest_of(values, weights)
    config.write_text(json.dumps(values, indent=2, sort_keys=True))


def save_weights(tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write `adapter_model.safetensors`; an existing file is replaced only when the new one is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{SAFETENSORS_WEIGHTS_NAME}.partial"
    save_file({key: value.cpu().contiguous() for key, value in tensors.items()}, partial, {"format": "pt"})
    partial.replace(folder / SAFETENSORS_WEIGHTS_NAME)
