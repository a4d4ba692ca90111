"""Telling the language of a sentence, by the library py3langid (extra `langid`)."""

from __future__ import annotations

from functools import cache
from typing import Any

from ..errors import CorpusError
from ..language_pair import parse_language, two_letter_code

MIN_CHARACTERS = 20
"""Shorter text is believed to be what it is said to be."""
_LEAST_PROBABILITY = 0.1
_CHINESE = ("Hans", "Hant")
"""The identifier has learnt Chinese in both."""


def may_be(text: str, language: str) -> bool:
    """Tell whether text may be in a language: not if the identifier gives it a probability below 0.1.

    Text of 20 characters or fewer may be anything, and so may that in languages, or scripts of a language, that the
    identifier does not know: `sah`, `sr_Latn`.

    Raises:
        CorpusError: If py3langid is not installed.
    """
    identifier = _identifier()
    tag = parse_language(language)
    usual = tag.written_in == tag.language.scripts[0] or tag.written_in in _CHINESE
    labels = [code for code in (tag.language.code, two_letter_code(language)) if code in identifier.labels]
    if len(text) <= MIN_CHARACTERS or not labels or not usual:
        return True
    return dict(identifier.rank(text))[labels[0]] >= _LEAST_PROBABILITY


@cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise CorpusError(
            "check_languages", True, "needs py3langid; run pip install 'peft_landermt[langid]'."
        ) from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
