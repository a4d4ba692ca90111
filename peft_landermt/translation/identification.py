"""Telling the language of a sentence, by the library py3langid (extra `langid`)."""

from __future__ import annotations

from functools import cache
from typing import Any

from ..errors import CorpusError
from ..language_pair import two_letter_code

MIN_CHARACTERS = 20
"""Shorter text is believed to be what it is said to be."""
_LEAST_PROBABILITY = 0.1


def may_be(text: str, language: str) -> bool:
    """Whether text may be in a language: not if the identifier gives it a probability below 0.1.

    Languages that the identifier does not know, and text of 20 characters or fewer, may be anything.

    Raises:
        CorpusError: If py3langid is not installed.
    """
    code = two_letter_code(language)
    identifier = _identifier()
    if len(text) <= MIN_CHARACTERS or code not in identifier.labels:
        return True
    return dict(identifier.rank(text))[code] >= _LEAST_PROBABILITY


@cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise CorpusError(
            "check_languages", True, "needs py3langid; run pip install 'peft_landermt[langid]'."
        ) from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
