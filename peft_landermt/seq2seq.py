"""How the tokenizer of an encoder-decoder is told source and target language.

Three conventions, told apart by the tokenizer itself: language codes of its own (`src_lang` and `tgt_lang`: NLLB,
M2M100, mBART); a token for the target language before the source (`<2de>` of MADLAD, `>>deu<<` of Marian models with
several targets; other Marian models need nothing); else T5's instruction. A language is looked up as written and in
its other forms; where a tokenizer has codes or target tokens and none fits, the error lists them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .errors import CorpusError, LanguagePairError
from .language_pair import LanguagePair, format_prompt
from .padding import IGNORED
from .prompt import Prompt
from .tokenizer_codes import fitting_code, is_code

INSTRUCTION = "translate {source_language} to {target_language}: {source}"
"""T5's own; for tokenizers that know no languages."""

_TARGET_TOKEN = re.compile(r"<2([\w-]{2,12})>|>>([\w-]{2,12})<<")


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
    """Encode a source: token ids for the encoder of [`source_text`].

    Raises:
        LanguagePairError: If the tokenizer has codes or target tokens, but none for a language of the pair.
        CorpusError: If `template` is none, or says where the translation stands, which the encoder does not see.
    """
    text = source_text(tokenizer, text, pair, template)
    with _speaking(tokenizer, pair):
        return tokenizer(text, truncation=max_length is not None, max_length=max_length)["input_ids"]


def source_text(tokenizer: Any, text: str, pair: LanguagePair, template: str | None = None) -> str:
    """Return what the encoder reads as text: the source, with an instruction or a target token where the tokenizer
    has no language codes; with `template`, that is filled instead.

    Raises:
        LanguagePairError: If the tokenizer has target tokens, but none for the pair's target.
        CorpusError: If `template` is none, or says where the translation stands, which the encoder does not see.
    """
    if template is not None:
        prompt = Prompt.parse(template)
        if prompt.end or prompt.separator != " ":
            raise CorpusError("template", template, "must not hold {target}; an encoder reads the source alone.")
        return prompt.fill(text, pair)
    return text if _has_codes(tokenizer) else _name_target(tokenizer, text, pair)


def encode_target(tokenizer: Any, text: str, pair: LanguagePair, max_length: int | None = None) -> list[int]:
    """Encode a target: token ids that the decoder should give, end of sentence and language code included.

    Raises:
        LanguagePairError: If the tokenizer has codes, but none for a language of the pair.
    """
    with _speaking(tokenizer, pair):
        return tokenizer(text_target=text, truncation=max_length is not None, max_length=max_length)["input_ids"]


def encode_labels(
    tokenizer: Any, text: str, pair: LanguagePair, max_length: int | None = None
) -> tuple[list[int], list[int]]:
    """Return what the decoder should give, and the same as labels: a text that was cut does not teach where it ends.

    Raises:
        LanguagePairError: If the tokenizer has codes, but none for a language of the pair.
    """
    ids = encode_target(tokenizer, text, pair)
    if max_length is None or len(ids) <= max_length:
        return ids, ids
    ids = encode_target(tokenizer, text, pair, max_length)
    # what stands after the text: the end, and in some a language code behind it, which the decoder starts from
    last = next((place for place in range(len(ids)) if ids[place] == tokenizer.eos_token_id), len(ids))
    return ids, ids[:last] + [IGNORED] * (len(ids) - last)


def generation_start(tokenizer: Any, pair: LanguagePair) -> dict[str, int]:
    """Return options of `generate` that make the decoder begin in the target language."""
    if not _has_codes(tokenizer):
        return {}
    code = _codes(tokenizer)[language_code(tokenizer, pair.target)]
    first = encode_target(tokenizer, "", pair)[0]
    return {"forced_bos_token_id" if first == code else "decoder_start_token_id": code}


def starts_from_code(tokenizer: Any, pair: LanguagePair) -> bool:
    """Tell whether the decoder starts from a language code, which stands behind the text (mBART)."""
    return "decoder_start_token_id" in generation_start(tokenizer, pair)


def language_code(tokenizer: Any, language: str) -> str:
    """Tell what the tokenizer calls a language: `deu_Latn`, `de`, `de_DE`.

    Raises:
        LanguagePairError: If it has no code for it, or several.
    """
    codes = _codes(tokenizer)
    found = fitting_code(language, codes)
    if found is None:
        listed = ", ".join(sorted(filter(is_code, codes)))
        raise LanguagePairError(
            "language_pair",
            language,
            f"the tokenizer has no one code for it; write the pair with the tokenizer's own codes: {listed}.",
        )
    return found


def _has_codes(tokenizer: Any) -> bool:
    return isinstance(getattr(tokenizer, "src_lang", None), str)


def _codes(tokenizer: Any) -> dict[str, int]:
    """Return ids of language codes, among other special tokens; words of the vocabulary that look like codes are
    none."""
    special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    return {**special, **getattr(tokenizer, "lang_code_to_id", {})}


def _name_target(tokenizer: Any, text: str, pair: LanguagePair) -> str:
    """Put the text behind the token of the target language, where the tokenizer has such tokens; else an
    instruction."""
    tokens = _target_tokens(tokenizer, len(tokenizer))
    if not tokens:
        single_pair = hasattr(tokenizer, "supported_language_codes")
        return text if single_pair else format_prompt(INSTRUCTION, text, pair)
    found = fitting_code(pair.target, tokens)
    if found is None:
        listed = ", ".join(sorted(tokens))
        raise LanguagePairError(
            "language_pair",
            str(pair),
            f"the tokenizer has no one target token for {pair.target}; it translates into these: {listed}.",
        )
    return f"{tokens[found]} {text}"


@lru_cache(4)
def _target_tokens(tokenizer: Any, size: int) -> dict[str, str]:
    """List, by code, the tokens that name a target language: `<2de>`, `>>deu<<`. `size` tells when tokens were
    added."""
    matches = (_TARGET_TOKEN.fullmatch(token) for token in tokenizer.get_vocab())
    return {match[1] or match[2]: match[0] for match in matches if match is not None}


@contextmanager
def _speaking(tokenizer: Any, pair: LanguagePair) -> Iterator[None]:
    """Have the tokenizer speak the pair's languages inside, and those of before outside."""
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
