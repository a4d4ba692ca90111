"""Tokenizers of encoder-decoders with a given vocabulary; transformers 4 makes them from files, or from a backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from .versions import TRANSFORMERS_4


def unigram_tokenizer(kind: str, tokens: Sequence[str], **options: Any) -> Any:
    """A tokenizer of a class such as `T5Tokenizer`, with `<unk>` as fourth token."""
    scores = [(token, 0.0) for token in tokens]
    if not TRANSFORMERS_4:
        return getattr(transformers, kind)(vocab=scores, **options)
    backend = _backend(models.Unigram(scores, unk_id=3))
    end = [("</s>", tokens.index("</s>"))]
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=end)
    return getattr(transformers, f"{kind}Fast")(tokenizer_object=backend, **options)


def nllb_tokenizer(tokens: Sequence[str]) -> Any:
    """NLLB's, which knows no merges."""
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if not TRANSFORMERS_4:
        return transformers.NllbTokenizer(vocab=vocabulary, merges=[])
    backend = _backend(models.BPE(vocabulary, [], unk_token="<unk>", fuse_unk=True))
    return transformers.NllbTokenizerFast(tokenizer_object=backend)


def _backend(model: Any) -> Tokenizer:
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    return backend
