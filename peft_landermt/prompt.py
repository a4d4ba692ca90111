"""Prompts of decoder-only models: templates, and their tokens.

A template is text with `{source}` and, if wanted, `{source_language}` and `{target_language}`. A space and the
translation follow it, and then the tokenizer's end-of-sentence token; or the template says itself where the
translation stands and what ends it, as those of instruct models do: `...<|im_start|>assistant\n{target}<|im_end|>`.
Braces that are text are doubled.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from string import Formatter
from typing import Any

from .errors import CorpusError, LanderError
from .language_pair import LanguagePair, format_prompt

_FIELDS = ("source", "source_language", "target_language", "target")


@dataclass(frozen=True)
class Prompt:
    """A template, read.

    Attributes:
        before: Template of the text up to the translation.
        separator: What stands between that and the translation.
        end: Text of the token that ends a translation; empty for the tokenizer's own.
    """

    before: str
    separator: str = " "
    end: str = ""

    @classmethod
    def parse(cls, template: str, field: str = "template", error: type[LanderError] = CorpusError) -> Prompt:
        """Read a template.

        Args:
            template: The template.
            field: Name of the argument that it came from, for errors.
            error: Class of the error.

        Raises:
            LanderError: It is no string, lacks `{source}`, or has other fields or single braces.
        """
        parsed = _parse(template) if isinstance(template, str) else None
        if parsed is None:
            raise error(
                field,
                template,
                "must hold {source}, may hold {source_language}, {target_language} and, where a token follows it, "
                "{target}; double all other braces.",
            )
        return parsed

    def fill(self, source: str, pair: LanguagePair) -> str:
        """Return the text up to the translation. The source is put in as it is, braces included."""
        return format_prompt(self.before, source, pair)

    def end_token(self, tokenizer: Any) -> int:
        """Return the token that ends a translation.

        Raises:
            CorpusError: The tokenizer has no end-of-sentence token, or what the template ends with is not one token.
        """
        if not self.end:
            if tokenizer.eos_token_id is None:
                raise CorpusError("tokenizer", type(tokenizer).__name__, "set its eos_token; training needs an end.")
            return int(tokenizer.eos_token_id)
        ids = tokenizer(self.end, add_special_tokens=False)["input_ids"]
        if len(ids) != 1 or tokenizer.convert_ids_to_tokens(ids[0]) != self.end:
            raise CorpusError(
                "template",
                self.end,
                "follows {target} and is no token of this tokenizer; name the one that ends an answer, or nothing for "
                "the tokenizer's own end of sentence.",
            )
        return int(ids[0])


@lru_cache(256)
def _parse(template: str) -> Prompt | None:
    """Read a template; None if it is none."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError:
        return None
    before, end, seen = "", None, []
    for text, name, options, conversion in parts:
        if end is None:
            before += escape_braces(text)
        else:
            end += text
        if name is None:
            continue
        if end is not None or name not in _FIELDS or options or conversion:
            return None
        seen.append(name)
        if name == "target":
            end = ""
        else:
            before += f"{{{name}}}"
    if "source" not in seen:
        return None
    prompt = before.rstrip(" ")  # tokens of words begin with the space before them
    return Prompt(prompt) if end is None else Prompt(prompt, before[len(prompt) :], end.strip())


def escape_braces(text: str) -> str:
    """Write text as a template that gives it."""
    return text.replace("{", "{{").replace("}", "}}")


def encode_prompt(tokenizer: Any, text: str) -> list[int]:
    """Encode a prompt: begun as the tokenizer begins a text, but once, and left open at its end.

    A tokenizer that closes a text with an end-of-sentence token would close the prompt before the translation; a text
    that begins with the tokenizer's first token, as chat templates write it, gets no second one.
    """
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    first = first_tokens(tokenizer)
    return ids if ids[: len(first)] == first else [*first, *ids]


def first_tokens(tokenizer: Any) -> list[int]:
    """Tell what the tokenizer puts before every text: its beginning-of-sentence token, or nothing."""
    bare, whole = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    places = range(len(whole) - len(bare) + 1)
    start = next((place for place in places if whole[place : place + len(bare)] == bare), 0)
    return whole[:start]


def encode_continuation(tokenizer: Any, prompt: str, text: str) -> list[int]:
    """Encode what follows a prompt as it is where it follows: tokenizers that begin every text with a space
    add none there.

    Args:
        tokenizer: The tokenizer.
        prompt: Text of the prompt.
        text: What follows, with the space before it, if any.
    """
    # where tokens reach across the border, a shorter context tells, and none always does
    for context in (prompt, prompt[-1:], ""):
        before = tokenizer(context, add_special_tokens=False)["input_ids"] if context else []
        whole = tokenizer(context + text, add_special_tokens=False)["input_ids"]
        if whole[: len(before)] == before:
            return whole[len(before) :]
    raise AssertionError("an empty context is the beginning of every text")
