"""PEFT type `LSLO`: language-specific LoRA with a learned index and gradual pruning."""

from .config import LsloConfig
from .index import learned_index
from .layer import LsloLinear
from .model import LsloModel
from .pruning import GradualPruning, subspace_demand

__all__ = ["GradualPruning", "LsloConfig", "LsloLinear", "LsloModel", "learned_index", "subspace_demand"]
