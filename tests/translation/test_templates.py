"""Templates: what each of the ten must hold, the draw, and prompts from any source text."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from peft_landermt.errors import CorpusError, LanguagePairError
from peft_landermt.language_pair import TRANSLATION_PROMPT
from peft_landermt.prompt import Prompt, encode_prompt
from peft_landermt.translation import TranslationCollator
from peft_landermt.translation.templates import TEMPLATES, build_prompt, chat_prompt, choose_template

from ..prompt_tokenizers import CHATS, byte_tokenizer, piece_tokenizer

FIELDS = {"source_language", "target_language", "source"}


def test_there_are_ten_and_the_first_is_the_decoding_prompt() -> None:
    assert len(TEMPLATES) == len(set(TEMPLATES)) == 10
    assert TEMPLATES[0] == TRANSLATION_PROMPT


@pytest.mark.parametrize("template", TEMPLATES)
def test_template_holds_all_fields_and_ends_where_the_translation_begins(template: str) -> None:
    assert {name for _, name, _, _ in string.Formatter().parse(template) if name} == FIELDS
    assert template.count("{source}") == 1
    assert template.endswith(":") and template == template.strip()


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("source", ["We drink tea.", "{target_language} {0} {} }{ {{x}}", "50 %s\n\\n: é\u2028"])
def test_prompt_holds_the_source_unchanged_and_names_both_languages(template: str, source: str) -> None:
    prompt = build_prompt(source, "en-de", template)
    assert prompt.count(source) == 1
    rest = prompt.replace(source, "")
    assert "English" in rest and "German" in rest
    assert "{" not in rest and "}" not in rest


def test_prompt_by_default() -> None:
    assert build_prompt("Tea?", "en-zh_Hans") == (
        "Translate this from English to Chinese (Simplified):\nTea?\nChinese (Simplified):"
    )


def test_own_template_with_doubled_braces() -> None:
    assert build_prompt("Tea?", "en-de", '{{"text": "{source}"}}') == '{"text": "Tea?"}'


@pytest.mark.parametrize(
    "template", ["Translate:", "{source} {language}", "{source} {}", "{source} {", "{source} }", "{source.a}{source}"]
)
def test_unusable_template(template: str) -> None:
    with pytest.raises(CorpusError, match=r"template=.*must hold \{source\}.*double all other braces") as caught:
        build_prompt("Tea?", "en-de", template)
    assert (caught.value.field, caught.value.value) == ("template", template)


def test_malformed_pair() -> None:
    with pytest.raises(LanguagePairError, match="language_pair='english'"):
        build_prompt("Tea?", "english")


def test_draw_is_the_same_everywhere() -> None:
    """Literal values, so that a change of platform, Python version, hash seed or code shows."""
    drawn = [TEMPLATES.index(choose_template(index, seed)) for seed in (0, 1) for index in range(8)]
    assert drawn == [9, 7, 3, 9, 2, 0, 7, 9, 0, 3, 3, 1, 3, 0, 1, 1]


def test_draw_is_even_and_depends_on_the_seed() -> None:
    draws = [[choose_template(index, seed) for index in range(5000)] for seed in (0, 1)]
    for drawn in draws:
        counts = Counter(drawn)
        assert set(counts) == set(TEMPLATES)
        assert all(400 < count < 600 for count in counts.values())
    assert sum(a == b for a, b in zip(*draws, strict=True)) < 700


def test_draw_from_a_selection() -> None:
    assert {choose_template(index, 0, TEMPLATES[:2]) for index in range(30)} == set(TEMPLATES[:2])
    assert choose_template(2**40, -1, TEMPLATES[3:4]) == TEMPLATES[3]
    with pytest.raises(CorpusError, match=r"templates=\[\]: give at least one template"):
        choose_template(0, 0, [])


# Chats


@pytest.mark.parametrize("make", [byte_tokenizer, piece_tokenizer])
@pytest.mark.parametrize("name", CHATS)
def test_chat_templates(name: str, make: Callable[..., Any]) -> None:
    """Prompt and answer are what transformers makes of the chat, with the answer's end and nothing after it."""
    tokens, chat, prompt, end = CHATS[name]
    tokenizer = make(added=tokens)
    tokenizer.chat_template = chat
    template = chat_prompt(tokenizer)
    question = build_prompt("Tea {now}?", "en-de")
    assert build_prompt("Tea {now}?", "en-de", template) == prompt.format("{}").replace("{}", question)
    messages = [{"role": "user", "content": question}]
    opened = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    assert build_prompt("Tea {now}?", "en-de", template) == opened
    read = Prompt.parse(template)
    assert tokenizer.convert_ids_to_tokens(read.end_token(tokenizer)) == end
    row = {"source": "Tea {now}?", "target": "Tee.", "language_pair": "en-de"}
    source, target = TranslationCollator(tokenizer, templates=[template]).encode(row)
    assert source == encode_prompt(tokenizer, opened)
    assert source.count(tokenizer.bos_token_id) == 1, "one beginning, from the template or the tokenizer"
    assert tokenizer.convert_ids_to_tokens(target)[-1] == end
    whole = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": "Tee."}], tokenize=False)
    expected = whole[: whole.index("Tee.") + 4]
    said = tokenizer.decode(source + target[:-1]).removeprefix("" if chat.startswith("{{ bos") else "<s>")
    assert "".join(said.split()) == "".join(expected.split())  # Llama 2's tokenizer puts spaces behind special tokens


def test_what_a_user_says_in_a_chat() -> None:
    tokenizer = byte_tokenizer(added=("<user>", "<bot>"))
    tokenizer.chat_template = CHATS["nothing after the answer"][1]
    asked = "{{{source}}} to {target_language}"
    assert chat_prompt(tokenizer, asked) == f"<user>{asked}<bot>{{target}}"


@pytest.mark.parametrize(
    ("chat", "template", "message"),
    [
        (None, "{source}", "has no chat template; use a plain prompt template"),
        ("{{ raise_exception('No user!') }}", "{source}", "its chat template fails: No user!"),
        ("the same for everybody", "{source}", r"must hold \{source\}"),
        ("{{ messages[0]['content'] }}", "{source}{target}", r"must not hold \{target\}"),
        ("{{ messages[0]['content'] }}", "no field", r"must hold \{source\}"),
    ],
)
def test_chats_that_make_no_prompt(chat: str | None, template: str, message: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = chat
    with pytest.raises(CorpusError, match=message):
        chat_prompt(tokenizer, template)
