"""`python -m peft_landermt.cli` is `landermt`."""

import sys

from . import main

sys.exit(main())
