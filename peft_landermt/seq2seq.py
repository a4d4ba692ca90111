"""How the tokenizer of an encoder-decoder is told source and target language.

Three conventions, told apart by the tokenizer itself: language codes of its own (`src_lang` and `tgt_lang`: NLLB,
M2M100, mBART); a token for the target language before the source (`<2de>` of MADLAD, `>>deu<<` of Marian models with
several targets; other Marian models need nothing); else T5's instruction.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .errors import LanguagePairError
from .language_pair import FLORES_CODES, LanguagePair, format_prompt, two_letter_code
from .padding import IGNORED

INSTRUCTION = "translate {source_language} to {target_language}: {source}"
"""T5's own; for tokenizers that know no languages."""


def is_encoder_decoder(model: nn.Module) -> bool:
    """Tell whether the transformers model, or the one inside a PEFT model, has an encoder and a decoder."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def decoder_inputs(model: nn.Module, labels: torch.Tensor) -> torch.Tensor:
    """Make decoder inputs for labels, by the model's own rule where it has one (mBART turns the language code
    around)."""
    prepare = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if prepare is not None:
        return prepare(labels=labels)
    config: Any = model.config
    known = labels.masked_fill(labels == IGNORED, config.pad_token_id)
    return F.pad(known[:, :-1], (1, 0), value=config.decoder_start_token_id)


def encode_source(
    tokenizer: Any, text: str, pair: LanguagePair, max_length: int | None = None, template: str | None = None
) -> list[int]:
    """Encode a source: token ids for the encoder; with `template`, that is filled instead of the tokenizer's own
    convention.

    Raises:
        LanguagePairError: If the tokenizer has codes, but none for a language of the pair.
    """
    if template is not None:
        text = format_prompt(template, text, pair)
    elif not _has_codes(tokenizer):
        text = _name_target(tokenizer, text, pair)
    with _speaking(tokenizer, pair):
        return tokenizer(text, truncation=max_length is not None, max_length=max_length)["input_ids"]


def encode_target(tokenizer: Any, text: str, pair: LanguagePair, max_length: int | None = None) -> list[int]:
    """Encode a target: token ids that the decoder should give, end of sentence and language code included.

    Raises:
        LanguagePairError: If the tokenizer has codes, but none for a language of the pair.
    """
    with _speaking(tokenizer, pair):
        return tokenizer(text_target=text, truncation=max_length is not None, max_length=max_length)["input_ids"]


def generation_start(tokenizer: Any, pair: LanguagePair) -> dict[str, int]:
    """Return options of `generate` that make the decoder begin in the target language."""
    if not _has_codes(tokenizer):
        return {}
    code = _codes(tokenizer)[language_code(tokenizer, pair.target)]
    first = encode_target(tokenizer, "", pair)[0]
    return {"forced_bos_token_id" if first == code else "decoder_start_token_id": code}


def language_code(tokenizer: Any, language: str) -> str:
    """Tell what the tokenizer calls a language: `deu_Latn`, `de`, `de_DE`.

    Raises:
        LanguagePairError: If it has no code for it, or several.
    """
    codes = _codes(tokenizer)
    base = two_letter_code(language)
    regional = sorted(code for code in codes if code.startswith(f"{base}_"))
    candidates = [language]
    if "_" not in language or language == FLORES_CODES.get(base):  # no other script or region is meant
        candidates += [FLORES_CODES.get(base, base), base, *(regional if len(regional) == 1 else ())]
    for candidate in candidates:
        if candidate in codes:
            return candidate
    raise LanguagePairError(
        "language_pair",
        language,
        f"the tokenizer has {' and '.join(regional) or 'no code'} for it; write the pair with the tokenizer's own "
        "codes, such as 'eng_Latn-deu_Latn'.",
    )


def _has_codes(tokenizer: Any) -> bool:
    return isinstance(getattr(tokenizer, "src_lang", None), str)


def _codes(tokenizer: Any) -> dict[str, int]:
    """Ids of language codes, among other special tokens; words of the vocabulary that look like codes are none."""
    special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    return {**special, **getattr(tokenizer, "lang_code_to_id", {})}


def _name_target(tokenizer: Any, text: str, pair: LanguagePair) -> str:
    base = two_letter_code(pair.target)
    tokens = [f"<2{pair.target}>", f"<2{base}>", f">>{FLORES_CODES.get(base, base)[:3]}<<", f">>{base}<<"]
    for token in tokens:
        if tokenizer.convert_tokens_to_ids(token) not in (None, tokenizer.unk_token_id):
            return f"{token} {text}"
    single_pair = hasattr(tokenizer, "supported_language_codes")
    return text if single_pair else format_prompt(INSTRUCTION, text, pair)


@contextmanager
def _speaking(tokenizer: Any, pair: LanguagePair) -> Iterator[None]:
    """The tokenizer's languages are the pair's inside, as before outside."""
    if not _has_codes(tokenizer):
        yield
        return
    before = tokenizer.src_lang, getattr(tokenizer, "tgt_lang", None)
    try:
        tokenizer.tgt_lang = language_code(tokenizer, pair.target)
        tokenizer.src_lang = language_code(tokenizer, pair.source)
        yield
    finally:
        tokenizer.tgt_lang = before[1]
        tokenizer.src_lang = before[0]
