"""What is plugged into PEFT."""

from .adapters import join_adapters, split_adapter
from .card import write_model_card
from .config import LanderConfig
from .hotswap import hotswap_adapter
from .layer import LanderFFN
from .model import LanderModel

__all__ = [
    "LanderConfig",
    "LanderFFN",
    "LanderModel",
    "hotswap_adapter",
    "join_adapters",
    "split_adapter",
    "write_model_card",
]
