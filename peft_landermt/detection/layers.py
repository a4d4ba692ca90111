"""Language-pair-relevant layers by representation analysis (eq. 1, 2)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch

from ..choices import ActivationStatistic
from ..errors import DetectionError
from ..neuron_map import NeuronMap
from ..neuron_map_checks import PARTS


def mean_activation(
    hidden: torch.Tensor, attention_mask: torch.Tensor, statistic: ActivationStatistic = "mean"
) -> torch.Tensor:
    """Compute A_{i,n}, the mean activation of one FFN layer in every forward pass of a batch (eq. 1).

    Args:
        hidden: (B, T, p); activations h that enter the output projection, one prompt per row.
        attention_mask: (B, T); 1 for tokens, 0 for padding.
        statistic: `"mean"` of h, or `"mean_abs"` of |h|.

    Returns:
        float32 (B,): mean over the prompt's tokens and over the p neurons.
    """
    values = hidden.float()
    if statistic == "mean_abs":
        values = values.abs()
    mask = attention_mask.to(values.dtype)
    return (values.mean(dim=-1) * mask).sum(dim=-1) / mask.sum(dim=-1)


def layer_changes(activations: torch.Tensor) -> torch.Tensor:
    """Compute D_i = | mean_n A_{i,n} - mean_n A_{i+1,n} | (eq. 2).

    Args:
        activations: (layers, N); A_{i,n} over N prompts.

    Returns:
        (layers - 1,): D_i for every layer that has a successor.
    """
    means = activations.double().mean(dim=1)
    return (means[:-1] - means[1:]).abs()


def relevant_layers(changes: torch.Tensor, num_layers: int) -> list[int]:
    """Return the `num_layers` layers i with the largest D_i, ascending; ties go to the lower layer (eq. 2).

    The last layer has no D_i; it comes last, so that `num_layers` equal to the model's selects every layer.
    """
    order = torch.sort(changes, descending=True, stable=True).indices.tolist()
    return sorted([*order, changes.shape[0]][:num_layers])


def changes_in_stacks(activations: torch.Tensor, stacks: Sequence[str]) -> tuple[float | None, ...]:
    """Compute D_i (eq. 2) of every FFN but the model's last; None for one without a successor in its stack.

    Args:
        activations: (layers, N); A_{i,n} over N prompts.
        stacks: For every layer, the stack that it is in.
    """
    found: list[float | None] = [None] * len(stacks)
    for indices in _by_stack(stacks):
        for index, change in zip(indices, layer_changes(activations[indices]).tolist(), strict=False):
            found[index] = change
    return tuple(found[:-1])


def layers_in_stacks(changes: Sequence[float | None], stacks: Sequence[str], num_layers: int) -> tuple[int, ...]:
    """Return the relevant layers of every stack, ascending (eq. 2), from the changes of all layers."""
    chosen = [
        indices[place]
        for indices in _by_stack(stacks)
        for place in relevant_layers(
            torch.tensor([changes[index] for index in indices[:-1]], dtype=torch.float64), num_layers
        )
    ]
    return tuple(sorted(chosen))


def _by_stack(stacks: Sequence[str]) -> list[list[int]]:
    return [[index for index, of in enumerate(stacks) if of == stack] for stack in dict.fromkeys(stacks)]


def layers_by_gradient(
    gradients: torch.Tensor, languages: Sequence[int], stacks: Sequence[str], num_layers: int
) -> tuple[int, ...]:
    """Return the layers of every stack at whose FFNs a pair's languages pull most, ascending. This is not the paper's.

    Args:
        gradients: (L, layers, parts), as `NeuronMap.gradients`.
        languages: Indices of the pair's languages.
        stacks: For every layer, the stack that it is in.
        num_layers: k, for each stack.
    """
    pulls = gradients[list(languages)][:, :, [PARTS.index("input"), PARTS.index("output")]].double().sum(dim=(0, 2))
    chosen = [
        indices[place]
        for indices in _by_stack(stacks)
        for place in torch.sort(pulls[indices], descending=True, stable=True).indices[:num_layers].tolist()
    ]
    return tuple(sorted(chosen))


def select_layers(neuron_map: NeuronMap, num_layers: int | Literal["all"]) -> NeuronMap:
    """Make the map that detection would have made with another number of relevant layers, without detecting again.

    Args:
        neuron_map: A map; it is left as it is.
        num_layers: k, number of relevant layers of a pair, or `"all"`; in an encoder-decoder, k of each stack (eq. 2).

    Returns:
        A map that differs in the pairs' layers, the option and the signature.

    Raises:
        DetectionError: k is not a positive integer, or a stack has fewer layers.
    """
    # a layer without a change is the last of its stack
    ends = [change is None for change in next(iter(neuron_map.layer_changes.values()))]
    stacks = [str(sum(ends[:index])) for index in range(neuron_map.num_layers)]
    num_layers = number_of_layers(num_layers, stacks)
    chosen = {}
    for pair, changes in neuron_map.layer_changes.items():
        if neuron_map.options.get("layer_statistic", "activation") == "gradient" and neuron_map.gradients is not None:
            spoken = [neuron_map.languages.index(language) for language in pair.split("-")]
            chosen[pair] = layers_by_gradient(neuron_map.gradients, spoken, stacks, num_layers)
        else:
            chosen[pair] = layers_in_stacks(changes, stacks, num_layers)
    return replace(
        neuron_map,
        pair_layers=chosen,
        options={**neuron_map.options, "num_layers": num_layers},
        signature=re.sub(r"\|layers:\d+\|", f"|layers:{num_layers}|", neuron_map.signature),
    )


def number_of_layers(num_layers: int | Literal["all"], stacks: Sequence[str]) -> int:
    """Return k if each stack has that many FFN layers; for `"all"`, the number of the longest one's.

    Args:
        num_layers: k or `"all"`.
        stacks: For every layer, the stack that it is in.

    Raises:
        DetectionError: If some stack has fewer, or k is neither `"all"` nor a positive integer.
    """
    if num_layers == "all":
        return max(map(stacks.count, stacks))
    available = min(map(stacks.count, stacks))
    if not isinstance(num_layers, int) or isinstance(num_layers, bool) or not 1 <= num_layers <= available:
        remedy = f"must be an integer from 1 to {available}, the model's FFN layers, or 'all'."
        raise DetectionError("num_layers", num_layers, remedy)
    return num_layers
