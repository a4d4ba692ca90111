"""Language-general and language-specific neurons (eq. 5)."""

from __future__ import annotations

import torch

from ..errors import DetectionError
from ..neuron_map import GENERAL


def check_general_ratio(general_ratio: float) -> float:
    """Return epsilon if it lies in (0, 1).

    Raises:
        DetectionError: If it does not.
    """
    if not isinstance(general_ratio, (int, float)) or not 0.0 < general_ratio < 1.0:
        raise DetectionError(
            "general_ratio", general_ratio, "must lie between 0 and 1, both excluded; the paper has 0.9."
        )
    return float(general_ratio)


def partition(awareness: torch.Tensor, general_ratio: float) -> torch.Tensor:
    """Split the neurons of one layer into general ones and specific ones (eq. 5).

    X_i is column i: the awareness of neuron i for every language. The fraction `general_ratio` of the neurons with
    the lowest variance of X_i is language-general; every other neuron belongs to the language where X_i is largest.
    Ties go to the lower neuron index (it is taken as general first) and to the earlier language.

    Args:
        awareness: (L, p), finite.
        general_ratio: epsilon, in (0, 1); round(epsilon · p) neurons become general.

    Returns:
        int64 (p,): `GENERAL` or the index of the owning language.
    """
    neurons = awareness.shape[1]
    variance = awareness.double().var(dim=0, correction=0)
    num_general = round(check_general_ratio(general_ratio) * neurons)
    order = torch.sort(variance, stable=True).indices
    owner = awareness.argmax(dim=0)
    owner[order[:num_general]] = GENERAL
    return owner


def extend_partition(
    owner: torch.Tensor, awareness: torch.Tensor, general_ratio: float, num_earlier: int
) -> torch.Tensor:
    """Give neurons of a layer to languages that were not there when it was split (eq. 5); no owner loses a neuron.

    All languages are split as `partition` does. A neuron that was general goes to a new language where that gives it
    to one; it stays general where that gives it to an earlier one, whose neurons stay those that it had.

    Args:
        owner: int64 (p,): what it was split into.
        awareness: (L, p), finite; of all languages, the earlier ones first.
        general_ratio: epsilon, in (0, 1).
        num_earlier: How many languages were there.

    Returns:
        int64 (p,): `GENERAL` or the index of the owning language.
    """
    anew = partition(awareness, general_ratio)
    return torch.where((owner == GENERAL) & (anew >= num_earlier), anew, owner)
