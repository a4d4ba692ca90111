"""The command line with LSLo: train, prune, look, split, join, translate, merge, export, report; and plain LoRA."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from peft_landermt import LsloConfig
from peft_landermt.cli import main
from peft_landermt.report import find
from peft_landermt.report.figures import index_weights, subspace_demand

from ..cli.test_cli import Workshop
from ..tuner.helpers import ids, logits
from .helpers import build

pytestmark = [pytest.mark.usefixtures("usual_lengths"), pytest.mark.filterwarnings("ignore::UserWarning")]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def train(shop: Workshop, output: Path, *options: str) -> list[str]:
    sizes = ["--epochs", "3", "--batch-size", "4", "--accumulation", "1", "--save-steps", "1000"]
    return ["train", *shop.model, *shop.data, *sizes, "--output", str(output), *options]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Workshop:
    made = Workshop(tmp_path_factory.mktemp("workshop"), tokenizer)
    options = ["--method", "lslo", "--rank", "2", "--index", "learned", "--prune", "0.5"]
    assert main(train(made, made.adapter, *options)) == 0
    return made


def load(shop: Workshop, folder: Path) -> PeftModel:
    return PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(shop.base, dtype=torch.float32), folder
    ).eval()


def test_train(shop: Workshop) -> None:
    config = PeftConfig.from_pretrained(str(shop.adapter))
    assert isinstance(config, LsloConfig)
    assert (config.rank, config.index, config.pruned) == (2, ["learned"] * 4, 0.5)
    log = json.loads((shop.adapter / "trainer_state.json").read_text())["log_history"]
    assert {"loss_en-de", "change_de", "change_en", "index_target"} <= {key for entry in log for key in entry}


def test_look(shop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(shop.adapter)]) == 0
    out = capsys.readouterr().out
    assert "method: LSLo" in out and "languages: de (rank 2), en (rank 2)" in out
    assert "index=learned 0-3" in out and "pruned=0.5" in out


@pytest.mark.parametrize(("by", "parts"), [("pair", ["en-de", "de-en"]), ("language", ["de", "en"])])
def test_split_and_join(shop: Workshop, tmp_path: Path, by: str, parts: list[str]) -> None:
    options = ["--adapter", str(shop.adapter), *shop.model, "--by", by, "--output", str(tmp_path / "parts")]
    assert main(["split", *options]) == 0
    folders = [str(tmp_path / "parts" / part) for part in parts]
    assert main(["join", *folders, *shop.model, "--output", str(tmp_path / "joined")]) == 0
    whole, joined = load(shop, shop.adapter), load(shop, tmp_path / "joined")
    pairs = ["en-de", "de-en", "en-de"]
    assert logits(joined, ids(), language_pairs=pairs).equal(logits(whole, ids(), language_pairs=pairs))


def test_translate_merge_and_export(shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source.txt"
    source.write_text("We drink tea.\n", encoding="utf-8")
    adapter = ["--adapter", str(shop.adapter), *shop.model, "--pair", "en-de"]
    assert main(["translate", *adapter, "--input", str(source)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert main(["merge", *adapter, "--output", str(tmp_path / "merged")]) == 0
    assert main(["export", *adapter, "--output", str(tmp_path / "lora")]) == 0
    expected = logits(load(shop, shop.adapter), ids(), language_pairs=["en-de"] * 3)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    for model in (merged, load(shop, tmp_path / "lora")):
        torch.testing.assert_close(logits(model, ids()), expected, rtol=1e-3, atol=1e-3)
    assert PeftConfig.from_pretrained(str(tmp_path / "lora")).peft_type == "LORA"
    assert main(["export", *adapter[:-2], "--output", str(tmp_path / "other")]) == 2
    assert "holds en-de, de-en" in capsys.readouterr().err


def test_report(shop: Workshop, tmp_path: Path) -> None:
    """A curve of pruning, the learned index and the demand of languages."""
    assert main(["report", str(shop.adapter), "--output", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Learned index of out" in page and "Demand of languages in out" in page
    facts = find(shop.adapter).adapters["out"].languages
    assert facts is not None and list(facts.weights) == ["decoder"] and len(facts.weights["decoder"]) == 4
    assert facts.demand.keys() == {"de", "en"} and facts.demand["de"].keys() == {f"decoder.{n}" for n in range(4)}
    for layer, share in facts.demand["de"].items():
        assert share == pytest.approx(-facts.demand["en"][layer], abs=1e-9)
    two = {"en": {"encoder.0": 0.25, "decoder.0": -0.5}}
    assert subspace_demand(two) != subspace_demand(facts.demand)
    assert index_weights({"encoder": [(0.25, 0.75)], "decoder": [(0.5, 0.5)]}).startswith("data:image/svg")


def test_lora_with_one_flag(shop: Workshop, tmp_path: Path) -> None:
    assert main(train(shop, tmp_path / "out", "--method", "lora", "--rank", "4")) == 0
    config = PeftConfig.from_pretrained(str(tmp_path / "out"))
    assert (config.peft_type, config.r, config.lora_alpha) == ("LORA", 4, 8)
    assert not logits(load(shop, tmp_path / "out"), ids()).equal(logits(build("llama"), ids()))


WRONG: dict[str, tuple[list[str], str]] = {
    "a map with lslo": (["--method", "lslo", "--neuron-map", "x"], "--neuron-map"),
    "gates with lora": (["--method", "lora", "--car", "paper"], "option of --method lander"),
    "a rank with lander": (["--rank", "4"], "option of --method lslo and lora"),
    "pruning with lora": (["--method", "lora", "--prune", "0.5"], "option of --method lslo"),
    "ranks with lora": (["--method", "lora", "--rank", "en=2", "de=2"], "one positive integer"),
    "a rank in words": (["--method", "lslo", "--rank", "two"], "one for each language"),
    "a rank of no language": (["--method", "lslo", "--rank", "en=2", "it=2"], "one rank for each of de, en"),
    "pruning of all": (["--method", "lslo", "--prune", "1"], "between 0 and 1"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_use(shop: Workshop, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options, message = WRONG[kind]
    assert main(train(shop, tmp_path / "out", *options)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "adapter_config.json").exists()
