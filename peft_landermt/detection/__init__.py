"""Where the neurons come from (eq. 1 to 5)."""

from .detect import detect_neurons
from .layers import select_layers

__all__ = ["detect_neurons", "select_layers"]
