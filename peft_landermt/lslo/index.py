"""By which language a layer's factors are chosen: the source language, the target language, or what is learned."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import NamedTuple

import torch

from ..errors import ArchitectureError, ConfigError

SIDES: Mapping[str, tuple[int, ...]] = {"source": (0,), "target": (1,), "learned": (0, 1)}
"""Which languages of a pair a layer takes factors of, by word: 0 for the source, 1 for the target."""
STACKS = ("encoder", "decoder")

Index = str | list[str] | dict[str, list[str]]
"""A word for all layers, a word for each layer, or that for each stack of an encoder-decoder."""


class Position(NamedTuple):
    """Where a module lies: its stack, `"decoder"` in a decoder-only model, and the number of its layer there."""

    stack: str
    layer: int


def position_of(name: str, two_stacks: bool) -> Position | None:
    """Tell where a module lies by its name: `model.encoder.layers.3.fc1` in layer 3 of the encoder.

    Args:
        name: Its name in the base model.
        two_stacks: Whether the model is an encoder-decoder.

    Returns:
        None for a module outside of all numbered layers.
    """
    segments = name.split(".")
    number = next((index for index, segment in enumerate(segments) if segment.isdigit()), None)
    if number is None:
        return None
    stack = next((each for each in STACKS if each in segments[:number]), None) if two_stacks else "decoder"
    return None if stack is None else Position(stack, int(segments[number]))


def count_layers(names: Iterable[str], two_stacks: bool) -> dict[str, int]:
    """Count the layers of every stack that modules of these names lie in.

    Raises:
        ArchitectureError: There are none, or a stack of an encoder-decoder has none.
    """
    found: dict[str, int] = defaultdict(int)
    for name in names:
        if (place := position_of(name, two_stacks)) is not None:
            found[place.stack] = max(found[place.stack], place.layer + 1)
    wanted = STACKS if two_stacks else ("decoder",)
    if missing := [stack for stack in wanted if stack not in found]:
        raise ArchitectureError(
            "model", missing, "no linear layer lies in a numbered layer of it; LSLo tells layers by their numbers."
        )
    return {stack: found[stack] for stack in wanted}


def written_out(index: Index | None, layers: Mapping[str, int]) -> Index:
    """Write a word for each layer.

    Args:
        index: As in [`LsloConfig`]. None: in an encoder-decoder the source for the lower three quarters of the encoder
            and the target above and in the decoder, which is what the paper found; else the target.
        layers: Number of layers of every stack.

    Returns:
        A list, or a list for each stack of an encoder-decoder.

    Raises:
        ConfigError: It names other stacks, or other numbers of layers, than the model has.
    """
    if index is None or isinstance(index, str):
        words = {stack: [index or "target"] * count for stack, count in layers.items()}
        if index is None and "encoder" in layers:
            lower = layers["encoder"] * 3 // 4
            words["encoder"][:lower] = ["source"] * lower
    else:
        words = dict(index) if isinstance(index, dict) else {"decoder": list(index)}
    sizes = {stack: len(each) for stack, each in words.items()}
    if sizes != dict(layers):
        raise ConfigError("index", sizes, f"the model has {dict(layers)} layers; give a word for each.")
    return words if "encoder" in layers else words["decoder"]


def word_of(index: Index, place: Position) -> str:
    """Look up the word of a layer in an index that is written out."""
    words = index[place.stack] if isinstance(index, dict) else index
    return words[place.layer]


def words_in(index: Index | None) -> set[str]:
    """List the words that occur; without an index, those that may."""
    if index is None:
        return {"source", "target"}
    if isinstance(index, str):
        return {index}
    lists = index.values() if isinstance(index, dict) else [index]
    return {word for each in lists for word in each}


def in_words(index: Index | None) -> str:
    """Put an index into few words: `encoder: source 0-8, target 9-11`."""
    if index is None or isinstance(index, str):
        return index or "default"
    parts = []
    for stack, words in index.items() if isinstance(index, dict) else [("", index)]:
        runs, start = [], 0
        for word, group in groupby(words):
            end = start + len(list(group))
            runs.append(f"{word} {start}-{end - 1}" if end - start > 1 else f"{word} {start}")
            start = end
        parts.append(f"{stack}: {', '.join(runs)}" if stack else ", ".join(runs))
    return "; ".join(parts)


def mean_weights(logits: Iterable[tuple[str, torch.Tensor]], two_stacks: bool) -> dict[str, list[tuple[float, float]]]:
    """Average the weights (source, target) of the modules of every layer, for each stack.

    Args:
        logits: Names of modules, and their logits (2,).
        two_stacks: Whether they are of an encoder-decoder.
    """
    found: dict[Position, list[torch.Tensor]] = defaultdict(list)
    for name, values in logits:
        place = position_of(name, two_stacks)
        assert place is not None
        found[place].append(values.float().softmax(dim=0).cpu())
    weights: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for place in sorted(found, key=lambda each: (STACKS.index(each.stack), each.layer)):
        source, target = torch.stack(found[place]).mean(dim=0).tolist()
        weights[place.stack].append((source, target))
    return dict(weights)
