"""Languages, scripts and regions by their codes; the tables are in `language_data`, whose README names the sources."""

from __future__ import annotations

import importlib.util
import json
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

_HANGUL = {"Hang": "Kore"}
"""FLORES-200 writes Korean as Hangul alone, CLDR as Hangul with Han."""
_NO_LANGUAGE = ("mis", "mul", "und", "zxx")


class Language(NamedTuple):
    """A language.

    Attributes:
        code: ISO 639-1 code, else that of ISO 639-3.
        also: Other codes that mean the same: ISO 639-2 and 639-3, older ones, the main language of a macrolanguage.
        macro: Code of the macrolanguage that it is the main part of, as `no` of `nb`; empty for most.
        scripts: ISO 15924 codes of the scripts in use, the usual one first.
        flores: Its codes in FLORES-200, that of the usual script first.
        name: English name.
    """

    code: str
    also: tuple[str, ...]
    macro: str
    scripts: tuple[str, ...]
    flores: tuple[str, ...]
    name: str


class Script(NamedTuple):
    """A script: its name, and languages outside `languages.tsv` that are usually written in it."""

    name: str
    languages: tuple[str, ...]


class Region(NamedTuple):
    """A region: its name, and languages that are written in another script there than usual, as `zh_Hant`."""

    name: str
    scripts: tuple[str, ...]


def _rows(table: str) -> list[list[str]]:
    text = (files(__package__) / "language_data" / f"{table}.tsv").read_text(encoding="utf-8")
    return [line.split("\t") for line in text.rstrip("\n").split("\n")[1:]]


LANGUAGES: dict[str, Language] = {
    code: Language(code, tuple(also.split()), macro, tuple(scripts.split()), tuple(flores.split()), name)
    for code, also, macro, scripts, flores, name in _rows("languages")
}
SCRIPTS: dict[str, Script] = {code: Script(name, tuple(listed.split())) for code, name, listed in _rows("scripts")}
REGIONS: dict[str, Region] = {code: Region(name, tuple(scripts.split())) for code, name, scripts in _rows("regions")}

_BY_CODE = {code: language for language in LANGUAGES.values() for code in (language.code, *language.also)}


@lru_cache(4096)
def find_language(code: str) -> Language | None:
    """Find the language that an ISO 639 code, or one of FLORES-200 without its script, means; None if there is
    none."""
    if code in _BY_CODE:
        return _BY_CODE[code]
    name = _names_on_the_hub().get(code)
    if name is None or code in _NO_LANGUAGE:
        return None
    script = next((script for script, row in SCRIPTS.items() if code in row.languages), "Latn")
    return Language(code, (), "", (script,), (), name.partition(";")[0])


@cache
def _names_on_the_hub() -> dict[str, str]:
    """The list of ISO 639-3 names that `datasets` checks cards on the Hub against."""
    found = importlib.util.find_spec("datasets")  # to import it takes seconds
    folders = found.submodule_search_locations if found is not None else None
    paths = [Path(folder) / "utils" / "resources" / "languages.json" for folder in folders or ()]
    return {
        code: name
        for path in paths
        if path.is_file()
        for code, name in json.loads(path.read_text(encoding="utf-8")).items()
        if len(code) in (2, 3)
    }


def script_in(language: Language, script: str | None = None, region: str | None = None) -> str:
    """Return the ISO 15924 code of what a language is written in: `script` where it is named, else by region, else the
    usual."""
    if script is not None:
        return _HANGUL.get(script, script)
    for written in REGIONS[region].scripts if region in REGIONS else ():
        code, _, there = written.partition("_")
        if code == language.code:
            return there
    return language.scripts[0]
