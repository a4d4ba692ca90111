"""Language codes and language pairs, written `source-target`, for example `en-de`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from .errors import LanguagePairError

_CODE = re.compile(r"[a-z]{2,3}(_[A-Z][a-z]{3})?(_[A-Z]{2})?")

LANGUAGE_NAMES: dict[str, str] = {
    "af": "Afrikaans", "am": "Amharic", "ar": "Arabic", "az": "Azerbaijani", "be": "Belarusian", "bg": "Bulgarian",
    "bn": "Bengali", "bs": "Bosnian", "ca": "Catalan", "cs": "Czech", "cy": "Welsh", "da": "Danish", "de": "German",
    "el": "Greek", "en": "English", "eo": "Esperanto", "es": "Spanish", "et": "Estonian", "eu": "Basque",
    "fa": "Persian", "fi": "Finnish", "fr": "French", "ga": "Irish", "gl": "Galician", "gu": "Gujarati",
    "ha": "Hausa", "he": "Hebrew", "hi": "Hindi", "hr": "Croatian", "hu": "Hungarian", "hy": "Armenian",
    "id": "Indonesian", "ig": "Igbo", "is": "Icelandic", "it": "Italian", "ja": "Japanese", "ka": "Georgian",
    "kk": "Kazakh", "km": "Khmer", "kn": "Kannada", "ko": "Korean", "lo": "Lao", "lt": "Lithuanian",
    "lv": "Latvian", "mk": "Macedonian", "ml": "Malayalam", "mn": "Mongolian", "mr": "Marathi", "ms": "Malay",
    "mt": "Maltese", "my": "Burmese", "ne": "Nepali", "nl": "Dutch", "no": "Norwegian", "pa": "Punjabi",
    "pl": "Polish", "ps": "Pashto", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sd": "Sindhi",
    "si": "Sinhala", "sk": "Slovak", "sl": "Slovenian", "so": "Somali", "sq": "Albanian", "sr": "Serbian",
    "su": "Sundanese", "sv": "Swedish", "sw": "Swahili", "ta": "Tamil", "te": "Telugu", "tg": "Tajik", "th": "Thai",
    "tl": "Tagalog", "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu", "uz": "Uzbek", "vi": "Vietnamese",
    "xh": "Xhosa", "yi": "Yiddish", "yo": "Yoruba", "zh": "Chinese", "zu": "Zulu",
}  # fmt: skip

FLORES_CODES: dict[str, str] = {
    "af": "afr_Latn", "am": "amh_Ethi", "ar": "arb_Arab", "az": "azj_Latn", "be": "bel_Cyrl", "bg": "bul_Cyrl",
    "bn": "ben_Beng", "bs": "bos_Latn", "ca": "cat_Latn", "cs": "ces_Latn", "cy": "cym_Latn", "da": "dan_Latn",
    "de": "deu_Latn", "el": "ell_Grek", "en": "eng_Latn", "eo": "epo_Latn", "es": "spa_Latn", "et": "est_Latn",
    "eu": "eus_Latn", "fa": "pes_Arab", "fi": "fin_Latn", "fr": "fra_Latn", "ga": "gle_Latn", "gl": "glg_Latn",
    "gu": "guj_Gujr", "ha": "hau_Latn", "he": "heb_Hebr", "hi": "hin_Deva", "hr": "hrv_Latn", "hu": "hun_Latn",
    "hy": "hye_Armn", "id": "ind_Latn", "ig": "ibo_Latn", "is": "isl_Latn", "it": "ita_Latn", "ja": "jpn_Jpan",
    "ka": "kat_Geor", "kk": "kaz_Cyrl", "km": "khm_Khmr", "kn": "kan_Knda", "ko": "kor_Hang", "lo": "lao_Laoo",
    "lt": "lit_Latn", "lv": "lvs_Latn", "mk": "mkd_Cyrl", "ml": "mal_Mlym", "mn": "khk_Cyrl", "mr": "mar_Deva",
    "ms": "zsm_Latn", "mt": "mlt_Latn", "my": "mya_Mymr", "ne": "npi_Deva", "nl": "nld_Latn", "no": "nob_Latn",
    "pa": "pan_Guru", "pl": "pol_Latn", "ps": "pbt_Arab", "pt": "por_Latn", "ro": "ron_Latn", "ru": "rus_Cyrl",
    "sd": "snd_Arab", "si": "sin_Sinh", "sk": "slk_Latn", "sl": "slv_Latn", "so": "som_Latn", "sq": "als_Latn",
    "sr": "srp_Cyrl", "su": "sun_Latn", "sv": "swe_Latn", "sw": "swh_Latn", "ta": "tam_Taml", "te": "tel_Telu",
    "tg": "tgk_Cyrl", "th": "tha_Thai", "tl": "tgl_Latn", "tr": "tur_Latn", "uk": "ukr_Cyrl", "ur": "urd_Arab",
    "uz": "uzn_Latn", "vi": "vie_Latn", "xh": "xho_Latn", "yi": "ydd_Hebr", "yo": "yor_Latn", "zh": "zho_Hans",
    "zu": "zul_Latn",
}  # fmt: skip
"""Codes of FLORES-200, which NLLB uses."""

_TWO_LETTERS = {flores.split("_")[0]: code for code, flores in FLORES_CODES.items()}

TRANSLATION_PROMPT = "Translate this from {source_language} to {target_language}:\n{source}\n{target_language}:"
"""The prompt for detection and decoding, and the first of the training templates."""


class LanguagePair(NamedTuple):
    """A translation direction."""

    source: str
    target: str

    def __str__(self) -> str:
        return f"{self.source}-{self.target}"


def check_language(code: str, field: str = "language") -> str:
    """Return `code` if it has the form of a language code: `de`, `yue`, `zh_Hans`, `pt_BR`.

    Raises:
        LanguagePairError: If it has not.
    """
    if not isinstance(code, str) or not _CODE.fullmatch(code):
        raise LanguagePairError(
            field, code, "expected an ISO 639 code, lower case, with an optional script or region: de, zh_Hans, pt_BR."
        )
    return code


def parse_pair(pair: str, field: str = "language_pair") -> LanguagePair:
    """Split `"en-de"` into its source and target language.

    Raises:
        LanguagePairError: If `pair` is not two different language codes joined by a hyphen.
    """
    parts = pair.split("-") if isinstance(pair, str) else []
    if len(parts) != 2 or not all(_CODE.fullmatch(part) for part in parts):
        raise LanguagePairError(
            field, pair, "expected source and target language code joined by a hyphen, such as 'en-de'."
        )
    if parts[0] == parts[1]:
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
    doubles = sorted({str(pair) for pair in parsed if parsed.count(pair) > 1})
    if doubles:
        raise LanguagePairError(field, doubles, "each pair may be named once.")
    return parsed


def languages_of(pairs: Iterable[LanguagePair]) -> list[str]:
    """The languages of `pairs`, sorted, each once."""
    return sorted({language for pair in pairs for language in pair})


def two_letter_code(code: str) -> str:
    """ISO 639-1 code of a language (`zho_Hans` → `zh`, `pt_BR` → `pt`); without one in the table, what precedes script
    and region."""
    language = check_language(code).split("_")[0]
    return _TWO_LETTERS.get(language, language)


def flores_code(code: str) -> str:
    """Code in FLORES-200 (`de` → `deu_Latn`); the code itself where it names a script, or the table has none."""
    return code if "_" in code else FLORES_CODES.get(two_letter_code(code), code)


def language_name(code: str) -> str:
    """English name of a language (`de` → `German`); the code itself where the table has none."""
    return LANGUAGE_NAMES.get(two_letter_code(code), code)


def format_prompt(template: str, source: str, pair: LanguagePair) -> str:
    """Fill a template's `{source_language}`, `{target_language}` and `{source}`."""
    return template.format(
        source_language=language_name(pair.source), target_language=language_name(pair.target), source=source
    )
