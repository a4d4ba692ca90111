"""`landermt detect --extends`, `extend`, `compose` and `remove`, one after the other, on a tiny model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from peft import PeftConfig
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from peft_landermt.cli import main

from ..conftest import SENTENCES
from ..tuner.growing import MORE
from ..tuner.helpers import same_state
from .test_cli import PAIRS, WEIGHTS, Workshop, fails

pytestmark = [pytest.mark.usefixtures("usual_lengths"), pytest.mark.filterwarnings("ignore::UserWarning")]


class Growing(Workshop):
    """A workshop with an adapter of English and German, and what it takes to add Italian."""

    def __init__(self, root: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__(root, tokenizer)
        (root / "calib.it").write_text("\n".join(MORE["it"]) + "\n", encoding="utf-8")
        rows = list(zip(SENTENCES["en"], MORE["it"], strict=True))
        (root / "en-it.tsv").write_text("".join(f"{en}\t{it}\n" for en, it in rows), encoding="utf-8")
        (root / "it-en.tsv").write_text("".join(f"{it}\t{en}\n" for en, it in rows), encoding="utf-8")
        self.more, self.bigger = root / "more.safetensors", root / "bigger"
        assert main(self.detect()) == 0 and main(self.train("--save-steps", "4")) == 0
        assert main(self.detect_more()) == 0 and main(self.extend("--save-steps", "4")) == 0

    def detect_more(self) -> list[str]:
        texts = ["--sentences", f"en={self.root / 'calib.en'}", f"it={self.root / 'calib.it'}"]
        layers = ["--num-layers", "2", "--general-ratio", "0.7", "--extends", str(self.map)]
        pairs = ["--pairs", "en-it", "it-en"]
        return ["detect", *self.model, *texts, *pairs, *layers, "--output", str(self.more)]

    def extend(self, *options: str) -> list[str]:
        data = ["--data", f"en-it={self.root / 'en-it.tsv'}", f"it-en={self.root / 'it-en.tsv'}"]
        sizes = ["--epochs", "2", "--batch-size", "2", "--accumulation", "1", "--any-language"]
        start = ["extend", *self.model, "--adapter", str(self.adapter), *data, *sizes, "--neuron-map", str(self.more)]
        return [*start, "--output", str(self.bigger), *options]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Growing:
    return Growing(tmp_path_factory.mktemp("growing"), tokenizer)


def test_old_tensors_are_bit_for_bit_in_the_new_folder(shop: Growing) -> None:
    before, after = load_file(shop.adapter / WEIGHTS), load_file(shop.bigger / WEIGHTS)
    for key, value in before.items():
        assert after[key][: len(value)].equal(value) and after[key].dtype == value.dtype
    trained = [key for key in after if ".it_" in key and key.endswith("_B")]
    assert trained and any(after[key].abs().max() > 0 for key in trained)
    config = PeftConfig.from_pretrained(str(shop.bigger))
    assert config.language_pairs == [*PAIRS, "en-it", "it-en"] and config.format_version == 3
    assert "| Added later | en-it, it-en |" in (shop.bigger / "README.md").read_text(encoding="utf-8")


def test_extending_resumes(shop: Growing, tmp_path: Path) -> None:
    shutil.copytree(shop.bigger, tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoint-8")
    command = [*shop.extend("--save-steps", "4", "--resume"), "--output", str(tmp_path / "again")]
    assert main(command) == 0
    assert same_state(load_file(tmp_path / "again" / WEIGHTS), load_file(shop.bigger / WEIGHTS))


def test_extending_from_general_components(shop: Growing, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Saved as another format, resumed, and taken out again."""
    folder = tmp_path / "general"
    command = [*shop.extend("--save-steps", "4", "--init-from", "general"), "--output", str(folder)]
    assert main(command) == 0
    state, before = load_file(folder / WEIGHTS), load_file(shop.adapter / WEIGHTS)
    assert all(state[key][: len(value)].equal(value) for key, value in before.items())
    config = PeftConfig.from_pretrained(str(folder))
    assert config.format_version == 4 and config.additions[0]["replaces_general"]
    shutil.rmtree(folder / "checkpoint-8")
    without = [*shop.extend("--save-steps", "4", "--resume"), "--output", str(folder)]
    fails(capsys, without, "replaces_general")
    assert main([*command, "--resume"]) == 0
    assert same_state(load_file(folder / WEIGHTS), state)
    pairs = ["--adapter", str(folder), "--pairs", "en-it", "it-en", "--output", str(tmp_path / "removed")]
    assert main(["remove", *shop.model, *pairs]) == 0
    assert (tmp_path / "removed" / WEIGHTS).read_bytes() == (shop.adapter / WEIGHTS).read_bytes()


def test_composed_and_removed(shop: Growing, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = ["--adapter", str(shop.bigger)]
    assert main(["compose", *shop.model, *adapter, "--pairs", "de-it", "--output", str(tmp_path / "composed")]) == 0
    assert "| Composed, not trained | de-it |" in (tmp_path / "composed" / "README.md").read_text(encoding="utf-8")
    source = tmp_path / "texts"
    source.write_text("Das Haus ist alt.\n", encoding="utf-8")
    command = ["translate", *shop.model, "--adapter", str(tmp_path / "composed"), "--pair", "de-it"]
    assert main([*command, "--input", str(source)]) == 0
    assert main(["inspect", str(tmp_path / "composed")]) == 0
    assert "added later: en-it, it-en\n" in capsys.readouterr().out
    pairs = ["--pairs", "de-it", "en-it", "it-en"]
    adapter = ["--adapter", str(tmp_path / "composed")]
    assert main(["remove", *shop.model, *adapter, *pairs, "--output", str(tmp_path / "removed")]) == 0
    assert (tmp_path / "removed" / WEIGHTS).read_bytes() == (shop.adapter / WEIGHTS).read_bytes()
    fields = [
        json.loads((folder / "adapter_config.json").read_text()) for folder in (tmp_path / "removed", shop.adapter)
    ]
    assert fields[0].keys() == fields[1].keys() and fields[0]["format_version"] == fields[1]["format_version"]


def test_wrong_use_is_told_in_one_line(shop: Growing, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = ["--data", f"en-it={shop.root / 'en-it.tsv'}", "--any-language"]
    start = ["train", *shop.model, "--neuron-map", str(shop.more), *new, "--output", str(shop.adapter), "--resume"]
    fails(capsys, start, "landermt extend --adapter")
    output = ["--output", str(tmp_path / "none")]
    fails(capsys, [*shop.extend("--prompt", "{source} ="), *output], "were trained with another")
    fails(capsys, [*shop.extend("--neuron-map", str(shop.map)), *output], "the neuron map holds en-de, de-en")
    fails(capsys, [*shop.extend("--adapter", str(shop.bigger)), *output], "is in the adapter already")
    fails(capsys, [*shop.extend("--init-from", "de"), *output], "must be 'general' or a language that was added")
    adapter = ["--adapter", str(shop.bigger), *output]
    fails(capsys, ["compose", *shop.model, *adapter, "--pairs", "de-fr"], "no block of 'fr'")
    fails(capsys, ["remove", *shop.model, *adapter, "--pairs", "en-fr"], "holds en-de, de-en, en-it, it-en")
    assert not (tmp_path / "none").exists()
