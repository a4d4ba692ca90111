"""A safetensors file of tensors with one JSON header, and a digest that binds the two together."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .outputs import written_whole
from .strict_json import parse_json

_DIGEST = "digest"
_TYPES = {"I32", "I64", "F16", "BF16", "F32"}


def digest_of(header: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """Compute the SHA-256 of a header and of the names, types, shapes and bytes of tensors, as hexadecimal digits."""
    names = sorted(tensors)
    described = [[name, str(tensors[name].dtype), list(tensors[name].shape)] for name in names]
    digest = hashlib.sha256(json.dumps([header, described]).encode())
    for name in names:
        digest.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_tensors(
    path: str | os.PathLike[str], entry: str, header: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Write a file, whole or not at all.

    Args:
        path: The file.
        entry: Name of the header in the file's metadata.
        header: What JSON can hold.
        tensors: On the CPU.

    Raises:
        OSError: The file cannot be written; an existing one is as it was.
    """
    signed = {**header, _DIGEST: digest_of(header, tensors)}
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with written_whole(path) as partial:
        # one metadata entry, because safetensors writes several in any order
        save_file(contiguous, partial, {entry: json.dumps(signed)})


def load_tensors(
    path: str | os.PathLike[str], entry: str, names_in: Callable[[Any], Collection[str]]
) -> tuple[dict[str, Any], dict[str, torch.Tensor], bool | None]:
    """Read a file that `save_tensors` wrote.

    Args:
        path: The file.
        entry: Name of the header in the file's metadata.
        names_in: Checks the header, and tells the names of all tensors, before these are read.

    Returns:
        The header, the tensors, and whether the digest is theirs; None for a file without one.

    Raises:
        ValueError: The file cannot be read, or is not whole; the header is no JSON of the strict kind; there are other
            tensors than the header tells of, or some of another type than ours have.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = parse_json((file.metadata() or {}).get(entry, "{}"))
            wanted, found = set(names_in(header)), set(file.keys())
            if found != wanted:
                raise ValueError(f"it has not the tensors of its header: {min(found ^ wanted)!r}")
            for name in found:
                if file.get_slice(name).get_dtype() not in _TYPES:
                    raise ValueError(f"{name} is of type {file.get_slice(name).get_dtype()}")
            # copies: what was read must not change with the file
            tensors = {name: file.get_tensor(name).clone() for name in sorted(found)}
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ValueError(f"it cannot be read: {error}") from error
    digest = header.pop(_DIGEST, None)
    return header, tensors, None if digest is None else digest == digest_of(header, tensors)
