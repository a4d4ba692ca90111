"""`landermt train`: an adapter for one or more language pairs from parallel corpora."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from peft import get_peft_model
from transformers import TrainingArguments, set_seed
from transformers.trainer import TRAINER_STATE_NAME

from ..attention import ROLES
from ..errors import ConfigError, CorpusError
from ..lander import LanderConfig
from ..lander.layout import CHOICES
from ..outputs import written_whole
from ..translation import LanderTrainer, TranslationCollator, clean, usable_rows
from ..translation.checkpoints import last_whole_checkpoint, remove_checkpoints
from ..translation.training_arguments import warmup
from .corpora import add_data_options, read_corpora
from .options import add_model_options, is_main, load_model, prompt_template, task_type
from .outputs import ADAPTER, add_overwrite_option, claim_folder

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
    add_data_options(parser)
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
    parser.add_argument(
        "--prompt",
        metavar="TEMPLATE",
        help="'chat', the tokenizer's chat template, for instruct models, or a text with {source}, {source_language} "
        "and {target_language}; kept with the adapter for translation (default: one of ten for each row)",
    )
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
    group.add_argument("--projections", choices=CHOICES["projections"], default="all", help="of a neuron")
    group.add_argument("--general-rank", type=int, default=16, help="0: whole rows (default: %(default)s)")
    group.add_argument("--specific-rank", type=int, default=0, help="0: whole rows (default: %(default)s)")
    group.add_argument(
        "--attention-modules", nargs="+", choices=ROLES, metavar="ROLE", help="of q, k, v, o; shared by all pairs"
    )
    group.add_argument("--attention-rank", type=int, default=16, help="(default: %(default)s)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    for name in ("epochs", "lr", "batch_size", "accumulation", "save_steps", "max_length"):
        if not getattr(options, name) > 0:
            raise ConfigError(f"--{name.replace('_', '-')}", getattr(options, name), "must be positive.")
    claim_folder(options, (*ADAPTER, TRAINER_STATE_NAME, "checkpoint-*"), replaces=options.resume)
    checkpoint = last_whole_checkpoint(options.output) if options.resume else None
    if options.resume and checkpoint is None:
        raise ConfigError("--resume", options.output, "holds no whole checkpoint; leave out --resume.")
    corpora, rows = read_corpora(options), []
    for pair, read in corpora.items():
        corpus, report = clean(read, check_languages=options.check_languages)
        unreadable = "".join(f"; {count} rows skipped: {reason}" for reason, count in read.skipped.items())
        if is_main(options):
            first = corpus.examples[0]
            print(f"{pair}: {report}{unreadable}; first: {first.source[:40]!r} -> {first.target[:40]!r}")
        rows += [example.to_row() for example in corpus]
    config = LanderConfig(
        neuron_map=options.neuron_map,
        language_pairs=list(corpora),
        car=options.car,
        inactive_neurons=options.inactive_neurons,
        tune=options.tune,
        projections=options.projections,
        general_rank=options.general_rank or None,
        specific_rank=options.specific_rank or None,
        attention_modules=options.attention_modules,
        attention_rank=options.attention_rank,
    )
    if options.dry_run:
        print(f"dry run: {len(rows)} rows for {', '.join(config.language_pairs or [])}; nothing trained or written")
        return
    set_seed(options.seed)
    base, tokenizer = load_model(options)
    config.task_type = task_type(base)
    prompt = prompt_template(options, tokenizer)
    collator = TranslationCollator(
        tokenizer,
        templates=None if prompt is None else [prompt],
        seed=options.seed,
        max_length=options.max_length,
        model=base,
    )
    usable = _usable(rows, collator, options)
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
            **warmup(0.05),
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
        train_dataset=usable,
        processing_class=tokenizer,
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


def _usable(rows: list[dict[str, str]], collator: TranslationCollator, options: argparse.Namespace) -> list[Any]:
    """Select the rows that can be trained on, such as leave room for a translation within `--max-length`."""
    usable, report = usable_rows(rows, collator)
    reasons = "; ".join(f"{count} rows skipped: {reason}" for reason, count in report.reasons.items())
    if not usable:
        remedy = f"leaves no row with room for a translation ({reasons}); raise it, or look at the corpus."
        raise CorpusError("--max-length", options.max_length, remedy)
    if reasons and is_main(options):
        print(reasons)
    return usable
