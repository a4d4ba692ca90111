"""Which of a tokenizer's own language codes a language means: `cmn_Hans` for `zh`, `de_DE` for `deu`."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .errors import LanguagePairError
from .language_pair import LanguageTag, parse_language, two_letter_code

_CODE = re.compile(r"_*([a-z]{2,3}(?:_[A-Z][a-z]{3})?)(?:_([A-Z]{2}|[a-z]{2}|[0-9]{3}))?_*")
_ANY_REGION = "XX"
"""What mBART writes where a language has no region."""


def _parse(code: str) -> tuple[str, LanguageTag] | None:
    """Read a code in whatever form tokenizers write it: a name for its language, and what it says; None for other
    text."""
    match = _CODE.fullmatch(code.replace("-", "_"))
    if match is None:
        return None
    language, region = match[1], (match[2] or _ANY_REGION).upper()
    try:
        tag = parse_language(language if region == _ANY_REGION else f"{language}_{region}")
    except LanguagePairError:
        return None
    return two_letter_code(language), tag


def is_code(text: str) -> bool:
    """Tell whether a token is a language code."""
    return _parse(text) is not None


def fitting_code(language: str, codes: Iterable[str]) -> str | None:
    """Find the code among those of a tokenizer that means a language; None if none does, or several do.

    What a code says of script and region counts. A script must be the one that `language` asks for, else the one that
    the language is usually written in, also where a region tells it (`zh_TW`). A region that `language` asks for must
    be there; one that it does not ask for is taken only where it is the only one.

    Args:
        language: Code of a language: `de`, `zh_Hant`.
        codes: What the tokenizer has; text that is no code is left out.
    """
    known = {code: parsed for code in codes if (parsed := _parse(code)) is not None}
    wanted = _parse(language)
    if language in known or wanted is None:
        return language if language in known else None
    name, tag = wanted
    fitting = {
        code: other
        for code, (other_name, other) in known.items()
        if other_name == name and other.written_in == tag.written_in and tag.region in (None, other.region)
    }
    if any(other.region is None for other in fitting.values()):
        fitting = {code: other for code, other in fitting.items() if other.region is None}
    if len({other.region for other in fitting.values()}) > 1:
        return None
    # of codes that mean the same, the one of the same language in FLORES-200, or that says most
    return min(
        fitting,
        key=lambda code: (code not in tag.language.flores, fitting[code].script is None, len(code), code),
        default=None,
    )
