"""Which of the supported versions of other packages the tests run with, where these differ."""

from typing import Any

import datasets
import peft
import transformers
from packaging.version import Version

TRANSFORMERS_4 = Version(transformers.__version__).major == 4
EARLY_TRANSFORMERS_5 = Version("5") <= Version(transformers.__version__) < Version("5.23")
"""Of these, 5.10.4 is tested."""
PEFT_BEFORE_0_20 = Version(peft.__version__) < Version("0.20")
PEFT_BEFORE_0_21 = Version(peft.__version__) < Version("0.21")

DATASETS_3 = Version(datasets.__version__).major == 3
IN_ORDER: dict[str, Any] = {} if TRANSFORMERS_4 else {"train_sampling_strategy": "sequential"}
"""Has rows trained on in their order; transformers 4 always shuffles, by the seed."""
