"""Prompts: templates, special tokens at their ends, tokens of what follows."""

from __future__ import annotations

from typing import Any

import pytest

from peft_landermt import LanderConfig
from peft_landermt.errors import ConfigError, CorpusError
from peft_landermt.language_pair import LanguagePair
from peft_landermt.prompt import Prompt, encode_continuation, encode_prompt, first_tokens

from .prompt_tokenizers import byte_tokenizer, piece_tokenizer

EN_DE = LanguagePair("en", "de")
TOKENIZERS = [
    pytest.param(kind, first, last, id=f"{kind.__name__}-{first}-{last}")
    for kind in (byte_tokenizer, piece_tokenizer)
    for first in (False, True)
    for last in (False, True)
]

# Templates


@pytest.mark.parametrize(
    ("template", "read"),
    [
        ("{source}=", ("{source}=", " ", "")),
        ("{source_language} {source} {target_language}", ("{source_language} {source} {target_language}", " ", "")),
        ("{source}\n{target}", ("{source}\n", "", "")),
        ("{source}: {target}", ("{source}:", " ", "")),
        ("{source}: ", ("{source}:", " ", "")),
        ("<u>{source}<a>{target}<e>\n", ("<u>{source}<a>", "", "<e>")),
        ("{{{source}}} {{target}}", ("{{{source}}} {{target}}", " ", "")),
        ("{source}{target}{{e}}", ("{source}", "", "{e}")),
    ],
)
def test_templates(template: str, read: tuple[str, str, str]) -> None:
    assert Prompt.parse(template) == Prompt(*read)
    assert LanderConfig(prompt=template).prompt == template


@pytest.mark.parametrize(
    "template",
    [
        "", "no field", "{target}", "{target}{source}", "{source}{target}{target}",
        "{source}{target}{source_language}", "{{source}}", "{source", "{source}}", "{source!r}", "{source:>9}",
        "{source.__class__}", "{source[0]}", "{source}{0}", "{source}{}", "{source}{text}", 3, ["{source}"],
    ],
)  # fmt: skip
def test_what_is_no_template(template: Any) -> None:
    with pytest.raises(CorpusError, match=r"must hold \{source\}, may hold"):
        Prompt.parse(template)
    with pytest.raises(ConfigError, match="prompt="):
        LanderConfig(prompt=template)


def test_the_source_is_put_in_as_it_is() -> None:
    assert Prompt.parse("{{x}} {source} {source_language}").fill("{y} {0}", EN_DE) == "{x} {y} {0} English"


def test_what_ends_a_translation() -> None:
    tokenizer = byte_tokenizer(added=("<e>",))
    assert Prompt.parse("{source}").end_token(tokenizer) == 2
    assert Prompt.parse("{source}{target}").end_token(tokenizer) == 2
    assert Prompt.parse("{source}{target}<e>").end_token(tokenizer) == tokenizer.convert_tokens_to_ids("<e>")
    with pytest.raises(CorpusError, match=r"follows \{target\} and is no token of this tokenizer"):
        Prompt.parse("{source}{target} the end").end_token(tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(CorpusError, match="set its eos_token"):
        Prompt.parse("{source}").end_token(tokenizer)


# Tokens


@pytest.mark.parametrize(("kind", "first", "last"), TOKENIZERS)
@pytest.mark.parametrize("text", ["Das Haus:", "a", "x\n", "</s>"])
def test_a_prompt_begins_once_and_does_not_end(kind: Any, first: bool, last: bool, text: str) -> None:
    """By the tokenizer's own tokens of the bare text."""
    tokenizer = kind(first, last)
    bare = tokenizer(text, add_special_tokens=False)["input_ids"]
    expected = [1, *bare] if first else bare
    assert encode_prompt(tokenizer, text) == expected
    assert first_tokens(tokenizer) == ([1] if first else [])
    with_first = encode_prompt(tokenizer, f"<s>{text}")
    assert with_first.count(1) == 1 and with_first[0] == 1


@pytest.mark.parametrize(("kind", "first", "last"), TOKENIZERS)
@pytest.mark.parametrize("prompt", ["It is German:", "a\n", "["])
@pytest.mark.parametrize("text", [" Das Haus", "Haus", " x"])
def test_what_follows_is_as_in_the_whole_text(kind: Any, first: bool, last: bool, prompt: str, text: str) -> None:
    """Prompt and translation together are the tokens of the whole text, as at inference."""
    tokenizer = kind(first, last)
    whole = tokenizer(prompt + text, add_special_tokens=False)["input_ids"]
    head = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    found = encode_continuation(tokenizer, prompt, text)
    if whole[: len(head)] == head:
        assert head + found == whole
    assert tokenizer.decode(head + found) == tokenizer.decode(whole)


def test_no_second_space() -> None:
    """Llama 2's tokenizer puts a space before every text, so that " Haus" alone would begin with two."""
    tokenizer = piece_tokenizer()
    assert tokenizer.convert_ids_to_tokens(encode_continuation(tokenizer, "German:", " Haus")) == ["▁Haus"]
    alone = tokenizer(" Haus", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(alone) == ["▁", "▁Haus"]


def test_tokens_across_the_border() -> None:
    """Where the prompt's last token would reach into the text, a shorter context tells."""
    tokenizer = piece_tokenizer()
    prompt, text = "It is: ", "Haus"  # "▁" and "▁Haus"
    assert (
        tokenizer.convert_ids_to_tokens(tokenizer(prompt + text, add_special_tokens=False)["input_ids"])[-1] == "▁Haus"
    )
    found = tokenizer.convert_ids_to_tokens(encode_continuation(tokenizer, prompt, text))
    assert "".join(found).lstrip("▁") == "Haus"
