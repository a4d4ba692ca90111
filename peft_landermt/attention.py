"""Where the attention of a model is, by the same means as FFNs: names of linear layers, as data.

A projection's role is q, k, v or o. Some bases fuse q, k and v in one layer; the rows of each are known from how the
base takes them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from .choices import ROLES
from .errors import ArchitectureError
from .linear import features


@dataclass(frozen=True)
class AttentionLayout:
    """Names of the projections of one attention convention.

    Attributes:
        names: Those of q, k, v and o; the first three are one where they are fused.
        fused: How the rows of a fused layer lie: `"blocks"`, all of q, of k, of v; `"heads"`, for every head of k the
            heads of q that share it, then k, then v; None where each has a layer of its own.
        used_by: Architectures.
    """

    names: tuple[str, str, str, str]
    fused: Literal["blocks", "heads"] | None = None
    used_by: str = ""


def _separate(names: str, used_by: str) -> AttentionLayout:
    q, k, v, o = names.split()
    return AttentionLayout((q, k, v, o), None, used_by)


ATTENTION_LAYOUTS: tuple[AttentionLayout, ...] = (
    _separate("q_proj k_proj v_proj o_proj", "Llama, Mistral, Qwen, Gemma, Cohere, OLMo 2, StableLM, GLM-4, Nemotron"),
    _separate("q_proj k_proj v_proj out_proj", "OPT, XGLM, GPT-J, NLLB, M2M100, mBART, Marian"),
    _separate("q_proj k_proj v_proj dense", "Phi 1 and 2"),
    _separate("q k v o", "T5, mT5, MADLAD"),
    AttentionLayout(("query_key_value",) * 3 + ("dense",), "heads", "BLOOM, Falcon, GPT-NeoX"),
    AttentionLayout(("c_attn",) * 3 + ("c_proj",), "blocks", "GPT-2, Starcoder"),
    AttentionLayout(("Wqkv",) * 3 + ("out_proj",), "blocks", "MPT"),
    AttentionLayout(("qkv_proj",) * 3 + ("o_proj",), "blocks", "Phi-3"),
)


@dataclass(frozen=True)
class Attention:
    """One attention module of a model.

    Attributes:
        name: Module name in the model, such as `model.layers.3.self_attn`.
        module: The module.
        layout: The names of its projections.
        head_size: Size of a head, where q, k and v are fused head by head.
    """

    name: str
    module: nn.Module
    layout: AttentionLayout
    head_size: int = 0

    def projection(self, role: str) -> str:
        """Name of the linear layer that a role's rows are in."""
        return self.layout.names[ROLES.index(role)]

    def rows(self, role: str, device: torch.device | None = None) -> torch.Tensor | None:
        """Rows of a role in its linear layer, int64 (n,); None for all.

        A group is n heads of q, one of k and one of v, each of `unit` rows; q has as many rows as o has inputs.
        """
        if role == "o" or self.layout.fused is None:
            return None
        size, queries = self._features(self.projection(role))[1], self._features(self.projection("o"))[0]
        unit = self.head_size if self.layout.fused == "heads" else (size - queries) // 2
        groups = (size - queries) // (2 * unit)
        start = {"q": 0, "k": size // groups - 2 * unit, "v": size // groups - unit}[role]
        width = size // groups - 2 * unit if role == "q" else unit
        return torch.arange(size, device=device).view(groups, -1)[:, start : start + width].reshape(-1)

    def size(self, role: str) -> tuple[int, int]:
        """(in, out) features of a role's projection."""
        inside, outside = self._features(self.projection(role))
        rows = self.rows(role)
        return inside, outside if rows is None else len(rows)

    def _features(self, name: str) -> tuple[int, int]:
        found = features(self.module.get_submodule(name))
        assert found is not None
        return found


def recognise_attention(module: nn.Module, name: str = "") -> Attention | None:
    """Describe `module` as attention by the names of its direct children, or return None if it is none.

    Args:
        module: Any module.
        name: Its name in the model, kept in the result.
    """
    children = {key: shape for key, child in module.named_children() if (shape := features(child)) is not None}
    for layout in ATTENTION_LAYOUTS:
        if not all(key in children for key in layout.names):
            continue
        queries, fused = children[layout.names[3]][0], children[layout.names[0]][1]
        if layout.fused is None:
            return Attention(name, module, layout) if queries == fused else None
        head_size = getattr(module, "head_dim", None) or getattr(module, "head_size", None) or 0
        unit = head_size if layout.fused == "heads" else (fused - queries) // 2
        if isinstance(unit, int) and unit > 0 and (fused - queries) % (2 * unit) == 0:
            return Attention(name, module, layout, unit)
    return None


def layer_of(name: str) -> str:
    """The decoder or encoder layer that a module lies in: its name up to the first number."""
    segments = name.split(".")
    number = next((index for index, segment in enumerate(segments) if segment.isdigit()), len(segments) - 1)
    return ".".join(segments[: number + 1])


def no_attention(layer: str, names: Sequence[str]) -> ArchitectureError:
    """The error for a layer whose attention has no form that is known."""
    known = "; ".join(dict.fromkeys("+".join(dict.fromkeys(layout.names)) for layout in ATTENTION_LAYOUTS))
    return ArchitectureError(
        "attention_modules",
        list(names),
        f"no attention was recognised in {layer}: it is a module with linear layers {known}; use "
        "attention_modules=None.",
    )
