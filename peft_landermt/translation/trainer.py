"""Training on rows of mixed language pairs with transformers' Trainer."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import DistributedType
from accelerate.data_loader import IterableDatasetShard
from torch import nn
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from ..errors import ConfigError, CorpusError
from ..routed.rates import check_rates
from ..seq2seq import decoder_inputs, is_encoder_decoder
from .checkpoints import FullPrecisionCheckpoints, last_whole_checkpoint, remove_checkpoints
from .collator import FIELDS, TranslationCollator
from .direction import check_directions
from .labels import labelled_positions, labels_together
from .losses import PairLosses, TranslationLoss
from .models import accepts, keep_prompt, routed_pairs, scale_rates, training_metrics
from .rows import UsableRows, check_rows
from .scoring import evaluate_translation, metrics_for
from .training_arguments import is_by_length


class LanderTrainer(Trainer):
    """A `transformers.Trainer` for translation rows: mappings with `source`, `target` and `language_pair`.

    Pairs may be mixed within a batch. The model can be a LANDER model, a base model or one of another PEFT method, so
    that baselines see the same rows in the same order. Logits are computed only where there are labels, if the model
    can do that. The same rows make the same step in any number of batches and processes ([`TranslationLoss`]), and
    `eval_loss` is the mean over all tokens.

    All rows are looked at before the first step; those of streams are left out and counted where they cannot be used
    (`skipped_rows` in the log, and `cut_rows`). The adapter keeps the prompt template that it is trained with.

    Beside the scalars of `transformers.Trainer`, every log, and so every tracker in `args.report_to`, has the loss of
    each pair (`loss_en-de`, `eval_loss_en-de`) and what [`RoutedTuner.training_metrics`] tells of the adapter: how far
    the weights of each language's neurons have moved (`change_general`, `change_de`), and gates.

    Args:
        model: The model to train.
        args: Training arguments; by default AdamW with learning rate 5e-5, as in the paper.
        data_collator: By default a [`TranslationCollator`] with `args.seed`.
        train_dataset: Rows to train on.
        eval_dataset: Rows to evaluate on.
        processing_class: Tokenizer of the model.
        rates: Learning rates of an adapter's low-rank factors (`factors_a`, `factors_b`), whole rows beside factors
            (`rows`) and `gates`, as ratios of the learning rate, in place of those of
            `peft_landermt.routed.rates.RATES`; `values` is a ratio on top for the factors on v and o of attention.
        predict_with_generate: Whether `evaluate` and `predict` also translate the rows and add BLEU and chrF++ for
            every pair (`eval_bleu_en-de`, `eval_chrf_en-de`) and their means (`eval_bleu`, `eval_chrf`).
        generation_options: Arguments of `evaluate_translation`, such as `{"num_beams": 4}`.
        check_languages: Whether to compare a sample of the rows with the languages of their pairs, and warn of others
            (by py3langid where that is installed, and by script). Streams are not looked at.
        trainer_options: All other arguments of `transformers.Trainer`.

    Raises:
        CorpusError: There are no training rows, or the first cannot be used. In `train`, `evaluate` and `predict`: any
            row cannot be used: it lacks a field, its prompt leaves no room, its pair is not in the adapter.
        ConfigError: One of `rates` is unknown or not positive, or one process on several GPUs is to train an
            adapter with pairs.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        args: TrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        rates: Mapping[str, float] | None = None,
        predict_with_generate: bool = False,
        generation_options: dict[str, Any] | None = None,
        check_languages: bool = True,
        **trainer_options: Any,
    ) -> None:
        if data_collator is None and processing_class is None:
            raise CorpusError("processing_class", None, "give the tokenizer, or a data_collator.")
        self.rates = check_rates(rates)
        self.predict_with_generate = predict_with_generate
        self.generation_options = dict(generation_options or {})
        self.check_languages = check_languages
        self.pair_losses = {"train": PairLosses(), "eval": PairLosses()}
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **trainer_options,
        )
        if self._data_parallel and routed_pairs(self.model):  # which does not split lists
            raise ConfigError(
                "args", f"{self.args.n_gpu} GPUs", "start one process for each: accelerate launch, or torchrun."
            )
        if self.accelerator.dataloader_config.dispatch_batches is None:
            # every process reads a stream and takes its share; one that hands out batches cannot send their pairs
            self.accelerator.dataloader_config.dispatch_batches = False
        if data_collator is None:  # the model is known only now: `model_init` may have made it
            self.data_collator = TranslationCollator(processing_class, seed=self.args.seed, model=self.model)
        two_stacks = is_encoder_decoder(self.model)
        self.translation_loss = TranslationLoss(two_stacks, self.args.label_smoothing_factor)
        self.owns_loss = trainer_options.get("compute_loss_func") is None and (
            two_stacks or not self.args.use_liger_kernel  # whose models make no logits to compute it from
        )
        if self.owns_loss:
            self.compute_loss_func: Any = self.translation_loss
        if two_stacks:
            self._loss_shifts_labels = False  # transformers 5.10 counts a label of every row too few here
        self._checkpoints = FullPrecisionCheckpoints()
        self.add_callback(self._checkpoints)
        self._stream: UsableRows | None = None
        if isinstance(self.data_collator, TranslationCollator) and train_dataset is not None:
            self._check_first(self.data_collator, train_dataset)

    @property
    def _data_parallel(self) -> bool:
        """Tell whether transformers puts the model into torch's DataParallel."""
        quantized = any(getattr(self.model, f"is_loaded_in_{bits}bit", False) for bits in (4, 8))
        return self.args.n_gpu > 1 and not quantized

    def _check_first(self, collator: TranslationCollator, rows: Any) -> None:
        if _is_sized(rows):
            check_rows([rows[0]] if len(rows) else rows, "train_dataset", collator, routed_pairs(self.model))

    def _check_all(self, rows: Any, name: str) -> None:
        """Check all rows of a sized data set; refuse those that cannot be used, and tell how many are cut."""
        if isinstance(self.data_collator, TranslationCollator) and _is_sized(rows):
            pairs = routed_pairs(self.accelerator.unwrap_model(self.model))
            report = check_rows(rows, name, self.data_collator, pairs)
            for pair in report.sample if self.predict_with_generate and name != "train_dataset" else ():
                metrics_for(pair, self.generation_options.get("bleu_tokenizer"))  # what they lack is told now
            doubts = [doubt.text for doubt in check_directions(report.sample)] if self.check_languages else []
            if report.num_cut:
                doubts.append(
                    f"{report.num_cut} of {report.total} rows are cut at max_length={self.data_collator.max_length}; "
                    "they do not teach where a translation ends"
                )
            for doubt in doubts if self.is_world_process_zero() else ():
                warnings.warn(f"{name}: {doubt}", stacklevel=2)

    def _get_dataloader(self, dataset: Any, description: str, *args: Any, **kwargs: Any) -> Any:
        training = kwargs.get("is_training", False)
        if isinstance(dataset, IterableDataset) and isinstance(self.data_collator, TranslationCollator):
            pairs = routed_pairs(self.accelerator.unwrap_model(self.model))
            dataset = UsableRows(dataset, self.data_collator, pairs)
            self._stream = dataset if training else self._stream
        else:
            self._check_all(dataset, "train_dataset" if training else "eval_dataset")
        return super()._get_dataloader(dataset, description, *args, **kwargs)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        assert self._signature_columns is not None
        self._signature_columns += FIELDS

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows = self.train_dataset if train_dataset is None else train_dataset
        if not is_by_length(self.args) or not hasattr(rows, "__len__"):
            return super()._get_train_sampler(train_dataset)
        # rows are not tokenized yet; characters tell well enough which ones are alike
        lengths = [len(row["source"]) + len(row["target"]) for row in rows]
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return LengthGroupedSampler(size, lengths=lengths)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Make the optimizer of `transformers.Trainer`, with a lower learning rate for delta rows beside factors."""
        made_here = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if made_here:
            scale_rates(self.accelerator.unwrap_model(self.model), optimizer, self.rates)
        return optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Compute the loss of a batch from the collator; see `transformers.Trainer.compute_loss`."""
        inputs = dict(inputs)
        plain = self.accelerator.unwrap_model(model)
        pairs = inputs.pop("language_pairs", None)
        if pairs is not None and routed_pairs(plain):
            inputs["language_pairs"] = pairs
        own_loss = self.label_smoother is not None or self.compute_loss_func is not None
        if own_loss and is_encoder_decoder(plain) and "labels" in inputs:
            # the model, which would make these of the labels, does not see them then
            inputs.setdefault("decoder_input_ids", decoder_inputs(plain, inputs["labels"]))
        if "labels" in inputs and self._cuts_logits(plain):
            inputs.update(labels_together(inputs, plain))
            inputs["logits_to_keep"] = labelled_positions(inputs["labels"])
            inputs["labels"] = inputs["labels"][:, inputs["logits_to_keep"]]
        labels = inputs.get("labels")
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        logits = getattr(outputs, "logits", None)
        if pairs is not None and labels is not None and logits is not None:
            kind = "train" if model.training else "eval"
            own = pairs if model.training else pairs[: self._not_repeated(len(pairs))]
            self.pair_losses[kind].add(own, logits, labels, self.translation_loss)
        return (loss, outputs) if return_outputs else loss

    def _not_repeated(self, count: int) -> int:
        """Count those of a batch's rows that are no repetitions, which fill the last batches of several processes."""
        state = self.accelerator.gradient_state
        if not state.end_of_dataloader or state.remainder <= 0:
            return count
        return min(max(state.remainder - self.accelerator.process_index * count, 0), count)

    def _cuts_logits(self, plain: nn.Module) -> bool:
        """Tell whether logits are computed only where there are labels; DataParallel would split the positions too."""
        return accepts(plain, "logits_to_keep") and not is_encoder_decoder(plain) and not self._data_parallel

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Make the step of `transformers.Trainer`, with the labels of those positions that there are logits of."""
        plain = self.accelerator.unwrap_model(model)
        loss, logits, labels = super().prediction_step(model, inputs, *args, **kwargs)
        if isinstance(labels, torch.Tensor) and self._cuts_logits(plain):
            labels = labels_together({**inputs, "labels": labels}, plain).get("labels", labels)
            labels = labels[:, labelled_positions(labels)]
        return loss, logits, labels

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; see `transformers.Trainer.train`. All rows are checked before the first step. True resumes from the
        newest checkpoint that is whole.

        Raises:
            ConfigError: There is none.
        """
        self.pair_losses["train"].clear()  # what was left of an earlier training
        self._stream = None
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_whole_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                remedy = f"{self.args.output_dir} holds no whole checkpoint; train from the start."
                raise ConfigError("resume_from_checkpoint", True, remedy)
        if self.eval_dataset is not None and self.args.eval_strategy != "no":
            several = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"": self.eval_dataset}
            for name, rows in several.items():
                self._check_all(rows, f"eval_dataset[{name!r}]" if name else "eval_dataset")
        if isinstance(self.data_collator, TranslationCollator):
            keep_prompt(self.accelerator.unwrap_model(self.model), self.data_collator.prompt)
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self._checkpoints.on_train_end(self.args, self.state, self.control)  # also of one that failed

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log what `transformers.Trainer` does and, while training, the loss of every pair, changes and gates."""
        if "loss" in logs:
            _, by_pair = self.pair_losses["train"].take()
            losses = {f"loss_{pair}": loss for pair, loss in by_pair.items()}
            counts = {} if self._stream is None else _counts(self._stream)
            logs = {**logs, **losses, **training_metrics(self.accelerator.unwrap_model(self.model)), **counts}
        super().log(logs, start_time)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.args.should_save:  # what is left of one that was not written to its end must not mix with this one
            remove_checkpoints(self._get_output_dir(trial), self.state.global_step)
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)

    def evaluation_loop(self, dataloader: Any, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """Run the loop of `evaluate` and `predict`; its metrics also tell of every pair, and what translations
        score."""
        losses = self.pair_losses["eval"]
        losses.clear()  # what an interrupted evaluation left
        output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        mean, by_pair = losses.take()
        found = {f"loss_{pair}": loss for pair, loss in by_pair.items()}
        if mean is not None and self.owns_loss:
            found["loss"] = mean  # that of transformers is a mean of means, which depends on the batches
        rows = dataloader.dataset
        rows = rows.dataset if isinstance(rows, IterableDatasetShard) else rows  # all, not one process's
        found.update(_counts(rows) if isinstance(rows, UsableRows) else {})
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in found.items()})
        if self.predict_with_generate:
            output.metrics.update(self._score(rows, metric_key_prefix))
        return output

    def _score(self, rows: Any, prefix: str) -> dict[str, float]:
        by_pair: dict[str, list[Any]] = defaultdict(list)
        for row in rows:
            missing = [name for name in FIELDS if name not in row]
            if missing:
                raise CorpusError(
                    "row", dict(row), f"lacks {', '.join(missing)}, which predict_with_generate needs; turn it off."
                )
            by_pair[row["language_pair"]].append(row)
        if not by_pair:
            raise CorpusError("eval_dataset", rows, "gives no rows to translate; a stream must begin anew each time.")
        options = {"batch_size": self.args.per_device_eval_batch_size, **self.generation_options}
        if isinstance(self.data_collator, TranslationCollator):
            options.setdefault("template", self.data_collator.prompt)
        scores: dict[str, float] = {}
        shared = self.accelerator.distributed_type in (DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
        for pair, members in by_pair.items():
            sources, references = ([row[name] for row in members] for name in ("source", "target"))
            result = evaluate_translation(
                self.accelerator.unwrap_model(self.model),
                self.processing_class,
                sources,
                references,
                pair,
                shared,
                **options,
            )
            scores[f"{prefix}_bleu_{pair}"], scores[f"{prefix}_chrf_{pair}"] = result.bleu, result.chrf
        for name in ("bleu", "chrf"):
            scores[f"{prefix}_{name}"] = sum(scores[f"{prefix}_{name}_{pair}"] for pair in by_pair) / len(by_pair)
        return scores


def _is_sized(rows: Any) -> bool:
    return not isinstance(rows, IterableDataset) and hasattr(rows, "__getitem__") and hasattr(rows, "__len__")


def _counts(stream: UsableRows) -> dict[str, float]:
    return {"skipped_rows": stream.num_skipped, "cut_rows": stream.num_cut}
