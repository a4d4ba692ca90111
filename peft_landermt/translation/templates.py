"""Prompt templates: for training, in the spirit of FLAN's translation templates, in our own words; and for chats."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from jinja2.exceptions import TemplateError

from ..errors import CorpusError
from ..language_pair import TRANSLATION_PROMPT, parse_pair
from ..prompt import Prompt, escape_braces

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

_MARK = "\ue000"
"""Private use: no chat template has it."""


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
    """Fill a template, up to the translation. The source is put in as it is, braces included.

    Args:
        source: Sentence to translate.
        language_pair: Direction, such as `en-de`; the prompt has the English names of its languages.
        template: One of `TEMPLATES`, or one of your own with `{source}` and, if wanted, `{source_language}` and
            `{target_language}`; other braces are doubled. Where the translation does not follow after a space, or
            another token than the tokenizer's end of sentence ends it, with `{target}` and that token.

    Raises:
        CorpusError: `template` has no `{source}`, or holds other fields or single braces.
        LanguagePairError: `language_pair` is malformed.
    """
    pair = parse_pair(language_pair)
    return Prompt.parse(template).fill(source, pair)


def chat_prompt(tokenizer: Any, template: str = TRANSLATION_PROMPT) -> str:
    """Make a prompt template of the tokenizer's chat template: what a user asks, and the answer that ends as answers
    do.

    The result is text like any other template, which an adapter keeps; it holds no date or other value that changes
    from call to call. Where a chat template knows of thinking, it is switched off.

    Args:
        tokenizer: Tokenizer of an instruct model.
        template: What the user says; see [`build_prompt`].

    Raises:
        CorpusError: The tokenizer has no chat template, or that has no place for a question and its answer, or
            `template` is none.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise CorpusError("tokenizer", type(tokenizer).__name__, "has no chat template; use a plain prompt template.")
    asked = Prompt.parse(template)
    if asked.end or asked.separator != " ":
        raise CorpusError("template", template, "must not hold {target}; the chat template says where it stands.")
    marks = {name: f"{_MARK}{name}{_MARK}" for name in ("source", "source_language", "target_language", "target")}
    question = {"role": "user", "content": asked.before.format(**marks)}
    answer = {"role": "assistant", "content": marks["target"]}
    options = {"tokenize": False, "enable_thinking": False}
    try:
        opened = tokenizer.apply_chat_template([question], add_generation_prompt=True, **options)
        whole = tokenizer.apply_chat_template([question, answer], **options)
    except (TemplateError, ValueError) as error:
        raise CorpusError("tokenizer", type(tokenizer).__name__, f"its chat template fails: {error}") from error
    before, _, end = whole.partition(marks["target"])
    if not before.startswith(opened):  # what a model is given to answer counts
        before = opened
    text = escape_braces(before) + "{target}" + escape_braces(_first_token(tokenizer, end.strip()))
    for name, mark in marks.items():
        text = text.replace(mark, f"{{{name}}}")
    Prompt.parse(text, "tokenizer.chat_template")
    return text


def _first_token(tokenizer: Any, text: str) -> str:
    """Return the token that ends an answer; some chat templates close the conversation with another one after it."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
    return tokenizer.convert_ids_to_tokens(ids[0]) if ids else ""
