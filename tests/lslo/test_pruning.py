"""Gradual pruning: its schedule, what it prunes by hand and by torch's own function, and that nothing comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.nn.utils import prune
from transformers import TrainingArguments

from peft_landermt import GradualPruning, LanderTrainer, TranslationCollator, subspace_demand
from peft_landermt.errors import AdapterError, ConfigError
from peft_landermt.lslo.pruning import entries, prune_smallest, pruning_ratio

from ..conftest import PAIRS, SENTENCES
from .helpers import adapt, build, parameters

ROWS = [
    {"source": SENTENCES[pair[:2]][index], "target": SENTENCES[pair[3:]][index], "language_pair": pair}
    for index in range(2)
    for pair in PAIRS
]

# epochs 2 to 12 of 15, P = 0.9, from epoch 2 on over 10 epochs: P - P (1 - (e - 2) / 10)^3
GOLDEN = {1: 0, 2: 0, 3: 0.2439, 4: 0.4392, 5: 0.5913, 6: 0.7056, 7: 0.7875, 8: 0.8424, 9: 0.8757, 10: 0.8928,
          11: 0.8991, 12: 0.9, 13: 0.9, 14: 0.9, 15: 0.9}  # fmt: skip


@pytest.mark.parametrize("epoch", GOLDEN)
def test_schedule_of_the_paper(epoch: int) -> None:
    assert pruning_ratio((epoch - 1) / 15) == pytest.approx(GOLDEN[epoch], abs=1e-9)


def test_the_schedule_never_falls() -> None:
    ratios = [pruning_ratio(step / 997, 0.7, 0.2, 0.5) for step in range(998)]
    assert ratios == sorted(ratios) and ratios[0] == 0 and ratios[-1] == 0.7


EN, DE = torch.tensor([0.1, -0.9, 0.3, 0.2]), torch.tensor([0.5, 0.8, -0.25, 0.6])


def test_by_hand_of_one_language() -> None:
    assert (EN * prune_smallest([EN], 0.5)[0]).tolist() == pytest.approx([0, -0.9, 0.3, 0])
    assert (DE * prune_smallest([DE], 0.5)[0]).tolist() == pytest.approx([0, 0.8, 0, 0.6])


def test_by_hand_of_one_layer() -> None:
    en, de = prune_smallest([EN, DE], 0.5)
    assert (EN * en).tolist() == pytest.approx([0, -0.9, 0, 0])
    assert (DE * de).tolist() == pytest.approx([0.5, 0.8, 0, 0.6])


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.37, 0.5, 0.9])
def test_as_torch_prunes(ratio: float) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(7, 5, bias=False), nn.Linear(3, 11, bias=False)]
    masks = prune_smallest([layer.weight for layer in layers], ratio)
    prune.global_unstructured(
        [(layer, "weight") for layer in layers], pruning_method=prune.L1Unstructured, amount=ratio
    )
    for layer, mask in zip(layers, masks, strict=True):
        assert layer.weight_mask.bool().equal(mask)
    assert sum(int((~mask).sum()) for mask in masks) == round(ratio * 68)


def test_equal_entries_go_in_their_order() -> None:
    masks = prune_smallest([torch.ones(3), -torch.ones(2)], 0.6)
    assert [mask.tolist() for mask in masks] == [[False, False, False], [True, True]]


def test_demand_by_hand() -> None:
    """P = 1/2; of en three of four entries went, of de one of four: +1/4 and -1/4."""
    model = adapt(build("llama"), ["en-de", "de-en"], rank=1, target_modules=["o_proj"], layers_to_transform=[1])
    for entry in entries(model, "default"):
        rows = 32 // 4
        values = {"en": [0, -0.9, 0, 0], "de": [0.5, 0.8, 0, 0.6]}[entry.language]
        entry.weight.copy_(torch.tensor(values).repeat(rows).unsqueeze(1))
    with pytest.raises(ConfigError, match=r"pruned=0.0.*GradualPruning"):
        subspace_demand(model)
    model.peft_config["default"].pruned = 0.5
    assert subspace_demand(model) == {"en": {"decoder.1": 0.25}, "de": {"decoder.1": -0.25}}


def train(
    model: PeftModel, tokenizer: Any, folder: Path, callbacks: list[Any], resume: str | None = None, **options: Any
) -> LanderTrainer:
    arguments = TrainingArguments(
        str(folder), **{"max_steps": 15, "learning_rate": 1e-2, "report_to": [], "use_cpu": True, "disable_tqdm": True,
        "save_strategy": "no", "per_device_train_batch_size": 6, "weight_decay": 0.1, "logging_steps": 1,
        "lr_scheduler_type": "constant", "seed": 0, **options},
    )  # fmt: skip
    collator = TranslationCollator(tokenizer, seed=0, max_length=192)
    trainer = LanderTrainer(
        model, arguments, collator, ROWS, processing_class=tokenizer, callbacks=callbacks, check_languages=False
    )
    trainer.train(resume)
    return trainer


def shares_of_zeros(model: PeftModel, key: Any) -> dict[str, tuple[int, int]]:
    counts: dict[str, tuple[int, int]] = {}
    for entry in entries(model, "default"):
        zeros, total = counts.get(key(entry), (0, 0))
        counts[key(entry)] = (zeros + int((entry.weight == 0).sum()), total + entry.weight.numel())
    return counts


class Watch(GradualPruning):
    """Looks at every step whether zeros of the step before have come back."""

    def on_train_begin(self, *args: Any, model: Any = None, **kwargs: Any) -> None:
        super().on_train_begin(*args, model=model, **kwargs)
        self.ratios: list[float] = []
        self.zeros: list[torch.Tensor] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        found = [entry.weight == 0 for entry in entries(model, "default")]
        if self.zeros and model.peft_config["default"].pruned:
            assert all(bool((now | ~before).all()) for now, before in zip(found, self.zeros, strict=True))
        super().on_step_begin(args, state, control, model=model, **kwargs)
        self.zeros = [entry.weight == 0 for entry in entries(model, "default")]
        self.ratios.append(model.peft_config["default"].pruned)


@pytest.mark.parametrize("scope", [pytest.param("language", marks=pytest.mark.slow), "layer"])
def test_training_prunes_as_scheduled(scope: Any, tokenizer: Any, tmp_path: Path) -> None:
    """Through momentum and weight decay; A is left whole; the count is exact in every pool."""
    model = adapt(build("llama"), PAIRS, target_modules=["o_proj", "up_proj"])
    watch = Watch(0.9, scope=scope)
    trainer = train(model, tokenizer, tmp_path, [watch])
    assert watch.ratios == pytest.approx([GOLDEN[epoch] for epoch in range(1, 16)])
    counts = shares_of_zeros(model, lambda entry: entry.language if scope == "language" else entry.layer)
    assert {zeros - round(0.9 * total) for zeros, total in counts.values()} == {0}
    assert all(bool(weight.all()) for name, weight in parameters(model).items() if name.endswith("_A"))
    assert not any(entry.blocks.masks for entry in entries(model, "default"))
    logged = [entry["pruned"] for entry in trainer.state.log_history if "pruned" in entry]
    assert logged == pytest.approx([GOLDEN[epoch] for epoch in range(3, 16)])
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(build("llama"), str(tmp_path / "adapter"))
    assert loaded.peft_config["default"].pruned == 0.9
    assert shares_of_zeros(loaded, lambda entry: entry.layer) == shares_of_zeros(model, lambda entry: entry.layer)
    if scope == "layer":
        demand = subspace_demand(loaded)
        for layer in demand["en"]:
            total = sum(demand[language][layer] for language in demand)
            assert total == pytest.approx(0), "all languages have as many entries"
        assert any(abs(value) > 0.01 for value in demand["de"].values())


def test_training_resumes_where_it_was(tokenizer: Any, tmp_path: Path) -> None:
    """From the middle of an interval: the same numbers as without a break."""
    options = {"save_strategy": "steps", "save_steps": 8}
    whole = adapt(build("llama"), PAIRS, target_modules=["o_proj", "up_proj"])
    train(whole, tokenizer, tmp_path, [GradualPruning(0.9, every=1 / 5)], **options)
    again = adapt(build("llama"), PAIRS, target_modules=["o_proj", "up_proj"], seed=5)
    train(again, tokenizer, tmp_path, [GradualPruning(0.9, every=1 / 5)], str(tmp_path / "checkpoint-8"), **options)
    for name, weight in parameters(whole).items():
        torch.testing.assert_close(parameters(again)[name], weight, msg=name)
    assert again.peft_config["default"].pruned == pytest.approx(0.9)


@pytest.mark.slow
def test_a_pruned_adapter_is_pruned_further_only(tokenizer: Any, tmp_path: Path) -> None:
    model = adapt(build("llama"), PAIRS, target_modules=["o_proj"])
    train(model, tokenizer, tmp_path, [GradualPruning(0.8)])
    watch = Watch(0.9, start=0.5, stop=0.9)
    train(model, tokenizer, tmp_path, [watch])
    assert watch.ratios[0] == pytest.approx(0.8) and watch.ratios == sorted(watch.ratios)


ARGUMENTS: dict[str, dict[str, Any]] = {
    "nothing": {"ratio": 0.0},
    "everything": {"ratio": 1.0},
    "the wrong way round": {"start": 0.5, "stop": 0.4},
    "beyond the end": {"stop": 1.1},
    "never": {"every": 0.0},
    "an unknown scope": {"scope": "position"},
}


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_wrong_arguments(kind: str) -> None:
    with pytest.raises(ConfigError):
        GradualPruning(**ARGUMENTS[kind])


def begin(model: Any, scope: Any = "language", **arguments: Any) -> None:
    class Arguments:
        fsdp = arguments.get("fsdp")

    GradualPruning(scope=scope).on_train_begin(Arguments(), None, None, model=model)


def test_what_cannot_be_pruned_is_refused() -> None:
    lora = get_peft_model(build("llama"), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    for other in (build("llama"), lora):
        with pytest.raises(ConfigError, match="no active LSLo adapter"):
            begin(other)
    model = adapt(build("llama"), PAIRS, rank={"en": 1, "de": 2, "fr": 1})
    begin(model)
    with pytest.raises(ConfigError, match="must be the same for all languages"):
        begin(model, scope="layer")
    with pytest.raises(ConfigError, match="FSDP and ZeRO-3"):
        begin(model, fsdp=["full_shard"])
    with pytest.raises((AdapterError, KeyError)):
        subspace_demand(lora)
