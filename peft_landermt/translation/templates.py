"""Prompt templates for training, in the spirit of FLAN's translation templates, in our own words."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from ..errors import CorpusError
from ..language_pair import TRANSLATION_PROMPT, format_prompt, parse_pair

TEMPLATES: tuple[str, ...] = (
    TRANSLATION_PROMPT,
    "{source_language}: {source}\n{target_language}:",
    "Below is a text in {source_language}. Put it into {target_language}.\n\n{source}\n\n{target_language}:",
    "How would a native speaker of {target_language} say this {source_language} sentence?\n{source}\nTranslation:",
    "Turn the {source_language} text into {target_language} and keep its meaning.\nText: {source}\nTranslation:",
    "{source}\n\nThe text above is {source_language}. Its {target_language} translation:",
    "You work as a translator from {source_language} to {target_language}.\nOriginal: {source}\nTranslation:",
    "A reader knows {target_language} but no {source_language}. What does this say?\n{source}\nIn {target_language}:",
    "Task: {source_language} to {target_language} translation\nInput: {source}\nOutput:",
    "Write the {target_language} version of this {source_language} passage.\n\n{source}\n\n{target_language} version:",
)
"""Each holds `{source_language}`, `{target_language}` and `{source}`; a space and the translation follow it."""


def choose_template(index: int, seed: int, templates: Sequence[str] = TEMPLATES) -> str:
    """Draw the template of a sentence pair.

    The draw depends on the arguments alone: processes, platforms and Python versions agree.

    Args:
        index: Number that identifies the sentence pair.
        seed: Seed of the draw.
        templates: What to draw from; each is as likely as any other.

    Raises:
        CorpusError: `templates` is empty.
    """
    if not templates:
        raise CorpusError("templates", templates, "give at least one template.")
    digest = hashlib.sha256(f"{seed}:{index}".encode()).digest()
    return templates[int.from_bytes(digest[:8], "big") % len(templates)]


def build_prompt(source: str, language_pair: str, template: str = TEMPLATES[0]) -> str:
    """Fill a template. The source is put in as it is, braces included.

    Args:
        source: Sentence to translate.
        language_pair: Direction, such as `en-de`; the prompt has the English names of its languages.
        template: One of `TEMPLATES`, or one of your own with `{source}` and, if wanted, `{source_language}` and
            `{target_language}`; other braces are doubled.

    Raises:
        CorpusError: `template` has no `{source}`, or holds other fields or single braces.
        LanguagePairError: `language_pair` is malformed.
    """
    pair = parse_pair(language_pair)
    remedy = "must hold {source}, may hold {source_language} and {target_language}; double all other braces."
    if "{source}" not in template:
        raise CorpusError("template", template, remedy)
    try:
        return format_prompt(template, source, pair)
    except (AttributeError, KeyError, IndexError, ValueError) as error:
        raise CorpusError("template", template, remedy) from error
