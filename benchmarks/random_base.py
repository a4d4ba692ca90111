"""Write a base with random weights and a small tokenizer: to try scripts in the shapes of large models.

python benchmarks/random_base.py bloom-7b1 --layers 2 --output random-bloom
python benchmarks/paper/run.py --model random-bloom --data DIR --rows 4 --search-rows 0 --pairs en-de de-en ...
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from common import SHAPES, load_random
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from peft_landermt.demo import load_demo_corpus

SPECIAL = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}


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


def save_random(shape: str, folder: Path, dtype: str = "float32", **options: Any) -> tuple[Any, Any]:
    """Save a model of one of `SHAPES` and its tokenizer, and return both; `options` change its config."""
    tokenizer = train_tokenizer()
    special = {f"{name}_id": getattr(tokenizer, f"{name}_id") for name in SPECIAL}
    model, _ = load_random(shape, dtype, "cpu", vocab_size=len(tokenizer), **special, **options)
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
