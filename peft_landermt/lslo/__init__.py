"""PEFT type `LSLO`: language-specific LoRA with a learned index and gradual pruning."""

from .config import LsloConfig
from .index import learned_index
from .layer import LsloLinear
from .model import LsloModel

__all__ = ["LsloConfig", "LsloLinear", "LsloModel", "learned_index"]
