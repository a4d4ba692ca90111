"""The tables of languages, scripts and regions, against CLDR (as Babel has it) and NLLB's list of FLORES-200 codes."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from babel.core import Locale, get_global
from babel.localedata import locale_identifiers
from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES

from peft_landermt.languages import (
    LANGUAGES,
    REGIONS,
    SCRIPTS,
    _names_on_the_hub,
    find_language,
    script_in,
)

ENGLISH = Locale("en")
LIKELY = {
    code: tag.split("_")[1]
    for code, tag in get_global("likely_subtags").items()
    if re.fullmatch("[a-z]{2,3}", code) and code != "und"
}
LIKELY["crh"] = "Latn"  # Crimean Tatar, as in FLORES-200 and by Ukraine's law of 2021
# names that are shorter than CLDR's, or those of FLORES-200
NAMES = {"Beng": "Bengali", "HK": "Hong Kong", "MO": "Macao", "MM": "Myanmar", "PS": "Palestine", "XX": ""}
# CLDR merges these into another language; here they have names of their own
SEPARATE = {"tl", "tgl", "tw", "twi", "nb", "nob", "kmr", "bh", "bih"}


def test_every_code_means_one_language_with_a_name_of_its_own() -> None:
    codes = Counter(code for language in LANGUAGES.values() for code in (language.code, *language.also))
    assert max(codes.values()) == 1
    known = {language for code in {*codes, *_names_on_the_hub()} if (language := find_language(code)) is not None}
    assert len(known) > 7_900  # ISO 639-3 has that many
    names = Counter(language.name for language in known)
    assert [name for name, count in names.items() if count > 1] == []
    assert all(name == name.strip() != "" for name in names)


@pytest.mark.parametrize("code", ["", "d", "xx", "jp", "und", "mul", "zxx", "mis", "german", "code"])
def test_what_is_no_language(code: str) -> None:
    assert find_language(code) is None


def test_equivalent_codes_are_those_of_cldr() -> None:
    """ISO 639-2 and 639-3, bibliographic and withdrawn codes of all languages with two letters."""
    others = {}
    for code, canonical in get_global("language_aliases").items():
        if re.fullmatch("[a-z]{2}", canonical) and code not in SEPARATE:
            language = find_language(code)
            if language is None or language.code != canonical:
                others[code] = canonical
    # dialects and members of macrolanguages, which have names of their own or none
    assert set(others) <= {
        "cwd", "drh", "esk", "fat", "fuc", "ike", "kng", "kpv", "ojg", "pbu", "quz", "src", "zyb", "cls", "mof",
        "hmo", "prp",
    }  # fmt: skip
    assert {find_language(code).code for code in ("deu", "ger")} == {"de"}  # type: ignore[union-attr]


def test_every_code_of_flores_is_known_with_its_script() -> None:
    assert len(FAIRSEQ_LANGUAGE_CODES) == 202
    for flores in FAIRSEQ_LANGUAGE_CODES:
        code, script = flores.split("_")
        language = find_language(code)
        assert language is not None and flores in language.flores, flores
        assert script in SCRIPTS
        # Santali is written in Ol Chiki, but NLLB says Bengali; Arabic in Latin script is FLORES' own romanisation
        assert script_in(language, script) in language.scripts or flores == "arb_Latn"
    listed = [flores for language in LANGUAGES.values() for flores in language.flores]
    extra = {flores for flores in listed if flores not in FAIRSEQ_LANGUAGE_CODES}
    assert extra == {"arb_Latn", "min_Arab", "sat_Olck"}  # in the data set, not in NLLB


@pytest.mark.parametrize("language", LANGUAGES.values(), ids=lambda language: language.code)
def test_usual_script_is_cldrs(language: object) -> None:
    code, scripts = language.code, language.scripts  # type: ignore[attr-defined]
    assert set(scripts) <= set(SCRIPTS)
    if code in LIKELY:
        assert scripts[0] == LIKELY[code]


def test_scripts_of_all_other_languages_are_cldrs() -> None:
    codes = Counter(code for script in SCRIPTS.values() for code in script.languages)
    assert max(codes.values()) == 1
    for code, script in LIKELY.items():
        language = find_language(code)
        if language is not None and language.code == code:
            assert script_in(language) == ("Kore" if script == "Hang" else script), code


def test_languages_that_cldr_writes_in_several_scripts_have_them() -> None:
    written: dict[str, set[str]] = {}
    for identifier in locale_identifiers():
        code, *rest = identifier.split("_")
        written.setdefault(code, set()).update(part for part in rest if len(part) == 4)
    several = {code: scripts for code, scripts in written.items() if LIKELY.get(code) in scripts and len(scripts) > 1}
    assert {"sr", "zh", "uz", "pa"} <= set(several)
    for code, scripts in several.items():
        # Chinese in Latin letters is a transcription
        assert scripts - set(LANGUAGES[code].scripts) <= ({"Latn"} if code == "zh" else set()), code


def test_names_of_scripts_and_regions_are_cldrs() -> None:
    for code, script in SCRIPTS.items():
        assert script.name == NAMES.get(code, ENGLISH.scripts[code].replace("’", "'"))
    for code, region in REGIONS.items():
        assert region.name == NAMES.get(code, ENGLISH.territories.get(code, "").replace("’", "'"))
    codes = {code for code in ENGLISH.territories if re.fullmatch("[A-Z]{2}", code)}
    assert codes - set(REGIONS) == {"XA", "XB", "ZZ", "QO", "EU", "EZ", "UN", "CQ"}  # no countries


def test_scripts_of_regions_are_cldrs() -> None:
    listed = 0
    for tag, likely in get_global("likely_subtags").items():
        code, _, region = tag.partition("_")
        language = find_language(code)
        if language is not None and language.code == code and re.fullmatch("[A-Z]{2}", region):
            assert script_in(language, region=region) == likely.split("_")[1], tag
            listed += region in REGIONS and any(there.startswith(f"{code}_") for there in REGIONS[region].scripts)
    assert listed == sum(len(region.scripts) for region in REGIONS.values())


@pytest.mark.parametrize(
    ("code", "script", "region", "expected"),
    [
        ("zh", None, None, "Hans"),
        ("zh", None, "TW", "Hant"),
        ("zh", None, "HK", "Hant"),
        ("zh", "Hans", "TW", "Hans"),
        ("sr", None, "ME", "Latn"),
        ("sr", None, "RS", "Cyrl"),
        ("uz", None, "AF", "Arab"),
        ("ko", "Hang", None, "Kore"),
        ("mnw", None, None, "Mymr"),
        ("aaa", None, None, "Latn"),
    ],
)
def test_script_in(code: str, script: str | None, region: str | None, expected: str) -> None:
    language = find_language(code)
    assert language is not None
    assert script_in(language, script, region) == expected
