"""Train one adapter for several directions in a plain PyTorch loop with accelerate, offline.

python examples/train_with_accelerate.py --output out
accelerate launch --num_processes 2 examples/train_with_accelerate.py --output out
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from peft import get_peft_model
from torch.utils.data import DataLoader
from transformers import get_cosine_schedule_with_warmup, set_seed

from peft_landermt import LanderConfig, TranslationCollator, detect_neurons, evaluate_translation
from peft_landermt.demo import load_base, load_demo_corpus


def main() -> float:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--pairs", nargs="+", default=["en-de", "en-fr"])
    parser.add_argument("--rows", type=int, default=80, help="sentence pairs of each direction")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()

    accelerator = Accelerator()
    set_seed(0)
    base, tokenizer = load_base(args.model, device=accelerator.device)
    corpus = load_demo_corpus()
    languages = sorted({language for pair in args.pairs for language in pair.split("-")})
    sentences = {language: corpus.calibration[language][:16] for language in languages}
    # the processes share the passes, and all get the same map
    shared = {"distributed": accelerator.num_processes > 1, "progress": accelerator.is_main_process}
    neuron_map = detect_neurons(base, tokenizer, sentences, args.pairs, **shared)
    model = get_peft_model(base, LanderConfig(task_type="CAUSAL_LM", neuron_map=neuron_map))

    rows = [row for pair in args.pairs for row in corpus.training_rows([pair])[: args.rows]]
    loader = DataLoader(rows, batch_size=8, shuffle=True, collate_fn=TranslationCollator(tokenizer))
    optimizer = torch.optim.AdamW(model.parameter_groups(5e-4), weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, 2, len(loader))
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    model.train()
    for step, batch in enumerate(loader):
        loss = model(**batch).loss
        accelerator.backward(loss)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 10 == 0:
            accelerator.print(f"step {step}: loss {loss.item():.3f}")

    model = accelerator.unwrap_model(model)
    if not accelerator.is_main_process:
        return 0.0
    model.save_pretrained(str(args.output / "adapter"))
    scores = []
    for pair in args.pairs:
        sources, references = (texts[:8] for texts in corpus.pair(pair))
        scores.append(evaluate_translation(model, tokenizer, sources, references, pair).bleu)
        print(pair, f"BLEU {scores[-1]:.2f}")
    return sum(scores) / len(scores)


if __name__ == "__main__":
    main()
