"""Templates: what each of the ten must hold, the draw, and prompts from any source text."""

from __future__ import annotations

import string
from collections import Counter

import pytest

from peft_landermt.errors import CorpusError, LanguagePairError
from peft_landermt.language_pair import TRANSLATION_PROMPT
from peft_landermt.translation.templates import TEMPLATES, build_prompt, choose_template

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
