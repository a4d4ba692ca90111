"""Which base model it is, told from its FFN weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import nn

from .ffn import FFNLayout, list_ffns
from .linear import has_dense_weight, weight_rows


def fingerprint(model: nn.Module, layout: FFNLayout | None = None) -> str | None:
    """Identify a base model by a sample of its FFN weights: 16 hexadecimal digits.

    Weights are compared as bfloat16, so one checkpoint has one fingerprint in float32 and bfloat16. `layout` is as in
    `find_ffns`.

    Returns:
        None where weights cannot be read as floating-point numbers (quantized, split, offloaded), where they are
        float16, which rounds a bfloat16 checkpoint's weights to others, or there are no FFNs.

    Raises:
        ArchitectureError: If shapes leave a doubt which modules are FFNs.
    """
    ffns = list_ffns(model, layout)
    return fingerprint_of((key, ffn.module.get_submodule(key)) for ffn in ffns for key in ffn.projections)


def fingerprint_of(layers: Iterable[tuple[str, nn.Module]]) -> str | None:
    """Identify a base model by a sample of the weights of some of its linear layers; see [`fingerprint`].

    Args:
        layers: Names and linear layers, always in the same order.
    """
    digest, empty = hashlib.sha256(), True
    for key, layer in layers:
        empty = False
        if not has_dense_weight(layer):
            return None
        rows = weight_rows(layer).detach()
        if rows.dtype == torch.float16:
            return None
        columns = rows[0].numel()
        sample = rows[:: max(1, rows.shape[0] // 8), :: max(1, columns // 8)].to(torch.bfloat16).contiguous()
        digest.update(f"{key}{tuple(rows.shape)}".encode())
        digest.update(sample.cpu().view(torch.int16).numpy().tobytes())
    return None if empty else digest.hexdigest()[:16]
