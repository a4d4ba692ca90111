"""Language codes and language pairs, written `source-target`, for example `en-de`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from .errors import LanguagePairError
from .languages import LANGUAGES, REGIONS, SCRIPTS, Language, find_language, script_in

_CODE = re.compile(r"([a-z]{2,3})(?:_([A-Z][a-z]{3}))?(?:_([A-Z]{2}|[0-9]{3}))?")
_HAN = {"Hans": "Simplified", "Hant": "Traditional"}

FLORES_CODES: dict[str, str] = {code: language.flores[0] for code, language in LANGUAGES.items() if language.flores}
"""Codes of FLORES-200, which NLLB uses, by ISO 639-1 or 639-3 code."""

TRANSLATION_PROMPT = "Translate this from {source_language} to {target_language}:\n{source}\n{target_language}:"
"""The prompt for detection and decoding, and the first of the training templates."""


class LanguagePair(NamedTuple):
    """A translation direction."""

    source: str
    target: str

    def __str__(self) -> str:
        return f"{self.source}-{self.target}"


class LanguageTag(NamedTuple):
    """What a language code says.

    Attributes:
        language: The language.
        script: ISO 15924 code, if the code names one.
        region: ISO 3166-1 or UN M49 code, if the code names one.
    """

    language: Language
    script: str | None
    region: str | None

    @property
    def written_in(self) -> str:
        """ISO 15924 code of the script: that which is named, else the usual one in the region, or of the language."""
        return script_in(self.language, self.script, self.region)


@lru_cache(4096)
def _parse(code: str) -> LanguageTag | str:
    """What a code says, or why it says nothing."""
    match = _CODE.fullmatch(code)
    if match is None:
        return "expected an ISO 639 code, lower case, with an optional script or region: de, zh_Hans, pt_BR."
    name, script, region = match.groups()
    language = find_language(name)
    if language is None:
        place = REGIONS.get(name.upper())
        instead = f"; {name.upper()} is the code of a region, {place.name}" if place and place.name else ""
        return f"no language has the ISO 639 code {name!r}{instead}."
    if script is not None and script not in SCRIPTS:
        return f"no script has the ISO 15924 code {script!r}; use one such as Latn, Cyrl, Hans."
    if region is not None and region not in REGIONS:
        return f"no region has the ISO 3166 code {region!r}; use one such as BR, PT, TW."
    return LanguageTag(language, script, region)


def check_language(code: str, field: str = "language") -> str:
    """Return `code` if it is that of a language: `de`, `yue`, `zh_Hans`, `pt_BR`.

    Raises:
        LanguagePairError: If it is not.
    """
    parse_language(code, field)
    return code


def parse_language(code: str, field: str = "language") -> LanguageTag:
    """Read what a language code says.

    Raises:
        LanguagePairError: If it has not the form of one, or its language, script or region is unknown.
    """
    parsed = _parse(code) if isinstance(code, str) else _parse("")
    if isinstance(parsed, str):
        raise LanguagePairError(field, code, parsed)
    return parsed


def parse_pair(pair: str, field: str = "language_pair") -> LanguagePair:
    """Split `"en-de"` into its source and target language.

    Raises:
        LanguagePairError: If `pair` is not the codes of two languages, scripts or regions joined by a hyphen.
    """
    parts = pair.split("-") if isinstance(pair, str) else []
    if len(parts) != 2 or not all(_CODE.fullmatch(part) for part in parts):
        raise LanguagePairError(
            field, pair, "expected source and target language code joined by a hyphen, such as 'en-de'."
        )
    for part in parts:
        problem = _parse(part)
        if isinstance(problem, str):
            raise LanguagePairError(field, pair, problem)
    if language_name(parts[0]) == language_name(parts[1]):
        raise LanguagePairError(field, pair, "source and target language must differ.")
    return LanguagePair(*parts)


def parse_pairs(pairs: Iterable[str], field: str = "language_pairs") -> list[LanguagePair]:
    """Parse a list of pairs; refuse an empty list, a lone string and duplicates.

    Raises:
        LanguagePairError: If one of these holds, or a pair is malformed.
    """
    if isinstance(pairs, str) or not isinstance(pairs, Iterable):
        raise LanguagePairError(field, pairs, f"expected a list of pairs: [{pairs!r}].")
    parsed = [parse_pair(pair, field) for pair in pairs]
    if not parsed:
        raise LanguagePairError(field, list(pairs), "name at least one pair, such as 'en-de'.")
    doubles = sorted(str(pair) for pair, count in Counter(parsed).items() if count > 1)
    if doubles:
        raise LanguagePairError(field, doubles, "each pair may be named once.")
    return parsed


def languages_of(pairs: Iterable[LanguagePair]) -> list[str]:
    """Return the languages of `pairs`, sorted, each once."""
    return sorted({language for pair in pairs for language in pair})


def two_letter_code(code: str) -> str:
    """Return the ISO 639-1 code of a language (`zho_Hans` → `zh`, `pt_BR` → `pt`, `nb` → `no`), else the 639-3 one."""
    language = parse_language(code).language
    return language.macro or language.code


def flores_code(code: str) -> str:
    """Return the code in FLORES-200 (`de` → `deu_Latn`); the code itself where it names a script or region, or has
    none there."""
    return code if "_" in code else FLORES_CODES.get(parse_language(code).language.code, code)


@lru_cache(4096)
def language_name(code: str) -> str:
    """Return the English name of a language, with the script or region that its code asks for.

    A script is left out where the language has no other in common use: `deu_Latn` is German, but `sr_Cyrl` is Serbian
    (Cyrillic script), `zh_TW` Chinese (Traditional, Taiwan) and `pt_BR` Portuguese (Brazil).

    Raises:
        LanguagePairError: If the code is malformed or unknown.
    """
    language, script, region = tag = parse_language(code)
    details = []
    if (script is not None or region is not None) and (
        len(language.scripts) > 1 or tag.written_in not in language.scripts
    ):
        details.append(_HAN.get(tag.written_in) or f"{SCRIPTS[tag.written_in].name} script")
    if region is not None and REGIONS[region].name:
        details.append(REGIONS[region].name)
    return f"{language.name} ({', '.join(details)})" if details else language.name


def format_prompt(template: str, source: str, pair: LanguagePair) -> str:
    """Fill a template's `{source_language}`, `{target_language}` and `{source}`."""
    return template.format(
        source_language=language_name(pair.source), target_language=language_name(pair.target), source=source
    )
