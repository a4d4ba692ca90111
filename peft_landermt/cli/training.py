"""What commands that train an adapter have in common: options, corpora, and the run itself."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from ..errors import ConfigError, CorpusError
from ..outputs import written_whole
from ..translation import LanderTrainer, TranslationCollator, clean, usable_rows
from ..translation.checkpoints import last_whole_checkpoint, remove_checkpoints
from .corpora import add_data_options, read_corpora
from .options import is_main
from .outputs import ADAPTER, add_overwrite_option, claim_folder


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Add options about corpora, the run and its folder."""
    add_data_options(parser)
    parser.add_argument("--check-languages", action="store_true", help="leave out what is in another language")
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


def begin(options: argparse.Namespace) -> str | None:
    """Check the options, and claim `--output`.

    Returns:
        The checkpoint that training goes on from; None for a start.

    Raises:
        ConfigError: A number is not positive, the folder cannot be written, or there is nothing to go on from.
    """
    for name in ("epochs", "lr", "batch_size", "accumulation", "save_steps", "max_length"):
        if not getattr(options, name) > 0:
            raise ConfigError(f"--{name.replace('_', '-')}", getattr(options, name), "must be positive.")
    claim_folder(options, (*ADAPTER, TRAINER_STATE_NAME, "checkpoint-*"), replaces=options.resume)
    checkpoint = last_whole_checkpoint(options.output) if options.resume else None
    if options.resume and checkpoint is None:
        raise ConfigError("--resume", options.output, "holds no whole checkpoint; leave out --resume.")
    return checkpoint


def read_rows(options: argparse.Namespace) -> tuple[list[str], list[dict[str, str]]]:
    """Read and clean the corpora of `--data`: their pairs, and all rows."""
    corpora, rows = read_corpora(options), []
    for pair, read in corpora.items():
        corpus, report = clean(read, check_languages=options.check_languages)
        unreadable = "".join(f"; {count} rows skipped: {reason}" for reason, count in read.skipped.items())
        if is_main(options):
            first = corpus.examples[0]
            print(f"{pair}: {report}{unreadable}; first: {first.source[:40]!r} -> {first.target[:40]!r}")
        rows += [example.to_row() for example in corpus]
    return list(corpora), rows


def make_collator(options: argparse.Namespace, model: Any, tokenizer: Any, prompt: str | None) -> TranslationCollator:
    """Make the collator of a run; one of ten templates for each row where there is no prompt."""
    templates = None if prompt is None else [prompt]
    return TranslationCollator(
        tokenizer, templates=templates, seed=options.seed, max_length=options.max_length, model=model
    )


def fit(
    options: argparse.Namespace,
    model: Any,
    tokenizer: Any,
    collator: TranslationCollator,
    usable: list[Any],
    checkpoint: str | None,
    callbacks: Sequence[TrainerCallback] = (),
) -> None:
    """Train the active adapter of a model, and write its folder."""
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
            use_cpu=model.device.type == "cpu",
        ),
        data_collator=collator,
        train_dataset=usable,
        processing_class=tokenizer,
        callbacks=list(callbacks),
        check_languages=False,  # of the corpora, above
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
        model.save_pretrained(str(options.output))
        with written_whole(Path(options.output, TRAINER_STATE_NAME)) as partial:
            trainer.state.save_to_json(str(partial))
        print(f"written: {options.output}")


def select_usable(rows: list[dict[str, str]], collator: TranslationCollator, options: argparse.Namespace) -> list[Any]:
    """Select the rows that can be trained on, such as leave room for a translation within `--max-length`."""
    usable, report = usable_rows(rows, collator)
    reasons = "; ".join(f"{count} rows skipped: {reason}" for reason, count in report.reasons.items())
    if not usable:
        remedy = f"leaves no row with room for a translation ({reasons}); raise it, or look at the corpus."
        raise CorpusError("--max-length", options.max_length, remedy)
    if reasons and is_main(options):
        print(reasons)
    return usable
