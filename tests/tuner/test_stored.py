"""Adapters that were stored once, of every kind, are read and written as they were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from ..versions import PEFT_BEFORE_0_21
from .make_stored import CONFIG, EXPECTED, FOLDER, STORED, WEIGHTS, build_base, make, routes, some_logits

VERSIONS = {"peft_version", "digest"} | ({"base_model_name_or_path"} if PEFT_BEFORE_0_21 else set())
"""Fields of a config that tell the library which wrote it, and what changes with these and with new fields. Before
0.21, PEFT names a base without a name `""`."""
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.parametrize("name", STORED)
def test_a_stored_adapter_is_read_and_written_as_it_was(name: str, tmp_path: Path) -> None:
    """`make_stored.py` wrote the folder and its logits; new fields of a config may come, those stored stay."""
    stored, folder = STORED[name], FOLDER / name
    model = PeftModel.from_pretrained(build_base(stored.base), str(folder)).eval()
    expected = json.loads((folder / EXPECTED).read_text())
    assert list(expected) == list(routes(stored))
    for route, pairs in routes(stored).items():
        found, values = torch.tensor(some_logits(model, pairs)), torch.tensor(expected[route])
        torch.testing.assert_close(found, values, rtol=1e-5, atol=1e-5, msg=lambda text, r=route: f"{r}: {text}")
    model.save_pretrained(tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    before, after = (json.loads((path / CONFIG).read_text()) for path in (folder, tmp_path))
    kept = set(before) - VERSIONS
    assert {key: after.get(key, "missing") for key in kept} == {key: before[key] for key in kept}


def test_what_is_stored_is_never_made_anew() -> None:
    before = (FOLDER / "llama-off" / WEIGHTS).read_bytes()
    with pytest.raises(FileExistsError):
        make("llama-off")
    assert (FOLDER / "llama-off" / WEIGHTS).read_bytes() == before
