"""How bitsandbytes treats 4-bit weights on a CPU with `avx512_bf16`, on any CPU.

There it packs the weight of every layer that is called in evaluation mode with an input that needs no gradient:
numbers of 32 outputs lie side by side, the scales are bfloat16 and transposed, and one kernel in bfloat16 multiplies
with them. Packing is bitsandbytes' own code and runs anywhere; only that kernel and the question for the instructions
are replaced.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch


@contextmanager
def packs_weights(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """bitsandbytes packs the weights of the layers that are made inside."""
    functional = pytest.importorskip("bitsandbytes.functional")
    if functional.has_avx512bf16():
        yield
        return
    with torch.library._scoped_library("bitsandbytes", "IMPL") as library, monkeypatch.context() as patch:
        patch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
        library.impl("gemv_4bit", _multiply, "CPU")
        yield


@torch.no_grad()
def _multiply(
    states: torch.Tensor,
    packed: torch.Tensor,
    shape: Sequence[int],
    scales: torch.Tensor,
    code: torch.Tensor,
    blocksize: int,
) -> torch.Tensor:
    """(..., in) times packed weights (out, in / 2) with scales (in / blocksize, out) → (..., out)."""
    outside, inside = shape
    packed = packed.reshape(-1, 32)
    numbers = torch.cat([packed & 15, packed >> 4], dim=1).reshape(outside // 32, inside // 2, 32, 2)
    numbers = numbers.transpose(1, 2).reshape(outside, inside).long()
    weight = code[numbers] * scales.float().t().repeat_interleave(blocksize, dim=1)
    product = states.bfloat16().float() @ weight.bfloat16().float().t()
    return product.bfloat16().to(states.dtype)
