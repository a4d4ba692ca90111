"""The neuron map: all that detection hands to the tuner."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import torch

from .errors import LanguagePairError, NeuronMapError
from .language_pair import LanguagePair, parse_pair
from .neuron_map_checks import GENERAL, PARTS, check_neuron_map
from .neuron_pictures import page_part, plot, summary
from .tensor_file import load_tensors, save_tensors

_FORMAT = "1"
_ENTRY = "neuron_map"
_GRADIENTS = "gradients"
_TENSORS = ("owner", "awareness", "mean_gradient", "mean_abs_activation")
_HEADER: dict[str, type | tuple[type, ...]] = {
    "format": str,
    "languages": list,
    "pair_layers": dict,
    "layer_changes": dict,
    "names": list,
    "width": int,
    "fingerprint": (str, type(None)),
    "signature": str,
    "options": dict,
}
"""Fields of a file's header, and what they are in JSON."""


Number = TypeVar("Number", float, torch.Tensor)


def conditional_awareness(specific: Number, general: Number) -> Number:
    """Compute conditional awareness, CAR (eq. 6): the share of the specific neurons in the awareness of a pair.

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
    """Statistics and partition of one FFN of p neurons, over L languages; numbers of other types are converted.

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

    def __post_init__(self) -> None:
        for key in _TENSORS:
            kind = torch.int64 if key == "owner" else torch.float32
            object.__setattr__(self, key, torch.as_tensor(getattr(self, key)).to(kind))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LayerNeurons):
            return NotImplemented
        same = all(torch.equal(getattr(self, key), getattr(other, key)) for key in _TENSORS)
        return same and self.name == other.name

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, eq=False, repr=False)
class NeuronMap:
    """Which FFN layers and neurons matter to which language pairs.

    Made by [`detect_neurons`]; `save` and `load` keep it as one safetensors file. A map that contradicts itself cannot
    be made: the constructor raises [`NeuronMapError`]. Methods raise it for a layer that the base model has not, and
    [`LanguagePairError`] for a pair or language that the map does not hold.

    Attributes:
        languages: Language codes; the order of the L axis.
        pair_layers: For every pair, its relevant layers in ascending order (eq. 2).
        layer_changes: For every pair, D_i of every layer but the last (eq. 2); None for the last of an encoder.
        neurons: One entry per FFN of the base model; in an encoder-decoder, of both.
        width: Model width d.
        fingerprint: Identifies the base weights; see `peft_landermt.fingerprint.fingerprint`.
        signature: One line that tells how the map was made: base, data, options, version.
        gradients: float32 (L, layers, parts), with `layer_statistic="gradient"`: how strongly sentences of a language
            pull at the parts of a layer, q, k, v, o, input and output projections of the FFN. It is the squared norm
            of the gradient of a sentence's loss by the weight, for each number that factors of rank one have there.
    """

    languages: tuple[str, ...]
    pair_layers: Mapping[str, tuple[int, ...]]
    layer_changes: Mapping[str, tuple[float | None, ...]]
    neurons: tuple[LayerNeurons, ...]
    width: int
    fingerprint: str | None
    signature: str
    options: Mapping[str, Any] = field(default_factory=dict)
    gradients: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.gradients is not None:
            object.__setattr__(self, "gradients", torch.as_tensor(self.gradients).to(torch.float32))
        check_neuron_map(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NeuronMap):
            return NotImplemented
        names = [item.name for item in fields(self) if item.name != "gradients"]
        if any(getattr(self, name) != getattr(other, name) for name in names):
            return False
        if self.gradients is None or other.gradients is None:
            return self.gradients is other.gradients
        return torch.equal(self.gradients, other.gradients)

    __hash__ = None  # type: ignore[assignment]

    @property
    def language_pairs(self) -> list[str]:
        """The pairs that layers were found for."""
        return list(self.pair_layers)

    @property
    def num_layers(self) -> int:
        """Number of FFN layers of the base model."""
        return len(self.neurons)

    def layers(self, language_pair: str) -> list[int]:
        """Return the indices of the layers relevant to a pair, ascending (eq. 2)."""
        return list(self.pair_layers[self._pair(language_pair)])

    def general(self, layer: int) -> torch.Tensor:
        """Return the language-general neurons of a layer: int64 indices, ascending (eq. 5)."""
        return torch.nonzero(self._layer(layer).owner == GENERAL).flatten()

    def specific(self, layer: int, language: str) -> torch.Tensor:
        """Return the neurons of a layer that are specific to a language: int64 indices, ascending (eq. 5)."""
        index = self._language(language)
        return torch.nonzero(self._layer(layer).owner == index).flatten()

    def awareness_sums(self, layer: int, language_pair: str) -> tuple[float, float]:
        """Sum Phi over the pair's specific and over the general neurons of a layer.

        Phi of a pair is the mean of Phi of its two languages.
        """
        return self.awareness_between(layer, *parse_pair(self._pair(language_pair)))

    def awareness_between(self, layer: int, source: str, target: str) -> tuple[float, float]:
        """Return what `awareness_sums` does, for any two languages of the map."""
        pair = (source, target)
        entry = self._layer(layer)
        rows = [self._language(language) for language in pair]
        phi = entry.awareness[rows].double().mean(dim=0)
        specific = (entry.owner == rows[0]) | (entry.owner == rows[1])
        return float(phi[specific].sum()), float(phi[entry.owner == GENERAL].sum())

    def parts(self, language_pair: str) -> dict[str, float]:
        """Tell which parts of the model matter to a pair: the mean of `gradients` over its languages and all layers,
        the largest first.

        Raises:
            NeuronMapError: The map was detected without gradients.
        """
        pair = parse_pair(self._pair(language_pair))
        if self.gradients is None:
            raise NeuronMapError("gradients", None, 'detect with layer_statistic="gradient" to have them.')
        means = self.gradients[[self._language(language) for language in pair]].double().mean(dim=(0, 1)).tolist()
        found = {part: mean for part, mean in zip(PARTS, means, strict=True) if mean > 0}
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def car(self, layer: int, language_pair: str) -> float:
        """Compute the conditional awareness of a pair in a layer (eq. 6)."""
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

    def __repr__(self) -> str:
        return summary(self)

    def _repr_html_(self) -> str:
        return page_part(self)

    def plot(self, axes: Any = None) -> Any:
        """Draw the owners of all neurons, layers by neurons, a colour for each language; extra `report`.

        Args:
            axes: matplotlib's axes to draw into; those of a new figure by default.

        Returns:
            The axes; `.figure.savefig("map.png")` writes the picture.

        Raises:
            ConfigError: matplotlib is not installed.
        """
        return plot(self, axes)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the map to one safetensors file; an existing file is replaced only when the new one is whole.

        Raises:
            OSError: The file cannot be written.
        """
        tensors = {}
        for index, entry in enumerate(self.neurons):
            for key in _TENSORS:
                tensor = getattr(entry, key)
                tensors[f"{index}.{key}"] = tensor.to(torch.int32) if key == "owner" else tensor
        if self.gradients is not None:
            tensors[_GRADIENTS] = self.gradients
        kept = ("neurons", _GRADIENTS)
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in kept}
        header = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
        names = [entry.name for entry in self.neurons]
        save_tensors(path, _ENTRY, {"format": _FORMAT, **header, "names": names}, tensors)

    @classmethod
    def load(cls, path: str | os.PathLike[str], verify: bool = True) -> NeuronMap:
        """Read a map that `save` wrote.

        Args:
            path: The file.
            verify: Whether a file is refused that was changed after it was written, as its digest tells.

        Raises:
            NeuronMapError: The file is missing, damaged, changed, no neuron map, or of a newer format.
        """
        if not os.path.isfile(path):
            raise NeuronMapError("path", str(path), "there is no such file; make one with detect_neurons(...).save().")
        try:
            header, tensors, signed = load_tensors(path, _ENTRY, _tensor_names)
            found = cls._from_file(header, tensors)
        except ValueError as error:
            raise NeuronMapError(
                "path", str(path), f"the file is damaged, or no neuron map ({str(error)[:400]}); detect again."
            ) from error
        if signed is False and verify:
            raise NeuronMapError(
                "path",
                str(path),
                "the file was changed after it was written; detect again or copy it anew. "
                "NeuronMap.load(path, verify=False) reads it all the same.",
            )
        if signed is None:
            warnings.warn(f"{path} has no digest, so changes cannot be told; save the map anew.", stacklevel=2)
        return found

    @classmethod
    def _from_file(cls, header: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> NeuronMap:
        neurons = []
        for index, name in enumerate(header["names"]):
            values = {key: tensors[f"{index}.{key}"] for key in _TENSORS}
            for key, tensor in values.items():
                if tensor.dtype != (torch.int32 if key == "owner" else torch.float32):
                    raise ValueError(f"{index}.{key} is of type {tensor.dtype}")
            neurons.append(LayerNeurons(name=name, **values))
        return cls(
            languages=tuple(header["languages"]),
            pair_layers={pair: tuple(layers) for pair, layers in header["pair_layers"].items()},
            layer_changes={pair: tuple(changes) for pair, changes in header["layer_changes"].items()},
            neurons=tuple(neurons),
            width=header["width"],
            fingerprint=header["fingerprint"],
            signature=header["signature"],
            options=header["options"],
            gradients=tensors.get(_GRADIENTS),
        )

    def for_pairs(self, language_pairs: Sequence[str] | None) -> list[LanguagePair]:
        """Check the chosen pairs, and return them: all pairs of the map for None."""
        return [parse_pair(self._pair(pair)) for pair in (language_pairs or self.language_pairs)]


def _tensor_names(header: Any) -> set[str]:
    """Names of the tensors of a file with this header, whose fields are checked."""
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise ValueError(f"expected a neuron map of format {_FORMAT}; update peft_landermt or detect again")
    fields_differ = {key for key in header if key != "digest"} ^ _HEADER.keys()
    if fields_differ:
        raise ValueError(f"its header lacks, or should not have, {min(fields_differ)!r}")
    for key, kind in _HEADER.items():
        if not isinstance(header[key], kind):
            raise ValueError(f"{key} is a {type(header[key]).__name__} in its header")
    lists = [*header["pair_layers"].values(), *header["layer_changes"].values()]
    if not all(isinstance(values, list) for values in lists):
        raise ValueError("a pair has no list of layers or changes in its header")
    names = {f"{index}.{key}" for index in range(len(header["names"])) for key in _TENSORS}
    return names | ({_GRADIENTS} if header["options"].get("layer_statistic") == "gradient" else set())
