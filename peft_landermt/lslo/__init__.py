"""PEFT type `LSLO`: language-specific LoRA with a learned index and gradual pruning."""

from ..routed.registration import register
from .config import LsloConfig
from .layer import LsloLinear
from .learned import learned_index
from .model import LsloModel
from .pruning import GradualPruning, subspace_demand

register(LsloConfig, LsloModel)

__all__ = ["GradualPruning", "LsloConfig", "LsloLinear", "LsloModel", "learned_index", "subspace_demand"]
