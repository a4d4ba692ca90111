"""PEFT type `LANDER`, the tuner of LANDeRMT: the neurons of a language pair, tuned and routed."""

from ..routed.registration import register
from .adapters import join_adapters, split_adapter
from .config import LanderConfig
from .layer import LanderFFN
from .model import LanderModel

register(LanderConfig, LanderModel)

__all__ = ["LanderConfig", "LanderFFN", "LanderModel", "join_adapters", "split_adapter"]
