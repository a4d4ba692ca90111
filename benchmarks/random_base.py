"""Bases with random weights and a small tokenizer, in the shapes of large models; written to a folder, to try scripts.

python benchmarks/random_base.py bloom-7b1 --layers 2 --output random-bloom
python benchmarks/run.py --model random-bloom --data DIR --rows 4 --search-rows 0 --pairs en-de de-en ...
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from peft_landermt.demo import load_demo_corpus

_LLAMA = {"model_type": "llama", "num_key_value_heads": 4, "num_attention_heads": 4, "vocab_size": 2048}
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {**_LLAMA, "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 6},
    "medium": {**_LLAMA, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "vocab_size": 8192},
    "llama-8b": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "bloom-7b1": {
        "model_type": "bloom",
        "hidden_size": 4096,
        "num_hidden_layers": 30,
        "num_attention_heads": 32,
        "vocab_size": 250880,
    },
}
"""Models with random weights, by the options of their configs."""
SPECIAL = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}


@functools.cache
def train_tokenizer() -> PreTrainedTokenizerFast:
    """Two thousand byte-level tokens of the package's corpus."""
    trained = Tokenizer(models.BPE(unk_token="<pad>"))
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = load_demo_corpus().calibration.values()
    trained.train_from_iterator((text for sentences in texts for text in sentences), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=trained, **SPECIAL)


def load_random(shape: str, dtype: str, device: str, **options: Any) -> tuple[Any, PreTrainedTokenizerFast]:
    """A model of one of `SHAPES` with random weights, and a tokenizer for it; `options` change its config."""
    tokenizer = train_tokenizer()
    special = {f"{name}_id": getattr(tokenizer, f"{name}_id") for name in SPECIAL}
    torch.manual_seed(0)
    config = AutoConfig.for_model(**{**SHAPES[shape], **special, **options})
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval(), tokenizer


def save_random(shape: str, folder: Path, dtype: str = "float32", **options: Any) -> tuple[Any, Any]:
    """Save a model of one of `SHAPES`, with no more tokens than its tokenizer's, and return both."""
    model, tokenizer = load_random(shape, dtype, "cpu", vocab_size=len(train_tokenizer()), **options)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--layers", type=int, default=2, help="layers of the model (default: %(default)s)")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--output", type=Path, required=True, help="folder for the base")
    args = parser.parse_args()
    model, tokenizer = save_random(args.shape, args.output, args.dtype, num_hidden_layers=args.layers)
    print(f"{args.output}: {model.num_parameters() / 1e6:.0f} M parameters, {len(tokenizer)} tokens")


if __name__ == "__main__":
    main()
