"""Checks of what detection is given, and of what it finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..choices import ActivationStatistic, LayerStatistic
from ..errors import ArchitectureError, CorpusError, DetectionError, LanguagePairError
from ..ffn import FFN, FFNLayout, check_addressable, find_ffns
from ..language_pair import LanguagePair, check_language
from ..linear import device_and_dtype


def check_sentences(sentences: Mapping[str, Sequence[str]], pairs: list[LanguagePair]) -> None:
    """Check that calibration sentences are parallel, not empty, and there for every language of the pairs.

    Raises:
        CorpusError: Numbers of sentences differ, a sentence is empty, or there are fewer than two languages.
        LanguagePairError: A code is malformed, or a pair's language has no sentences.
    """
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


def check_options(activation_statistic: str, batch_size: int, max_length: int, layer_statistic: str) -> None:
    """Check the options of `detect_neurons`.

    Raises:
        DetectionError: One is out of range.
    """
    if activation_statistic not in get_args(ActivationStatistic):
        raise DetectionError("activation_statistic", activation_statistic, "must be 'mean' or 'mean_abs'.")
    if layer_statistic not in get_args(LayerStatistic):
        raise DetectionError("layer_statistic", layer_statistic, "must be 'activation' or 'gradient'.")
    for name, value, least in (("batch_size", batch_size, 1), ("max_length", max_length, 2)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise DetectionError(name, value, f"must be an integer of at least {least}.")


def check_model(model: nn.Module, layout: FFNLayout | None) -> list[FFN]:
    """Return the model's FFNs, if neurons can be detected in it.

    Raises:
        ArchitectureError: It has no FFN that is recognised or named, or has adapters, or no language-model head;
            layers share an FFN, or its weights are split over processes or not loaded.
    """
    if any(isinstance(module, (BaseTunerLayer, PeftModel)) for module in model.modules()):
        raise ArchitectureError(
            "model", type(model).__name__, "it has adapters; detect on the base model, before get_peft_model."
        )
    ffns = find_ffns(model, layout)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is None:
        raise ArchitectureError(
            "model", type(model).__name__, "it has no language-model head; load it with its AutoModelFor... class."
        )
    check_addressable(model, ffns, only_calls=True)
    on_meta = [module for module in model.modules() if any(weight.is_meta for weight in module.parameters(False))]
    if any(device_and_dtype(module)[0].type == "meta" for module in on_meta):
        raise ArchitectureError("model", "meta device", "load the weights before detection.")
    return ffns


def check_all_seen(ffns: list[FFN], collected: Sequence[Sequence[torch.Tensor]]) -> None:
    """Check that every FFN runs once in a pass.

    Args:
        ffns: The FFNs.
        collected: What a pass has collected at each.

    Raises:
        ArchitectureError: One was not called, or several times.
    """
    for ffn, seen in zip(ffns, collected, strict=True):
        if not seen:
            raise ArchitectureError(
                "model", ffn.name, f"its forward pass does not call {ffn.output!r}, so its activations cannot be read."
            )
        if len(seen) > 1:
            raise ArchitectureError(
                "model",
                ffn.name,
                f"layers share {ffn.output!r}, which runs {len(seen)} times in a pass, so its activations "
                "belong to no one layer; detect on a model whose layers have FFNs of their own.",
            )


def check_finite(
    activations: Mapping[LanguagePair, torch.Tensor],
    statistics: Mapping[str, Sequence[torch.Tensor]],
    ffns: list[FFN],
) -> None:
    """Check that what was found is finite.

    Args:
        activations: A_{i,n} of every pair (eq. 1).
        statistics: Per language and layer, what eq. 4 makes.
        ffns: The FFNs, to name one in the error.

    Raises:
        DetectionError: Something is NaN or infinite.
    """
    remedy = "the statistics are NaN or infinite; load the model in bfloat16 or float32 and check its weights."
    for pair, values in activations.items():
        if not torch.isfinite(values).all():
            raise DetectionError("activations", str(pair), remedy)
    for language, layers in statistics.items():
        for ffn, found in zip(ffns, layers, strict=True):
            if not torch.isfinite(found).all():
                raise DetectionError("awareness", f"{ffn.name}, {language}", remedy)
