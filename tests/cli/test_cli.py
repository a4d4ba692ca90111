"""The command line: every subcommand end to end on a tiny model, and what users see when something is wrong."""

from __future__ import annotations

import html
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from peft_landermt import LanderTrainer, NeuronMap, __version__, evaluate_translation, translate
from peft_landermt.cli import main, quickstart_stages
from peft_landermt.ffn import FFNLayout
from peft_landermt.translation import Translations

from ..conftest import SENTENCES, build_model
from ..tuner.helpers import same_state

pytestmark = pytest.mark.usefixtures("usual_lengths")

PAIRS = ["en-de", "de-en"]
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT otherwise asks the Hub for the base model when it saves."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


class Workshop:
    """A folder with a tiny model, texts and what the subcommands made of them."""

    def __init__(self, root: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        self.root = root
        self.base, self.map, self.adapter = root / "base", root / "map.safetensors", root / "out"
        build_model("llama").save_pretrained(self.base)
        tokenizer.save_pretrained(self.base)
        for language, sentences in SENTENCES.items():
            (root / f"calib.{language}").write_text("\n".join(sentences) + "\n", encoding="utf-8")
        rows = list(zip(SENTENCES["en"], SENTENCES["de"], strict=True))
        (root / "en-de.tsv").write_text("".join(f"{en}\t{de}\n" for en, de in rows), encoding="utf-8")
        objects = [json.dumps({"translation": {"en": en, "de": de}}, ensure_ascii=False) for en, de in rows]
        (root / "de-en.jsonl").write_text("\n".join(objects), encoding="utf-8")

    @property
    def model(self) -> list[str]:
        return ["--model", str(self.base), "--device", "cpu"]

    @property
    def sentences(self) -> list[str]:
        return ["--sentences", f"en={self.root / 'calib.en'}", f"de={self.root / 'calib.de'}"]

    @property
    def data(self) -> list[str]:
        return ["--data", f"en-de={self.root / 'en-de.tsv'}", f"de-en={self.root / 'de-en.jsonl'}"]

    def detect(self) -> list[str]:
        layers = ["--num-layers", "2", "--general-ratio", "0.7"]
        return ["detect", *self.model, *self.sentences, "--pairs", *PAIRS, *layers, "--output", str(self.map)]

    def train(self, *options: str) -> list[str]:
        sizes = ["--epochs", "2", "--batch-size", "2", "--accumulation", "1", "--general-rank", "4"]
        start = ["train", *self.model, *self.data, *sizes, "--neuron-map", str(self.map)]
        return [*start, "--output", str(self.adapter), *options]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Workshop:
    """After detect and train; tests write to folders of their own."""
    made = Workshop(tmp_path_factory.mktemp("workshop"), tokenizer)
    assert main(made.detect()) == 0
    assert main(made.train()) == 0
    return made


def adapted(shop: Workshop, folder: Path | None = None) -> tuple[Any, Any]:
    base = AutoModelForCausalLM.from_pretrained(shop.base, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, folder or shop.adapter)
    return model, AutoTokenizer.from_pretrained(shop.base)


# Subcommands


def test_detect(shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "map.safetensors"
    assert main([*shop.detect()[:-1], str(path)]) == 0
    out = capsys.readouterr().out
    found = NeuronMap.load(path)
    assert same_state(load_file(path), load_file(shop.map))
    assert set(found.language_pairs) == set(PAIRS)
    assert all(len(found.layers(pair)) == 2 for pair in PAIRS)
    assert found.options["general_ratio"] == 0.7
    assert found.signature in out
    assert out.endswith(f"written: {path}\n")


def test_detect_with_a_named_layout(shop: Workshop, tmp_path: Path) -> None:
    path = tmp_path / "map.safetensors"
    layout = {"inputs": ["gate_proj", "up_proj"], "output": "down_proj"}
    assert main([*shop.detect()[:-1], str(path), "--ffn-layout", json.dumps(layout)]) == 0
    assert NeuronMap.load(path).options["ffn_layout"] == layout
    assert same_state(load_file(path), load_file(shop.map))


def test_pairs_of_a_map_keep_their_order(shop: Workshop) -> None:
    assert NeuronMap.load(shop.map).language_pairs == PAIRS


def test_inspect_map(shop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(shop.map)]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = NeuronMap.load(shop.map)
    assert lines[0] == found.signature
    for pair in PAIRS:
        layers = ", ".join(f"{layer} ({found.car(layer, pair):.3f})" for layer in found.layers(pair))
        assert f"| {pair} | {layers} |" in lines
    layer = found.layers("en-de")[0]
    de, en = (len(found.specific(layer, code)) for code in ("de", "en"))
    counts = {"de": de, "en": en}
    specific = " | ".join(str(counts[code]) for code in found.languages)
    assert f"| {layer} | {len(found.general(layer))} | {specific} |" in lines
    assert de + en + len(found.general(layer)) == 64  # p of the tiny model


def test_inspect_adapter(shop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(shop.adapter)]) == 0
    out, found = capsys.readouterr().out, NeuronMap.load(shop.map)
    assert "language pairs: en-de, de-en\n" in out
    assert f"base model: {shop.base} (weights {found.fingerprint})\n" in out
    options = "car=off inactive_neurons=keep tune=pair general_rank=4 specific_rank=2 projections=all"
    attention = "attention_modules=['q', 'k', 'v', 'o'] attention_layers=all attention_rank=6"
    assert f"options: {options} {attention}\n" in out
    assert f"size: {(shop.adapter / WEIGHTS).stat().st_size / 1e6:.2f} MB" in out
    assert out.count("| model.layers.") == len({layer for pair in PAIRS for layer in found.layers(pair)})


def test_train(shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--car", "learned", "--general-rank", "0", "--tune", "general", "--seed", "3", "--save-steps", "4"]
    assert main([*shop.train(), "--output", str(tmp_path / "out"), *options]) == 0
    out = capsys.readouterr().out
    assert "en-de: kept 4 of 4 sentence pairs" in out and "de-en: kept 4 of 4 sentence pairs" in out
    assert "trainable params" in out and f"written: {tmp_path / 'out'}" in out
    model, _ = adapted(shop, tmp_path / "out")
    config = model.peft_config["default"]
    assert (config.car, config.general_rank, config.tune) == ("learned", None, "general")
    assert config.language_pairs == PAIRS
    tensors = load_file(tmp_path / "out" / WEIGHTS)
    assert all(value.any() for key, value in tensors.items() if ".general_" in key)
    # 8 rows, 2 a step, 2 epochs: 8 steps
    assert {path.name for path in (tmp_path / "out").glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-8"}
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "- de\n- en\n" in card and "import peft_landermt" in card


def test_train_is_reproducible_and_resumes(shop: Workshop, tmp_path: Path) -> None:
    assert main([*shop.train("--save-steps", "4"), "--output", str(tmp_path / "out")]) == 0
    expected = load_file(shop.adapter / WEIGHTS)
    assert same_state(load_file(tmp_path / "out" / WEIGHTS), expected)
    shutil.rmtree(tmp_path / "out" / "checkpoint-8")
    assert main([*shop.train("--save-steps", "4", "--resume"), "--output", str(tmp_path / "out")]) == 0
    assert same_state(load_file(tmp_path / "out" / WEIGHTS), expected)
    assert main([*shop.train("--seed", "1"), "--output", str(tmp_path / "other")]) == 0
    assert not same_state(load_file(tmp_path / "other" / WEIGHTS), expected)


def test_rows_without_room_for_a_translation_are_skipped(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "en-de.tsv"
    corpus.write_text("a" * 600 + "\t" + "b" * 600 + "\ntea\tTee\n", encoding="utf-8")
    start = ["train", *shop.model, "--data", f"en-de={corpus}", "--neuron-map", str(shop.map), "--max-length", "200"]
    assert main([*start, "--output", str(tmp_path / "out")]) == 0
    assert "1 rows skipped: no room for a translation in 200 tokens" in capsys.readouterr().out
    corpus.write_text("a" * 600 + "\t" + "b" * 600 + "\n", encoding="utf-8")
    fails(capsys, [*start, "--output", str(tmp_path / "none")], "--max-length=200: leaves no row with room")
    assert not (tmp_path / "none").exists()


def test_train_without_a_map(shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", *shop.model, "--data", shop.data[1], "--output", str(tmp_path / "out")]
    assert main(command) == 0
    assert main(["inspect", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "neuron map: none: all neurons are general" in out and "language pairs: en-de\n" in out


@pytest.mark.parametrize("with_adapter", [pytest.param(False, marks=pytest.mark.slow), True])
def test_evaluate(shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str], with_adapter: bool) -> None:
    path = tmp_path / "scores.json"
    options = ["--limit", "3", "--batch-size", "2", "--num-beams", "2", "--output", str(path)]
    options += ["--texts", str(tmp_path / "texts")]
    adapter = ["--adapter", str(shop.adapter)] if with_adapter else []
    assert main(["evaluate", *shop.model, *adapter, *shop.data, *options]) == 0
    out = capsys.readouterr().out
    results = json.loads(path.read_text(encoding="utf-8"))
    model, tokenizer = adapted(shop)
    if not with_adapter:
        model = model.unload()
    assert list(results) == PAIRS
    for pair, row in results.items():
        sources, references = (SENTENCES[code][:3] for code in pair.split("-"))
        expected = evaluate_translation(model, tokenizer, sources, references, pair, batch_size=2, num_beams=2)
        assert row == {**vars(expected), "language_pair": pair, "sources": sources, "references": references}
        counts = f"{expected.num_empty} | {expected.num_runaway}"
        assert f"| {pair} | {expected.bleu:.2f} | {expected.chrf:.2f} | {counts} |\n" in out
        assert expected.bleu_signature in out
        for ending, lines in (("src", sources), ("hyp", expected.hypotheses), ("ref", references)):
            written = (tmp_path / "texts" / f"{pair}.{ending}").read_text(encoding="utf-8")
            assert written.split("\n") == [*lines, ""]


def test_report_of_a_run(shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A map beside what `train` and `evaluate` wrote, on one page."""
    run = tmp_path / "run"
    shutil.copytree(shop.adapter, run / "adapter")
    shutil.copy(shop.map, run)
    scores = ["--limit", "2", "--output", str(run / "scores.json")]
    assert main(["evaluate", *shop.model, "--adapter", str(shop.adapter), *shop.data, *scores]) == 0
    capsys.readouterr()
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"written: {run / 'report.html'}\n"
    page = (run / "report.html").read_text(encoding="utf-8")
    headings = re.findall("<h2>(.*)</h2>", page)
    assert headings == ["Neuron map map.safetensors", "Adapters", "Training adapter", "Scores scores.json"]
    assert html.escape(SENTENCES["en"][0]) in page and html.escape(SENTENCES["de"][1]) in page


@pytest.mark.parametrize("source", ["stdin", "file"])
def test_translate(
    shop: Workshop,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    source: str,
) -> None:
    lines = ["We drink tea.", "", "Where is it?", "", ""]
    (tmp_path / "text").write_text("\n".join(lines) + "\n", encoding="utf-8")
    given = ["--input", str(tmp_path / "text")] if source == "file" else []
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n" if source == "stdin" else "not this"))
    assert main(["translate", *shop.model, "--adapter", str(shop.adapter), "--pair", "en-de", *given]) == 0
    expected = translate(*adapted(shop), lines, "en-de")
    assert capsys.readouterr().out == "".join(f"{line}\n" for line in expected)
    assert expected[1] == "" and expected[0]


def test_a_byte_order_mark_is_no_text(shop: Workshop, tmp_path: Path) -> None:
    for code in ("en", "de"):
        text = (shop.root / f"calib.{code}").read_text(encoding="utf-8")
        (tmp_path / code).write_text(text, encoding="utf-8-sig")
    path = tmp_path / "map.safetensors"
    sentences = ["--sentences", *(f"{code}={tmp_path / code}" for code in ("en", "de"))]
    assert main([*shop.detect()[:-1], str(path), *sentences]) == 0
    assert same_state(load_file(path), load_file(shop.map))


def test_a_folder_in_place_of_an_output_file(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fails(capsys, [*shop.detect()[:-1], str(tmp_path)], f"--output={str(tmp_path)!r}: is a folder")
    fails(capsys, ["evaluate", *shop.model, *shop.data, "--output", str(tmp_path)], "is a folder; name a file")
    assert list(tmp_path.iterdir()) == []


def test_pairs_are_checked_before_the_first_is_translated(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unknown = tmp_path / "en-fr.tsv"
    unknown.write_text("tea\tthé\n", encoding="utf-8")
    arguments = ["evaluate", *shop.model, "--adapter", str(shop.adapter), *shop.data, f"en-fr={unknown}"]
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert "language_pair='en-fr'" in shown.err and shown.out == ""


def test_split_and_join(shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs, joined = tmp_path / "pairs", tmp_path / "joined"
    assert main(["split", *shop.model, "--adapter", str(shop.adapter), "--output", str(pairs)]) == 0
    assert capsys.readouterr().out == "".join(f"{pair}: {pairs / pair}\n" for pair in PAIRS)
    folders = [str(pairs / pair) for pair in PAIRS]
    assert main(["join", *shop.model, *folders, "--output", str(joined)]) == 0
    assert capsys.readouterr().out == f"written: {joined}\n"
    assert same_state(load_file(joined / WEIGHTS), load_file(shop.adapter / WEIGHTS))
    assert "LANDeRMT adapter for en-de, de-en" in (joined / "README.md").read_text(encoding="utf-8")
    whole, tokenizer = adapted(shop)
    expected = {pair: translate(whole, tokenizer, SENTENCES["en"], pair) for pair in PAIRS}
    for pair in PAIRS:
        alone, _ = adapted(shop, pairs / pair)
        assert translate(alone, tokenizer, SENTENCES["en"], pair) == expected[pair]


@pytest.mark.slow
def test_merge(shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder loads in a process that cannot import this package, and translates as the adapter does."""
    pair, out = "de-en", tmp_path / "model"
    given = [*shop.model, "--adapter", str(shop.adapter), "--output", str(out)]
    assert main(["merge", *given]) == 2
    assert "pass language_pairs" in capsys.readouterr().err and not out.exists()
    assert main(["merge", *given, "--pair", pair]) == 0
    assert capsys.readouterr().out == f"written: {out}\n"
    script = (
        "import sys; sys.modules['peft_landermt'] = sys.modules['peft'] = None\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(out)!r})\n"
        f"ids = AutoTokenizer.from_pretrained({str(out)!r})('We drink', return_tensors='pt')\n"
        "print(model.generate(**ids, max_new_tokens=12, do_sample=False).tolist())"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    model, tokenizer = adapted(shop)
    model.set_language_pair(pair)
    ids = tokenizer("We drink", return_tensors="pt")
    assert json.loads(run.stdout) == model.generate(**ids, max_new_tokens=12, do_sample=False).tolist()
    assert main(["merge", *given, "--pair", pair]) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize("named", [True, False], ids=["in its config", "not in its config"])
@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("asked", ["auto", "float32", "bfloat16", "float16"])
def test_merged_weights_have_the_type_of_the_base(
    shop: Workshop, tmp_path: Path, stored: str, asked: str, named: bool
) -> None:
    base, out = tmp_path / "base", tmp_path / "model"
    shutil.copytree(shop.base, base)
    build_model("llama").to(getattr(torch, stored)).save_pretrained(base)
    if not named:
        config = json.loads((base / "config.json").read_text(encoding="utf-8"))
        (base / "config.json").write_text(json.dumps({**config, "dtype": None}), encoding="utf-8")
    adapter = tmp_path / "adapter"
    shutil.copytree(shop.adapter, adapter)
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    settings["verify_base"] = False  # float16 rounds the weights to others
    (adapter / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    given = ["--model", str(base), "--device", "cpu", "--adapter", str(adapter), "--pair", "en-de"]
    assert main(["merge", *given, "--output", str(out), "--dtype", asked]) == 0
    expected = stored if asked == "auto" else asked
    assert {weight.dtype for weight in load_file(out / "model.safetensors").values()} == {getattr(torch, expected)}
    assert json.loads((out / "config.json").read_text(encoding="utf-8"))["dtype"] == expected


@pytest.mark.parametrize("options", [["--dtype", "bfloat16"], ["--dtype", "float32"]], ids=" ".join)
def test_dtype(shop: Workshop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: list[str]) -> None:
    seen: list[torch.dtype] = []

    def spy(model: Any, *_args: Any, **_options: Any) -> Translations:
        seen.append(next(model.parameters()).dtype)
        return Translations([], 0)

    monkeypatch.setattr("peft_landermt.translation.translate_counted", spy)
    text = tmp_path / "text"
    text.write_text("a\n", encoding="utf-8")
    assert main(["translate", *shop.model, *options, "--pair", "en-de", "--input", str(text)]) == 0
    assert seen == [getattr(torch, options[1])]


# Held-out corpora, and what is told before training


def test_the_best_checkpoint_is_kept(shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its losses are told by pair; training that no longer helps stops."""
    held_out = ["--eval-data", *shop.data[1:], "--patience", "1", "--save-steps", "2", "--epochs", "20", "--lr", "0.5"]
    assert main([*shop.train(*held_out), "--output", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    losses = {int(step): float(loss) for step, loss in re.findall(r"step (\d+): held-out loss ([\d.]+) \(\w", out)}
    assert min(losses) == 2 and max(losses) < 80
    assert all("en-de" in line and "de-en" in line for line in out.splitlines() if "held-out" in line)
    best = min(losses, key=losses.__getitem__)
    assert f"best: {tmp_path / 'out' / f'checkpoint-{best}'}, loss {losses[best]:.4f}" in out
    saved = load_file(tmp_path / "out" / f"checkpoint-{best}" / WEIGHTS)
    assert same_state(load_file(tmp_path / "out" / WEIGHTS), saved)


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (["--patience", "2"], "--patience=2: needs held-out corpora; add --eval-data"),
        (["--patience", "0"], "--patience=0: must be positive"),
        (["--report-to", "nothing"], "--report-to=['nothing']"),
        (["--eval-data", "en-fr={tsv}"], "--eval-data='en-fr': has no corpus in --data"),
        (["--eval-data", "en-de=missing.tsv"], "missing.tsv"),
        (["--general-rank", "-2"], "--general-rank=-2: must be positive, or 0 for whole rows"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_training_checks_first(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], shown: str
) -> None:
    given = [option.format(tsv=shop.root / "en-de.tsv") for option in options]
    fails(capsys, [*shop.train("--dry-run", *given), "--output", str(tmp_path / "out")], shown)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_estimates(shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Eight rows in batches of two, two epochs."""
    assert main([*shop.train("--dry-run"), "--output", str(tmp_path / "out")]) == 0
    assert re.search(r"estimate on cpu: 8 steps, about \d+ s and \d+\.\d GiB", capsys.readouterr().out)
    assert not (tmp_path / "out").exists()


def test_scores_beside_a_baseline(shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table in Markdown, its mean, and no difference to itself."""
    before = tmp_path / "before.json"
    command = ["evaluate", *shop.model, *shop.data, "--max-new-tokens", "8"]
    assert main([*command, "--output", str(before)]) == 0
    capsys.readouterr()
    assert main([*command, "--baseline", str(before), "--output", str(tmp_path / "after.json")]) == 0
    table, signatures = capsys.readouterr().out.split("\n\n")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[0] == "|"]
    assert {len(row) for row in rows} == {11} and [row[0] for row in rows] == ["pair", "---", *PAIRS, "mean"]
    assert [row[5:8] for row in rows[2:]] == [["+0.00", "+0.00 to +0.00", "1.000"]] * 3
    assert "BLEU, en-de, de-en: nrefs:1" in signatures
    written = json.loads((tmp_path / "after.json").read_text())
    assert written["en-de"]["baseline"]["bleu"]["score"] == written["en-de"]["bleu"]
    fails(
        capsys, [*command, "--limit", "1", "--baseline", str(before)], "holds no scores of these sentences for en-de"
    )


def test_a_terminal_is_asked(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["We drink tea.", "", "It rained all night."])

    def typed(prompt: str) -> str:
        assert prompt == "en> "
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", typed)
    command = ["translate", *shop.model, "--adapter", str(shop.adapter), "--pair", "en-de", "--max-new-tokens", "4"]
    assert main(command) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 2 and "Ctrl-D ends" in said.err


# Errors


def fails(capsys: pytest.CaptureFixture[str], arguments: list[str], *shown: str) -> None:
    """Exit status 2 and one line that names the subcommand and `shown`; no traceback."""
    capsys.readouterr()
    assert main(arguments) == 2
    err = capsys.readouterr().err
    message = [line for line in err.splitlines() if line.strip()]
    assert len(message) == 1, err
    assert message[0].startswith(f"landermt {arguments[0]}: ")
    assert all(text in message[0] for text in shown), err


def missing_map(shop: Workshop, tmp_path: Path) -> tuple[list[str], str]:
    return ["inspect", str(tmp_path / "nowhere.safetensors")], "nowhere.safetensors"


def not_a_map(shop: Workshop, tmp_path: Path) -> tuple[list[str], str]:
    return ["inspect", str(shop.root / "calib.en")], "damaged"


def inspect_lora(shop: Workshop, tmp_path: Path) -> tuple[list[str], str]:
    lora = get_peft_model(build_model("llama"), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    lora.save_pretrained(str(tmp_path / "lora"))
    return ["inspect", str(tmp_path / "lora")], "not a LANDER one"


def inspect_empty_folder(shop: Workshop, tmp_path: Path) -> tuple[list[str], str]:
    return ["inspect", str(tmp_path)], str(tmp_path)


def missing_sentences(shop: Workshop, tmp_path: Path) -> tuple[list[str], str]:
    return ["detect", *shop.model, "--sentences", "en=nowhere", "--pairs", "en-de", "--output", "x"], "nowhere"


def layout_of_another_model(shop: Workshop, tmp_path: Path) -> tuple[list[str], str]:
    return [
        *shop.detect()[:-1],
        str(tmp_path / "x"),
        "--ffn-layout",
        '{"inputs": ["w1"], "output": "w2"}',
    ], "gate_proj"


def language_without_sentences(shop: Workshop, tmp_path: Path) -> tuple[list[str], str]:
    command = ["detect", *shop.model, *shop.sentences, "--pairs", "en-fr", "--output", str(tmp_path / "x")]
    return command, "fr"


def sentences_not_utf8(shop: Workshop, tmp_path: Path) -> tuple[list[str], str]:
    path = tmp_path / "latin1"
    path.write_bytes("Übung\n".encode("latin-1"))
    return ["translate", *shop.model, "--pair", "de-en", "--input", str(path)], "latin1"


def sentences_without_language(shop: Workshop, tmp_path: Path) -> tuple[list[str], str]:
    return ["detect", *shop.model, "--sentences", "calib.en", "--pairs", "en-de", "--output", "x"], "KEY=FILE"


def language_twice(shop: Workshop, tmp_path: Path) -> tuple[list[str], str]:
    return ["evaluate", *shop.model, "--data", shop.data[1], shop.data[1]], "each key once"


def malformed_pair(shop: Workshop, tmp_path: Path) -> tuple[list[str], str]:
    return ["evaluate", *shop.model, "--data", f"english={shop.root / 'en-de.tsv'}"], "'english'"


def missing_corpus(shop: Workshop, tmp_path: Path) -> tuple[list[str], str]:
    return ["train", *shop.model, "--data", "en-de=nowhere.tsv", "--output", str(tmp_path / "x")], "nowhere.tsv"


def zero_epochs(shop: Workshop, tmp_path: Path) -> tuple[list[str], str]:
    return [*shop.train(), "--epochs", "0", "--output", str(tmp_path / "x")], "must be positive"


def zero_batch(shop: Workshop, tmp_path: Path) -> tuple[list[str], str]:
    return [*shop.train(), "--batch-size", "0", "--output", str(tmp_path / "x")], "batch"


def short_max_length(shop: Workshop, tmp_path: Path) -> tuple[list[str], str]:
    return [*shop.train(), "--max-length", "10", "--output", str(tmp_path / "x")], "--max-length=10"


def negative_rank(shop: Workshop, tmp_path: Path) -> tuple[list[str], str]:
    return [*shop.train(), "--general-rank", "-1", "--output", str(tmp_path / "x")], "--general-rank=-1"


def car_without_map(shop: Workshop, tmp_path: Path) -> tuple[list[str], str]:
    command = ["train", *shop.model, *shop.data, "--car", "paper", "--output", str(tmp_path / "x")]
    return command, "needs a --neuron-map"


def nothing_to_resume(shop: Workshop, tmp_path: Path) -> tuple[list[str], str]:
    return [*shop.train("--resume"), "--output", str(tmp_path / "x")], "checkpoint"


def missing_model(shop: Workshop, tmp_path: Path) -> tuple[list[str], str]:
    text = str(shop.root / "calib.en")
    return ["translate", "--model", str(tmp_path / "nowhere"), "--pair", "en-de", "--input", text], "nowhere"


def folder_without_model(shop: Workshop, tmp_path: Path) -> tuple[list[str], str]:
    text = str(shop.root / "calib.en")
    return ["translate", "--model", str(tmp_path), "--pair", "en-de", "--input", text], str(tmp_path)


def missing_adapter(shop: Workshop, tmp_path: Path) -> tuple[list[str], str]:
    return ["evaluate", *shop.model, "--adapter", str(tmp_path / "nowhere"), *shop.data], "nowhere"


def pair_not_in_adapter(shop: Workshop, tmp_path: Path) -> tuple[list[str], str]:
    text = str(shop.root / "calib.en")
    return [
        "translate",
        *shop.model,
        "--adapter",
        str(shop.adapter),
        "--pair",
        "en-fr",
        "--input",
        text,
    ], "holds en-de"


def no_sentences_to_score(shop: Workshop, tmp_path: Path) -> tuple[list[str], str]:
    return ["evaluate", *shop.model, *shop.data, "--limit", "0"], "--limit=0: must be positive"


def split_without_adapter(shop: Workshop, tmp_path: Path) -> tuple[list[str], str]:
    return ["split", *shop.model, "--output", str(tmp_path)], "name the adapter folder to split"


def join_with_itself(shop: Workshop, tmp_path: Path) -> tuple[list[str], str]:
    return ["join", *shop.model, str(shop.adapter), str(shop.adapter), "--output", str(tmp_path)], "different pairs"


def unknown_device(shop: Workshop, tmp_path: Path) -> tuple[list[str], str]:
    text = str(shop.root / "calib.en")
    command = ["translate", "--model", str(shop.base), "--device", "abacus", "--pair", "en-de", "--input", text]
    return command, "abacus"


ERRORS = [
    missing_map, not_a_map, inspect_lora, inspect_empty_folder, missing_sentences, language_without_sentences,
    layout_of_another_model,
    sentences_not_utf8, sentences_without_language, language_twice, malformed_pair, missing_corpus, zero_epochs,
    zero_batch, short_max_length, negative_rank, car_without_map, nothing_to_resume, missing_model,
    folder_without_model, missing_adapter, pair_not_in_adapter, no_sentences_to_score, split_without_adapter,
    join_with_itself, unknown_device,
]  # fmt: skip


@pytest.mark.parametrize(
    "case",
    ERRORS,
)
def test_errors_are_one_line(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: Callable[..., tuple[list[str], str]]
) -> None:
    arguments, shown = case(shop, tmp_path)
    fails(capsys, arguments, shown)


def test_debug_raises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "nowhere.safetensors")
    with pytest.raises(ValueError, match="there is no such file"):
        main(["--debug", "inspect", path])
    fails(capsys, ["inspect", path], "there is no such file")


def test_options_from_a_file(shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Flags by their names, lists, mappings, switches; what the command line says wins."""
    config = tmp_path / "train.yaml"
    written = {
        "model": str(shop.base),
        "device": "cpu",
        "data": {"en-de": str(shop.root / "en-de.tsv"), "de-en": str(shop.root / "de-en.jsonl")},
        "neuron_map": str(shop.map),
        "general-rank": 4,
        "epochs": 2,
        "batch-size": 3,
        "accumulation": 1,
        "resume": False,
        "dry-run": True,
        "output": str(tmp_path / "out"),
    }
    config.write_text(yaml.safe_dump(written, sort_keys=False), encoding="utf-8")
    assert main(["train", "--config", str(config)]) == 0
    assert "dry run: 8 rows for en-de, de-en; nothing is trained or written" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    config.write_text(yaml.safe_dump({**written, "dry-run": None}, sort_keys=False), encoding="utf-8")
    assert main(["train", f"--config={config}", "--batch-size", "2"]) == 0
    assert same_state(load_file(tmp_path / "out" / WEIGHTS), load_file(shop.adapter / WEIGHTS)), "as without a file"


@pytest.mark.parametrize("wanted", [True, False])
def test_switches_by_the_names_of_the_library(shop: Workshop, tmp_path: Path, wanted: bool) -> None:
    config, path = tmp_path / "detect.yaml", tmp_path / "map.safetensors"
    config.write_text(f"normalize_awareness: {str(wanted).lower()}\n", encoding="utf-8")
    assert main([*shop.detect()[:-1], str(path), "--config", str(config)]) == 0
    assert NeuronMap.load(path).options["normalize_awareness"] is wanted


def test_lists_and_nested_options_from_a_file(shop: Workshop, tmp_path: Path) -> None:
    config = tmp_path / "detect.yaml"
    layout = {"inputs": ["gate_proj", "up_proj"], "output": "down_proj"}
    sentences = {code: str(shop.root / f"calib.{code}") for code in ("en", "de")}
    written = {"pairs": PAIRS, "num-layers": 2, "ffn-layout": layout, "sentences": sentences}
    config.write_text(yaml.safe_dump(written, sort_keys=False), encoding="utf-8")
    assert main(["detect", *shop.model, "--config", str(config), "--output", str(tmp_path / "map.safetensors")]) == 0
    found = NeuronMap.load(tmp_path / "map.safetensors")
    assert found.language_pairs == PAIRS and found.options["ffn_layout"] == FFNLayout.from_dict(layout).to_dict()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (None, "cannot be read (No such file or directory)"),
        ("a: [", "is no YAML"),
        ("- a", "expected one option a line"),
        ("epochs: false", "epochs=False: --epochs is no switch; give it a value"),
        ("lerning-rate: false", "--lerning-rate is no option of this command"),
        ("lerning-rate: null", "--lerning-rate is no option of this command"),
        ("sentences: {en: calib.en, no: calib.no}", "sentences=False: YAML reads no as false"),
        ("lerning-rate: 1", "unrecognized arguments: --lerning-rate"),
        ("epochs: many", "argument --epochs: invalid float value: 'many'"),
    ],
)
def test_a_wrong_file(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, shown: str
) -> None:
    config = tmp_path / "wrong.yaml"
    if text is not None:
        config.write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit) as stopped:
        main([*shop.train(), "--config", str(config)])
    assert stopped.value.code == 2 and shown in capsys.readouterr().err


def test_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_path: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(NeuronMap, "load", interrupted)
    assert main(["inspect", str(tmp_path / "map")]) == 130
    assert capsys.readouterr().err.strip() == "landermt: interrupted"


def test_interrupted_training_goes_on(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C in the seventh of eight steps: the checkpoint of the fourth is kept, and leads to the same adapter."""
    step, calls = LanderTrainer.training_step, []

    def interrupted(self: LanderTrainer, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    out = tmp_path / "out"
    command = [*shop.train("--save-steps", "4"), "--output", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr(LanderTrainer, "training_step", interrupted)
        assert main(command) == 130
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said == f"landermt: interrupted; kept: {out / 'checkpoint-4'}; --resume goes on from there"
    assert main([*command, "--resume"]) == 0
    assert same_state(load_file(out / WEIGHTS), load_file(shop.adapter / WEIGHTS))


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--print-completion", shell])
    script = capsys.readouterr().out
    assert stopped.value.code == 0 and "--general-rank" in script and "quickstart" in script
    if shell == "bash":
        subprocess.run(["bash", "-n", "-c", script], check=True)


@pytest.mark.parametrize(
    "arguments", [["unknown"], ["detect"], ["train", "--car", "none"], ["translate"]], ids=" ".join
)
def test_usage_errors(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: landermt" in capsys.readouterr().err


COMMANDS = ["quickstart", "detect", "train", "evaluate", "translate", "inspect", "report", "split", "join", "merge"]


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help(capsys: pytest.CaptureFixture[str], command: str | None) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*([command] if command else []), "--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert all(name in out for name in (["--output"] if command in ("detect", "train") else [command or "join"]))


@pytest.mark.slow
def test_version_in_a_process() -> None:
    command = [sys.executable, "-m", "peft_landermt.cli", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stdout) == (0, f"peft_landermt {__version__}\n")


@pytest.mark.slow
def test_error_in_a_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "peft_landermt.cli", "inspect", str(tmp_path / "nowhere")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("landermt inspect: ")


# quickstart


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (["--pairs", "english-german"], "--pairs='english-german'"),
        (["--pairs", "en-de", "en-de"], "each pair may be named once"),
        (["--pairs", "en-de", "en-es"], "the corpus has en, de, fr, it, ar, zh"),
        (["--train-sentences", "100000"], "--train-sentences=100000: must be from 1 to"),
        (["--test-sentences", "0"], "--test-sentences=0: must be from 1 to"),
        (["--calibration-sentences", "-3"], "--calibration-sentences=-3: must be from 1 to"),
        (["--epochs", "0"], "--epochs=0.0: must be positive"),
        (["--lr", "-1"], "--lr=-1.0: must be positive"),
        (["--batch-size", "0"], "--batch-size=0: must be positive"),
        (["--num-layers", "0"], "--num-layers=0: must be positive"),
        (["--epochs", "nan"], "--epochs=nan"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_quickstart_checks_before_loading(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], shown: str
) -> None:
    monkeypatch.setattr(quickstart_stages, "load_model", lambda _options: pytest.fail("loaded the model"))
    fails(capsys, ["quickstart", *options], shown)


def assert_results(folder: Path, pairs: list[str]) -> dict[str, Any]:
    """Schema of results.json, and sizes of what lies next to it."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert set(results) == {"pairs", "trainable_parameters", "seconds", "signature"}
    assert list(results["pairs"]) == pairs
    for pair, row in results["pairs"].items():
        assert set(row) == {"bleu_before", "bleu_after", "chrf_before", "chrf_after", "adapter_bytes"}
        assert all(0 <= row[key] <= 100 for key in row if key != "adapter_bytes")
        assert row["adapter_bytes"] == (folder / "pairs" / pair / WEIGHTS).stat().st_size
    assert results["trainable_parameters"] > 0
    stages = ["load", "evaluate_before", "detect", "train", "save_and_split", "reload", "evaluate_after"]
    assert list(results["seconds"]) == stages
    assert all(seconds >= 0 for seconds in results["seconds"].values())
    found = NeuronMap.load(folder / "neuron_map.safetensors")
    assert results["signature"].startswith(f"{found.signature}|")
    assert "tok:" in results["signature"] and "nw:2" in results["signature"]
    return results


def test_quickstart_on_a_tiny_model(shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All stages, on a random model; characters that its tokenizer does not know become padding."""
    sizes = ["--calibration-sentences", "4", "--train-sentences", "8", "--test-sentences", "3", "--num-layers", "2"]
    command = ["quickstart", *shop.model, "--pairs", *PAIRS, *sizes, "--output", str(tmp_path / "out")]
    assert main(command) == 0
    assert_results(tmp_path / "out", PAIRS)
    out = capsys.readouterr().out
    assert "| mean | " in out and "trainable parameters: " in out
    for pair in PAIRS:
        model, _ = adapted(shop, tmp_path / "out" / "pairs" / pair)
        assert model.routed_language_pairs == [pair]
    whole, _ = adapted(shop, tmp_path / "out" / "adapter")
    assert whole.routed_language_pairs == PAIRS


@pytest.mark.slow
def test_quickstart_for_real(tmp_path: Path) -> None:
    """The default run on Gemma 3 270M: translations get better by 5 BLEU on average, and worse in no direction."""
    pairs = ["en-de", "de-en", "en-fr", "fr-en"]
    assert main(["quickstart", "--output", str(tmp_path / "out")]) == 0
    rows = assert_results(tmp_path / "out", pairs)["pairs"]
    gains = {pair: row["bleu_after"] - row["bleu_before"] for pair, row in rows.items()}
    assert sum(gains.values()) / len(gains) >= 5, gains
    assert min(gains.values()) >= 0, gains
    from peft_landermt.demo import load_demo_base

    base, tokenizer = load_demo_base()
    model = PeftModel.from_pretrained(base, tmp_path / "out" / "pairs" / pairs[0], adapter_name=pairs[0])
    for pair in pairs[1:]:
        model.load_adapter(str(tmp_path / "out" / "pairs" / pair), adapter_name=pair)
    for pair in pairs:
        model.set_adapter(pair)
        assert model.routed_language_pairs == [pair]
        assert translate(model, tokenizer, ["Hello."], pair, max_new_tokens=10)[0]
