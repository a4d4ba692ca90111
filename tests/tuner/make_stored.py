"""Adapters of every kind, stored once in `stored/`, so that what comes later still reads and writes them.

`python -m tests.tuner.make_stored` makes the folders that are missing, and leaves the others as they are: what is
stored stays what the code of its day wrote. To store a new kind, add a row to `STORED` and run it.
"""

from __future__ import annotations

import json
import tempfile
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    M2M100Config,
    M2M100ForConditionalGeneration,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from peft_landermt import NeuronMap, add_language_pairs, compose_language_pair, detect_neurons

from ..conftest import SENTENCES, VOCABULARY, make_tokenizer, randomize_adapter
from .helpers import adapt, logits

PAIRS = ["en-de", "de-fr", "en-fr"]
FOLDER = Path(__file__).parent / "stored"
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
ITALIAN_SENTENCES = ["La casa è vecchia.", "Beviamo il tè.", "Dov'è la stazione?", "Ha piovuto tutta la notte."]
EXPECTED = "expected.json"
"""Logits of every route that a stored adapter knows, beside its two files."""

_TOKENS = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_LLAMA = {
    **_TOKENS,
    "hidden_size": 8,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
}
_GPT2 = {**_TOKENS, "n_embd": 8, "n_inner": 24, "n_layer": 3, "n_head": 2, "n_positions": 128}
_OPT = {
    **_TOKENS,
    "hidden_size": 8,
    "ffn_dim": 24,
    "word_embed_proj_dim": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
}
_T5 = {**_TOKENS, "d_model": 8, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
_STACKS = {
    f"{stack}_{key}": size
    for stack in ("encoder", "decoder")
    for key, size in {"layers": 2, "attention_heads": 2, "ffn_dim": 24}.items()
}
BASES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_LLAMA)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**_LLAMA, head_dim=8, sliding_window=64)),
    "opt": lambda: OPTForCausalLM(OPTConfig(**_OPT)),
    "bloom": lambda: BloomForCausalLM(BloomConfig(**_TOKENS, hidden_size=8, n_layer=3, n_head=2)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**_LLAMA)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**_GPT2)),
    "t5": lambda: T5ForConditionalGeneration(T5Config(**_T5, feed_forward_proj="gated-gelu")),
    "m2m100": lambda: M2M100ForConditionalGeneration(
        M2M100Config(**_TOKENS, **_STACKS, d_model=8, decoder_start_token_id=2)
    ),
}
"""d = 8, p = 24 (BLOOM: 32), three layers, or two in each stack. None has dropout in evaluation mode."""


@dataclass(frozen=True)
class Stored:
    """One kind of adapter.

    Attributes:
        base: Its base, a key of `BASES`.
        pairs: The language pairs that it takes from a neuron map; None: it has no map.
        options: Other options of its config.
        added: Pairs of Italian that were added to it; then `it-de` is composed.
        growth: Other options of `add_language_pairs`.
    """

    base: str
    pairs: tuple[str, ...] | None = tuple(PAIRS)
    options: dict[str, Any] = field(default_factory=dict)
    added: tuple[str, ...] = ()
    growth: dict[str, Any] = field(default_factory=dict)


def _stored(base: str, pairs: list[str] | None = PAIRS, **options: Any) -> Stored:
    return Stored(base, None if pairs is None else tuple(pairs), {"general_rank": 2, **options})


STORED: dict[str, Stored] = {
    **{f"llama-{car}": _stored("llama", car=car) for car in ("off", "paper", "proportional", "token", "learned")},
    **{
        f"llama-{car}-drop-rows": _stored("llama", car=car, inactive_neurons="drop", general_rank=None)
        for car in ("off", "paper", "proportional", "token", "learned")
    },
    **{f"llama-tune-{tune}": _stored("llama", tune=tune) for tune in ("general", "specific", "layers")},
    "llama-tune-general-rows": _stored("llama", tune="general", general_rank=None),
    "llama-tune-specific-learned": _stored("llama", tune="specific", car="learned"),
    "llama-tune-layers-learned-rows": _stored("llama", tune="layers", car="learned", general_rank=None),
    "llama-one-pair": _stored("llama", ["en-de"]),
    "llama-one-pair-rows-drop": _stored("llama", ["en-fr"], general_rank=None, inactive_neurons="drop"),
    "llama-flores-codes": _stored("llama", ["eng_Latn-deu_Latn", "deu_Latn-zho_Hans"]),
    "llama-no-map": _stored("llama", None),
    "llama-no-map-layers": _stored("llama", None, layers_to_transform=[0, 2], car="learned"),
    "llama-no-map-rows": _stored("llama", None, general_rank=None, target_modules=r".*\.1\.mlp"),
    "llama-no-map-excluded": _stored("llama", None, target_modules=["mlp"], exclude_modules=r".*\.0\.mlp"),
    "llama-narrowed": _stored("llama", ["en-de", "de-fr"], target_modules=r".*\.[12]\.mlp"),
    "llama-ffn-layout": _stored("llama", None, ffn_layout={"inputs": ["gate_proj", "up_proj"], "output": "down_proj"}),
    "llama-modules-to-save": _stored("llama", modules_to_save=["lm_head", "norm"]),
    "llama-bf16": _stored("llama", save_dtype="bf16", car="learned"),
    "llama-fp32-rows": _stored("llama", save_dtype="fp32", general_rank=None),
    "llama-attention": _stored("llama", attention_modules=["v", "o"], attention_rank=2, specific_rank=2),
    "llama-output": _stored("llama", projections="output", general_rank=2),
    "opt-attention": _stored("opt", attention_modules=["q", "k"], attention_rank=2, projections="input"),
    "bloom-attention": _stored("bloom", attention_modules=["v", "o"], attention_rank=2),
    "t5-attention-no-map": _stored("t5", None, attention_modules=["v", "o"], attention_rank=2),
    "llama-grown": replace(_stored("llama", attention_modules=["v"], attention_rank=2), added=("en-it", "it-fr")),
    "llama-grown-from-general": replace(
        _stored("llama", attention_modules=["v"], attention_rank=2, specific_rank=2),
        added=("en-it", "it-fr"),
        growth={"init_from": "general", "specific_rank": 1, "attention_rank": 1},
    ),
    "gpt2-grown-learned": replace(_stored("gpt2", car="learned"), added=("en-it", "it-fr")),
    "gemma3-off-rows": _stored("gemma3", general_rank=None),
    "gemma3-token": _stored("gemma3", car="token"),
    "gemma3-learned-drop": _stored("gemma3", car="learned", inactive_neurons="drop"),
    "opt-off": _stored("opt"),
    "opt-learned-rows": _stored("opt", car="learned", general_rank=None),
    "opt-paper-drop": _stored("opt", car="paper", inactive_neurons="drop"),
    "opt-no-map": _stored("opt", None),
    "bloom-off": _stored("bloom"),
    "bloom-learned-rows": _stored("bloom", ["en-de"], car="learned", general_rank=None),
    "bloom-paper-drop": _stored("bloom", car="paper", inactive_neurons="drop"),
    "phi3-off": _stored("phi3"),
    "phi3-paper-drop-rows": _stored("phi3", car="paper", inactive_neurons="drop", general_rank=None),
    "phi3-token": _stored("phi3", car="token"),
    "gpt2-off-rows": _stored("gpt2", general_rank=None),
    "gpt2-proportional-drop": _stored("gpt2", car="proportional", inactive_neurons="drop"),
    "gpt2-learned": _stored("gpt2", car="learned"),
    "t5-off": _stored("t5"),
    "t5-learned-rows": _stored("t5", car="learned", general_rank=None),
    "t5-no-map": _stored("t5", None),
    "m2m100-off-rows": _stored("m2m100", general_rank=None),
    "m2m100-learned": _stored("m2m100", car="learned"),
    "m2m100-paper-drop": _stored("m2m100", car="paper", inactive_neurons="drop"),
}


def build_base(name: str) -> PreTrainedModel:
    """One of `BASES`, in evaluation mode. Its weights depend on their names and shapes alone: neither torch's random
    numbers nor transformers' initialisation is in them, but for the ones and zeros that vectors start at."""
    model = BASES[name]()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            noise = np.random.RandomState(zlib.crc32(key.encode())).uniform(-1, 1, tuple(weight.shape))
            added = torch.from_numpy(noise).to(weight.dtype)
            weight.copy_(weight + 0.2 * added if weight.ndim == 1 else 0.5 * added)
    return model.eval()


@cache
def _neuron_map(name: str, pairs: tuple[str, ...]) -> NeuronMap:
    """What detection finds, but the layers: the first and the last for the first pair, one of them for the others."""
    languages = list(dict.fromkeys(language for pair in pairs for language in pair.split("-")))
    sentences = dict(zip(languages, SENTENCES.values(), strict=False))
    found = detect_neurons(
        build_base(name), make_tokenizer(), sentences, list(pairs), num_layers=1, general_ratio=0.6, progress=False
    )
    last = found.num_layers - 1
    return replace(found, pair_layers=dict(zip(pairs, [(0, last), (last,), (0,)], strict=False)))


def _with_italian(name: str, neuron_map: NeuronMap, pairs: tuple[str, ...]) -> NeuronMap:
    texts = {"en": SENTENCES["en"], "fr": SENTENCES["fr"], "it": ITALIAN_SENTENCES}
    options: dict[str, Any] = {"num_layers": 2, "general_ratio": 0.6, "progress": False, "extends": neuron_map}
    return detect_neurons(build_base(name), make_tokenizer(), texts, list(pairs), **options)


def routes(stored: Stored) -> dict[str, list[str] | None]:
    """Language pairs of three samples for every way that the adapter is called: mixed, and each pair alone."""
    if stored.pairs is None:
        return {"all": None}
    pairs = [*stored.pairs, *stored.added, *(["it-de"] if stored.added else [])]
    alone: dict[str, list[str] | None] = {pair: [pair] * 3 for pair in pairs}
    return (
        alone
        if len(pairs) == 1
        else {"mixed": [*pairs, *pairs][:3] if not stored.added else ["en-de", "en-it", "it-de"], **alone}
    )


def some_logits(model: PreTrainedModel | PeftModel, pairs: list[str] | None) -> list[list[float]]:
    """Logits of six tokens after 7 others, for three samples."""
    tokens = 3 + torch.arange(21).reshape(3, 7) * 37 % (VOCABULARY - 3)
    return logits(model, tokens, **({} if pairs is None else {"language_pairs": pairs}))[:, -1, ::20].tolist()


def make(name: str) -> Path:
    """Make the adapter of a row of `STORED`, with random deltas, gates and saved modules, and write down the logits
    that it gives when it is loaded.

    Raises:
        FileExistsError: There is one; it is never made anew.
        ValueError: Two routes give the same logits, or one those of the base, so that they would show nothing.
    """
    stored, folder = STORED[name], FOLDER / name
    if folder.exists():
        raise FileExistsError(folder)
    neuron_map = None if stored.pairs is None else _neuron_map(stored.base, stored.pairs)
    model = adapt(build_base(stored.base), neuron_map, stored.pairs, seed=None, **stored.options)
    randomize_adapter(model, std=0.4)
    if stored.added and neuron_map is not None:
        bigger = _with_italian(stored.base, neuron_map, stored.added)
        add_language_pairs(model, bigger, stored.added, **{"specific_rank": 2, "attention_rank": 2, **stored.growth})
        randomize_adapter(model, std=0.4, seed=2)
        compose_language_pair(model, "it-de", neuron_map=bigger)
    with tempfile.TemporaryDirectory() as made:
        model.save_pretrained(made)
        expected = _all_logits(stored, PeftModel.from_pretrained(build_base(stored.base), made).eval())
        folder.mkdir()
        for file in (WEIGHTS, CONFIG):
            (folder / file).write_bytes((Path(made) / file).read_bytes())
    lines = [f"{json.dumps(route)}: {json.dumps(values)}" for route, values in expected.items()]
    (folder / EXPECTED).write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return folder


def _all_logits(stored: Stored, model: PeftModel) -> dict[str, list[list[float]]]:
    """Logits of every route, all of them different."""
    expected = {route: some_logits(model, pairs) for route, pairs in routes(stored).items()}
    seen = {"base": some_logits(build_base(stored.base), None)}
    for route, values in expected.items():
        for other, others in seen.items():
            if (torch.tensor(values) - torch.tensor(others)).abs().max() < 1e-2:
                raise ValueError(f"{route} gives the logits of {other}")
        seen[route] = values
    return expected


def main() -> None:
    """Make what is missing."""
    warnings.simplefilter("ignore")
    for name in STORED:
        if not (FOLDER / name).exists():
            print(make(name))


if __name__ == "__main__":
    main()
