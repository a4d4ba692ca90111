"""Configs from strangers, or mistyped: a typed error before anything is changed, or an adapter that runs."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model
from transformers import PreTrainedModel

from peft_landermt import LanderConfig
from peft_landermt.cli import main
from peft_landermt.errors import LanderError

from ..conftest import build_model
from ..tuner.helpers import ids, logits
from ..tuner.roads import assert_as_before, snapshot
from .campaign import attempt
from .mutations import STRINGS, damaged, values

pytestmark = pytest.mark.filterwarnings("ignore")
FIELDS = [field.name for field in dataclasses.fields(LanderConfig) if field.init]
LIKELY: dict[str, st.SearchStrategy[Any]] = {
    "language_pairs": st.lists(st.sampled_from(["en-de", "de-en", "en-fr"]), max_size=3),
    "target_modules": st.sampled_from(["mlp", ["mlp"], r".*\.mlp", "model.layers.0.mlp", ["model.layers.0.mlp"]]),
    "layers_to_transform": st.integers(-1, 5) | st.lists(st.integers(-1, 5), max_size=3),
    "general_rank": st.none() | st.integers(-1, 40),
    "car": st.sampled_from(["off", "paper", "token", "learned"]),
    "modules_to_save": st.sampled_from([["lm_head"], ["norm"], ["mlp"], ["q_proj"], []]),
}


@pytest.fixture(scope="module")
def base() -> Iterator[PreTrainedModel]:
    yield build_model("llama")


@given(data=st.data())
def test_any_fields(base: PreTrainedModel, data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from(FIELDS), max_size=3, unique=True))
    given_fields = {name: data.draw(LIKELY.get(name, values) | values) for name in names}
    given_fields.pop("peft_type", None)  # set by the class
    before = snapshot(base)
    config = attempt("config, LanderConfig", lambda: LanderConfig(**given_fields), ("peft",))
    if isinstance(config, Exception):
        return
    model = attempt("config, get_peft_model", lambda: get_peft_model(base, config), ("peft",))
    if isinstance(model, Exception):
        assert_as_before(base, before)
        return
    pairs = {"language_pairs": [config.language_pairs[0]] * 3} if config.language_pairs else {}
    assert torch.isfinite(logits(model.eval(), ids(), **pairs)).all()
    model.unload()
    for parameter in base.parameters():
        parameter.requires_grad_(True)
    assert all(value.equal(before[-1][key]) for key, value in base.state_dict().items())


OPTIONS = ["model", "data", "output", "pairs", "sentences", "limit", "batch-size", "seed", "car", "overwrite", "help"]
YAML = b"model: /nowhere/base\ndata: {en-de: c.tsv}\noutput: out\nbatch-size: 4\noverwrite: false\n"


@given(
    content=st.dictionaries(st.sampled_from(OPTIONS + STRINGS) | st.text(max_size=5), values, max_size=4).map(
        lambda value: yaml.safe_dump(value).encode()
    )
    | damaged(YAML),
    command=st.sampled_from(["train", "detect", "evaluate", "translate", "merge", "inspect"]),
)
def test_any_file_of_options(content: bytes, command: str) -> None:
    """`--config FILE`: never a traceback."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("options.yaml").write_bytes(content)
        with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()):
            try:
                code: Any = attempt("config, --config FILE", lambda: _code([command, "--config", "options.yaml"]))
            except argparse.ArgumentError as error:
                raise AssertionError(error) from error
        assert code in (0, 2) and not isinstance(code, LanderError)
        shown = errors.getvalue()
        assert "Traceback" not in shown and all(char.isprintable() or char == "\n" for char in shown)


def _code(arguments: list[str]) -> int:
    """The exit status; no model is anywhere, so that every command ends."""
    try:
        return main([*arguments, "--model", "/nowhere/model"] if arguments[0] != "inspect" else arguments)
    except SystemExit as end:
        return int(end.code or 0)
