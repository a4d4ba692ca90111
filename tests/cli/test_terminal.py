"""What commands print about files of strangers: lines of text, and nothing that a terminal obeys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peft_landermt import NeuronMap
from peft_landermt.cli import main

from ..conftest import build_model
from ..test_escaping import HOSTILE
from ..tuner.helpers import adapt

PLAIN = {name: text for name, text in HOSTILE.items() if "\x00" not in text and "\ud800" not in text}


@pytest.fixture
def architecture() -> str:
    return "llama"


def lines_of(text: str) -> list[str]:
    """Lines by line feeds alone; all of them printable."""
    lines = text.split("\n")
    assert all(line.isprintable() for line in lines), text
    return lines


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_inspect(text: str, tmp_path: Path, neuron_map: NeuronMap, capsys: pytest.CaptureFixture[str]) -> None:
    adapt(build_model("llama"), neuron_map, ["en-de"]).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    printed = []
    for name in ("plain", text):
        counts = {f"{module}.{name}": value for module, value in config["neuron_counts"].items()}
        changed = {"base_model_name_or_path": name, "neuron_map_signature": name, "base_fingerprint": name}
        path.write_text(json.dumps({**config, **changed, "neuron_counts": counts}))
        status = main(["inspect", str(tmp_path)])
        shown = capsys.readouterr()
        printed.append(lines_of(shown.out))
        assert status == 0 or lines_of(shown.err), "refused in one line"
    if printed[1] != [""]:
        assert len(printed[0]) == len(printed[1])
        rows = [[row.replace("\\|", "").count("|") for row in lines if row.startswith("|")] for lines in printed]
        assert rows[0] == rows[1], "as many cells"


@pytest.mark.parametrize("text", PLAIN.values(), ids=PLAIN)
def test_errors(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = text.replace("/", "")
    (tmp_path / name).mkdir()
    (tmp_path / name / "adapter_config.json").write_text(json.dumps({"peft_type": "LANDER", "car": text}))
    named = (["inspect", str(tmp_path / name)], ["inspect", f"{tmp_path}/{name}.safetensors"])
    for arguments in (*named, ["report", str(tmp_path / name)], ["train", "--data", f"{text}=x", "--output", "x"]):
        assert main(arguments) == 2
        assert len(lines_of(capsys.readouterr().err.strip("\n"))) == 1
