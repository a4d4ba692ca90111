"""PEFT type `LANDER`, the tuner of LANDeRMT: the neurons of a language pair, tuned and routed."""

from .config import LanderConfig
from .layer import LanderFFN
from .model import LanderModel

__all__ = ["LanderConfig", "LanderFFN", "LanderModel"]
