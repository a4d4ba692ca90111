"""Which code or target token of a tokenizer a language means, on lists that published tokenizers have.

Lists are excerpts of what the model cards and tokenizers of these name: NLLB-200 (FLORES-200 codes), M2M100 (ISO 639-1
and 639-3), mBART-50 (with regions), MADLAD-400 (BCP 47), OPUS-MT models with several targets (ISO 639-3 with scripts,
and older ones with ISO 639-1).
"""

from __future__ import annotations

import pytest

from peft_landermt.tokenizer_codes import fitting_code, is_code

NLLB = """ace_Arab ace_Latn arb_Arab ary_Arab ast_Latn azb_Arab azj_Latn deu_Latn eng_Latn est_Latn fra_Latn khk_Cyrl
lvs_Latn nno_Latn nob_Latn npi_Deva pbt_Arab pes_Arab por_Latn srp_Cyrl swh_Latn tgl_Latn yue_Hant zho_Hans zho_Hant
zsm_Latn kor_Hang uzn_Latn als_Latn ydd_Hebr heb_Hebr"""
M2M100 = "af am ar ast az de en es fa fr he hr id is jv ms nl no pt sr sw tl uz yi zh"
MBART_50 = "ar_AR de_DE en_XX es_XX fa_IR fr_XX he_IL pt_XX sw_KE tl_XX zh_CN ko_KR"
MADLAD = "ar bg bg_Latn de en es fa fil fr iw jv ms no pt ru ru_Latn sr sw zh zh_Latn nn"
OPUS = (
    ">>ara<< >>ary<< >>cmn_Hans<< >>cmn_Hant<< >>deu<< >>fas<< >>nob<< >>nno<< >>srp_Cyrl<< >>srp_Latn<< >>zsm_Latn<<"
)
ROMANCE = "fr fr_BE pt pt_br es es_AR es_MX it"

CASES = [
    # as written
    *((NLLB, code, code) for code in ("deu_Latn", "zho_Hant", "ace_Arab")),
    *((M2M100, code, code) for code in ("de", "zh", "sr")),
    *((MADLAD, code, code) for code in ("zh_Latn", "bg_Latn", "fil")),
    # two and three letters, macrolanguages and their main languages
    (NLLB, "de", "deu_Latn"), (NLLB, "deu", "deu_Latn"), (NLLB, "ger", "deu_Latn"), (NLLB, "ast", "ast_Latn"),
    (NLLB, "ar", "arb_Arab"), (NLLB, "ara", "arb_Arab"), (NLLB, "fa", "pes_Arab"), (NLLB, "fas", "pes_Arab"),
    (NLLB, "no", "nob_Latn"), (NLLB, "nb", "nob_Latn"), (NLLB, "nor", "nob_Latn"), (NLLB, "nn", "nno_Latn"),
    (NLLB, "ms", "zsm_Latn"), (NLLB, "msa", "zsm_Latn"), (NLLB, "lv", "lvs_Latn"), (NLLB, "mn", "khk_Cyrl"),
    (NLLB, "ne", "npi_Deva"), (NLLB, "ps", "pbt_Arab"), (NLLB, "sw", "swh_Latn"), (NLLB, "fil", "tgl_Latn"),
    (NLLB, "uz", "uzn_Latn"), (NLLB, "sq", "als_Latn"), (NLLB, "yi", "ydd_Hebr"), (NLLB, "iw", "heb_Hebr"),
    (NLLB, "az", "azj_Latn"), (NLLB, "ko", "kor_Hang"), (NLLB, "et", "est_Latn"),
    (M2M100, "deu_Latn", "de"), (M2M100, "pes_Arab", "fa"), (M2M100, "nob_Latn", "no"), (M2M100, "fil", "tl"),
    (M2M100, "arb", "ar"), (M2M100, "jav", "jv"),
    (MADLAD, "he", "iw"), (MADLAD, "tl", "fil"), (MADLAD, "jav", "jv"), (MADLAD, "nno", "nn"), (MADLAD, "cmn", "zh"),
    (OPUS, "de", "deu"), (OPUS, "ar", "ara"), (OPUS, "fa", "fas"), (OPUS, "pes", "fas"), (OPUS, "no", "nob"),
    (OPUS, "nn", "nno"), (OPUS, "ms", "zsm_Latn"),
    # scripts: the usual one where none is asked for
    (NLLB, "zh", "zho_Hans"), (NLLB, "zh_Hant", "zho_Hant"), (NLLB, "cmn_Hant", "zho_Hant"), (NLLB, "sr", "srp_Cyrl"),
    (OPUS, "zh", "cmn_Hans"), (OPUS, "zho", "cmn_Hans"), (OPUS, "zh_Hans", "cmn_Hans"), (OPUS, "zh_Hant", "cmn_Hant"),
    (OPUS, "zho_Hant", "cmn_Hant"), (OPUS, "sr", "srp_Cyrl"), (OPUS, "sr_Latn", "srp_Latn"),
    (OPUS, "sr_Cyrl", "srp_Cyrl"),
    (MADLAD, "zh_Hans", "zh"), (MADLAD, "sr_Cyrl", "sr"), (M2M100, "zh_Hans", "zh"),
    (NLLB, "ace", "ace_Latn"), ("zh_CN zh_TW", "zh", "zh_CN"), ("zh_CN zh_TW", "zh_Hant", "zh_TW"),
    ("zh-Hans zh-Hant", "zh_Hant", "zh-Hant"), ("__zh__ __de__", "deu_Latn", "__de__"),
    ("sr_ME sr_RS", "sr_Latn", "sr_ME"),
    # regions: the only one where none is asked for
    (MBART_50, "de", "de_DE"), (MBART_50, "deu_Latn", "de_DE"), (MBART_50, "en", "en_XX"), (MBART_50, "zh", "zh_CN"),
    (MBART_50, "zho_Hans", "zh_CN"), (MBART_50, "pt", "pt_XX"), (MBART_50, "fa", "fa_IR"), (MBART_50, "fil", "tl_XX"),
    (ROMANCE, "pt", "pt"), (ROMANCE, "pt_BR", "pt_br"), (ROMANCE, "es_AR", "es_AR"), (ROMANCE, "fra", "fr"),
]  # fmt: skip
NONE = [
    (NLLB, "xx"), (NLLB, "zh_TW"), (NLLB, "pt_BR"), (NLLB, "sr_Latn"), (NLLB, "de_Arab"), (NLLB, "jv"),
    (M2M100, "zh_Hant"), (M2M100, "zho_Hant"), (M2M100, "sr_Latn"), (M2M100, "nn"), (M2M100, "pt_BR"), (M2M100, "ary"),
    (MBART_50, "zh_TW"), (MBART_50, "zh_Hant"), (MBART_50, "pt_BR"), (MBART_50, "en_GB"), (MBART_50, "sr"),
    (MADLAD, "zh_Hant"), (MADLAD, "sr_Latn"), (MADLAD, "pt_BR"), (MADLAD, "da"), (MADLAD, "ru_Arab"),
    (OPUS, "fr"), (OPUS, "zh_TW"), (OPUS, "hr"), (OPUS, "arz"), ("cmn_Hant", "zh"), ("srp_Latn", "sr"),
    ("zh_TW zh_HK", "zh_Hans"), ("zh_TW", "zh"), ("pa_PK", "pa_Guru"), ("zh_CN zh_SG", "zh"),
    (ROMANCE, "pt_PT"), (ROMANCE, "es_ES"), ("es_AR es_MX", "es"),
]  # fmt: skip


def codes_of(listed: str) -> list[str]:
    return [code.strip("<>") for code in listed.split()]


@pytest.mark.parametrize(("listed", "language", "code"), CASES)
def test_the_code_of_a_language(listed: str, language: str, code: str) -> None:
    for order in (codes_of(listed), codes_of(listed)[::-1]):
        assert fitting_code(language, order) == code


@pytest.mark.parametrize(("listed", "language"), NONE)
def test_no_other_language_script_or_region_is_taken(listed: str, language: str) -> None:
    assert fitting_code(language, codes_of(listed)) is None


@pytest.mark.parametrize("text", ["</s>", "<unk>", "madeupword0001", "a", "deutsch", "", "▁de"])
def test_other_tokens_are_no_codes(text: str) -> None:
    assert not is_code(text)
    assert fitting_code("de", [text]) is None
