"""Train an adapter for one direction with TRL's SFTTrainer, offline.

    pip install trl
    python examples/train_with_sft.py --output out

SFTTrainer makes the adapter from `peft_config`, as it does for LoRA. It knows nothing of language pairs, so the
adapter holds one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from datasets import Dataset
from transformers import set_seed
from trl import SFTConfig, SFTTrainer

from peft_landermt import LanderConfig, detect_neurons, evaluate_translation
from peft_landermt.demo import load_base, load_demo_corpus
from peft_landermt.translation import build_prompt


def main() -> float:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--pair", default="en-de")
    parser.add_argument("--rows", type=int, default=80)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()

    set_seed(0)
    base, tokenizer = load_base(args.model)
    corpus = load_demo_corpus()
    sentences = {language: corpus.calibration[language][:16] for language in args.pair.split("-")}
    neuron_map = detect_neurons(base, tokenizer, sentences, [args.pair])
    rows = [
        {"prompt": build_prompt(row["source"], args.pair), "completion": " " + row["target"]}
        for row in corpus.training_rows([args.pair])[: args.rows]
    ]
    trainer = SFTTrainer(
        model=base,
        args=SFTConfig(
            str(args.output / "checkpoints"),
            learning_rate=5e-4,
            num_train_epochs=1,
            save_strategy="no",
            report_to=[],
            bf16=False,  # SFTConfig's default is for GPUs
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LanderConfig(task_type="CAUSAL_LM", neuron_map=neuron_map),
    )
    trainer.train()
    trainer.model.save_pretrained(str(args.output / "adapter"))

    sources, references = (texts[:8] for texts in corpus.pair(args.pair))
    score = evaluate_translation(trainer.model, tokenizer, sources, references, args.pair).bleu
    print(args.pair, f"BLEU {score:.2f}")
    return score


if __name__ == "__main__":
    main()
