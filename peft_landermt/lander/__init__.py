"""PEFT type `LANDER`, the tuner of LANDeRMT: the neurons of a language pair, tuned and routed."""

from ..routed.registration import register
from .config import LanderConfig
from .growth import add_language_pairs, compose_language_pair, remove_language_pairs
from .layer import LanderFFN
from .model import LanderModel

register(LanderConfig, LanderModel)

__all__ = [
    "LanderConfig",
    "LanderFFN",
    "LanderModel",
    "add_language_pairs",
    "compose_language_pair",
    "remove_language_pairs",
]
