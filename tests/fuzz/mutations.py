"""What strangers may do to a file: bytes, JSON and tensors, a little or much changed."""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping
from typing import Any

import torch
from hypothesis import strategies as st


class Tensors(dict[str, torch.Tensor]):
    """Tensors by key, printed without their values."""

    def __repr__(self) -> str:
        return repr({key: (str(value.dtype), tuple(value.shape)) for key, value in self.items()})


NASTY = [
    *(b"\0", b"\r", b"\n", b"\t", b"\r\n", b"\xff", b"\xfe\xff", b"\xff\xfe", b"\xff\xfe\0\0", codecs.BOM_UTF8),
    *(b"\xed\xa0\x80", b"\xf4\x90\x80\x80", "\u2028\x85\x0b\x1e".encode(), "\u0301".encode() * 40, b"x" * 70_000),
    *(b"\\ud800", b"\\u0000", b"[", b"{" * 2_000, b"[" * 90_000, b"9" * 5_000, b"null", b"NaN", b"-1e999", b'"'),
    *(b"<", b">", b"&", b"&#0;", b"&#xD800;", b"<hi>" * 120, b"<tu>", b"</tu>", b"<seg>", b"</seg>", b"<tuv>"),
    *(b"<!--", b"]]>", b"<![CDATA[", b'<!DOCTYPE a [<!ENTITY b "c">]>', b'<?xml encoding="x"?>'),
    *(b'encoding="UTF-16"', b"lang='", b"\x1f\x8b\x08", b"\x1f\x8b\x08\0\0\0\0\0"),
]


@st.composite
def damaged(draw: st.DrawFn, start: bytes) -> bytes:
    """`start` after a few edits: bytes changed, cut out, repeated or put in."""
    data = bytearray(start)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)) | st.integers(0, min(len(data), 1500)))
        length = draw(st.integers(0, 12))
        edit = draw(st.sampled_from(["set", "cut", "repeat", "insert", "bytes", "end"]))
        if edit == "set" and at < len(data):
            data[at] = draw(st.integers(0, 255))
        elif edit == "cut":
            del data[at : at + length]
        elif edit == "repeat":
            data[at:at] = bytes(data[at : at + length]) * draw(st.sampled_from([1, 3, 300]))
        elif edit == "insert":
            data[at:at] = draw(st.sampled_from(NASTY))
        elif edit == "bytes":
            data[at:at] = draw(st.binary(max_size=8))
        else:
            del data[at:]
    return bytes(data)


# JSON

STRINGS = [
    *(
        "",
        " ",
        ".",
        "..",
        "../../etc/passwd",
        "/dev/zero",
        "http://127.0.0.1/x",
        "mlp",
        "model.layers.0.mlp",
        "lm_head",
    ),
    *("en-de", "de-en", "en-fr", "en-en", "en", "en-xx", "off", "paper", "token", "learned", "drop", "pair", "layers"),
    *("LORA", "LANDER", "CAUSAL_LM", "SEQ_2_SEQ_LM", "all-linear", "fp32", "bf16", "fp64", "0" * 16, "0" * 64),
    *("(", "(([a-z0-9.]+)+)+!", "(.*)*x", r"(?:.*\.)*mlp\Z", "(a{0,999}){0,999}", "(?#" * 999, "[[a--b]]", r"\p{Foo}"),
    *("\x1b[2J", "\u202e", "\0", "a\nb", "é" * 300, "x" * 100_000, "{{7*7}}", "%s%n", "__class__", "embed_tokens"),
    *("gate_proj", "self_attn", "mlp", "model", "weight", "base_layer", "layers", "1", "-1", "NaN", "true", "None"),
]
NUMBERS = [0, 1, -1, 2, 3, 16, 64, 10**6, 2**31, 2**62, 2**64, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf")]

scalars: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.sampled_from(NUMBERS)
    | st.sampled_from(STRINGS)
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
)
values: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(STRINGS) | st.text(max_size=4), inner, max_size=3)
        | inner.map(lambda value: nested(value, 40))
    ),
    max_leaves=5,
)


def nested(value: Any, depth: int) -> Any:
    """A value in lists within lists."""
    for _ in range(depth):
        value = [value]
    return value


@st.composite
def changed_json(draw: st.DrawFn, start: Any) -> Any:
    """A JSON value with a few fields, at any depth, dropped, added, exchanged, or given other values."""
    value = json.loads(json.dumps(start))
    for _ in range(draw(st.integers(1, 3))):
        target: Any = value
        while True:
            keys: list[Any] = sorted(target) if isinstance(target, dict) else list(range(len(target)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if not isinstance(target[key], (dict, list)) or draw(st.booleans()):
                break
            target = target[key]
        edit = draw(st.sampled_from(["set", "set", "near", "drop", "add", "twice"]))
        if edit == "add" or not keys:
            if isinstance(target, dict):
                target[draw(st.sampled_from(STRINGS) | st.text(max_size=6))] = draw(values)
            else:
                target.append(draw(values))
        elif edit == "drop":
            del target[key]
        elif edit == "near" and type(target[key]) in (int, float):
            target[key] += draw(st.sampled_from([-1, 1, 0.5]))
        elif edit == "twice" and isinstance(target, list):
            target.append(target[key])
        else:
            target[key] = draw(values)
    return value


# Tensors

TYPES = [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool]
TYPES += [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.complex64]


@st.composite
def changed_tensors(draw: st.DrawFn, start: Mapping[str, torch.Tensor], other_keys: list[str]) -> Tensors:
    """Tensors of which a few are dropped, renamed, added, exchanged, or have other shapes, types or values.

    Args:
        start: The tensors.
        other_keys: Keys that tensors may get, or be added under.
    """
    state = {key: value.clone() for key, value in start.items()}
    for _ in range(draw(st.integers(1, 2))):
        key = draw(st.sampled_from(sorted(state)))
        tensor = state[key]
        edit = draw(st.sampled_from(["drop", "rename", "add", "swap", "shape", "type", "value", "value", "fill"]))
        if edit == "drop" and len(state) > 1:
            del state[key]
        elif edit == "rename":
            state[draw(st.sampled_from([f"{key}x", f".{key}", key[:-1], key.upper(), *other_keys]))] = state.pop(key)
        elif edit == "add":
            shape = draw(st.sampled_from([tuple(tensor.shape), (1,), (0,), ()]))
            state[draw(st.sampled_from(other_keys))] = torch.zeros(shape, dtype=tensor.dtype)
        elif edit == "swap":
            other = draw(st.sampled_from(sorted(state)))
            state[key], state[other] = state[other], state[key]
        elif edit == "shape":
            state[key] = draw(st.sampled_from(_reshaped(tensor))).clone()
        elif edit == "type":
            state[key] = tensor.to(draw(st.sampled_from(TYPES)))
        elif tensor.numel() and tensor.dtype not in (torch.float8_e4m3fn, torch.complex64):
            value = draw(st.sampled_from(_extremes(tensor)))
            if edit == "fill":
                tensor.fill_(value)
            else:
                tensor.view(-1)[draw(st.integers(0, tensor.numel() - 1))] = value
    return Tensors({name: value.clone().contiguous() for name, value in state.items()})


def _reshaped(tensor: torch.Tensor) -> list[torch.Tensor]:
    if not tensor.dim() or not tensor.numel():
        return [tensor.reshape(-1), tensor.new_zeros(3, 3)]
    flat = tensor.flatten()
    shapes = [torch.cat([tensor, tensor[:1]]), tensor[:-1], tensor[:0], flat, flat[:1].squeeze(), tensor[None]]
    return [*shapes, tensor.flip(0), tensor.t().contiguous() if tensor.dim() == 2 else tensor]


def _extremes(tensor: torch.Tensor) -> list[Any]:
    if tensor.dtype == torch.bool:
        return [True, False]
    if not tensor.is_floating_point():
        limits = torch.iinfo(tensor.dtype)
        return [0, 1, 7, limits.max, limits.min, max(-1, limits.min)]
    limits = torch.finfo(tensor.dtype)
    return [float("nan"), float("inf"), -float("inf"), limits.max, limits.min, limits.tiny, 0.0, -1.0, 1e5]
