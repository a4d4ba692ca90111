"""Language codes, pairs and names."""

from __future__ import annotations

from typing import Any

import pytest

from peft_landermt.errors import LanguagePairError
from peft_landermt.language_pair import (
    LANGUAGE_NAMES,
    TRANSLATION_PROMPT,
    LanguagePair,
    check_language,
    format_prompt,
    language_name,
    languages_of,
    parse_pair,
    parse_pairs,
)


@pytest.mark.parametrize(
    ("text", "source", "target"),
    [
        ("en-de", "en", "de"),
        ("de-en", "de", "en"),
        ("zh_Hans-en", "zh_Hans", "en"),
        ("pt_BR-pt_PT", "pt_BR", "pt_PT"),
        ("yue-zh_Hant_HK", "yue", "zh_Hant_HK"),
        ("zh_Hans-zh_Hant", "zh_Hans", "zh_Hant"),
    ],
)
def test_parse_pair(text: str, source: str, target: str) -> None:
    pair = parse_pair(text)
    assert (pair.source, pair.target) == (source, target)
    assert str(pair) == text


MALFORMED = [
    "en", "", "-", "en-", "-de", "EN-de", "en-DE", "en_de", "en-de-fr", "en - de", " en-de", "en-de ", "en-de\n",
    "e-de", "engl-de", "zh_hans-en", "zh_HANS-en", "pt_br-en", "en–de", "en/de", "én-de", None, 3, ("en", "de"),
    b"en-de", ["en-de"], LanguagePair("en", "de"),
]  # fmt: skip


@pytest.mark.parametrize("text", MALFORMED, ids=repr)
def test_malformed_pairs(text: Any) -> None:
    with pytest.raises(LanguagePairError, match="joined by a hyphen, such as 'en-de'") as caught:
        parse_pair(text, "pairs")
    assert (caught.value.field, caught.value.value) == ("pairs", text)


@pytest.mark.parametrize("text", ["en-en", "zh_Hans-zh_Hans"])
def test_a_language_with_itself(text: str) -> None:
    with pytest.raises(LanguagePairError, match=f"language_pair='{text}': .*must differ"):
        parse_pair(text)


@pytest.mark.parametrize("pairs", [["en-de", "zh_Hans-en"], ("en-de", "zh_Hans-en"), iter(["en-de", "zh_Hans-en"])])
def test_parse_pairs_keeps_the_order(pairs: Any) -> None:
    assert parse_pairs(pairs) == [("en", "de"), ("zh_Hans", "en")]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ("en-de", r"language_pairs='en-de': expected a list of pairs: \['en-de'\]"),
        ([], r"language_pairs=\[\]: name at least one pair"),
        (iter([]), r"language_pairs=\[\]: name at least one pair"),
        (
            ["fr-en", "en-de", "de-en", "en-de", "fr-en"],
            r"language_pairs=\['en-de', 'fr-en'\]: each pair may be named once",
        ),
        (["en-de", "en_fr"], "language_pairs='en_fr': expected source and target"),
        (["en-de", "fr-fr"], "language_pairs='fr-fr': .*must differ"),
        (["en-de", None], "language_pairs=None: expected source and target"),
    ],
)
def test_parse_pairs_refuses(pairs: Any, message: str) -> None:
    with pytest.raises(LanguagePairError, match=message):
        parse_pairs(pairs)


def test_opposite_directions_are_two_pairs() -> None:
    assert len(parse_pairs(["en-de", "de-en"])) == 2


def test_languages_of() -> None:
    assert languages_of(parse_pairs(["fr-en", "en-de", "de-fr", "zh_Hans-en"])) == ["de", "en", "fr", "zh_Hans"]


@pytest.mark.parametrize("code", ["de", "yue", "zh_Hans", "pt_BR", "zh_Hant_TW"])
def test_codes(code: str) -> None:
    assert check_language(code) == code


@pytest.mark.parametrize("code", ["", "d", "DE", "German", "de_de", "de-DE", "zh_Hans_", "de\n", None, 7], ids=repr)
def test_malformed_codes(code: Any) -> None:
    with pytest.raises(LanguagePairError, match=r"source=.*expected an ISO 639 code") as caught:
        check_language(code, "source")
    assert caught.value.value == code


@pytest.mark.parametrize(
    ("code", "name"),
    [("de", "German"), ("zh_Hans", "Chinese"), ("pt_BR", "Portuguese"), ("yue", "yue"), ("sah_Cyrl", "sah_Cyrl")],
)
def test_language_name(code: str, name: str) -> None:
    assert language_name(code) == name


def test_language_name_of_a_malformed_code() -> None:
    with pytest.raises(LanguagePairError, match="language='German'"):
        language_name("German")


def test_every_name_has_a_valid_code_and_is_its_own() -> None:
    assert all(check_language(code) == code for code in LANGUAGE_NAMES)
    assert len(set(LANGUAGE_NAMES.values())) == len(LANGUAGE_NAMES)


def test_prompt() -> None:
    expected = "Translate this from English to German:\nIt {is} 5 % off.\nGerman:"
    assert format_prompt(TRANSLATION_PROMPT, "It {is} 5 % off.", LanguagePair("en", "de")) == expected
