"""The loss of every language pair, beside the loss of mixed batches that is trained on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from accelerate.utils import gather_object

from ..padding import IGNORED


class PairLosses:
    """Sums up token losses by pair until they are asked for."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def add(self, pairs: Sequence[str], logits: torch.Tensor, labels: torch.Tensor, shifted: bool) -> None:
        """Add a batch.

        Args:
            pairs: One for every row.
            logits: (B, T, V).
            labels: (B, T); -100 where there is none.
            shifted: Whether the logits at t tell label t (encoder-decoders), not label t + 1 (causal models).
        """
        if not shifted:
            logits, labels = logits[:, :-1], labels[:, 1:]
        for pair, row, targets in zip(pairs, logits, labels.to(logits.device), strict=True):
            # row by row, so that no second copy of all logits is made
            loss = F.cross_entropy(row.float(), targets, ignore_index=IGNORED, reduction="sum")
            entry = torch.stack([loss, (targets != IGNORED).sum().to(loss.dtype)])
            self._sums[pair] = self._sums[pair] + entry if pair in self._sums else entry

    def clear(self) -> None:
        """Forget what was added."""
        self._sums.clear()

    def take(self) -> dict[str, float]:
        """Return the mean token loss of every pair since the last call, over all processes; all of them must call
        it."""
        total: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for pair, loss, count in gather_object([(pair, *sums.tolist()) for pair, sums in self._sums.items()]):
            total[pair][0] += loss
            total[pair][1] += count
        self.clear()
        return {pair: loss / count for pair, (loss, count) in sorted(total.items()) if count}
