"""Detection from end to end: which layers and neurons matter to which language pairs (section 3 of the paper)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from tqdm.auto import tqdm

from ..errors import ArchitectureError, CorpusError, DetectionError, LanguagePairError
from ..ffn import FFN, find_ffns, fingerprint
from ..language_pair import TRANSLATION_PROMPT, LanguagePair, check_language, format_prompt, parse_pairs
from ..neuron_map import LayerNeurons, NeuronMap
from ..version import __version__
from .awareness import AwarenessSum, normalize
from .layers import ActivationStatistic, check_num_layers, layer_changes, mean_activation, relevant_layers
from .partition import check_general_ratio, partition
from .passes import Batch, accepts_logits_to_keep, frozen, make_batches, tap_activations


@torch.inference_mode(False)
def detect_neurons(
    model: nn.Module,
    tokenizer: Any,
    sentences: Mapping[str, Sequence[str]],
    language_pairs: Sequence[str],
    num_layers: int = 4,
    general_ratio: float = 0.9,
    batch_size: int = 8,
    max_length: int = 256,
    activation_statistic: ActivationStatistic = "mean",
    normalize_awareness: bool = True,
    progress: bool = True,
) -> NeuronMap:
    """Find the layers and neurons of every language pair (eq. 1 to 5).

    Every batch of sentences takes one forward and one backward pass, every batch of prompts one forward pass; each
    serves all layers and all neurons. No weight gets a gradient. The model comes back as it was, also after an error.

    Args:
        model: A decoder-only transformers model with its language-model head, without adapters.
        tokenizer: Its tokenizer.
        sentences: For every language, calibration sentences; multi-way parallel: sentence n says the same everywhere.
        language_pairs: Directions such as `["en-de", "de-en"]`; their languages must be in `sentences`.
        num_layers: k, number of relevant layers of a pair.
        general_ratio: epsilon, fraction of a layer's neurons that is language-general.
        batch_size: Sentences per pass. The result does not depend on it, up to rounding.
        max_length: Tokens after which a sentence or prompt is cut.
        activation_statistic: `"mean"` of h (the paper), or `"mean_abs"`, for eq. 1.
        normalize_awareness: Whether Phi of every language is scaled to sum 1 per layer before eq. 5; the paper does
            not, but then a language with larger gradients owns most specific neurons.
        progress: Whether to show a progress bar.

    Returns:
        The neuron map, on the CPU.

    Raises:
        LanguagePairError: A code is malformed, or a pair's language has no sentences.
        CorpusError: Numbers of sentences differ, or a sentence is empty.
        DetectionError: An option is out of range, or a statistic is NaN or infinite.
        ArchitectureError: The model has no recognisable FFN, has adapters, or no language-model head.
    """
    pairs = parse_pairs(language_pairs)
    _check_sentences(sentences, pairs)
    _check_options(activation_statistic, batch_size, max_length)
    check_general_ratio(general_ratio)
    ffns = _check_model(model)
    check_num_layers(num_layers, len(ffns))

    device = model.get_input_embeddings().weight.device  # type: ignore[operator, union-attr]
    texts = {language: list(sentences[language]) for language in sentences}
    prompts = {pair: [format_prompt(TRANSLATION_PROMPT, text, pair) for text in texts[pair.source]] for pair in pairs}
    batches = {key: make_batches(tokenizer, value, batch_size, max_length, device) for key, value in texts.items()}
    prompt_batches = {
        key: make_batches(tokenizer, value, batch_size, max_length, device) for key, value in prompts.items()
    }
    total = sum(map(len, batches.values())) + sum(map(len, prompt_batches.values()))
    with frozen(model), tqdm(total=total, desc="Detecting neurons", disable=not progress) as bar:
        changes = {
            pair: layer_changes(_prompt_activations(model, ffns, prompt_batches[pair], activation_statistic, bar))
            for pair in pairs
        }
        sums = {language: _sentence_awareness(model, ffns, batches[language], bar) for language in batches}

    _check_finite(changes, sums, ffns)
    neurons = tuple(
        _partition_layer(ffn.name, [sums[language][index] for language in sums], general_ratio, normalize_awareness)
        for index, ffn in enumerate(ffns)
    )
    options = {
        "num_layers": num_layers,
        "general_ratio": general_ratio,
        "activation_statistic": activation_statistic,
        "normalize_awareness": normalize_awareness,
        "max_length": max_length,
        "num_sentences": len(next(iter(texts.values()))),
    }
    base = fingerprint(model)
    return NeuronMap(
        languages=tuple(texts),
        pair_layers={str(pair): tuple(relevant_layers(change, num_layers)) for pair, change in changes.items()},
        layer_changes={str(pair): tuple(change.tolist()) for pair, change in changes.items()},
        neurons=neurons,
        width=ffns[0].width,
        fingerprint=base,
        signature=_signature(model, base, texts, options),
        options=options,
    )


def _prompt_activations(
    model: nn.Module, ffns: list[FFN], batches: list[Batch], statistic: ActivationStatistic, bar: tqdm
) -> torch.Tensor:
    """A_{i,n} for the prompts of one pair (eq. 1): (layers, N)."""
    collected: list[list[torch.Tensor]] = [[] for _ in ffns]
    extra = {"logits_to_keep": 1} if accepts_logits_to_keep(model) else {}
    for batch in batches:

        def collect(layer: int, hidden: torch.Tensor, batch: Batch = batch) -> None:
            shaped = hidden.reshape(*batch.attention_mask.shape, hidden.shape[-1])
            collected[layer].append(mean_activation(shaped, batch.attention_mask.to(hidden.device), statistic).cpu())

        with torch.no_grad(), tap_activations(ffns, collect):
            model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, **extra)
        _check_all_seen(ffns, collected)
        bar.update()
    return torch.stack([torch.cat(layer) for layer in collected])


def _sentence_awareness(
    model: nn.Module, ffns: list[FFN], batches: list[Batch], bar: tqdm
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Means over the tokens of one language, per layer: Phi (eq. 4), dL/dh and |h|, each (p,).

    L is the mean loss over all predicted tokens of the language. Summing the loss in every batch and dividing at the
    end makes the result independent of how the sentences were batched.
    """
    sums: dict[int, AwarenessSum] = {}
    for batch in batches:

        def collect(layer: int, hidden: torch.Tensor, batch: Batch = batch) -> None:
            store = sums.setdefault(layer, AwarenessSum(hidden.shape[-1], hidden.device))
            mask, activation = batch.attention_mask.to(hidden.device), hidden.detach()
            hidden.register_hook(lambda gradient: store.add(activation, gradient, mask))

        with torch.enable_grad(), tap_activations(ffns, collect):
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
            labels = F.pad(batch.input_ids.masked_fill(batch.attention_mask == 0, -100)[:, 1:], (0, 1), value=-100)
            F.cross_entropy(
                logits.float().flatten(0, 1), labels.flatten().to(logits.device), reduction="sum"
            ).backward()
        del logits  # with its graph, before the next batch runs forward
        _check_all_seen(ffns, [[True] if layer in sums else [] for layer in range(len(ffns))])
        bar.update()
    tokens = sum(int(batch.attention_mask.sum()) for batch in batches)
    predicted = tokens - sum(len(batch.input_ids) for batch in batches)
    return [
        (
            (sums[layer].awareness / (predicted * tokens)).cpu(),
            (sums[layer].gradient / (predicted * tokens)).cpu(),
            (sums[layer].abs_activation / tokens).cpu(),
        )
        for layer in range(len(ffns))
    ]


def _partition_layer(
    name: str,
    statistics: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    general_ratio: float,
    normalize_awareness: bool,
) -> LayerNeurons:
    awareness, gradient, activation = (torch.stack(rows) for rows in zip(*statistics, strict=True))
    if normalize_awareness:
        awareness = normalize(awareness)
    return LayerNeurons(name, partition(awareness, general_ratio), awareness, gradient, activation)


def _check_sentences(sentences: Mapping[str, Sequence[str]], pairs: list[LanguagePair]) -> None:
    if not sentences:
        raise CorpusError("sentences", sentences, "give calibration sentences for every language of the pairs.")
    for language, texts in sentences.items():
        check_language(language, "sentences")
        if isinstance(texts, str) or not all(isinstance(text, str) and text.strip() for text in texts):
            raise CorpusError("sentences", language, "expected a list of non-empty strings for every language.")
    for pair in pairs:
        for language in pair:
            if language not in sentences:
                raise LanguagePairError(
                    "language_pairs", str(pair), f"there are no calibration sentences for {language!r}; add them."
                )
    counts = {language: len(texts) for language, texts in sentences.items()}
    if len(set(counts.values())) > 1 or 0 in counts.values():
        raise CorpusError(
            "sentences", counts, "every language needs the same number of sentences, at least one; they are parallel."
        )
    if len(counts) < 2:
        raise CorpusError("sentences", list(counts), "awareness is compared between languages; give at least two.")


def _check_options(activation_statistic: str, batch_size: int, max_length: int) -> None:
    if activation_statistic not in ("mean", "mean_abs"):
        raise DetectionError("activation_statistic", activation_statistic, "must be 'mean' or 'mean_abs'.")
    for name, value, least in (("batch_size", batch_size, 1), ("max_length", max_length, 2)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise DetectionError(name, value, f"must be an integer of at least {least}.")


def _check_model(model: nn.Module) -> list[FFN]:
    if any(isinstance(module, (BaseTunerLayer, PeftModel)) for module in model.modules()):
        raise ArchitectureError(
            "model", type(model).__name__, "it has adapters; detect on the base model, before get_peft_model."
        )
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ArchitectureError(
            "model", type(model).__name__, "detection covers decoder-only models; it has an encoder too."
        )
    ffns = find_ffns(model)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is None:
        raise ArchitectureError(
            "model", type(model).__name__, "it has no language-model head; load it with AutoModelForCausalLM."
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ArchitectureError("model", "meta device", "load the weights before detection.")
    return ffns


def _check_all_seen(ffns: list[FFN], collected: Sequence[Sequence[Any]]) -> None:
    for ffn, seen in zip(ffns, collected, strict=True):
        if not seen:
            raise ArchitectureError(
                "model", ffn.name, f"its forward pass does not call {ffn.output!r}, so its activations cannot be read."
            )


def _check_finite(
    changes: Mapping[LanguagePair, torch.Tensor],
    sums: Mapping[str, list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]],
    ffns: list[FFN],
) -> None:
    remedy = "the statistics are NaN or infinite; load the model in bfloat16 or float32 and check its weights."
    for pair, change in changes.items():
        if not torch.isfinite(change).all():
            raise DetectionError("activations", str(pair), remedy)
    for language, layers in sums.items():
        for ffn, statistics in zip(ffns, layers, strict=True):
            if not all(torch.isfinite(statistic).all() for statistic in statistics):
                raise DetectionError("awareness", f"{ffn.name}, {language}", remedy)


def _signature(
    model: nn.Module, base: str | None, texts: Mapping[str, Sequence[str]], options: Mapping[str, Any]
) -> str:
    name = os.path.basename(str(getattr(getattr(model, "config", None), "name_or_path", "")).rstrip("/")) or "unnamed"
    data = hashlib.sha256(json.dumps(dict(texts), sort_keys=True).encode()).hexdigest()[:12]
    parts = {
        "base": f"{name}#{base}",
        "data": f"{data}x{options['num_sentences']}",
        "languages": "+".join(texts),
        "layers": options["num_layers"],
        "general": options["general_ratio"],
        "activation": options["activation_statistic"],
        "normalized": "yes" if options["normalize_awareness"] else "no",
        "max_length": options["max_length"],
        "version": __version__,
    }
    return "|".join(f"{key}:{value}" for key, value in parts.items())
