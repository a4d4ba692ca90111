"""The HTML page of `landermt report`."""

from __future__ import annotations

import base64
import importlib.util
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib import rc_context
from safetensors.torch import save_file

from peft_landermt import LanderConfig, NeuronMap
from peft_landermt.errors import ConfigError, NeuronMapError
from peft_landermt.neuron_map import GENERAL, LayerNeurons
from peft_landermt.report import find, write_report
from peft_landermt.report.figures import overlap_of_languages, training_curves

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta", "link", "img"}


class Page(HTMLParser):
    """Tags must close in order; what the page refers to is kept."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.alternatives: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.references += [str(values[name]) for name in ("src", "href") if name in values]
        if tag == "img":
            self.alternatives.append(str(values["alt"]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def small() -> NeuronMap:
    """Two layers of six neurons; the second has one specific neuron."""

    def layer(name: str, owner: list[int], awareness: list[list[float]]) -> LayerNeurons:
        phi = torch.tensor(awareness)
        return LayerNeurons(name, torch.tensor(owner), phi, -phi, phi + 1)

    return NeuronMap(
        languages=("de", "en"),
        pair_layers={"en-de": (0, 1), "de-en": (1,)},
        layer_changes={"en-de": (0.5,), "de-en": (0.25,)},
        neurons=(
            layer("layers.0.mlp", [0, 1, 0, GENERAL, GENERAL, GENERAL], [[6, 5, 4, 3, 2, 1], [1, 2, 6, 5, 4, 3]]),
            layer("layers.1.mlp", [0, *[GENERAL] * 5], [[6, 5, 4, 3, 2, 1], [6, 1, 2, 3, 4, 5]]),
        ),
        width=4,
        fingerprint=None,
        signature="base:toy|data:none",
    )


def page_of(path: Path, tmp_path: Path) -> str:
    write_report(path, tmp_path / "page.html")
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def test_page_of_a_neuron_map(small: NeuronMap, tmp_path: Path) -> None:
    small.save(tmp_path / "map.safetensors")
    text = page_of(tmp_path / "map.safetensors", tmp_path)
    page = Page(text)
    assert "<tr><td>en-de</td><td>0, 1</td></tr>" in text and "<tr><td>de-en</td><td>1</td></tr>" in text
    rows = re.findall(r"<tr><td class=\"number\">(\d)</td>(.*?)</tr>", text, re.DOTALL)
    assert [re.findall(r"number\">(\d+)<", row) for _, row in rows] == [["3", "2", "1"], ["5", "1", "0"]]
    assert len(page.alternatives) == 6 and all(page.alternatives)
    assert all(reference.startswith("data:") for reference in page.references)
    assert page_of(tmp_path / "map.safetensors", tmp_path) == text, "one map, one page"


def test_a_page_begins_with_the_result(tmp_path: Path) -> None:
    """Of two files of scores for the same sentences, the one that is named for what came first is compared with."""
    references = [f"the {thing} stands behind the old house of {name}" for thing in "abcd" for name in "efgh"]
    worse = [" ".join(line.split()[:6]) for line in references]
    scores = {
        "bleu": 1.0,
        "chrf": 2.0,
        "num_empty": 0,
        "num_runaway": 0,
        "bleu_signature": "s",
        "references": references,
    }
    for name, lines in (("scores_before", worse), ("scores_after", references), ("other", worse[:2])):
        texts = {"hypotheses": lines, "references": references[: len(lines)]}
        (tmp_path / f"{name}.json").write_text(json.dumps({"en-de": {**scores, **texts}}))
    text = page_of(tmp_path, tmp_path.parent)
    Page(text)
    body = text[text.index("<body>") :]
    row = re.findall(r"number\">(?:<strong>)?([^<]+)", body[: body.index("</table>")])
    assert row[1] == "100.00" and float(row[0]) + float(row[2]) == pytest.approx(100, abs=0.02)
    low, high = map(float, row[3].split(" to "))
    assert 0 < low <= float(row[2]) <= high and row[4] == "16"
    assert f"{float(row[2]):+.2f} BLEU" in body and "1 of 1 differ by more than chance" in body
    assert body.index("verdict") < body.index("<h2>")


def test_overlap_by_hand(small: NeuronMap) -> None:
    """Layer 0: {0, 1, 2} and {2, 3, 4} share 1 of 5. Layer 1: {0} and {0}. 4 of 12 neurons are specific."""
    values, chance = overlap_of_languages(small)
    torch.testing.assert_close(torch.tensor(values), torch.tensor([[1, 0.6], [0.6, 1]]))  # (1/5 + 1) / 2
    assert chance == pytest.approx((1 / 3) / (2 - 1 / 3))


def test_chance_is_what_random_choices_share() -> None:
    generator = torch.Generator().manual_seed(0)
    awareness = torch.rand(2, 20_000, generator=generator)
    owner = torch.full((20_000,), GENERAL)
    owner[:4000] = 0
    layer = LayerNeurons("mlp", owner, awareness, awareness, awareness)
    found = NeuronMap(("de", "en"), {"en-de": (0,)}, {"en-de": (0.0,)}, (layer,), 1, None, "")
    values, chance = overlap_of_languages(found)
    assert values[0][1] == pytest.approx(chance, abs=0.01)


def test_training_curves() -> None:
    log = [{"step": 1, "loss": 2.0}, {"step": 2, "eval_loss": 1.0, "eval_bleu_en-de": 20.0, "eval_bleu": 20.0}]
    assert training_curves(log) is not None
    assert training_curves([]) is None and training_curves([{"step": 1, "grad_norm": 1.0}]) is None
    assert training_curves(log[:1]) != training_curves(log)


def test_every_curve_of_a_log_is_drawn() -> None:
    """One panel for each kind, one line for each pair or block; text is kept as text in the picture."""
    entry = {"loss": 2.0, "loss_en-de": 2.5, "loss_de-en": 1.5, "change_general": 0.1, "change_de": 0.2}
    log = [{**entry, "step": 1}, {**entry, "step": 2, "eval_bleu": 9.0, "eval_bleu_en-de": 9.0, "gate_general": 1.0}]
    with rc_context({"svg.fonttype": "none"}):
        picture = training_curves(log)
    assert picture is not None
    drawn = re.findall(r">([^<>]+)</text>", base64.b64decode(picture.partition(",")[2]).decode())
    panels = {"loss", "loss of a pair in training", "BLEU", "change of weights"}
    assert panels | {"training", "en-de", "de-en", "mean", "general", "de"} <= set(drawn)
    assert not any("gate" in text or "change_" in text for text in drawn)


def write_state(folder: Path, step: int) -> None:
    folder.mkdir(parents=True)
    state = {"global_step": step, "log_history": [{"step": step, "loss": 1.0}]}
    (folder / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")


def test_of_each_run_the_newest_state(tmp_path: Path) -> None:
    for run, steps in (("first", (500, 1000)), ("second", (20,))):
        for step in steps:
            write_state(tmp_path / run / f"checkpoint-{step}", step)
    write_state(tmp_path / "third", 7)
    found = find(tmp_path).training
    assert {run: log[-1]["step"] for run, log in found.items()} == {"first": 1000, "second": 20, "third": 7}


def test_one_checkpoint(tmp_path: Path) -> None:
    write_state(tmp_path / "run" / "checkpoint-5", 5)
    assert list(find(tmp_path / "run" / "checkpoint-5").training) == ["checkpoint-5"]


def test_texts_are_escaped(tmp_path: Path) -> None:
    score = {"bleu": 1.0, "chrf": 2.0, "bleu_signature": "s", "num_empty": 0, "num_runaway": 0}
    scores = {"en-de": {**score, "hypotheses": ["<script>alert(1)</script> {{ 7 * 7 }}"]}}
    (tmp_path / "scores.json").write_text(json.dumps(scores), encoding="utf-8")
    text = page_of(tmp_path, tmp_path)
    Page(text)
    assert "&lt;script&gt;" in text and "<script" not in text and "{{ 7 * 7 }}" in text


SCORE = {"bleu": 1.0, "chrf": 2.0, "bleu_signature": "s", "num_empty": 0, "num_runaway": 0, "hypotheses": ["a"]}
NO_SCORES = {
    **{f"{key} is {value!r}": {**SCORE, key: value} for key in SCORE for value in (None, [1], {"a": 1}, True)},
    **{f"{key} is text": {**SCORE, key: "1"} for key in ("bleu", "chrf", "num_empty", "num_runaway", "hypotheses")},
    **{f"no {key}": {name: value for name, value in SCORE.items() if name != key} for key in SCORE},
    **{f"{key} of another length": {**SCORE, key: ["a", "b"]} for key in ("sources", "references")},
    **{f"{key} that are numbers": {**SCORE, key: [1]} for key in ("sources", "references")},
    "a number without end": {**SCORE, "bleu": float("inf")},
    "a number of many digits": {**SCORE, "bleu": 10**400},
}


@pytest.mark.parametrize("score", NO_SCORES.values(), ids=NO_SCORES)
def test_scores_of_another_form_are_no_scores(score: Any, tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text(json.dumps({"en-de": SCORE, "de-en": score}), encoding="utf-8")
    (tmp_path / "good.json").write_text(json.dumps({"en-de": SCORE}), encoding="utf-8")
    assert list(find(tmp_path).scores) == ["good.json"]


LOGS: dict[str, Any] = {
    "no list": 3,
    "numbers": [1, 2],
    "no step": [{"loss": 1.0}],
    "a step of text": [{"step": "1", "loss": 1.0}],
    "a step of many digits": [{"step": 10**400, "loss": 1.0}],
    "text": [{"step": 1, "loss": "low"}],
    "lists": [{"step": 1, "loss": [1.0]}],
    "formulas": [{"step": 1, "loss_$\\frac{$": 1.0, "change_$x$": 1.0}],
    "markup": [{"step": 1, "loss_<b>": 1.0}],
    "controls": [{"step": 1, "loss_\x1b[2J": 1.0, "loss_": 1.0}],
    "no number": [{"step": 1, "loss": float("nan")}],
}


@pytest.mark.parametrize("log", LOGS.values(), ids=LOGS)
def test_odd_logs_make_no_curves(log: Any, tmp_path: Path) -> None:
    state = {"global_step": 1, "log_history": log}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
    try:
        training = find(tmp_path).training
    except ConfigError:
        training = {}
    assert all(training_curves(entries) is None for entries in training.values())


def test_texts_and_names_that_no_page_can_have(tmp_path: Path) -> None:
    """Half of a surrogate pair, and a number where others nest without end."""
    score = {**SCORE, "hypotheses": ["a\ud800b"], "bleu_signature": "\ud800"}
    (tmp_path / "scores.json").write_text(json.dumps({"\ud800": score}), encoding="utf-8")
    (tmp_path / "deep.json").write_text("[" * 100_000, encoding="utf-8")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "gone.json").symlink_to(tmp_path / "nowhere")
    (tmp_path / "trainer_state.json").mkdir()
    assert "a&#55296;b" in page_of(tmp_path, tmp_path)


def test_no_folder_of_this_machine_is_told(small: NeuronMap, tmp_path: Path) -> None:
    folder = tmp_path / "someone" / "run"
    (folder / "adapter").mkdir(parents=True)
    small.save(folder / "map.safetensors")
    config = LanderConfig(task_type="CAUSAL_LM", language_pairs=["en-de"])
    config.base_model_name_or_path = str(tmp_path / "someone" / "base")
    save_file({"x": torch.zeros(1)}, folder / "adapter" / "adapter_model.safetensors")
    config.save_pretrained(str(folder / "adapter"))
    text = page_of(folder, tmp_path)
    assert "<td>base</td>" in text and "someone" not in text


def test_a_page_is_not_written_over_what_it_is_about(small: NeuronMap, tmp_path: Path) -> None:
    small.save(tmp_path / "map.safetensors")
    (tmp_path / "link").symlink_to(tmp_path / "map.safetensors")
    for output in ("map.safetensors", "link"):
        with pytest.raises(ConfigError, match="is what the page is about"):
            write_report(tmp_path / "map.safetensors", tmp_path / output)
    assert NeuronMap.load(tmp_path / "map.safetensors") == small


def test_other_files_are_no_concern(small: NeuronMap, tmp_path: Path) -> None:
    small.save(tmp_path / "map.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"no")
    (tmp_path / "results.json").write_text('{"pairs": {"en-de": {"bleu": 1.0}}}', encoding="utf-8")
    others = {"list": "[1]", "lines": '{"a": 1}\n{"a": 2}\n', "empty": "", "some": '{"en-de": {"bleu": 1, "chrf": 2}}'}
    for name, text in others.items():
        (tmp_path / f"{name}.json").write_text(text, encoding="utf-8")
    (tmp_path / "latin.json").write_bytes('"é"'.encode("latin-1"))
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "adapter_config.json").write_text("[]", encoding="utf-8")
    (tmp_path / "odd" / "trainer_state.json").write_text('{"global_step": 3}', encoding="utf-8")
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text('{"peft_type": "LORA"}', encoding="utf-8")
    found = find(tmp_path)
    assert list(found.neuron_maps) == ["map.safetensors"] and not (found.adapters or found.scores or found.training)


def test_refusals(small: NeuronMap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out" / "page.html"
    with pytest.raises(ConfigError, match=r"path=.*nowhere.*there is no such file"):
        write_report(tmp_path / "nowhere", output)
    with pytest.raises(ConfigError, match="name a neuron map file, or a folder with"):
        write_report(tmp_path, output)
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(NeuronMapError, match="damaged"):
        write_report(tmp_path / "broken.safetensors", output)
    small.save(tmp_path / "map.safetensors")
    find_spec: Any = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name))
    with pytest.raises(ConfigError, match=r"matplotlib.*pip install 'peft_landermt\[report\]'"):
        write_report(tmp_path / "map.safetensors", output)
    assert not output.parent.exists()


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome")
def test_in_a_browser(small: NeuronMap, tmp_path: Path) -> None:
    """No message on the console, no request but for the file, all pictures loaded."""
    small.save(tmp_path / "map.safetensors")
    write_report(tmp_path / "map.safetensors", tmp_path / "page.html")
    probe = """<script>addEventListener("load", () => {
        const asked = performance.getEntriesByType("resource").filter(entry => !entry.name.startsWith("data:"))
        const drawn = [...document.images].filter(image => image.naturalWidth > 0)
        console.log(`${drawn.length} pictures, ${asked.length} requests`)
    })</script>"""
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    (tmp_path / "probed.html").write_text(page.replace("</body>", f"{probe}</body>"), encoding="utf-8")
    quiet = ["gpu", "quic", "background-networking", "component-update", "sync", "extensions"]
    command = [str(BROWSER), "--headless", "--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet)]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--virtual-time-budget=5000"]
    command += ["--dump-dom", f"file://{tmp_path}/probed.html"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert re.findall(r'CONSOLE.*?"(.*)", source', done.stderr) == [f"{page.count('<img ')} pictures, 0 requests"]
