"""One self-contained HTML page about a neuron map or a run: what was detected, tuned and reached."""

from .findings import AdapterFacts, Findings, find
from .page import write_report

__all__ = ["AdapterFacts", "Findings", "find", "write_report"]
