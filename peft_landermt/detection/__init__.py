"""Where the neurons come from (eq. 1 to 5)."""

from .detect import detect_neurons

__all__ = ["detect_neurons"]
