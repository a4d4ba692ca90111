"""Which of a tokenizer's own language codes a language means: `cmn_Hans` for `zh`, `de_DE` for `deu`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from .language_pair import FLORES_CODES

_CODE = re.compile(r"_*([a-z]{2,3})(?:_([A-Z][a-z]{3}))?(?:_([A-Z]{2}|[a-z]{2}|[0-9]{3}))?_*")
_ANY_REGION = "XX"
"""What mBART writes where a language has no region."""

_BASES: dict[str, str] = {
    **{flores.split("_")[0]: code for code, flores in FLORES_CODES.items()},
    # macrolanguages that FLORES-200 has the main language of, and that language by another code
    "ara": "ar", "aze": "az", "cmn": "zh", "ekk": "et", "est": "et", "fas": "fa", "fil": "tl", "lav": "lv",
    "mon": "mn", "msa": "ms", "nep": "ne", "nno": "nn", "nor": "no", "nb": "no", "pus": "ps", "sqi": "sq",
    "swa": "sw", "uzb": "uz", "yid": "yi", "zho": "zh",
    # ISO 639-2/B
    "alb": "sq", "arm": "hy", "baq": "eu", "bur": "my", "chi": "zh", "cze": "cs", "dut": "nl", "fre": "fr",
    "geo": "ka", "ger": "de", "gre": "el", "ice": "is", "mac": "mk", "may": "ms", "per": "fa", "rum": "ro",
    "slo": "sk", "wel": "cy",
    # codes that ISO 639 has withdrawn
    "iw": "he", "in": "id", "ji": "yi", "jw": "jv", "jav": "jv", "mo": "ro",
}  # fmt: skip
"""For every code of a language, one that all have in common."""


class _Parts(NamedTuple):
    language: str
    script: str | None
    region: str | None


def _split(code: str) -> _Parts | None:
    """The parts of a code in whatever form tokenizers write it; None for other text."""
    match = _CODE.fullmatch(code.replace("-", "_"))
    if match is None:
        return None
    language, script, region = match.groups()
    region = None if region is None or region == _ANY_REGION else region.upper()
    return _Parts(_BASES.get(language, language), script, region)


def is_code(text: str) -> bool:
    """Whether a token has the form of a language code."""
    return _split(text) is not None


def fitting_code(language: str, codes: Iterable[str]) -> str | None:
    """The code among those of a tokenizer that means a language; None if none does, or several do.

    What a code says of script and region counts. One that `language` asks for must be there, except the script that a
    language is usually written in; and one that it does not ask for is taken only if it is that script, or the only
    one that the tokenizer has for a language whose usual script is not known, or the only region.

    Args:
        language: Code of a language: `de`, `zh_Hant`.
        codes: What the tokenizer has; text that is no code is left out.
    """
    known = {code: parts for code in codes if (parts := _split(code)) is not None}
    wanted = _split(language)
    if language in known or wanted is None:
        return language if language in known else None
    flores = FLORES_CODES.get(wanted.language, "")
    usual = flores.partition("_")[2] or None
    anything = wanted.script is None and usual is None

    def fits(parts: _Parts) -> bool:
        same_script = anything or (parts.script or usual) == (wanted.script or usual)
        return parts.language == wanted.language and same_script and wanted.region in (None, parts.region)

    fitting = {code: parts for code, parts in known.items() if fits(parts)}
    if any(parts.region is None for parts in fitting.values()):
        fitting = {code: parts for code, parts in fitting.items() if parts.region is None}
    scripts, regions = ({parts[place] for parts in fitting.values()} for place in (1, 2))
    if len(regions) > 1 or (anything and len(scripts) > 1):
        return None
    # of codes that mean the same, the one that says most
    return min(fitting, key=lambda code: (code != flores, fitting[code].script is None, len(code), code), default=None)
