"""What is plugged into PEFT."""

from .config import LanderConfig
from .layer import LanderFFN
from .model import LanderModel

__all__ = ["LanderConfig", "LanderFFN", "LanderModel"]
