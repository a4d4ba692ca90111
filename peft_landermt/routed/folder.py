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
from ..outputs import write_text, written_whole
from ..strict_json import parse_json

PREFIX = "base_model.model."
"""What keys of an adapter file begin with."""

_FREE = {
    "digest",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "auto_mapping",
    "verify_base",
    "save_dtype",
}
"""Fields of a config that may change: they say where the base is and how an adapter is used, not what it computes."""

_thread = threading.local()


class AdapterFolder:
    """Where an adapter is read from.

    Args:
        name: Path of a folder, or id of a Hub repository.
        subfolder: Folder in it.
        download_options: `revision`, `token` and the like; for the Hub only.

    Attributes:
        is_awaited: Whether it was checked, and an adapter waits for its weights.
    """

    is_awaited = False

    def __init__(self, name: str | os.PathLike[str], subfolder: str | None = None, **download_options: Any) -> None:
        self.name, self.subfolder, self.download_options = str(name), subfolder, download_options
        self._found = self._files()

    def _files(self) -> list[tuple[int, ...]]:
        """What tells the files on disk from later ones; nothing for a Hub repository, whose revisions stay."""
        paths = [Path(self.name, self.subfolder or "", name) for name in (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME)]
        found = [path.stat() for path in paths if path.exists()]
        return [(file.st_ino, file.st_size, file.st_mtime_ns) for file in found]

    def check(self) -> None:
        """Check that the files of a folder on disk can be read; what is on the Hub is looked at when it is loaded.

        Raises:
            AdapterError: A file is truncated or damaged, or there are only pickled weights, which are never read.
        """
        path = Path(self.name, self.subfolder or "")
        self._found = self._files()
        if (path / CONFIG_NAME).is_file():
            _read_config(path / CONFIG_NAME)
        weights = path / SAFETENSORS_WEIGHTS_NAME
        if weights.exists() and not weights.is_file():  # opening a pipe would wait for its writer
            raise AdapterError("adapter", str(weights), "is no file; save or download it anew.")
        if weights.exists():
            with _read(weights), safe_open(weights, framework="pt"):
                pass
        elif (path / WEIGHTS_NAME).exists():
            remedy = f"may run code when read; only {SAFETENSORS_WEIGHTS_NAME} is read."
            raise AdapterError("adapter", str(path / WEIGHTS_NAME), remedy)

    def weights(self) -> Path:
        """Find the weights, and download them from the Hub.

        Raises:
            AdapterError: There are none.
        """
        path = Path(self.name, self.subfolder or "")
        if path.is_dir() and not (path / SAFETENSORS_WEIGHTS_NAME).is_file():
            remedy = (
                "save or download the adapter anew. For a fresh adapter with this config, set config.source = None."
            )
            raise AdapterError("adapter", str(path / SAFETENSORS_WEIGHTS_NAME), f"is missing; {remedy}")
        if path.is_dir():
            return path / SAFETENSORS_WEIGHTS_NAME
        options = {"subfolder": self.subfolder, **self.download_options}
        try:
            return Path(hf_hub_download(self.name, SAFETENSORS_WEIGHTS_NAME, **options))
        except OSError as error:
            remedy = f"has no {SAFETENSORS_WEIGHTS_NAME} ({error}); name another repository."
            raise AdapterError("adapter", self.name, remedy) from error

    def tensors(self) -> dict[str, torch.Tensor]:
        """Read all tensors, onto the CPU.

        Raises:
            AdapterError: The file is missing, truncated or damaged, or another process saves to the folder.
        """
        with _read(self.weights()) as path:
            tensors = load_file(path)
        self.check_unchanged()
        mapping: Mapping[str, str] = getattr(_thread, "key_mapping", None) or {}
        return {_renamed(key, mapping): tensor for key, tensor in tensors.items()}

    def check_digest(self) -> None:
        """Check that config and weights were saved together and not changed since; warn where that cannot be told.

        Raises:
            AdapterError: They were not.
        """
        weights = self.weights()  # the Hub's client keeps the files of a revision together
        values = _read_config(weights.with_name(CONFIG_NAME))
        if values.get("digest") is None:
            warnings.warn(
                f"{self.name} has no digest, as folders that an earlier version saved: whether its config and weights "
                "belong together cannot be checked.",
                stacklevel=3,
            )
        elif values["digest"] != digest_of(values, weights):
            raise AdapterError(
                "digest",
                values["digest"],
                f"the config and weights in {self.name} were not saved together, or were changed or damaged since; "
                "save or download both anew. If you changed the config yourself, take the digest out of it.",
            )
        self.check_unchanged()

    def check_unchanged(self) -> None:
        """Check that the files are still those that were there when the config was read.

        Raises:
            AdapterError: Another process saved to the folder meanwhile.
        """
        if self._files() != self._found:
            raise AdapterError("adapter", self.name, "was saved to while it was being loaded; load it again.")


class LoadedState:
    """Tensors of an adapter that are in memory, under the keys of an adapter file.

    Args:
        state: The tensors.
    """

    is_awaited = False

    def __init__(self, state: Mapping[str, torch.Tensor]) -> None:
        self._state = state

    def tensors(self) -> Mapping[str, torch.Tensor]:
        """Return the tensors."""
        return self._state

    def check_digest(self) -> None:
        """Do nothing: no file is read."""

    def check_unchanged(self) -> None:
        """Do nothing: no file is read."""


@contextmanager
def _read(path: Path) -> Iterator[Path]:
    try:
        yield path
    except (SafetensorError, OSError) as error:
        remedy = f"is truncated or damaged ({error}); save or download it anew."
        raise AdapterError("adapter", str(path), remedy) from error


def _read_config(path: Path) -> dict[str, Any]:
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise AdapterError("adapter", str(path), f"cannot be read ({error}); save or download it anew.") from error
    if not isinstance(values, dict):
        raise AdapterError("adapter", str(path), "is no JSON object; save or download it anew.")
    return values


@contextmanager
def keys_renamed(key_mapping: Mapping[str, str] | None) -> Iterator[None]:
    """Have adapter files read, inside, as PEFT reads them when it is given a `key_mapping`."""
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


def digest_of(values: Mapping[str, Any], weights: Path) -> str:
    """Bind a config to its weights: 64 hexadecimal digits that change with every byte of these and what decides."""
    bound = {name: value for name, value in values.items() if name not in _FREE}
    found = hashlib.sha256(json.dumps(bound, sort_keys=True).encode())
    with open(weights, "rb") as file:
        while piece := file.read(1 << 20):
            found.update(piece)
    return found.hexdigest()


def bind_to_weights(config: Path, weights: Path) -> None:
    """Write the digest of a config and its weights into the config."""
    values = _read_config(config)
    write_text(config, json.dumps({**values, "digest": digest_of(values, weights)}, indent=2, sort_keys=True))


def save_weights(tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write `adapter_model.safetensors`, whole or not at all."""
    with written_whole(folder / SAFETENSORS_WEIGHTS_NAME) as partial:
        save_file({key: value.cpu().contiguous() for key, value in tensors.items()}, partial, {"format": "pt"})
