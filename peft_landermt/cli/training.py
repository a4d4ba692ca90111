"""What `landermt train` does, and `landermt extend` too: corpora become rows, rows an adapter."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from peft import PeftConfig, get_peft_model
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback, TrainingArguments, set_seed
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer import TRAINER_STATE_NAME

from ..errors import ConfigError, CorpusError
from ..outputs import written_whole
from ..routed.card import write_model_card
from ..routed.config import RoutedConfig
from ..translation import LanderTrainer, TranslationCollator, clean, usable_rows
from ..translation.checkpoints import last_whole_checkpoint, remove_checkpoints
from ..translation.training_arguments import warmup
from .corpora import read_corpora
from .dry_run import estimate
from .methods import callbacks_of, config_of
from .options import is_main, load_model, prompt_template, task_type
from .outputs import ADAPTER, claim_folder
from .training_progress import ProgressByPair

_POSITIVE = ("epochs", "lr", "batch_size", "accumulation", "save_steps", "max_length", "patience")

Row = dict[str, str]


class Corpora(NamedTuple):
    """Rows of a run.

    Attributes:
        rows: To train on.
        held_out: Those of `--eval-data`.
        pairs: Language pairs of both.
    """

    rows: list[Row]
    held_out: list[Row]
    pairs: list[str]


def train(options: argparse.Namespace) -> None:
    """Run `landermt train`.

    Raises:
        ConfigError: An option is out of range, needs another, or names a tracker that is not there.
        CorpusError: A corpus cannot be used.
    """
    checkpoint, corpora = begin(options)
    if checkpoint is not None:
        _check_resumed(options, checkpoint, corpora.pairs)
    config, callbacks = config_of(options, corpora.pairs), callbacks_of(options)
    if is_told_without_model(options, corpora):
        return
    set_seed(options.seed)
    base, tokenizer = load_model(options)
    config.task_type = task_type(base)
    collator = make_collator(options, base, tokenizer, prompt_template(options, tokenizer))
    corpora = usable_corpora(corpora, collator, options)
    fit(options, get_peft_model(base, config), tokenizer, collator, corpora, checkpoint, callbacks)


def begin(options: argparse.Namespace) -> tuple[str | None, Corpora]:
    """Check the options, claim `--output`, and read the corpora.

    Returns:
        The checkpoint that training goes on from, None for a start; and the rows.
    """
    _check(options)
    checkpoint = last_whole_checkpoint(options.output) if options.resume else None
    if options.resume and checkpoint is None:
        raise ConfigError("--resume", options.output, "holds no whole checkpoint; leave out --resume.")
    rows = _read_rows(options, "data")
    held_out = _read_rows(options, "eval_data") if options.eval_data else []
    pairs = list(dict.fromkeys(row["language_pair"] for row in rows))
    if unknown := {row["language_pair"] for row in held_out} - set(pairs):
        raise ConfigError(
            "--eval-data", ", ".join(sorted(unknown)), "has no corpus in --data; name one, or leave it out."
        )
    return checkpoint, Corpora(rows, held_out, pairs)


def is_told_without_model(options: argparse.Namespace, corpora: Corpora) -> bool:
    """Tell what a dry run is of; true where it ends with that, because no model is named."""
    if options.dry_run:
        print(f"dry run: {len(corpora.rows)} rows for {', '.join(corpora.pairs)}; nothing is trained or written")
    if options.dry_run and options.model is None:
        print("with --model, the model is checked too, and time and memory are estimated")
        return True
    return False


def make_collator(options: argparse.Namespace, model: Any, tokenizer: Any, prompt: str | None) -> TranslationCollator:
    """Make the collator of a run; one of ten templates for each row where there is no prompt."""
    templates = None if prompt is None else [prompt]
    return TranslationCollator(
        tokenizer, templates=templates, seed=options.seed, max_length=options.max_length, model=model
    )


def usable_corpora(corpora: Corpora, collator: TranslationCollator, options: argparse.Namespace) -> Corpora:
    """Select the rows that leave room for a translation within `--max-length`."""
    held_out = _usable(corpora.held_out, collator, options) if corpora.held_out else []
    return Corpora(_usable(corpora.rows, collator, options), held_out, corpora.pairs)


def fit(
    options: argparse.Namespace,
    model: Any,
    tokenizer: Any,
    collator: TranslationCollator,
    corpora: Corpora,
    checkpoint: str | None,
    callbacks: Sequence[TrainerCallback] = (),
) -> None:
    """Train the active adapter of a model, and write its folder; in a dry run estimate what it needs."""
    if is_main(options):
        model.print_trainable_parameters()
    if options.dry_run:
        print(estimate(model, collator, corpora.rows, options))
        return
    trainer = _trainer(model, tokenizer, collator, corpora, options)
    progress = ProgressByPair(is_main(options))
    for callback in (*callbacks, progress):
        trainer.add_callback(callback)
    if options.overwrite and checkpoint is None and is_main(options):
        remove_checkpoints(options.output)  # of an earlier run
    trainer.accelerator.wait_for_everyone()
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except KeyboardInterrupt as error:
        last = last_whole_checkpoint(options.output)
        kept = f"kept: {last}; --resume goes on from there" if last else f"no checkpoint yet in {options.output}"
        raise KeyboardInterrupt(kept) from error
    finally:
        progress.close()
    if is_main(options):
        model.save_pretrained(str(options.output))
        config = model.peft_config["default"]
        if isinstance(config, RoutedConfig):
            write_model_card(config, Path(options.output), training=_settings(trainer, corpora.rows, options))
        with written_whole(Path(options.output, TRAINER_STATE_NAME)) as partial:
            trainer.state.save_to_json(str(partial))
        if trainer.state.best_metric is not None:
            print(f"best: {trainer.state.best_model_checkpoint}, loss {trainer.state.best_metric:.4f}")
        print(f"written: {options.output}")


def _check_resumed(options: argparse.Namespace, checkpoint: str, pairs: list[str]) -> None:
    """Check that training goes on with the pairs that it began with."""
    held = getattr(PeftConfig.from_pretrained(checkpoint), "language_pairs", None) or pairs
    new = [pair for pair in pairs if pair not in held]
    if new:
        raise ConfigError(
            "--data",
            ", ".join(new),
            f"is new to the run in {options.output}, which has {', '.join(held)}. To add pairs to its adapter: "
            f"landermt extend --adapter {options.output} --neuron-map MAP --data {new[0]}=... --output DIR.",
        )


def _check(options: argparse.Namespace) -> None:
    """Check everything that needs no corpus and no model."""
    for name in _POSITIVE:
        if getattr(options, name) is not None and not getattr(options, name) > 0:
            raise ConfigError(f"--{name.replace('_', '-')}", getattr(options, name), "must be positive.")
    if options.patience and not options.eval_data:
        raise ConfigError("--patience", options.patience, "needs held-out corpora; add --eval-data.")
    claim_folder(options, (*ADAPTER, TRAINER_STATE_NAME, "checkpoint-*"), replaces=options.resume)
    try:
        for tracker in get_reporting_integration_callbacks(options.report_to):
            tracker()
    except (ValueError, RuntimeError, ImportError) as error:
        raise ConfigError("--report-to", options.report_to, str(error)) from error


def _read_rows(options: argparse.Namespace, name: str) -> list[Row]:
    """Read and clean the corpora of `--data` or `--eval-data`."""
    rows: list[Row] = []
    for pair, read in read_corpora(options, name).items():
        corpus, report = clean(read, check_languages=options.check_languages)
        unreadable = "".join(f"; {count} rows skipped: {reason}" for reason, count in read.skipped.items())
        if is_main(options):
            first = corpus.examples[0]
            print(f"{pair}: {report}{unreadable}; first: {first.source[:40]!r} -> {first.target[:40]!r}")
        rows += [example.to_row() for example in corpus]
    return rows


def _trainer(
    model: Any, tokenizer: Any, collator: Any, corpora: Corpora, options: argparse.Namespace
) -> LanderTrainer:
    rows, held_out = corpora.rows, corpora.held_out
    steps = ceil(len(rows) / (options.batch_size * options.accumulation))  # of an epoch
    save_steps = min(options.save_steps, steps) if held_out else options.save_steps
    best: dict[str, Any] = {}
    if held_out:
        best = {
            "eval_strategy": "steps",
            "eval_steps": save_steps,
            "per_device_eval_batch_size": options.batch_size,
            "load_best_model_at_end": True,
            "metric_for_best_model": "eval_loss",
            "greater_is_better": False,
        }
    trainer = LanderTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=options.output,
            num_train_epochs=options.epochs,
            learning_rate=options.lr,
            lr_scheduler_type="cosine",
            **warmup(0.05),
            per_device_train_batch_size=options.batch_size,
            gradient_accumulation_steps=options.accumulation,
            save_steps=save_steps,
            save_total_limit=2,
            logging_first_step=True,
            logging_steps=10,
            report_to=options.report_to,
            seed=options.seed,
            use_cpu=model.device.type == "cpu",
            disable_tqdm=True,  # the bar is ours
            **best,
        ),
        data_collator=collator,
        train_dataset=rows,
        eval_dataset=held_out or None,
        processing_class=tokenizer,
        check_languages=False,  # of the corpora, above
    )
    trainer.remove_callback(PrinterCallback)
    if options.patience:
        trainer.add_callback(EarlyStoppingCallback(options.patience))
    return trainer


def _settings(trainer: LanderTrainer, rows: list[Row], options: argparse.Namespace) -> dict[str, Any]:
    """Tell how an adapter was trained, for its card."""
    counts = Counter(row["language_pair"] for row in rows)
    settings = {
        "Rows": ", ".join(f"{pair} {count}" for pair, count in counts.items()),
        "Epochs": options.epochs,
        "Steps": trainer.state.global_step,
        "Learning rate": options.lr,
        "Batch": options.batch_size * options.accumulation,
        "Seed": options.seed,
    }
    if trainer.state.best_metric is not None:
        settings["Held-out loss"] = f"{trainer.state.best_metric:.4f}"
    return settings


def _usable(rows: list[Row], collator: TranslationCollator, options: argparse.Namespace) -> list[Any]:
    """Select the rows that can be trained on, such as leave room for a translation within `--max-length`."""
    usable, report = usable_rows(rows, collator)
    reasons = "; ".join(f"{count} rows skipped: {reason}" for reason, count in report.reasons.items())
    if not usable:
        remedy = f"leaves no row with room for a translation ({reasons}); raise it, or look at the corpus."
        raise CorpusError("--max-length", options.max_length, remedy)
    if reasons and is_main(options):
        print(reasons)
    return usable
