"""Prompt templates for training, in the spirit of FLAN's translation templates."""

from __future__ import annotations

import random
from collections.abc import Sequence

from ..language_pair import TRANSLATION_PROMPT, format_prompt, parse_pair

TEMPLATES: tuple[str, ...] = (TRANSLATION_PROMPT,)


def choose_template(index: int, seed: int, templates: Sequence[str] = TEMPLATES) -> str:
    return templates[random.Random(f"{seed}:{index}").randrange(len(templates))]


def build_prompt(source: str, language_pair: str, template: str = TRANSLATION_PROMPT) -> str:
    return format_prompt(template, source, parse_pair(language_pair))
