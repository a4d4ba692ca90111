"""Detection from end to end: which layers and neurons matter to which language pairs (section 3 of the paper)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from ..choices import ActivationStatistic, LayerStatistic
from ..errors import DetectionError
from ..ffn import FFN
from ..fingerprint import fingerprint
from ..language_pair import parse_pairs
from ..neuron_map import NeuronMap
from ..neuron_map_checks import PARTS
from ..padding import IGNORED
from ..processes import Result, check_started, same_everywhere, shared
from ..progress import progress_bar
from ..seq2seq import is_encoder_decoder
from .awareness import sum_over_tokens
from .batches import Batch, Batcher
from .checks import check_all_seen, check_finite, check_model, check_options, check_sentences
from .extension import check_extension, extended, layout_of, partition_layer, read_map
from .gradients import WeightGradients
from .layers import (
    changes_in_stacks,
    layers_by_gradient,
    layers_in_stacks,
    mean_activation,
    number_of_layers,
)
from .partition import check_general_ratio
from .passes import accepts_logits_to_keep, frozen, tap_activations
from .signature import signature


@torch.inference_mode(False)
def detect_neurons(
    model: nn.Module,
    tokenizer: Any,
    sentences: Mapping[str, Sequence[str]],
    language_pairs: Sequence[str],
    num_layers: int | Literal["all"] = 4,
    general_ratio: float = 0.9,
    batch_size: int = 8,
    max_length: int = 256,
    activation_statistic: ActivationStatistic = "mean",
    normalize_awareness: bool = True,
    progress: bool = True,
    ffn_layout: Mapping[str, Any] | None = None,
    distributed: bool = False,
    extends: NeuronMap | str | os.PathLike[str] | None = None,
    layer_statistic: LayerStatistic = "activation",
) -> NeuronMap:
    """Find the layers and neurons of every language pair (eq. 1 to 5).

    Every batch of sentences takes one forward and one backward pass, every batch of prompts one forward pass; each
    serves all layers and all neurons. An encoder-decoder reads translations instead: encoder FFNs are scored for the
    source language, decoder FFNs for the target language. No weight gets a gradient. The model comes back as it was,
    also after an error.

    Args:
        model: A transformers model with its language-model head, decoder-only or encoder-decoder, without adapters.
        tokenizer: Its tokenizer.
        sentences: For every language, calibration sentences; multi-way parallel: sentence n says the same everywhere.
        language_pairs: Directions such as `["en-de", "de-en"]`; their languages must be in `sentences`.
        num_layers: k, number of relevant layers of a pair; in an encoder-decoder, k of each. 4 is the paper's, of 30.
            `"all"` leaves none out: it costs time and size, and where there is more to learn than from a hundred rows
            a direction, four are behind it (`docs/options.md`).
        general_ratio: epsilon, fraction of a layer's neurons that is language-general.
        batch_size: Sentences per pass. The result does not depend on it, up to rounding.
        max_length: Tokens after which a sentence or prompt is cut.
        activation_statistic: `"mean"` of h (the paper), or `"mean_abs"`, for eq. 1.
        normalize_awareness: Whether Phi of every language is scaled to sum 1 per layer before eq. 5; the paper does
            not, but then a language with larger gradients owns most specific neurons.
        progress: Whether to show a progress bar.
        ffn_layout: Names of the projections of FFNs that are not recognised, such as
            `{"inputs": ["w1", "w3"], "output": "w2"}`; the map hands it to `LanderConfig`.
        distributed: Whether the processes of torch.distributed share the passes; then each must call this, with the
            same arguments. The map is that of one process, bit for bit.
        extends: A map, or the path of one, of the same model, to which languages and pairs are added. What it says of
            its own languages and pairs stays as it is: statistics, layers, and the owner of every specific neuron. New
            languages get the neurons that eq. 5 gives them over all languages, where these were general. `sentences`
            needs the languages of the new pairs only.
        layer_statistic: What a pair's layers are chosen by: `"activation"`, the change of mean activations (eq. 1 and
            2, the paper), or `"gradient"`, how strongly sentences of its languages pull at the FFN's weights. Then the
            map also tells which parts of the model matter to a pair, `NeuronMap.parts`.

    Returns:
        The neuron map, on the CPU.

    Raises:
        LanguagePairError: A code is malformed, or a pair's language has no sentences.
        CorpusError: Numbers of sentences differ, or a sentence is empty.
        DetectionError: An option is out of range, or a statistic is NaN or infinite; or the map that is extended
            holds all pairs, or was normalized otherwise.
        NeuronMapError: The map that is extended is of another model.
        ArchitectureError: The model has no FFN that is recognised or named, or has adapters, or no language-model
            head; layers share an FFN, or its weights are split over processes or not loaded.
    """
    pairs = parse_pairs(language_pairs)
    check_sentences(sentences, pairs)
    check_options(activation_statistic, batch_size, max_length, layer_statistic)
    check_general_ratio(general_ratio)
    earlier = read_map(extends)
    layout = layout_of(earlier, ffn_layout)
    ffns = check_model(model, layout)
    stacks = _stacks(model, ffns)
    num_layers = number_of_layers(num_layers, stacks)
    if earlier is not None:
        check_extension(earlier, model, ffns, layout, pairs, normalize_awareness, layer_statistic)
        pairs = [pair for pair in pairs if str(pair) not in earlier.pair_layers]

    texts = {language: list(sentences[language]) for language in sentences}
    held = earlier.languages if earlier is not None else ()
    new = [language for language in texts if language not in held]
    batcher = Batcher(model, tokenizer, batch_size, max_length)
    # an encoder-decoder reads translations between all of them
    batches = batcher.of_sentences(texts if is_encoder_decoder(model) else {each: texts[each] for each in new})
    pair_batches = {pair: batcher.of_pair(texts, pair) for pair in pairs}
    options = {
        "num_layers": num_layers,
        "general_ratio": general_ratio,
        "activation_statistic": activation_statistic,
        "normalize_awareness": normalize_awareness,
        "max_length": max_length,
        "num_sentences": len(next(iter(texts.values()))),
        "ffn_layout": None if layout is None else layout.to_dict(),
        **({} if earlier is None else {"extends": earlier.signature}),
        **({} if layer_statistic == "activation" else {"layer_statistic": layer_statistic}),
    }
    if distributed:
        check_started(DetectionError)
        if not same_everywhere((texts, pairs, options, batch_size)):
            remedy = "the processes differ in sentences, pairs or options; call detect_neurons with the same in each."
            raise DetectionError("distributed", True, remedy)
    total = len(batches) + sum(map(len, pair_batches.values()))
    with frozen(model), progress_bar(total, "Detecting neurons", progress) as bar:

        def passes(chosen: list[Batch], work: Callable[[Batch], Result]) -> Iterator[Result]:
            for result in shared(chosen, work, distributed):
                bar.update()
                yield result

        read = partial(_pair_activations, model, ffns, stacks, statistic=activation_statistic)
        activations = {pair: torch.cat(list(passes(pair_batches[pair], read)), dim=1) for pair in pairs}
        weights = WeightGradients(model, ffns, stacks) if layer_statistic == "gradient" else None
        score = partial(_awareness_sums, model, ffns, stacks, weights)
        scored = zip(batches, passes(batches, score), strict=True)
        sums = _language_means(stacks, batches, (_counted(weights, *found) for found in scored))

    changes = {pair: changes_in_stacks(activations[pair], stacks) for pair in pairs}
    check_finite(activations, sums, ffns)
    neurons = tuple(
        partition_layer(
            ffn.name,
            [sums[language][index] for language in new],
            general_ratio,
            normalize_awareness,
            None if earlier is None else earlier.neurons[index],
        )
        for index, ffn in enumerate(ffns)
    )
    base = fingerprint(model, layout)
    gradients = None if weights is None else extended(earlier, weights.means(new))
    layers = {str(pair): layers_in_stacks(changes[pair], stacks, num_layers) for pair in pairs}
    if gradients is not None:
        indices = {pair: [[*held, *new].index(language) for language in pair] for pair in pairs}
        layers = {str(pair): layers_by_gradient(gradients, indices[pair], stacks, num_layers) for pair in pairs}
    layer_changes = {str(pair): changes[pair] for pair in pairs}
    return NeuronMap(
        languages=(*held, *new),
        pair_layers=layers if earlier is None else {**earlier.pair_layers, **layers},
        layer_changes=layer_changes if earlier is None else {**earlier.layer_changes, **layer_changes},
        neurons=neurons,
        width=ffns[0].width,
        fingerprint=base,
        signature=signature(model, base, (*held, *new), texts, options),
        options=options,
        gradients=gradients,
    )


def _stacks(model: nn.Module, ffns: list[FFN]) -> list[str]:
    """For every FFN, `decoder` or `encoder`."""
    inside = set(model.get_encoder().modules()) if is_encoder_decoder(model) else set()  # type: ignore[operator]
    return ["encoder" if ffn.module in inside else "decoder" for ffn in ffns]


def _pair_activations(
    model: nn.Module, ffns: list[FFN], stacks: list[str], batch: Batch, statistic: ActivationStatistic
) -> torch.Tensor:
    """A_{i,n} for the translations of a batch (eq. 1): (layers, B)."""
    collected: list[list[torch.Tensor]] = [[] for _ in ffns]

    def collect(layer: int, hidden: torch.Tensor) -> None:
        mask = batch.masks[stacks[layer]]
        shaped = hidden.reshape(*mask.shape, hidden.shape[-1])
        collected[layer].append(mean_activation(shaped, mask.to(hidden.device), statistic).cpu())

    extra = {"logits_to_keep": 1} if accepts_logits_to_keep(model) else {}
    with torch.no_grad(), tap_activations(ffns, collect):
        model(**batch.inputs, use_cache=False, **extra)
    check_all_seen(ffns, collected)
    return torch.stack([rows for (rows,) in collected])


def _awareness_sums(
    model: nn.Module, ffns: list[FFN], stacks: list[str], weights: WeightGradients | None, batch: Batch
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """`sum_over_tokens` of every layer, (3, p), and what `weights` finds, on the CPU; from one forward and backward
    pass.

    L is the loss summed over all predicted tokens, so that dividing at the end makes the result independent of the
    batches.
    """
    collected: list[list[torch.Tensor]] = [[] for _ in ffns]

    def collect(layer: int, hidden: torch.Tensor) -> None:
        mask, activation = batch.masks[stacks[layer]].to(hidden.device), hidden.detach()
        sums = hidden.new_zeros(3, hidden.shape[-1], dtype=torch.float32)
        collected[layer].append(sums)

        def add(gradient: torch.Tensor) -> None:
            sums.copy_(sum_over_tokens(activation, gradient, mask))

        hidden.register_hook(add)

    found = torch.zeros(len(ffns), len(PARTS), len(batch.labels))
    tapped = weights.tapped(batch, found) if weights is not None else nullcontext()
    with torch.enable_grad(), tap_activations(ffns, collect), tapped:
        logits = model(**batch.inputs, use_cache=False).logits
        F.cross_entropy(
            logits.float().flatten(0, 1),
            batch.labels.flatten().to(logits.device),
            ignore_index=IGNORED,
            reduction="sum",
        ).backward()
    check_all_seen(ffns, collected)
    return [sums.cpu() for (sums,) in collected], found


def _counted(
    weights: WeightGradients | None, batch: Batch, found: tuple[list[torch.Tensor], torch.Tensor]
) -> list[torch.Tensor]:
    """What `_awareness_sums` found of activations; what it found of weights is counted."""
    if weights is not None:
        weights.add(batch, found[1])
    return found[0]


LanguageStatistics = dict[str, list[torch.Tensor]]
"""For every language, per layer: means over its tokens of Phi (eq. 4), dL/dh and |h|: (3, p)."""


def _language_means(stacks: list[str], batches: list[Batch], sums: Iterable[list[torch.Tensor]]) -> LanguageStatistics:
    """Statistics of every language from the sums of its batches.

    L is the mean loss over all tokens predicted from a language's sentences (in an encoder) or in them (in a decoder).
    """
    totals: dict[tuple[str, int], torch.Tensor] = {}
    tokens: Counter[tuple[str, str]] = Counter()
    predicted: Counter[tuple[str, str]] = Counter()
    for batch, layers in zip(batches, sums, strict=True):
        for layer, found in enumerate(layers):
            key = (batch.languages[stacks[layer]], layer)
            totals[key] = totals[key].add_(found) if key in totals else found
        for stack, language in batch.languages.items():
            tokens[language, stack] += int(batch.masks[stack].sum())
            predicted[language, stack] += batch.num_predicted

    def means(language: str, layer: int) -> torch.Tensor:
        key = (language, stacks[layer])
        scale = torch.tensor([predicted[key] * tokens[key], predicted[key] * tokens[key], tokens[key]])
        return totals[language, layer] / scale.unsqueeze(1)

    languages = dict.fromkeys(language for language, _ in totals)
    return {language: [means(language, layer) for layer in range(len(stacks))] for language in languages}
