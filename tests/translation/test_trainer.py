"""Training: mixed pairs, other kinds of models, the loss, checkpoints and scores."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from transformers import EarlyStoppingCallback, PreTrainedModel, PreTrainedTokenizerFast, TrainingArguments

from peft_landermt import LanderTrainer, NeuronMap, TranslationCollator, evaluate_translation
from peft_landermt.errors import ConfigError, CorpusError, LanderError
from peft_landermt.routed.rates import parameters_by_kind
from peft_landermt.translation.training_arguments import by_length

from ..conftest import ARCHITECTURES, PAIRS, build_model
from ..tuner.helpers import adapt, same_state
from ..versions import IN_ORDER, TRANSFORMERS_4

SHORT = ["{source_language} {target_language} {source}:"]
ROWS = [
    {"source": source, "target": target, "language_pair": pair}
    for source, target, pair in (
        ("We drink tea.", "Wir trinken Tee.", "en-de"),
        ("Das Haus.", "The house.", "de-en"),
        ("The house.", "La maison.", "en-fr"),
        ("It rained.", "Es regnete.", "en-de"),
        ("Wo ist er?", "Where is he?", "de-en"),
        ("Where is he?", "Où est-il ?", "en-fr"),
    )
]


OWN = (
    "eval_dataset", "predict_with_generate", "generation_options", "rates", "compute_metrics", "callbacks",
)  # fmt: skip
"""Options of the trainer itself, not of its arguments."""


@pytest.fixture
def architecture() -> str:
    return "llama"


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    defaults = {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 3,
        "logging_steps": 1,
        "max_steps": 8,
        "seed": 5,
    }
    return TrainingArguments(**{**defaults, **options})


def trainer_of(model: Any, tokenizer: Any, folder: Path, rows: Any = ROWS, **options: Any) -> LanderTrainer:
    own = {name: options.pop(name) for name in OWN if name in options}
    return LanderTrainer(
        model=model,
        args=arguments(folder, **options),
        data_collator=TranslationCollator(tokenizer, SHORT),
        train_dataset=rows,
        processing_class=tokenizer,
        **own,
    )


def losses(trainer: LanderTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def lander(base: PreTrainedModel, neuron_map: NeuronMap) -> Any:
    return adapt(base, neuron_map, seed=None)


def lander_without_map(base: PreTrainedModel, neuron_map: NeuronMap) -> Any:
    return adapt(base, seed=None)


def lora(base: PreTrainedModel, neuron_map: NeuronMap) -> Any:
    return get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules=["gate_proj", "down_proj"]))


def plain(base: PreTrainedModel, neuron_map: NeuronMap) -> Any:
    return base


@pytest.mark.parametrize("make", [lander, lander_without_map, lora, plain])
def test_loss_falls_on_mixed_pairs(
    base: PreTrainedModel,
    neuron_map: NeuronMap,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    make: Callable[..., Any],
) -> None:
    model = make(base, neuron_map)
    frozen = {name: value.clone() for name, value in model.named_parameters() if not value.requires_grad}
    trainer = trainer_of(model, tokenizer, tmp_path, max_steps=30)
    trainer.train()
    history = losses(trainer)
    assert len(history) == 30
    assert sum(history[-4:]) < 0.7 * sum(history[:4])
    assert bool(frozen) == (make is not plain)
    assert all(dict(model.named_parameters())[name].equal(value) for name, value in frozen.items())


def test_a_batch_of_mixed_pairs_trains_every_block(
    base: PreTrainedModel, neuron_map: NeuronMap, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = adapt(base, neuron_map)
    trainer = trainer_of(model, tokenizer, tmp_path)
    trainer.compute_loss(model, trainer.data_collator(ROWS)).backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.requires_grad}
    assert all(gradient is not None and gradient.any() for gradient in gradients.values())
    model.zero_grad()
    trainer.compute_loss(model, trainer.data_collator([ROWS[0]])).backward()  # en-de
    french = [value.grad for name, value in model.named_parameters() if ".fr_" in name]
    assert french and not any(gradient is not None and gradient.any() for gradient in french)


# Loss


@pytest.mark.parametrize("kind", ["base", "lander"])
@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("items", [None, 7])
def test_loss_equals_the_loss_of_all_logits(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, name: str, kind: str, items: int | None
) -> None:
    base = build_model(name)
    model: Any = base if kind == "base" else adapt(base, None, PAIRS, car="learned")
    trainer = trainer_of(model, tokenizer, tmp_path)
    batch = trainer.data_collator(ROWS)
    keys = list(batch)
    kept: list[int] = []
    handle = base.get_output_embeddings().register_forward_hook(lambda _m, _a, out: kept.append(out.shape[1]))
    loss = trainer.compute_loss(model, batch, num_items_in_batch=None if items is None else torch.tensor(items))
    handle.remove()
    assert list(batch) == keys  # the caller's batch is as it was
    labels = batch["labels"]
    routing = {"language_pairs": batch["language_pairs"]} if kind == "lander" else {}
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **routing).logits
    expected = F.cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].flatten(), reduction="sum"
    ) / (items or int((labels != -100).sum()))
    torch.testing.assert_close(loss.detach(), expected, atol=1e-5, rtol=1e-5)
    # the longest translation, with its space and <eos>, and the position before it
    if "logits_to_keep" in inspect.signature(base.forward).parameters:  # not in BLOOM of transformers 4
        assert kept == [max(len(row["target"]) for row in ROWS) + 2 + 1], "rows end together"


def test_loss_where_nothing_is_masked(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """A collator of one's own may label the whole row."""
    model = build_model("llama")
    batch = TranslationCollator(tokenizer, SHORT)(ROWS[:1])
    batch["labels"] = batch["input_ids"].clone()
    loss = trainer_of(model, tokenizer, tmp_path).compute_loss(model, batch)
    with torch.no_grad():
        expected = model(input_ids=batch["input_ids"], labels=batch["labels"]).loss
    torch.testing.assert_close(loss.detach(), expected, atol=1e-5, rtol=1e-5)


def test_accumulated_batches_weigh_every_token_alike(
    base: PreTrainedModel, neuron_map: NeuronMap, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Three batches of two and one batch of six rows make the same step, although lengths differ."""
    models = []
    for size, accumulation in ((6, 1), (2, 3)):
        model = adapt(copy.deepcopy(base), neuron_map)
        trainer_of(
            model,
            tokenizer,
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            optim="sgd",
            max_grad_norm=0.0,
        ).train()
        models.append(get_peft_model_state_dict(model))
    for key, value in models[0].items():
        torch.testing.assert_close(value, models[1][key], atol=1e-5, rtol=1e-4)


# Rows


def test_lists_and_data_sets_train_alike(
    base: PreTrainedModel, neuron_map: NeuronMap, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Columns that are not ours are left out."""
    dataset = Dataset.from_list([{**row, "number": index} for index, row in enumerate(ROWS)])
    histories, states = [], []
    for rows in (ROWS, dataset):
        model = adapt(copy.deepcopy(base), neuron_map)
        trainer = trainer_of(model, tokenizer, tmp_path, rows)
        trainer.train()
        histories.append(losses(trainer))
        states.append(get_peft_model_state_dict(model))
    assert histories[0] == histories[1]
    assert same_state(*states)
    assert dataset.column_names == ["source", "target", "language_pair", "number"]


@pytest.mark.skipif(TRANSFORMERS_4, reason="transformers 4 always shuffles training rows")
def test_streamed_rows(
    base: PreTrainedModel, neuron_map: NeuronMap, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Rows of an iterable data set train as those of a list do, in their order."""
    histories = []
    for streamed in (False, True):
        rows = Dataset.from_list(ROWS).to_iterable_dataset() if streamed else ROWS
        model = adapt(copy.deepcopy(base), neuron_map)
        trainer = trainer_of(model, tokenizer, tmp_path, rows, max_steps=3, **IN_ORDER)
        trainer.train()
        histories.append(losses(trainer))
    assert histories[0] == histories[1]


def test_rows_of_like_length_share_a_batch(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows = [{"source": "x" * length, "target": "y", "language_pair": "en-de"} for length in range(1, 97)]
    shuffled = rows[::2] + rows[1::2]
    spans = {}
    for strategy, option in (("random", {}), ("by length", by_length())):
        trainer = trainer_of(build_model("llama"), tokenizer, tmp_path, shuffled, **option)
        lengths = [batch["attention_mask"].sum(dim=1) for batch in trainer.get_train_dataloader()]
        spans[strategy] = [int(values.max() - values.min()) for values in lengths]
        assert sorted(torch.cat(lengths).tolist()) == list(range(min(map(min, lengths)), max(map(max, lengths)) + 1))
    # three of 96 lengths by chance span 2/4 of them; three neighbours among 24 (8 batches are sorted together) 2/25
    assert sum(spans["random"]) > 3 * sum(spans["by length"])


def test_arguments_are_left_as_they_are(
    base: PreTrainedModel, neuron_map: NeuronMap, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    args, rows = arguments(tmp_path, max_steps=1), copy.deepcopy(ROWS)
    before = args.to_dict()
    options = {"max_new_tokens": 3}
    trainer = LanderTrainer(
        model=adapt(base, neuron_map),
        args=args,
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
        predict_with_generate=True,
        generation_options=options,
    )
    assert trainer.args is args
    assert args.to_dict() == before
    trainer.train()
    trainer.evaluate()
    assert args.to_dict() == before
    assert rows == ROWS
    assert options == {"max_new_tokens": 3}


def test_default_collator_has_the_seed_of_the_arguments(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    trainer = LanderTrainer(
        build_model("llama"), arguments(tmp_path, seed=11), train_dataset=ROWS, processing_class=tokenizer
    )
    assert isinstance(trainer.data_collator, TranslationCollator)
    assert trainer.data_collator.seed == 11
    assert trainer.data_collator.tokenizer is tokenizer


def test_missing_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="processing_class=None: give the tokenizer, or a data_collator"):
        LanderTrainer(build_model("llama"), arguments(tmp_path), train_dataset=ROWS)


@pytest.mark.parametrize("change", [{"target": ""}, {"language_pair": "en-it"}], ids=str)
def test_unusable_rows_fail_in_training(
    base: PreTrainedModel,
    neuron_map: NeuronMap,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    change: dict[str, str],
) -> None:
    trainer = trainer_of(adapt(base, neuron_map), tokenizer, tmp_path, [*ROWS[:2], {**ROWS[2], **change}])
    with pytest.raises(LanderError, match=r"lacks target|en-it"):
        trainer.train()


@pytest.mark.parametrize("change", [{"target": ""}, {"language_pair": "en-it"}], ids=str)
def test_an_unusable_first_row_fails_at_once(
    base: PreTrainedModel,
    neuron_map: NeuronMap,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    change: dict[str, str],
) -> None:
    with pytest.raises(CorpusError):
        trainer_of(adapt(base, neuron_map), tokenizer, tmp_path, [{**ROWS[0], **change}, *ROWS])


# Learning rates


def rates(trainer: LanderTrainer) -> dict[str, float]:
    """Learning rate of every trainable parameter, by its name."""
    names = {id(weight): name for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    groups = trainer.create_optimizer().param_groups
    found = {names.pop(id(weight)): group["lr"] for group in groups for weight in group["params"]}
    assert not names, "every parameter is in one group"
    return found


@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0])
def test_rows_learn_slower_than_factors(
    base: PreTrainedModel, neuron_map: NeuronMap, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, ratio: float
) -> None:
    model = adapt(base, neuron_map, car="learned")
    for name, rate in rates(trainer_of(model, tokenizer, tmp_path, learning_rate=1e-3, rates={"rows": ratio})).items():
        is_row = not name.endswith((".gates", "_A", "_B"))
        writes = name.endswith("down_proj_A" if "down_proj" in name else "_B")  # neurons are what down_proj reads
        assert rate == pytest.approx(1e-3 * (ratio if is_row else 2 if writes else 1))


@pytest.mark.parametrize("options", [{"general_rank": None}, {"tune": "specific"}], ids=str)
def test_rows_alone_take_the_learning_rate_as_it_is(
    base: PreTrainedModel,
    neuron_map: NeuronMap,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    options: dict[str, Any],
) -> None:
    trainer = trainer_of(adapt(base, neuron_map, **options), tokenizer, tmp_path, learning_rate=1e-3)
    assert set(rates(trainer).values()) == {1e-3}


def test_v_and_o_have_a_ratio_on_top(
    base: PreTrainedModel, neuron_map: NeuronMap, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Theirs times that of A or B; with factors in attention alone, rows in FFNs stay rows beside factors. Where it is
    1, optimizers have the groups that they had before there was one."""
    options: dict[str, Any] = {"attention_rank": 2, "general_rank": None, "specific_rank": None}
    alone = adapt(copy.deepcopy(base), neuron_map, attention_modules=["v"], **options)
    assert set(alone.base_model.parameters_by_kind()) == {"rows", "factors_a", "factors_b"}
    layers = alone.base_model._layers()
    assert set(parameters_by_kind(layers, values_apart=True)) == {"rows", "values_a", "values_b"}
    plain = trainer_of(alone, tokenizer, tmp_path, learning_rate=1e-3, weight_decay=0.0).create_optimizer()
    assert [group["lr"] for group in plain.param_groups if group["params"]] == pytest.approx([1e-3, 2e-3, 3e-5])
    model = adapt(base, neuron_map, attention_modules=["q", "v", "o"], **options)
    of_roles = {"q": 1, "v": 4, "o": 4}
    trainer = trainer_of(model, tokenizer, tmp_path, learning_rate=1e-3, rates={"factors_b": 3, "values": 4})
    by_name = rates(trainer)
    for name, rate in by_name.items():
        parts = name.rpartition(".")[2].split("_")
        ratio = of_roles[parts[-2]] * {"A": 1, "B": 3}[parts[-1]] if parts[-1] in ("A", "B") else 0.03
        assert rate == pytest.approx(1e-3 * ratio)
    assert len({round(rate, 7) for rate in by_name.values()}) == 5
    groups = model.base_model.parameter_groups(1e-3, {"factors_b": 3, "values": 4})
    of_groups = {id(weight): group["lr"] for group in groups for weight in group["params"]}
    assert {name: of_groups[id(weight)] for name, weight in model.named_parameters() if id(weight) in of_groups} == (
        pytest.approx(by_name)
    )


@pytest.mark.parametrize("ratio", [0, -1.0])
def test_the_ratio_is_positive(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, ratio: float
) -> None:
    with pytest.raises(ConfigError, match=r"rates=.*must be positive"):
        trainer_of(base, tokenizer, tmp_path, rates={"rows": ratio})


# Checkpoints


@pytest.mark.parametrize(
    ("sampling", "options"),
    [
        (by_length(), {}),
        ({}, {"car": "learned", "general_rank": None}),
        pytest.param({}, {}, marks=pytest.mark.slow),
        pytest.param(by_length(), {"car": "learned", "general_rank": None}, marks=pytest.mark.slow),
    ],
)
def test_resumed_training_is_bit_identical(
    base: PreTrainedModel,
    neuron_map: NeuronMap,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    options: dict[str, Any],
    sampling: dict[str, Any],
) -> None:
    settings = {"save_strategy": "steps", "save_steps": 4, "lr_scheduler_type": "cosine", **sampling}
    whole = adapt(copy.deepcopy(base), neuron_map, **options)
    rows = [*ROWS, *({**row, "target": row["target"][:-1]} for row in ROWS[:4])]  # 4 steps an epoch, the last short
    first = trainer_of(whole, tokenizer, tmp_path, rows, **settings)
    first.train()
    resumed = adapt(copy.deepcopy(base), neuron_map, seed=None, **options)
    fresh = {key: value.clone() for key, value in get_peft_model_state_dict(resumed).items()}
    second = trainer_of(resumed, tokenizer, tmp_path, rows, **settings)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert second.state.global_step == 8
    assert not same_state(fresh, get_peft_model_state_dict(whole))
    assert same_state(get_peft_model_state_dict(resumed), get_peft_model_state_dict(whole))
    assert losses(second)[-4:] == losses(first)[-4:]


def test_resuming_on_a_bfloat16_base_loses_no_bit(
    base: PreTrainedModel, neuron_map: NeuronMap, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Files hold the deltas in the type of the base by default; checkpoints hold them as they are trained."""
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = adapt(copy.deepcopy(base).to(torch.bfloat16), neuron_map)
    trainer_of(whole, tokenizer, tmp_path, ROWS, **settings).train()
    resumed = adapt(copy.deepcopy(base).to(torch.bfloat16), neuron_map, seed=None)
    trainer = trainer_of(resumed, tokenizer, tmp_path, ROWS, **settings)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    pairs = zip(resumed.named_parameters(), whole.named_parameters(), strict=True)
    assert all(first.equal(second) for (_, first), (_, second) in pairs)
    assert whole.peft_config["default"].save_dtype is None
    assert {value.dtype for key, value in get_peft_model_state_dict(whole).items() if "_proj" in key} == {
        torch.bfloat16
    }


# Evaluation


def test_evaluate_without_generating(
    base: PreTrainedModel, neuron_map: NeuronMap, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = adapt(base, neuron_map)
    trainer = trainer_of(model, tokenizer, tmp_path, eval_dataset=ROWS, per_device_eval_batch_size=6)
    metrics = trainer.evaluate()
    with torch.no_grad():
        expected = float(trainer.compute_loss(model, trainer.data_collator(ROWS)))
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert not any("bleu" in name or "chrf" in name for name in metrics)


@pytest.mark.parametrize("make", [lander, plain])
@pytest.mark.parametrize("as_dataset", [False, True])
def test_predict_with_generate_adds_scores_of_every_pair(
    base: PreTrainedModel,
    neuron_map: NeuronMap,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    make: Callable[..., Any],
    as_dataset: bool,
) -> None:
    model = make(base, neuron_map)
    options = {"max_new_tokens": 6, "num_beams": 2}
    trainer = trainer_of(
        model,
        tokenizer,
        tmp_path,
        eval_dataset=Dataset.from_list(ROWS) if as_dataset else ROWS,
        predict_with_generate=True,
        generation_options=options,
    )
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] > 0
    chrf = []
    for pair in PAIRS:
        sources, references = ([r[k] for r in ROWS if r["language_pair"] == pair] for k in ("source", "target"))
        expected = evaluate_translation(model, tokenizer, sources, references, pair, template=SHORT[0], **options)
        assert metrics[f"eval_bleu_{pair}"] == expected.bleu
        assert metrics[f"eval_chrf_{pair}"] == expected.chrf
        chrf.append(expected.chrf)
    assert metrics["eval_chrf"] == pytest.approx(sum(chrf) / 3)
    assert metrics["eval_bleu"] == pytest.approx(sum(metrics[f"eval_bleu_{pair}"] for pair in PAIRS) / 3)
    logged = [entry for entry in trainer.state.log_history if "eval_chrf_en-fr" in entry]
    assert len(logged) == 1
    assert set(trainer.evaluate(ROWS[:1], metric_key_prefix="test")) >= {"test_loss", "test_bleu_en-de", "test_chrf"}


@pytest.mark.parametrize(
    "where",
    ["constructor", "call"],
)
def test_scores_of_named_evaluation_sets(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, where: str) -> None:
    sets = {"a": ROWS[:1], "b": ROWS[1:2]}
    trainer = trainer_of(
        build_model("llama"),
        tokenizer,
        tmp_path,
        eval_dataset=sets if where == "constructor" else None,
        predict_with_generate=True,
        generation_options={"max_new_tokens": 3},
    )
    metrics = trainer.evaluate() if where == "constructor" else trainer.evaluate(sets)
    assert {"eval_a_loss", "eval_b_loss", "eval_a_bleu_en-de", "eval_b_bleu_de-en"} <= set(metrics)


def test_evaluation_in_training_picks_the_best_checkpoint(
    base: PreTrainedModel, neuron_map: NeuronMap, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = adapt(base, neuron_map, seed=None)
    trainer = trainer_of(
        model,
        tokenizer,
        tmp_path,
        eval_dataset=ROWS,
        predict_with_generate=True,
        generation_options={"max_new_tokens": 12},
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=2,
        save_steps=2,
        max_steps=4,
        load_best_model_at_end=True,
        metric_for_best_model="eval_chrf",
        greater_is_better=True,
    )
    trainer.train()
    scored = {e["step"]: e["eval_chrf"] for e in trainer.state.log_history if "eval_chrf" in e}
    assert set(scored) == {2, 4}
    assert trainer.state.best_metric == max(scored.values())
    assert trainer.evaluate()["eval_chrf"] == pytest.approx(max(scored.values()))


def test_predicting_other_rows_leaves_the_next_evaluation_alone(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    trainer = trainer_of(build_model("llama"), tokenizer, tmp_path, eval_dataset=ROWS[:3])
    before = trainer.evaluate()
    predicted = trainer.predict(ROWS[3:]).metrics
    assert predicted["test_loss_en-de"] != before["eval_loss_en-de"]
    after = trainer.evaluate()
    assert {name: after[name] for name in after if "loss" in name} == {
        name: before[name] for name in before if "loss" in name
    }


def test_metrics_see_logits_and_labels_of_the_same_positions(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Batches of one row, so that nothing is padded: the mean loss computed from what metrics see is `eval_loss`."""
    seen: list[float] = []

    def compute_metrics(prediction: Any) -> dict[str, float]:
        logits, labels = torch.tensor(prediction.predictions), torch.tensor(prediction.label_ids)
        assert logits.shape[:2] == labels.shape
        seen.append(F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()).item())
        return {}

    rows = ROWS[:1]
    trainer = trainer_of(build_model("llama"), tokenizer, tmp_path, eval_dataset=rows, compute_metrics=compute_metrics)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(seen[0], rel=1e-5)


@pytest.mark.parametrize("metric", ["eval_loss_en-de", "eval_bleu"])
def test_training_stops_early_by_metrics_of_pairs(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, metric: str
) -> None:
    trainer = trainer_of(
        build_model("llama"),
        tokenizer,
        tmp_path,
        eval_dataset=ROWS[:1],
        predict_with_generate=metric == "eval_bleu",
        generation_options={"max_new_tokens": 2},
        callbacks=[EarlyStoppingCallback(early_stopping_patience=1)],
        metric_for_best_model=metric,
        greater_is_better=metric == "eval_bleu",
        learning_rate=0.0,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
    )
    trainer.train()
    assert trainer.state.global_step == 2  # nothing gets better


def test_a_second_training_begins_with_no_losses(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    german, french = ([row for row in ROWS if row["language_pair"] == pair] for pair in ("en-de", "en-fr"))
    trainer = trainer_of(build_model("llama"), tokenizer, tmp_path, german, max_steps=1, logging_steps=5)
    trainer.train()
    trainer.train_dataset = french
    trainer.args.logging_steps = trainer.state.logging_steps = 1
    trainer.train()
    logged = [name for entry in trainer.state.log_history for name in entry if name.startswith("loss_")]
    assert set(logged) == {"loss_en-fr"}


def test_no_rows(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"train_dataset=\[\]: is empty"):
        trainer_of(build_model("llama"), tokenizer, tmp_path, rows=[])


class Stream(torch.utils.data.IterableDataset):
    """Rows one after the other, and how many there are."""

    def __len__(self) -> int:
        return len(ROWS)

    def __iter__(self) -> Any:
        return iter(ROWS)


def test_a_stream_that_knows_its_length(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    trainer = trainer_of(build_model("llama"), tokenizer, tmp_path, rows=Stream(), max_steps=2)
    trainer.train()
    assert trainer.state.global_step == 2


def test_one_process_on_several_gpus(
    base: PreTrainedModel, neuron_map: NeuronMap, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """DataParallel would hand every copy of the model the pairs of all rows."""
    args = arguments(tmp_path)
    args.__dict__["_n_gpu"] = 2
    assert args.n_gpu == 2
    with pytest.raises(ConfigError, match=r"args='2 GPUs': start one process for each"):
        LanderTrainer(model=adapt(base, neuron_map), args=args, train_dataset=ROWS, processing_class=tokenizer)


def test_an_interrupted_evaluation_leaves_nothing(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(build_model("llama"), tokenizer, tmp_path, eval_dataset=ROWS)
    expected = trainer.evaluate()["eval_loss_en-de"]
    with monkeypatch.context() as broken:
        broken.setattr(trainer, "gather_function", lambda _: pytest.fail("stopped"))
        with pytest.raises(pytest.fail.Exception):
            trainer.evaluate(ROWS[:3])
    assert trainer.pair_losses["eval"]._sums
    assert trainer.evaluate()["eval_loss_en-de"] == expected


def test_rows_that_cannot_be_translated(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows = [{"source": "tea", "target": "Tee"}]
    trainer = trainer_of(build_model("llama"), tokenizer, tmp_path, predict_with_generate=True)
    trainer.data_collator = lambda batch: TranslationCollator(tokenizer)([{**row, **ROWS[0]} for row in batch])
    with pytest.raises(CorpusError, match="lacks language_pair, which predict_with_generate needs"):
        trainer.predict(rows)


def test_a_quantized_base_on_several_gpus(
    base: PreTrainedModel, neuron_map: NeuronMap, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """transformers does not put it into DataParallel."""
    args = arguments(tmp_path)
    args.__dict__["_n_gpu"] = 2
    base.is_loaded_in_4bit = True
    LanderTrainer(model=adapt(base, neuron_map), args=args, train_dataset=ROWS, processing_class=tokenizer)
