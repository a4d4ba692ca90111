"""Language codes, pairs and names."""

from __future__ import annotations

from typing import Any

import pytest

from peft_landermt.errors import LanguagePairError
from peft_landermt.language_pair import (
    FLORES_CODES,
    TRANSLATION_PROMPT,
    LanguagePair,
    check_language,
    flores_code,
    format_prompt,
    language_name,
    languages_of,
    parse_language,
    parse_pair,
    parse_pairs,
    two_letter_code,
)
from peft_landermt.translation import TEMPLATES, build_prompt


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


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("jp-en", "'jp'; JP is the code of a region, Japan"),
        ("en-cz", "'cz'; CZ is the code of a region, Czechia"),
        ("en-xx", "'xx'."),
        ("und-en", "'und'."),
        ("de_Xxxx-en", "'Xxxx'"),
        ("en-pt_ZZ", "'ZZ'"),
    ],
)
def test_unknown_languages_scripts_and_regions(text: str, unknown: str) -> None:
    with pytest.raises(LanguagePairError) as caught:
        parse_pair(text)
    assert unknown in str(caught.value)
    assert (caught.value.field, caught.value.value) == ("language_pair", text)


@pytest.mark.parametrize(
    "text", ["en-en", "zh_Hans-zh_Hans", "en-eng_Latn", "deu-ger", "zh-cmn", "arb_Arab-ar", "en_XX-en"]
)
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
        (["en-de"] * 100_000, r"language_pairs=\['en-de'\]: each pair may be named once"),  # in linear time
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


@pytest.mark.parametrize("code", ["de", "yue", "zh_Hans", "pt_BR", "zh_Hant_TW", "es_419", "en_XX", "aaa_Latn"])
def test_codes(code: str) -> None:
    assert check_language(code) == code


@pytest.mark.parametrize("code", ["", "d", "DE", "German", "de_de", "de-DE", "zh_Hans_", "de\n", None, 7], ids=repr)
def test_malformed_codes(code: Any) -> None:
    with pytest.raises(LanguagePairError, match=r"source=.*expected an ISO 639 code") as caught:
        check_language(code, "source")
    assert caught.value.value == code


NAMES = {
    "de": "German", "deu": "German", "ger": "German", "deu_Latn": "German", "de_XX": "German",
    "deu_Cyrl": "German (Cyrillic script)", "de_AT": "German (Austria)",
    "zh": "Chinese", "zho": "Chinese", "cmn": "Chinese", "zh_Hans": "Chinese (Simplified)",
    "zho_Hans": "Chinese (Simplified)", "cmn_Hans": "Chinese (Simplified)", "zh_CN": "Chinese (Simplified, China)",
    "zh_Hant": "Chinese (Traditional)", "zho_Hant": "Chinese (Traditional)", "zh_Hant_TW":
    "Chinese (Traditional, Taiwan)", "zh_TW": "Chinese (Traditional, Taiwan)", "zh_Latn": "Chinese (Latin script)",
    "zh_HK": "Chinese (Traditional, Hong Kong)", "yue": "Cantonese", "yue_Hant": "Cantonese (Traditional)",
    "sr": "Serbian", "sr_Cyrl": "Serbian (Cyrillic script)", "srp_Cyrl": "Serbian (Cyrillic script)",
    "sr_Latn": "Serbian (Latin script)", "sr_ME": "Serbian (Latin script, Montenegro)",
    "pt_BR": "Portuguese (Brazil)", "pt_PT": "Portuguese (Portugal)", "por_Latn": "Portuguese",
    "es_419": "Spanish (Latin America)", "en_GB": "English (United Kingdom)",
    "uz_Cyrl": "Uzbek (Cyrillic script)", "uzn_Latn": "Uzbek (Latin script)", "pa_PK":
    "Punjabi (Arabic script, Pakistan)", "ace_Arab": "Acehnese (Arabic script)", "arb_Arab": "Arabic",
    "arb_Latn": "Arabic (Latin script)", "ar_EG": "Arabic (Egypt)", "arz": "Egyptian Arabic",
    "kor_Hang": "Korean", "jpn_Jpan": "Japanese", "iw": "Hebrew", "in": "Indonesian", "mo": "Romanian",
    "sh": "Serbo-Croatian", "no": "Norwegian", "nb": "Norwegian Bokmål", "nob_Latn": "Norwegian Bokmål", "nn":
    "Norwegian Nynorsk", "tl": "Tagalog", "fil": "Filipino", "fas": "Persian", "pes_Arab": "Persian", "prs": "Dari",
    "sah_Cyrl": "Yakut", "aaa": "Ghotuo", "ns": "Northern Sotho",
}  # fmt: skip
"""From CLDR and FLORES-200, put together by hand."""


@pytest.mark.parametrize("code", NAMES)
def test_language_name(code: str) -> None:
    assert language_name(code) == NAMES[code]


def test_language_name_of_a_malformed_code() -> None:
    with pytest.raises(LanguagePairError, match="language='German'"):
        language_name("German")


@pytest.mark.parametrize("template", TEMPLATES)
def test_prompts_differ_where_names_do(template: str) -> None:
    for source in ("zh_Hans", "sr_Cyrl", "pt_BR", "en"):
        targets = {name: code for code, name in NAMES.items() if name != language_name(source)}
        prompts = {build_prompt("…", f"{source}-{code}", template) for code in targets.values()}
        assert len(prompts) == len(targets)
        assert all(language_name(source) in prompt for prompt in prompts)


@pytest.mark.parametrize(
    ("code", "short", "flores"),
    [
        ("de", "de", "deu_Latn"),
        ("ger", "de", "deu_Latn"),
        ("zh", "zh", "zho_Hans"),
        ("cmn", "zh", "zho_Hans"),
        ("zh_Hant", "zh", "zh_Hant"),
        ("zho_Hant", "zh", "zho_Hant"),
        ("pt_BR", "pt", "pt_BR"),
        ("no", "no", "nob_Latn"),
        ("nb", "no", "nob_Latn"),
        ("nn", "nn", "nno_Latn"),
        ("tl", "tl", "tgl_Latn"),
        ("fil", "tl", "tgl_Latn"),
        ("ast", "ast", "ast_Latn"),
        ("ace", "ace", "ace_Latn"),
        ("sah", "sah", "sah"),
    ],
)
def test_other_forms_of_a_code(code: str, short: str, flores: str) -> None:
    assert (two_letter_code(code), flores_code(code)) == (short, flores)


def test_flores_codes_are_their_own_languages() -> None:
    for code, flores in FLORES_CODES.items():
        assert check_language(flores) == flores
        assert two_letter_code(flores) == two_letter_code(code)


def test_what_a_code_says() -> None:
    language, script, region = tag = parse_language("zho_TW")
    assert (language.code, script, region, tag.written_in) == ("zh", None, "TW", "Hant")


def test_prompt() -> None:
    expected = "Translate this from English to German:\nIt {is} 5 % off.\nGerman:"
    assert format_prompt(TRANSLATION_PROMPT, "It {is} 5 % off.", LanguagePair("en", "de")) == expected
