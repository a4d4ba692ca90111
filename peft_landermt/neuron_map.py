"""The neuron map: all that detection hands to the tuner."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .errors import LanguagePairError, NeuronMapError
from .language_pair import LanguagePair, parse_pair

GENERAL = -1
"""Owner of a language-general neuron."""

_FORMAT = "1"
_TENSORS = ("owner", "awareness", "mean_gradient", "mean_abs_activation")


Number = TypeVar("Number", float, torch.Tensor)


def conditional_awareness(specific: Number, general: Number) -> Number:
    """Conditional awareness CAR (eq. 6): the share of the specific neurons in the awareness of a pair.

    Args:
        specific: Sum of Phi over the pair's language-specific neurons.
        general: Sum of Phi over the language-general neurons. Both are numbers, or tensors of one shape.

    Returns:
        specific / (specific + general), or 0 where both are 0.
    """
    total = specific + general
    if isinstance(total, torch.Tensor):
        return torch.where(total > 0, specific / total, torch.zeros_like(total))
    return specific / total if total > 0 else 0.0


@dataclass(frozen=True, eq=False)
class LayerNeurons:
    """Statistics and partition of one FFN of p neurons, over L languages.

    Attributes:
        name: Module name of the FFN in the base model.
        owner: int64 (p,); `GENERAL`, or the index of the language the neuron is specific to (eq. 5).
        awareness: float32 (L, p); Phi(i) for every language (eq. 3, 4).
        mean_gradient: float32 (L, p); mean over tokens of dL/dh_i.
        mean_abs_activation: float32 (L, p); mean over tokens of |h_i|.
    """

    name: str
    owner: torch.Tensor
    awareness: torch.Tensor
    mean_gradient: torch.Tensor
    mean_abs_activation: torch.Tensor

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LayerNeurons):
            return NotImplemented
        same = all(torch.equal(getattr(self, key), getattr(other, key)) for key in _TENSORS)
        return same and self.name == other.name

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class NeuronMap:
    """Which FFN layers and neurons matter to which language pairs.

    Made by [`detect_neurons`]; `save` and `load` keep it as one safetensors file.

    Attributes:
        languages: Language codes; the order of the L axis.
        pair_layers: For every pair, its relevant layers in ascending order (eq. 2).
        layer_changes: For every pair, D_i of every layer but the last (eq. 2); None for the last of an encoder.
        neurons: One entry per FFN of the base model; in an encoder-decoder, of both.
        width: Model width d.
        fingerprint: Identifies the base weights; see `peft_landermt.ffn.fingerprint`.
        signature: One line that tells how the map was made: base, data, options, version.
    """

    languages: tuple[str, ...]
    pair_layers: Mapping[str, tuple[int, ...]]
    layer_changes: Mapping[str, tuple[float | None, ...]]
    neurons: tuple[LayerNeurons, ...]
    width: int
    fingerprint: str | None
    signature: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def language_pairs(self) -> list[str]:
        return list(self.pair_layers)

    @property
    def num_layers(self) -> int:
        """Number of FFN layers of the base model."""
        return len(self.neurons)

    def layers(self, language_pair: str) -> list[int]:
        """Indices of the layers relevant to a pair, ascending (eq. 2)."""
        return list(self.pair_layers[self._pair(language_pair)])

    def general(self, layer: int) -> torch.Tensor:
        """Language-general neurons of a layer: int64 indices, ascending (eq. 5)."""
        return torch.nonzero(self._layer(layer).owner == GENERAL).flatten()

    def specific(self, layer: int, language: str) -> torch.Tensor:
        """Neurons of a layer that are specific to a language: int64 indices, ascending (eq. 5)."""
        index = self._language(language)
        return torch.nonzero(self._layer(layer).owner == index).flatten()

    def awareness_sums(self, layer: int, language_pair: str) -> tuple[float, float]:
        """Sums of Phi over the pair's specific and over the general neurons of a layer.

        Phi of a pair is the mean of Phi of its two languages.
        """
        pair = parse_pair(self._pair(language_pair))
        entry = self._layer(layer)
        rows = [self._language(language) for language in pair]
        phi = entry.awareness[rows].double().mean(dim=0)
        specific = (entry.owner == rows[0]) | (entry.owner == rows[1])
        return float(phi[specific].sum()), float(phi[entry.owner == GENERAL].sum())

    def car(self, layer: int, language_pair: str) -> float:
        """Conditional awareness of a pair in a layer (eq. 6)."""
        return conditional_awareness(*self.awareness_sums(layer, language_pair))

    def _pair(self, language_pair: str) -> str:
        pair = str(parse_pair(language_pair))
        if pair not in self.pair_layers:
            raise LanguagePairError("language_pair", pair, f"the neuron map holds {', '.join(self.pair_layers)}.")
        return pair

    def _language(self, language: str) -> int:
        if language not in self.languages:
            raise LanguagePairError("language", language, f"the neuron map holds {', '.join(self.languages)}.")
        return self.languages.index(language)

    def _layer(self, layer: int) -> LayerNeurons:
        if not 0 <= layer < len(self.neurons):
            raise NeuronMapError("layer", layer, f"the base model has FFN layers 0 to {len(self.neurons) - 1}.")
        return self.neurons[layer]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the map to one safetensors file; an existing file is replaced only when the new one is whole."""
        tensors = {}
        for index, entry in enumerate(self.neurons):
            for key in _TENSORS:
                tensor = getattr(entry, key)
                tensors[f"{index}.{key}"] = (tensor.to(torch.int32) if key == "owner" else tensor).contiguous()
        header = {
            "format": _FORMAT,
            "languages": self.languages,
            "pair_layers": self.pair_layers,
            "layer_changes": self.layer_changes,
            "names": [entry.name for entry in self.neurons],
            "width": self.width,
            "fingerprint": self.fingerprint,
            "signature": self.signature,
            "options": self.options,
        }
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        # one metadata entry, because safetensors writes several in any order; the order of the pairs is kept
        save_file(tensors, partial, {"neuron_map": json.dumps(header)})
        os.replace(partial, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> NeuronMap:
        """Read a map that `save` wrote.

        Raises:
            NeuronMapError: If the file is missing, truncated, not a neuron map or of a newer format.
        """
        if not os.path.isfile(path):
            raise NeuronMapError("path", str(path), "there is no such file; make one with detect_neurons(...).save().")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                header = json.loads(metadata.get("neuron_map", "{}"))
                if header.get("format") != _FORMAT:
                    raise NeuronMapError(
                        "path",
                        str(path),
                        f"expected a neuron map of format {_FORMAT}; update peft_landermt or detect again.",
                    )
                found = cls(
                    languages=tuple(header["languages"]),
                    pair_layers={pair: tuple(layers) for pair, layers in header["pair_layers"].items()},
                    layer_changes={pair: tuple(changes) for pair, changes in header["layer_changes"].items()},
                    neurons=tuple(_read_layer(file, index, name) for index, name in enumerate(header["names"])),
                    width=header["width"],
                    fingerprint=header["fingerprint"],
                    signature=header["signature"],
                    options=dict(header["options"]),
                )
                found._check_contents()
                return found
        except NeuronMapError:
            raise
        except (SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise NeuronMapError(
                "path", str(path), f"the file is damaged ({error!r}); detect again or copy it anew."
            ) from error

    def _check_contents(self) -> None:
        """Raise ValueError if layers, owners or statistics cannot be those of a model."""
        for pair, layers in self.pair_layers.items():
            parsed = parse_pair(pair)
            if not {parsed.source, parsed.target} <= set(self.languages):
                raise ValueError(f"{pair}: a language that the map does not have")
            if not layers or not all(isinstance(layer, int) and 0 <= layer < self.num_layers for layer in layers):
                raise ValueError(f"{pair}: layers {layers} of {self.num_layers}")
        for layer in self.neurons:
            if bool((layer.owner < GENERAL).any()) or bool((layer.owner >= len(self.languages)).any()):
                raise ValueError(f"{layer.name}: an owner that is no language")
            if layer.awareness.shape != (len(self.languages), len(layer.owner)):
                raise ValueError(f"{layer.name}: awareness of shape {tuple(layer.awareness.shape)}")
            if not bool(torch.isfinite(layer.awareness).all()):
                raise ValueError(f"{layer.name}: awareness is NaN or infinite")

    def for_pairs(self, language_pairs: Sequence[str] | None) -> list[LanguagePair]:
        """The chosen pairs, checked; all pairs of the map for None."""
        return [parse_pair(self._pair(pair)) for pair in (language_pairs or self.language_pairs)]


def _read_layer(file: Any, index: int, name: str) -> LayerNeurons:
    tensors = {key: file.get_tensor(f"{index}.{key}") for key in _TENSORS}
    tensors["owner"] = tensors["owner"].to(torch.int64)
    return LayerNeurons(name=name, **tensors)
