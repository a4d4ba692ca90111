"""`landermt train`: an adapter for one or more language pairs from parallel corpora."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from peft import get_peft_model
from transformers import TrainingArguments, set_seed
from transformers.trainer import TRAINER_STATE_NAME

from ..errors import ConfigError, CorpusError
from ..lander import LanderConfig
from ..lander.layout import CHOICES
from ..outputs import written_whole
from ..seq2seq import is_encoder_decoder
from ..translation import LanderTrainer, TranslationCollator, clean, read_corpus
from ..translation.checkpoints import last_whole_checkpoint, remove_checkpoints
from .options import add_model_options, is_main, load_model, parse_assignments, task_type
from .outputs import ADAPTER, add_overwrite_option, claim_folder, save_adapter

_EXAMPLE = """example:
  landermt train --neuron-map map.safetensors --data en-de=corpus.tsv de-en=corpus.de-en.tsv --output out"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "train",
        help="train an adapter",
        description="Train an adapter for one or more language pairs. Corpora: TSV, JSON lines, TMX, the common "
        "prefix of two line-aligned files (corpus for corpus.en and corpus.de), or the name of a data set.",
        epilog=_EXAMPLE,
    )
    add_model_options(parser)
    parser.add_argument("--data", nargs="+", required=True, metavar="PAIR=CORPUS")
    parser.add_argument("--check-languages", action="store_true", help="leave out what is in another language")
    parser.add_argument("--neuron-map", help="from landermt detect; without it all neurons of all FFNs are tuned")
    parser.add_argument("--output", required=True, help="adapter folder to write")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument(
        "--accumulation", type=int, default=2, help="batches per optimizer step (default: %(default)s)"
    )
    parser.add_argument("--max-length", type=int, default=512, help="tokens of prompt and translation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from the last whole checkpoint in --output")
    add_overwrite_option(parser)
    parser.add_argument("--save-steps", type=int, default=500)
    parser.add_argument("--report-to", nargs="+", default=[], metavar="TRACKER", help="tensorboard, wandb, ...")
    parser.add_argument("--dry-run", action="store_true", help="read and check corpora and options; load no model")
    group = parser.add_argument_group("adapter")
    group.add_argument("--car", choices=CHOICES["car"], default="off")
    group.add_argument("--inactive-neurons", choices=CHOICES["inactive_neurons"], default="keep")
    group.add_argument("--tune", choices=CHOICES["tune"], default="pair")
    group.add_argument("--general-rank", type=int, default=16, help="0: whole rows (default: %(default)s)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    for name in ("epochs", "lr", "batch_size", "accumulation", "save_steps", "max_length"):
        if not getattr(options, name) > 0:
            raise ConfigError(f"--{name.replace('_', '-')}", getattr(options, name), "must be positive.")
    claim_folder(options, (*ADAPTER, TRAINER_STATE_NAME, "checkpoint-*"), replaces=options.resume)
    checkpoint = last_whole_checkpoint(options.output) if options.resume else None
    if options.resume and checkpoint is None:
        raise ConfigError("--resume", options.output, "holds no whole checkpoint; leave out --resume.")
    rows = []
    for pair, path in parse_assignments(options.data, "--data").items():
        read = read_corpus(path, pair)
        corpus, report = clean(read, check_languages=options.check_languages)
        unreadable = "".join(f"; {count} rows skipped: {reason}" for reason, count in read.skipped.items())
        if is_main(options):
            print(f"{pair}: {report}{unreadable}")
        rows += [example.to_row() for example in corpus]
    config = LanderConfig(
        neuron_map=options.neuron_map,
        language_pairs=list(parse_assignments(options.data, "--data")),
        car=options.car,
        inactive_neurons=options.inactive_neurons,
        tune=options.tune,
        general_rank=options.general_rank or None,
    )
    if options.dry_run:
        print(f"dry run: {len(rows)} rows for {', '.join(config.language_pairs or [])}; nothing trained or written")
        return
    set_seed(options.seed)
    base, tokenizer = load_model(options)
    config.task_type = task_type(base)
    collator = TranslationCollator(
        tokenizer, seed=options.seed, max_length=options.max_length, encoder_decoder=is_encoder_decoder(base)
    )
    rows = _fitting(rows, collator, options)
    model = get_peft_model(base, config)
    if is_main(options):
        model.print_trainable_parameters()
    trainer = LanderTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=options.output,
            num_train_epochs=options.epochs,
            learning_rate=options.lr,
            lr_scheduler_type="cosine",
            warmup_steps=0.05,
            per_device_train_batch_size=options.batch_size,
            gradient_accumulation_steps=options.accumulation,
            save_steps=options.save_steps,
            save_total_limit=2,
            logging_first_step=True,
            logging_steps=10,
            report_to=options.report_to,
            seed=options.seed,
            use_cpu=base.device.type == "cpu",
        ),
        data_collator=collator,
        train_dataset=rows,
        processing_class=tokenizer,
    )
    if options.overwrite and checkpoint is None and is_main(options):
        remove_checkpoints(options.output)  # of an earlier run
    trainer.accelerator.wait_for_everyone()
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except KeyboardInterrupt as error:
        last = last_whole_checkpoint(options.output)
        kept = f"kept: {last}; --resume goes on from there" if last else f"no checkpoint yet in {options.output}"
        raise KeyboardInterrupt(kept) from error
    if is_main(options):
        save_adapter(model, options.output)
        with written_whole(Path(options.output, TRAINER_STATE_NAME)) as partial:
            trainer.state.save_to_json(str(partial))
        print(f"written: {options.output}")


def _fitting(rows: list[dict[str, str]], collator: TranslationCollator, options: argparse.Namespace) -> list[Any]:
    """The rows that leave room for a translation within `--max-length`."""
    fitting = [row for row in rows if collator.fits(row)]
    if not fitting:
        raise CorpusError("--max-length", options.max_length, "leaves no row with room for a translation; raise it.")
    if len(fitting) < len(rows) and is_main(options):
        print(f"{len(rows) - len(fitting)} rows skipped: no room for a translation in {options.max_length} tokens")
    return fitting
