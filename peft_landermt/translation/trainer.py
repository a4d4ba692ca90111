"""Training on rows of mixed language pairs with transformers' Trainer."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from accelerate import DistributedType
from accelerate.data_loader import IterableDatasetShard
from torch import nn
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from ..errors import ConfigError, CorpusError
from ..padding import IGNORED
from ..seq2seq import decoder_inputs, is_encoder_decoder
from .checkpoints import last_whole_checkpoint, remove_checkpoints
from .collator import FIELDS, TranslationCollator
from .losses import PairLosses
from .models import accepts_logits_to_keep, routed_pairs, row_parameters, saved_in_full, training_metrics
from .scoring import evaluate_translation


class LanderTrainer(Trainer):
    """A `transformers.Trainer` for translation rows: mappings with `source`, `target` and `language_pair`.

    Pairs may be mixed within a batch. The model can be a LANDER model, a base model or one of another PEFT method, so
    that baselines see the same rows in the same order. Logits are computed only where there are labels, if the model
    can do that.

    Beside the scalars of `transformers.Trainer`, every log, and so every tracker in `args.report_to`, has the loss of
    each pair (`loss_en-de`, `eval_loss_en-de`) and what [`LanderModel.training_metrics`] tells of the adapter: how far
    the weights of each language's neurons have moved (`change_general`, `change_de`), and gates.

    Args:
        model: The model to train.
        args: Training arguments; by default AdamW with learning rate 5e-5, as in the paper.
        data_collator: By default a [`TranslationCollator`] with `args.seed`.
        train_dataset: Rows to train on.
        eval_dataset: Rows to evaluate on.
        processing_class: Tokenizer of the model.
        row_lr_ratio: Learning rate of whole delta rows relative to that of low-rank factors, where an adapter has
            both. A step of Adam moves a row much further than a step on two factors moves their product.
        predict_with_generate: Whether `evaluate` and `predict` also translate the rows and add BLEU and chrF++ for
            every pair (`eval_bleu_en-de`, `eval_chrf_en-de`) and their means (`eval_bleu`, `eval_chrf`).
        generation_options: Arguments of `evaluate_translation`, such as `{"num_beams": 4}`.
        trainer_options: All other arguments of `transformers.Trainer`.

    Raises:
        CorpusError: There are no training rows, or the first lacks a field, or names a pair that the adapter does not
            hold.
        ConfigError: `row_lr_ratio` is not positive, or one process on several GPUs is to train an adapter with pairs.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        args: TrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        row_lr_ratio: float = 0.03,
        predict_with_generate: bool = False,
        generation_options: dict[str, Any] | None = None,
        **trainer_options: Any,
    ) -> None:
        if data_collator is None and processing_class is None:
            raise CorpusError("processing_class", None, "give the tokenizer, or a data_collator.")
        if not row_lr_ratio > 0:
            raise ConfigError("row_lr_ratio", row_lr_ratio, "must be positive; 1 trains rows and factors alike.")
        self.row_lr_ratio = row_lr_ratio
        self.predict_with_generate = predict_with_generate
        self.generation_options = dict(generation_options or {})
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
            self.data_collator = TranslationCollator(
                processing_class, seed=self.args.seed, encoder_decoder=is_encoder_decoder(self.model)
            )
        if isinstance(self.data_collator, TranslationCollator) and train_dataset is not None:
            self._check_first(self.data_collator, train_dataset)

    @property
    def _data_parallel(self) -> bool:
        """Whether transformers puts the model into torch's DataParallel."""
        quantized = any(getattr(self.model, f"is_loaded_in_{bits}bit", False) for bits in (4, 8))
        return self.args.n_gpu > 1 and not quantized

    def _check_first(self, collator: TranslationCollator, rows: Any) -> None:
        streamed = isinstance(rows, IterableDataset) or not hasattr(rows, "__getitem__")
        if streamed or not hasattr(rows, "__len__"):
            return
        if not len(rows):
            raise CorpusError("train_dataset", rows, "is empty; give at least one row.")
        row = rows[0]
        collator.encode(row)
        pairs = routed_pairs(self.model)
        if pairs and row["language_pair"] not in pairs:
            raise CorpusError("language_pair", row["language_pair"], f"the adapter holds {', '.join(pairs)}.")

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        assert self._signature_columns is not None
        self._signature_columns += FIELDS

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or not hasattr(rows, "__len__"):
            return super()._get_train_sampler(train_dataset)
        # rows are not tokenized yet; characters tell well enough which ones are alike
        lengths = [len(row["source"]) + len(row["target"]) for row in rows]
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return LengthGroupedSampler(size, lengths=lengths)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Make the optimizer of `transformers.Trainer`, with a lower learning rate for delta rows beside factors."""
        made_here = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if made_here and self.row_lr_ratio != 1:
            slow_down(optimizer, row_parameters(self.accelerator.unwrap_model(self.model)), self.row_lr_ratio)
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
            inputs["logits_to_keep"] = _labelled_positions(inputs["labels"])
            inputs["labels"] = inputs["labels"][:, inputs["logits_to_keep"]]
        labels = inputs.get("labels")
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        logits = getattr(outputs, "logits", None)
        if pairs is not None and labels is not None and logits is not None:
            self.pair_losses["train" if model.training else "eval"].add(
                pairs, logits, labels, shifted=is_encoder_decoder(plain)
            )
        return (loss, outputs) if return_outputs else loss

    def _cuts_logits(self, plain: nn.Module) -> bool:
        """Whether logits are computed only where there are labels; DataParallel would split the positions too."""
        return accepts_logits_to_keep(plain) and not self._data_parallel

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Do the step of `transformers.Trainer`, with the labels of those positions that there are logits of."""
        loss, logits, labels = super().prediction_step(model, inputs, *args, **kwargs)
        if isinstance(labels, torch.Tensor) and self._cuts_logits(self.accelerator.unwrap_model(model)):
            labels = labels[:, _labelled_positions(labels)]
        return loss, logits, labels

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; see `transformers.Trainer.train`. True resumes from the newest checkpoint that is whole.

        Raises:
            ConfigError: There is none.
        """
        self.pair_losses["train"].clear()  # what was left of an earlier training
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_whole_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                remedy = f"{self.args.output_dir} holds no whole checkpoint; train from the start."
                raise ConfigError("resume_from_checkpoint", True, remedy)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log what `transformers.Trainer` does and, while training, the loss of every pair, changes and gates."""
        if "loss" in logs:
            by_pair = {f"loss_{pair}": loss for pair, loss in self.pair_losses["train"].take().items()}
            logs = {**logs, **by_pair, **training_metrics(self.accelerator.unwrap_model(self.model))}
        super().log(logs, start_time)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.args.should_save:  # what is left of one that was not written to its end must not mix with this one
            remove_checkpoints(self._get_output_dir(trial), self.state.global_step)
        self.accelerator.wait_for_everyone()
        with saved_in_full(self.accelerator.unwrap_model(self.model)):
            super()._save_checkpoint(model, trial)

    def evaluation_loop(self, dataloader: Any, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """Run the loop of `evaluate` and `predict`; its metrics also tell of every pair, and what translations
        score."""
        losses = self.pair_losses["eval"]
        losses.clear()  # what an interrupted evaluation left
        output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        output.metrics.update({f"{metric_key_prefix}_loss_{pair}": loss for pair, loss in losses.take().items()})
        if self.predict_with_generate:
            rows = dataloader.dataset
            rows = rows.dataset if isinstance(rows, IterableDatasetShard) else rows  # all, not one process's
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
                **{"batch_size": self.args.per_device_eval_batch_size, **self.generation_options},
            )
            scores[f"{prefix}_bleu_{pair}"], scores[f"{prefix}_chrf_{pair}"] = result.bleu, result.chrf
        for name in ("bleu", "chrf"):
            scores[f"{prefix}_{name}"] = sum(scores[f"{prefix}_{name}_{pair}"] for pair in by_pair) / len(by_pair)
        return scores


def slow_down(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], ratio: float) -> None:
    """Move parameters into groups of their own, with `ratio` times the learning rate of the group they were in."""
    chosen = {id(parameter) for parameter in parameters}
    for group in list(optimizer.param_groups):
        slow = [parameter for parameter in group["params"] if id(parameter) in chosen]
        if slow:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in chosen]
            optimizer.add_param_group({**group, "params": slow, "lr": group["lr"] * ratio})


def _labelled_positions(labels: torch.Tensor) -> torch.Tensor:
    """Positions from the one before the first label of any row to the last, so that every label has its logits.

    Given as a tensor, not as a number, the model copies the hidden states it needs into one block; the head is a
    single product then, instead of one for each row.
    """
    labelled = (labels != IGNORED).any(dim=0)
    first = int(labelled.int().argmax()) if bool(labelled.any()) else labels.shape[1] - 1
    return torch.arange(max(first - 1, 0), labels.shape[1], device=labels.device)
