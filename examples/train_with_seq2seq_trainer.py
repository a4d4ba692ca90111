"""Train an adapter for one direction of an encoder-decoder with transformers' Seq2SeqTrainer.

    python examples/train_with_seq2seq_trainer.py --model facebook/nllb-200-distilled-600M --output out

It keeps the best checkpoint by chrF++. With `TranslationLoss`, a step is the same in any number of batches.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from peft import get_peft_model
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, set_seed

from peft_landermt import LanderConfig, TranslationCollator, detect_neurons, evaluate_translation
from peft_landermt.demo import load_base, load_demo_corpus
from peft_landermt.language_pair import parse_pair
from peft_landermt.seq2seq import generation_start
from peft_landermt.translation import FullPrecisionCheckpoints, TranslationLoss, score_translations


def main() -> float:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="facebook/nllb-200-distilled-600M")
    parser.add_argument("--pair", default="en-de")
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()

    set_seed(0)
    base, tokenizer = load_base(args.model)
    corpus = load_demo_corpus()
    sentences = {language: corpus.calibration[language][:16] for language in args.pair.split("-")}
    neuron_map = detect_neurons(base, tokenizer, sentences, [args.pair], num_layers=2)
    config = LanderConfig(task_type="SEQ_2_SEQ_LM", neuron_map=neuron_map)
    model = get_peft_model(base, config)
    model.generation_config.update(**generation_start(tokenizer, parse_pair(args.pair)))  # the target's language code

    def score(prediction: Any) -> dict[str, float]:
        texts = [
            tokenizer.batch_decode(ids.clip(0), skip_special_tokens=True)
            for ids in (prediction.predictions, prediction.label_ids)
        ]
        return {"chrf": score_translations(*texts, args.pair).chrf}

    rows = corpus.training_rows([args.pair])[: args.rows]
    trainer = Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(
            str(args.output / "checkpoints"),
            learning_rate=5e-4,
            num_train_epochs=3,
            predict_with_generate=True,
            generation_max_length=64,
            eval_strategy="epoch",
            save_strategy="epoch",
            load_best_model_at_end=True,
            metric_for_best_model="chrf",
            report_to=[],
            remove_unused_columns=False,  # the collator reads source, target and language_pair
        ),
        data_collator=TranslationCollator(tokenizer, model=model),
        train_dataset=rows[8:],
        eval_dataset=rows[:8],
        compute_metrics=score,
        compute_loss_func=TranslationLoss(encoder_decoder=True),
        callbacks=[FullPrecisionCheckpoints()],
    )
    trainer.train()
    model.save_pretrained(str(args.output / "adapter"))
    found = evaluate_translation(model, tokenizer, *(texts[:8] for texts in corpus.pair(args.pair)), args.pair)
    print(args.pair, f"chrF++ {found.chrf:.2f}")
    return found.chrf


if __name__ == "__main__":
    main()
