"""The runner of experiments, from corpora on disk to tables and figures, on a tiny model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .helpers import SCRIPTS, run_script

PAIRS = ["en-de", "de-en"]


@pytest.mark.slow
@pytest.mark.parametrize("script", ["report.py", "speed.py"])
def test_scripts_start_in_a_process(script: str) -> None:
    """Their neighbours are importable there; one named like a package that pandas looks for would stop it."""
    shown = subprocess.run([sys.executable, SCRIPTS / script, "--help"], capture_output=True, text=True, check=False)
    assert shown.returncode == 0 and shown.stdout.startswith("usage: "), shown.stderr


def scale(folder: Path) -> list[str]:
    sizes = ["--pairs", *PAIRS, "--rows", "8", "--search-rows", "4", "--test-lines", "201", "203"]
    return [*sizes, "--model", str(folder / "base"), "--results", str(folder / "paper.jsonl")]


@pytest.fixture(scope="module")
def finished(folder: Path) -> list[dict]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        experiments = ["--experiments", "table1", "table2"]
        run_script(monkeypatch, "run.py", "--data", str(folder / "data"), *scale(folder), *experiments)
    return [json.loads(line) for line in (folder / "paper.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_every_run_is_done_once(
    finished: list[dict], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """LANDeRMT is a row of both tables."""
    assert len(finished) == len({result["key"] for result in finished}) == 8 + 9
    capsys.readouterr()
    run_script(
        monkeypatch,
        "run.py",
        "--data",
        str(folder / "data"),
        *scale(folder),
        "--experiments",
        "table1",
        "table2",
    )
    assert capsys.readouterr().out == "17 runs are done, 0 to do\n"
    run_script(
        monkeypatch,
        "run.py",
        *("--data", str(folder / "data"), *scale(folder)),
        *("--experiments", "table1", "--seeds", "0", "1", "--dry-run"),
    )
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "17 runs are done, 6 to do", "untrained methods have no seed"
    assert all(", seed 1: {" in line for line in printed[1:])


@pytest.mark.slow
def test_results_hold_what_tables_need(finished: list[dict], folder: Path) -> None:
    for result in finished:
        scores = result["scores"]["flores 201 to 203"]
        assert list(scores) == PAIRS and set(result["perplexity"]) == {"en", "de"}
        assert all("tok:13a" in row["signature"] for row in scores.values())
        for pair in PAIRS:
            outputs = folder / "paper" / "base" / result["key"] / f"flores 201 to 203.{pair}.txt"
            assert len(outputs.read_text(encoding="utf-8").splitlines()) == 3
        assert ("development_loss" in result) == (result["method"] != "few-shot"), "its examples are in the prompts"
        if result["method"] not in ("zero-shot", "few-shot"):
            assert result["learning_rate"] == min(result["learning_rates"], key=lambda lr: result["search"][str(lr)])
    by_control = {result["control"]: result for result in finished if result["method"] == "lander"}
    others = {"random layers", "first layers", "middle layers", "last layers", "largest gradients"}
    assert set(by_control) == {"", "random neurons", *others}
    base = next(result for result in finished if result["method"] == "zero-shot")
    assert all(
        result["development_loss"] < base["development_loss"] for result in finished if result["method"] == "full"
    )


@pytest.mark.slow
def test_tables(
    finished: list[dict], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    experiments = ["--experiments", "table1", "table2"]
    run_script(monkeypatch, "report.py", *scale(folder), *experiments, "--data", str(folder / "data"))
    printed = capsys.readouterr().out
    lander = next(r for r in finished if r["method"] == "lander" and "tune" not in r["options"] and not r["control"])
    scores = [lander["scores"]["flores 201 to 203"][pair]["bleu"] for pair in PAIRS]
    row = f"| LANDeRMT | {lander['learning_rate']:g} | {scores[0]:.2f} | {scores[1]:.2f} | {sum(scores) / 2:.2f} |"
    assert printed.count(row) == 2  # in both tables
    assert "## table1" in printed and "## table2" in printed
    assert "| paired bootstrap, flores 201 to 203 | " in printed
    number, difference = r"\d+\.\d\d", r"[+-]\d+\.\d\d \([+-]\d+\.\d\d to [+-]\d+\.\d\d\)"
    cells = r" \| ".join([number, number, difference])
    assert re.search(rf"^\| all \| {cells} \| {cells} \|$", printed, flags=re.M)
    other = next(r for r in finished if r["method"] == "lora")
    kept = ["--runs", str(folder / "paper.jsonl"), "--results", str(folder / "comparisons.jsonl")]
    keys = ["--keys", lander["key"], other["key"]]
    run_script(monkeypatch, "compare.py", "--data", str(folder / "data"), *kept, *keys)
    line = json.loads((folder / "comparisons.jsonl").read_text(encoding="utf-8"))
    assert line["keys"] == keys[1:] and list(line["compared"]) == [*PAIRS, "all"]
    capsys.readouterr()
    run_script(monkeypatch, "report.py", *scale(folder), "--experiments", "table2", "--latex")
    printed = capsys.readouterr().out
    assert printed.count(r"\begin{tabular}{lrrrr}") == 2 and " & ".join(row[2:-2].split(" | ")) + r" \\" in printed


@pytest.mark.slow
def test_figures_of_detection(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--pairs", *PAIRS, "--model", str(folder / "base"), "--output", str(folder), "--sentences", "4"]
    run_script(monkeypatch, "analysis.py", "--data", str(folder / "data"), *options)
    result = json.loads((folder / "paper_analysis.json").read_text(encoding="utf-8"))
    for sums in result["awareness"].values():
        assert len(sums["all"]) == 4
        assert all(0 < s + g <= 1 + 1e-5 for s, g in zip(sums["specific"], sums["general"], strict=True))
    assert -1 <= result["clusters"]["general"]["silhouette"] <= 1
    for group in ("specific", "random"):
        rows = result["knock_out"][group]
        assert list(rows) == ["de", "en"] and all(list(row) == ["de", "en"] for row in rows.values())
        assert any(value != 0 for row in rows.values() for value in row.values())
    halves = json.loads((folder / "detection_stability.jsonl").read_text(encoding="utf-8"))
    assert [row["layer"] for row in halves["layers"]] == [0, 1, 2, 3] and len(set(halves["signatures"])) == 2
    for row in halves["layers"]:
        assert row["chance"] == pytest.approx(0.1 / 1.9, abs=0.02), "two random tenths share 1 of 19 of their union"
        assert 0 <= row["jaccard"] < 1 and 0 < row["specific_awareness"] < 1
    run_script(monkeypatch, "report.py", *scale(folder), "--figures", str(folder / "figures"))
    names = {path.name for path in (folder / "figures").iterdir()}
    drawn = ["knock_out", *(f"figure_{number}" for number in (4, 5, 6, 7, 8, 12, 13))]
    assert names == {f"{name}.{kind}" for name in drawn for kind in ("png", "svg")}


@pytest.mark.slow
def test_attention(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LoRA outside of FFNs, alone and beside LANDeRMT, which does not freeze it."""
    labels = [
        "LoRA on attention, lr=0.001",
        "LANDeRMT with LoRA on attention, lr=0.001",
        "FFNs, rows at 0.03, lr=0.001",
    ]
    options = [*scale(folder), "--search-rows", "0", "--development-only", "--experiments", "rates"]
    options += ["--results", str(folder / "attention.jsonl")]
    run_script(monkeypatch, "run.py", "--data", str(folder / "data"), *options, "--labels", *labels)
    lines = (folder / "attention.jsonl").read_text(encoding="utf-8").splitlines()
    results = {result["method"]: result for result in map(json.loads, lines)}
    trained = {method: result["trainable_parameters"] for method, result in results.items()}
    assert trained["lora-attention"] == 4 * 16 * (64 + 48 + 48 + 64)  # layers, rank, widths in and out
    assert trained["lander-lora"] == trained["lora-attention"] + trained["lander"]
    losses = {result["development_loss"] for result in results.values()}
    assert len(losses) == 3


@pytest.mark.slow
def test_one_direction_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What tuning one direction does to the other, by the development loss; drawn beside the base."""
    labels = ["0-shot", "LoRA, joint", "LoRA, en-de", "LANDeRMT, en-de"]
    options = [*scale(folder), "--rows", "24", "--search-rows", "0", "--development-only", "--experiments", "alone"]
    options += ["--results", str(folder / "alone" / "alone.jsonl")]
    run_script(monkeypatch, "run.py", "--data", str(folder / "data"), *options, "--labels", *labels)
    lines = (folder / "alone" / "alone.jsonl").read_text(encoding="utf-8").splitlines()
    base, joint, *tuned = [json.loads(line) for line in lines]
    for result in (base, joint, *tuned):
        assert list(result["development_losses"]) == PAIRS
        assert result["scores"] == {} and "perplexity" not in result
    for result in tuned:
        assert result["pairs"] == ["en-de"]
        assert result["development_loss"] == pytest.approx(result["development_losses"]["en-de"], rel=0.01)
        assert all(loss != base["development_losses"][pair] for pair, loss in result["development_losses"].items())

    capsys.readouterr()
    run_script(monkeypatch, "report.py", *options, "--figures", str(folder / "drawn"))
    printed = capsys.readouterr().out
    losses = " | ".join(f"{loss:.4g}" for loss in base["development_losses"].values())
    assert f"| 0-shot | {losses} |" in printed

    def change(result: dict, pair: str) -> str:
        return f"{result['development_losses'][pair] - base['development_losses'][pair]:+.3f}"

    (lora, _), other = tuned, change(tuned[0], "de-en")
    assert f"| LoRA | {change(lora, 'en-de')} | {other} | {other} | {other} | {change(joint, 'en-de')} |" in printed
    assert "| LANDeRMT |" not in printed  # without a joint run there is nothing to compare with
    names = {f"figure_3_{method}.{kind}" for method in ("lora", "landermt") for kind in ("png", "svg")}
    assert {path.name for path in (folder / "drawn").iterdir()} == names
