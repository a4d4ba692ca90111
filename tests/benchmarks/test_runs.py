"""Runs as data, and their training: epochs, order of rows, starts, and several side by side."""

from __future__ import annotations

import importlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_cosine_schedule_with_warmup

from peft_landermt import LanderConfig, TranslationCollator

from ..versions import PEFT_BEFORE_0_21
from .helpers import SCRIPTS, run_script

PAIRS = ("en-de", "de-en")
SMALL = {"search_rows": 0, "pairs": PAIRS, "rows": 12}
KEYED = {"paper.jsonl": 21, "rates.jsonl": 75}
"""Lines of results from before runs had a schedule and options of the trainer."""


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return SimpleNamespace(
        **{name: importlib.import_module(name) for name in ("runs", "workbench", "epochs", "programme", "calls")}
    )


@pytest.fixture
def bench(scripts: SimpleNamespace, folder: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(scripts.workbench, "DEVELOPMENT", (101, 104))
    return scripts.workbench.Workbench(folder / "data", str(folder / "base"))


def test_committed_lines_have_the_keys_of_their_runs(scripts: SimpleNamespace) -> None:
    """So a runner that goes on does not repeat them, and the report finds them."""
    counts: Counter[str] = Counter()
    for path in (SCRIPTS / "results").glob("*.jsonl"):
        for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            if "key" in line:
                assert scripts.runs.Run.from_dict(line).key == line["key"], path.name
                counts[path.name] += 1
    assert all(counts[name] >= count for name, count in KEYED.items())


DISTINCT = [
    {"method": "lora"},
    {"method": "lora", "options": {"target_modules": ["v_proj", "o_proj"]}},
    {"method": "lora", "options": {"init_lora_weights": "eva"}},
    {"method": "lora", "epochs": 3},
    {"method": "lora", "schedule": "constant_with_warmup"},
    {"method": "lora", "seed": 1},
    {"method": "lora", "rows": 250},
    {"method": "lander"},
    {"method": "lander", "options": {"attention_modules": ["v_proj"]}},
    {"method": "lander", "trainer": {"row_lr_ratio": 0.03, "rates": {"factors_b": 2}}},
    {"method": "lander", "control": "random neurons"},
    {"method": "lander", "detection": {"num_layers": 18}},
]


def test_what_matters_to_a_run_is_in_its_key(scripts: SimpleNamespace) -> None:
    runs = [scripts.runs.Run(pairs=PAIRS, **fields) for fields in DISTINCT]
    assert len({run.key for run in runs}) == len(runs)
    assert all(scripts.runs.Run.from_dict(run.to_dict()).key == run.key for run in runs)
    with pytest.raises(ValueError, match="method='lorra': must be one of zero-shot, "):
        scripts.runs.Run("lorra", PAIRS)


def test_runs_of_landermt_name_their_form(scripts: SimpleNamespace) -> None:
    """So that they mean the same when the library's defaults change, and the paper's is the paper's."""
    options = scripts.runs.Run("lander", PAIRS, options={"general_rank": 3}).options
    default = LanderConfig()
    assert options["general_rank"] == 3 and options["specific_rank"] == default.specific_rank
    assert options["attention_modules"] == ["q", "k", "v", "o"] and options["attention_rank"] == default.attention_rank
    assert "attention_rank" not in scripts.runs.Run("lander", PAIRS, options=scripts.runs.FFNS_ALONE).options
    assert scripts.runs.Run("lander", PAIRS, options={"tune": "specific"}).options["attention_modules"] is None
    found = scripts.calls.make_neuron_map(10, 4)
    assert LanderConfig(neuron_map=found, **scripts.runs.PAPER) == LanderConfig.paper(neuron_map=found)
    for path in (SCRIPTS / "results").glob("*.jsonl"):
        for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            if line.get("method") in scripts.runs.LANDER:
                assert line["options"].keys() >= scripts.runs.FFNS_ALONE.keys(), path.name


METHODS = [
    {"method": "full"},
    {"method": "lora", "options": {"r": 2}},
    {"method": "lora", "options": {"r": 2, "lora_dropout": 0.5}},
    {"method": "lander", "options": {"general_rank": 2}},
]


@pytest.mark.slow
def test_every_method_sees_the_same_rows_in_the_same_order(
    scripts: SimpleNamespace, bench: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every epoch, whatever random numbers it draws itself; epochs differ from each other."""
    seen: list[list[str]] = []

    class Recorder(TranslationCollator):
        def __call__(self, rows: list[dict[str, str]]) -> dict[str, torch.Tensor]:
            seen[-1] += [row["source"] for row in rows if row["source"] in trained]
            return super().__call__(rows)

    examples = scripts.workbench.read_training_rows(bench.data, list(PAIRS), 12)
    trained = {row["source"] for row in examples}
    monkeypatch.setattr(scripts.workbench, "TranslationCollator", Recorder)
    for fields in METHODS:
        seen.append([])
        run = scripts.runs.Run(**SMALL, epochs=2, **fields)
        bench.train(run, bench.make(run, 12), 12, 1e-3)
    assert all(order == seen[0] for order in seen)
    first, second = seen[0][:24], seen[0][24:]
    assert sorted(first) == sorted(second) == sorted(row["source"] for row in examples) and first != second


@pytest.mark.slow
def test_the_best_epoch_is_kept(scripts: SimpleNamespace, bench: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its losses are the result's, and its weights the model's; the first epoch is what a run of one gives."""
    run = scripts.runs.Run("lora", options={"r": 2}, learning_rates=(0.03,), epochs=2, **SMALL)
    falling = bench.execute(run, [])
    losses = [epoch["development_loss"] for epoch in falling["by_epoch"]]
    assert losses[1] < losses[0] and falling["development_loss"] == losses[1]
    assert falling["development_losses"] == falling["by_epoch"][1]["development_losses"]

    measure, penalties = bench.development_losses, iter((0.0, 10.0))
    model = bench.make(run, run.rows)
    with monkeypatch.context() as patch:
        patch.setattr(bench, "development_losses", lambda *args: (measure(*args)[0] + next(penalties), {}))
        found = bench.train(run, model, run.rows, 0.03)
    assert [epoch["development_loss"] for epoch in found] == [losses[0], losses[1] + 10]
    assert measure(run, model, PAIRS)[0] == losses[0], "the weights after the first epoch"

    shorter = scripts.runs.Run("lora", options={"r": 2}, learning_rates=(0.03,), epochs=1, **SMALL)
    assert bench.execute(shorter, [])["development_loss"] == losses[0]


def test_the_rate_of_each_epoch_is_that_of_one(scripts: SimpleNamespace) -> None:
    """transformers' cosine, for every group in proportion, as often as there are epochs."""
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]

    def rates(make: Callable[..., LambdaLR], steps: int) -> list[list[float]]:
        groups = [{"params": [weight], "lr": lr} for weight, lr in zip(weights, (1.0, 0.03), strict=True)]
        optimizer = torch.optim.AdamW(groups)
        schedule, found = make(optimizer, 3, 45), []
        for _ in range(steps):
            found.append(schedule.get_last_lr())
            optimizer.step()
            schedule.step()
        return found

    one = rates(get_cosine_schedule_with_warmup, 45)
    assert rates(scripts.epochs.cosine_by_epoch, 135) == one * 3
    assert one[3] == [1.0, 0.03] and one[-1][0] < 0.002


@pytest.mark.parametrize(("losses", "best"), [((3.0, 2.0, 2.5), 1), ((2.0, 2.0), 0), ((math.nan, 2.0, math.nan), 1)])
def test_the_lowest_loss_is_that_of_the_best_epoch(
    scripts: SimpleNamespace, losses: tuple[float, ...], best: int
) -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    values = iter(losses)
    epochs = scripts.epochs.EpochLosses(0, lambda: (next(values), {}))
    for number in range(len(losses)):
        torch.nn.init.constant_(model.weight, number)
        epochs.on_epoch_begin()
        epochs.on_epoch_end(model=model)
    assert scripts.epochs.lowest(epochs.found) is epochs.found[best]
    assert epochs.best["weight"].item() == best


@pytest.mark.parametrize("start", ["eva", "lora_ga"])
def test_starts_by_data_leave_the_output_as_it_was(scripts: SimpleNamespace, bench: object, start: str) -> None:
    """And their factors are not random: they span what the method says, whatever the seed of the weights."""
    places = ["v_proj", "o_proj"]
    options = {"r": 4, "target_modules": places, "init_lora_weights": start}
    if start == "lora_ga":
        if PEFT_BEFORE_0_21:
            pytest.skip("PEFT has LoRA-GA from 0.20 on, and takes its config from a dict from 0.21 on")
        options["lora_ga_config"] = {"direction": "ArB2r"}
    run = scripts.runs.Run("lora", options=options, learning_rates=(1e-3,), epochs=1, **SMALL)
    model = bench.make(run, 12)
    assert isinstance(model, PeftModel)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        expected = bench.base(input_ids=ids).logits
        torch.testing.assert_close(model(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-4)
    plain = bench.make(scripts.runs.Run("lora", options={"r": 4, "target_modules": places}, **SMALL), 12)
    changed = dict(plain.named_parameters())
    first = [weight for name, weight in model.named_parameters() if "lora_A" in name]
    assert first and all(
        weight.shape != changed[name].shape or not torch.equal(weight, changed[name])
        for name, weight in model.named_parameters()
        if "lora_A" in name
    )
    for weight in first:  # rows that are orthogonal, as singular vectors are
        products = weight @ weight.T
        torch.testing.assert_close(products, products.diagonal().diag(), atol=1e-4, rtol=1e-3)


def test_lora_has_the_rate_of_v_and_o_too(scripts: SimpleNamespace, bench: object) -> None:
    """With a ratio near zero, theirs stay where they began, and all others learn."""
    places = ["q_proj", "v_proj", "o_proj", "down_proj"]
    options = {"options": {"r": 2, "target_modules": places}, "trainer": {"rates": {"values": 1e-9}}}
    run = scripts.runs.Run("lora", learning_rates=(1e-2,), epochs=1, **options, **SMALL)
    model = bench.make(run, 12)
    bench.train(run, model, 12, 1e-2)
    moved = {name: weight.abs().max().item() for name, weight in model.named_parameters() if "lora_B" in name}
    assert len(moved) == 4 * bench.base.config.num_hidden_layers
    for name, size in moved.items():
        assert size < 1e-9 if re.search(r"[vo]_proj", name) else size > 1e-3


LSLO_RUNS = {
    "ranks": {"options": {"rank": {"en": 1, "de": 2}}},
    "learned": {"options": {"rank": 2, "index": "learned"}},
    "pruned": {"options": {"rank": 2}, "pruning": {"ratio": 0.5}},
}


@pytest.mark.parametrize("kind", LSLO_RUNS)
def test_language_specific_lora(kind: str, scripts: SimpleNamespace, bench: object) -> None:
    """From rows to the result; what is pruned is counted, and is what the last epoch leaves."""
    run = scripts.runs.Run("lslo", learning_rates=(1e-3,), epochs=2, **LSLO_RUNS[kind], **SMALL)
    result = bench.execute(run, [])
    assert len(result["by_epoch"]) == 2 and result["development_losses"].keys() == set(PAIRS)
    if kind == "pruned":
        # all of A, and half of the entries of B
        assert result["development_loss"] == result["by_epoch"][-1]["development_loss"]
        assert result["nonzero_parameters"] < 0.8 * result["trainable_parameters"]
    else:
        assert "nonzero_parameters" not in result
    plain = scripts.runs.Run("lslo", learning_rates=(1e-3,), epochs=2, **SMALL)
    assert run.key != plain.key


@pytest.mark.slow
def test_runs_side_by_side(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Two processes give what one does, and what is there is not done again."""
    run = {"method": "lora", "options": {"r": 2}, "epochs": 2, "learning_rates": [1e-3, 1e-2]}
    options = ["--pairs", *PAIRS, "--rows", "8", "--development-only", "--model", str(folder / "base")]
    options += ["--run", json.dumps(run)]
    found = {}
    for jobs in (1, 2):
        results = folder / f"jobs{jobs}.jsonl"
        command = ["--data", str(folder / "data"), *options, "--results", str(results), "--jobs", str(jobs)]
        run_script(monkeypatch, "run.py", *command)
        lines = map(json.loads, results.read_text(encoding="utf-8").splitlines())
        found[jobs] = {line["learning_rate"]: line["development_loss"] for line in lines}
    assert list(found[1]) == [1e-3, 1e-2] and found[1] == found[2]
    capsys.readouterr()
    run_script(monkeypatch, "run.py", *command)
    assert capsys.readouterr().out == "2 runs are done, 0 to do\n"
    run_script(monkeypatch, "report.py", *options, "--results", str(results))
    row = f"| run, lr=0.01 | {found[1][1e-2]:.4f} |"
    assert row in capsys.readouterr().out


def test_the_programme_as_plain_data(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four places of LoRA at three rates each and its starts, every arm at its first rate before any at its second."""
    options = ["--pairs", *PAIRS, "--development-only", "--results", str(folder / "none.jsonl"), "--dry-run"]
    run_script(
        monkeypatch, "run.py", "--data", str(folder), *options, "--seeds", "0", "1", "--experiments", "bar", "starts"
    )
    count, *lines = capsys.readouterr().out.splitlines()
    assert count == f"0 runs are done, {2 * (12 + 18)} to do" and len(lines) == 60
    titles = [line.partition(": {")[0] for line in lines]
    assert titles[::2][:5] == [
        "bar: LoRA r=16, all linear, lr=0.0005, seed 0",
        "bar: LoRA r=16, v o, lr=0.001, seed 0",
        "bar: LoRA r=16, v o down, lr=0.0005, seed 0",
        "bar: LoRA r=40, v o down, lr=0.0005, seed 0",
        "bar: LoRA r=16, all linear, lr=0.0002, seed 0",
    ]
    for line in lines:
        run = json.loads("{" + line.partition(": {")[2])
        assert (run["epochs"], run["schedule"], len(run["learning_rates"])) == (1, "cosine", 1)


def test_all_of_the_programme_makes_configs(scripts: SimpleNamespace) -> None:
    """Every arm of LSLo is one that its config takes, for the directions of the benchmark."""
    from peft_landermt import GradualPruning, LsloConfig

    pairs = [pair for other in ("de", "it", "fr", "ar", "zh") for pair in (f"en-{other}", f"{other}-en")]
    arms = {name: arm for name, arm in scripts.programme.PROGRAMME["lslo"].items() if arm["method"] == "lslo"}
    assert len(arms) >= 10
    for arm in arms.values():
        config = LsloConfig(language_pairs=pairs, **arm["options"])
        assert set(config.ranks_for("target")) == {"en", "de", "it", "fr", "ar", "zh"}
        GradualPruning(**arm.get("pruning", {}))
