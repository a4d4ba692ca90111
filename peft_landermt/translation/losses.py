"""The loss that is trained on, and that of every language pair."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import gather_object

from ..padding import IGNORED


@dataclass(frozen=True)
class TranslationLoss:
    """The mean loss of all labelled tokens of an optimizer step, for `compute_loss_func` of transformers' trainers.

    Encoder-decoders of transformers (M2M100, mBART, Marian, T5) return the mean of each batch whatever the trainer
    asks for, and gradient accumulation then adds these means up. With this loss, the same rows make the same step in
    any number of batches and processes. Decoder-only models compute it themselves. [`LanderTrainer`] uses it always;
    `Seq2SeqTrainer` is to be given it, and a collator that knows the model.

    Args:
        encoder_decoder: Whether the logits at position t tell label t, not label t + 1.
        label_smoothing: The share of every label that all tokens of the vocabulary get; trainers leave their own
            `label_smoothing_factor` out where they are given a loss.
    """

    encoder_decoder: bool = False
    label_smoothing: float = 0.0

    def __call__(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Compute the loss of a batch.

        Args:
            outputs: What the model returns, with `logits` (B, T, V).
            labels: (B, T); -100 where there is none.
            num_items_in_batch: Labelled tokens of the whole step, over all its batches and processes; those of the
                batch by default. On several GPUs in one process, the count of each.
        """
        logits, labels = self.aligned(outputs.logits, labels)
        labelled = labels != IGNORED
        total = F.cross_entropy(
            logits[labelled].float(), labels[labelled], reduction="sum", label_smoothing=self.label_smoothing
        )
        if num_items_in_batch is None:
            return total / labelled.sum()
        return total / torch.as_tensor(num_items_in_batch, device=total.device).sum()

    def aligned(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Align logits and the labels that they tell, position by position."""
        labels = labels.to(logits.device)
        return (logits, labels) if self.encoder_decoder else (logits[:, :-1], labels[:, 1:])


class PairLosses:
    """Sums up token losses by pair until they are asked for."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def add(self, pairs: Sequence[str], logits: torch.Tensor, labels: torch.Tensor, loss: TranslationLoss) -> None:
        """Add a batch.

        Args:
            pairs: One for each of the first rows; the others are left out.
            logits: (B, T, V).
            labels: (B, T); -100 where there is none.
            loss: The loss that is trained on.
        """
        for pair, row, targets in zip(pairs, *loss.aligned(logits, labels), strict=False):
            # row by row, so that no second copy of all logits is made
            total = F.cross_entropy(
                row.float(), targets, ignore_index=IGNORED, reduction="sum", label_smoothing=loss.label_smoothing
            )
            entry = torch.stack([total, (targets != IGNORED).sum().to(total.dtype)])
            self._sums[pair] = self._sums[pair] + entry if pair in self._sums else entry

    def clear(self) -> None:
        """Forget what was added."""
        self._sums.clear()

    def take(self) -> tuple[float | None, dict[str, float]]:
        """Return mean token loss since the last call, of all tokens and of every pair's, over all processes, which
        must all call it; None without any."""
        total: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for pair, loss, count in gather_object([(pair, *sums.tolist()) for pair, sums in self._sums.items()]):
            total[pair][0] += loss
            total[pair][1] += count
        self.clear()
        by_pair = {pair: loss / count for pair, (loss, count) in sorted(total.items()) if count}
        losses, counts = (sum(values[place] for values in total.values()) for place in (0, 1))
        return (losses / counts if counts else None), by_pair
