"""Tokenizers of the kinds that prompts meet: with tokens or a space before a text, tokens behind it, for chats."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

_SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]


def byte_tokenizer(first: bool = True, last: bool = False, added: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """Bytes, as GPT-2 writes them; `<s>` before a text and `</s>` behind it, where asked for."""
    tokens = [*_SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({token: place for place, token in enumerate(tokens)}, [], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return _wrapped(backend, first, last, added)


def piece_tokenizer(first: bool = True, last: bool = False, added: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """Characters and a few words, as Llama 2's SentencePiece writes them: a space before every text."""
    words = ["▁Haus", "▁Das", "▁German", ":", "▁"]
    characters = [chr(code) for code in range(33, 127)] + ["\n", "ä", "ö", "ü", "ß"]
    tokens = [*_SPECIAL, *words, *(character for character in characters if character not in words)]
    scores = [(token, -1.0 if token in words else -4.0) for token in tokens]
    backend = Tokenizer(models.Unigram(scores, unk_id=3))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return _wrapped(backend, first, last, added)


def _wrapped(backend: Tokenizer, first: bool, last: bool, added: tuple[str, ...]) -> PreTrainedTokenizerFast:
    pattern = ("<s> " if first else "") + "$A" + (" </s>" if last else "")
    backend.post_processor = processors.TemplateProcessing(single=pattern, special_tokens=[("<s>", 1), ("</s>", 2)])
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (*_SPECIAL, *added)])
    options: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **options)


CHATS: dict[str, tuple[tuple[str, ...], str, str, str]] = {
    "ChatML (Qwen, Tower, EuroLLM)": (
        ("<|im_start|>", "<|im_end|>"),
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>",
    ),
    "Qwen 3, thinking": (
        ("<|im_start|>", "<|im_end|>"),
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
        "{% if m['role'] == 'assistant' %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
        "{{ m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
        "{% if enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
        "{% endif %}",
        "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        "<|im_end|>",
    ),
    "Gemma": (
        ("<start_of_turn>", "<end_of_turn>"),
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{% set role = 'model' %}{% else %}"
        "{% set role = m['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\\n' + m['content'] | trim + "
        "'<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}",
        "<s><start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n",
        "<end_of_turn>",
    ),
    "Llama 3": (
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + "
        "m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
        "<s><|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
    ),
    "Llama 2, Mistral": (
        ("[INST]", "[/INST]"),
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
        "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}",
        "<s>[INST] {} [/INST]",
        "</s>",
    ),
    "Phi 3": (
        ("<|user|>", "<|assistant|>", "<|end|>"),
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}",
        "<|user|>\n{}<|end|>\n<|assistant|>\n",
        "<|end|>",
    ),
    "nothing after the answer": (
        ("<user>", "<bot>"),
        "{% for m in messages %}{{ ('<user>' if m['role'] == 'user' else '<bot>') + m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<bot>' }}{% endif %}",
        "<user>{}<bot>",
        "</s>",
    ),
}
"""By name: tokens of the chat format, its Jinja template after the published ones, what a prompt is, and what ends an
answer."""
