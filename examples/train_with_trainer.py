"""Train one adapter for several directions with transformers' own Trainer, offline.

    python examples/train_with_trainer.py --output out

`TranslationCollator` puts the direction of every row into the batch, and the model routes by it. `LanderTrainer` does
the same with less to write: it evaluates by translating, and gives whole rows a lower learning rate than factors.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from peft import get_peft_model
from transformers import Trainer, TrainingArguments, set_seed

from peft_landermt import LanderConfig, TranslationCollator, detect_neurons, evaluate_translation
from peft_landermt.demo import load_base, load_demo_corpus


def main() -> float:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--pairs", nargs="+", default=["en-de", "en-fr"])
    parser.add_argument("--rows", type=int, default=80, help="sentence pairs of each direction")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()

    set_seed(0)
    base, tokenizer = load_base(args.model)
    corpus = load_demo_corpus()
    languages = sorted({language for pair in args.pairs for language in pair.split("-")})
    sentences = {language: corpus.calibration[language][:16] for language in languages}
    neuron_map = detect_neurons(base, tokenizer, sentences, args.pairs)
    model = get_peft_model(base, LanderConfig(task_type="CAUSAL_LM", neuron_map=neuron_map))

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            str(args.output / "checkpoints"),
            learning_rate=5e-4,
            num_train_epochs=1,
            save_strategy="no",
            report_to=[],
            remove_unused_columns=False,  # the collator reads source, target and language_pair
        ),
        data_collator=TranslationCollator(tokenizer),
        train_dataset=[row for pair in args.pairs for row in corpus.training_rows([pair])[: args.rows]],
    )
    trainer.train()
    model.save_pretrained(str(args.output / "adapter"))

    scores = []
    for pair in args.pairs:
        sources, references = (texts[:8] for texts in corpus.pair(pair))
        scores.append(evaluate_translation(model, tokenizer, sources, references, pair).bleu)
        print(pair, f"BLEU {scores[-1]:.2f}")
    return sum(scores) / len(scores)


if __name__ == "__main__":
    main()
