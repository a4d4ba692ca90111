"""Adapter folders: their size and type, old ones, damaged ones, and saving that is interrupted."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from peft_landermt import LanderConfig, NeuronMap
from peft_landermt.errors import AdapterError

from ..conftest import PAIRS, build_model, randomize_adapter
from ..full_disk import no_file_beyond
from .helpers import PLACES, adapt, ids, lander_layers, logits, make_config

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
STORED = Path(__file__).parent / "stored" / "format-1"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def architecture() -> str:
    return "llama"


# Type and size


@pytest.mark.parametrize("save_dtype", [None, "fp32", "bf16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_type_of_saved_deltas(
    base: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path, dtype: torch.dtype, save_dtype: Any
) -> None:
    expected = {None: dtype, "fp32": torch.float32, "bf16": torch.bfloat16}[save_dtype]
    options = {"verify_base": False, "save_dtype": save_dtype}
    model = adapt(base.to(dtype), neuron_map, car="learned", **options)
    model.save_pretrained(tmp_path / "first")
    for key, value in load_file(tmp_path / "first" / WEIGHTS).items():
        name = key.rpartition(".")[2]
        if name.endswith("_neurons"):
            assert value.dtype == torch.int32
        else:
            assert value.dtype == (torch.float32 if name in ("gates", "awareness_sums") else expected)
    loaded = PeftModel.from_pretrained(build_model("llama").to(dtype), str(tmp_path / "first"))
    assert all(
        weight.dtype == torch.float32 for weight in lander_layers(loaded).popitem()[1].lander_blocks.parameters()
    )
    loaded.save_pretrained(tmp_path / "second")
    assert (tmp_path / "first" / WEIGHTS).read_bytes() == (tmp_path / "second" / WEIGHTS).read_bytes()


@pytest.mark.parametrize("rank", [None, 16])
def test_a_file_is_as_large_as_its_rows(neuron_map: NeuronMap, tmp_path: Path, rank: int | None) -> None:
    """Within 1%, header included, for rows of a usual width."""
    model = build_model("llama", hidden_size=512, intermediate_size=1024)
    config = LanderConfig(task_type="CAUSAL_LM", language_pairs=PAIRS, general_rank=rank, **PLACES)
    config.neuron_counts = {
        f"model.layers.{layer}.mlp": {
            "layer": layer,
            "neurons": 1024,
            "width": 512,
            "general": 900,
            "specific": {"de": 60, "en": 64},
            "language_pairs": ["en-de", "de-en"],
        }
        for layer in (0, 2)
    }
    config.language_pairs = ["en-de", "de-en"]
    get_peft_model(model, config).save_pretrained(tmp_path)
    general = 900 * 512 if rank is None else 900 * rank + rank * 512
    expected = 2 * (3 * 4 * (general + 124 * 512) + 4 * 1024 + 2 * 2 * 4)
    assert abs((tmp_path / WEIGHTS).stat().st_size / expected - 1) < 0.01


def test_file_holds_rows_and_their_indices_only(base: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path) -> None:
    """The format of DESIGN, section 3: shapes follow from the neuron map."""
    adapt(base, neuron_map, ["en-de"], general_rank=None).save_pretrained(tmp_path)
    expected = {}
    for layer in neuron_map.layers("en-de"):
        prefix = f"base_model.model.{neuron_map.neurons[layer].name}.lander_blocks"
        blocks = {"general": neuron_map.general(layer)}
        blocks |= {language: neuron_map.specific(layer, language) for language in ("de", "en")}
        for block, neurons in blocks.items():
            expected[f"{prefix}.{block}_neurons"] = (torch.int32, (len(neurons),))
            for projection in ("gate_proj", "up_proj", "down_proj"):
                expected[f"{prefix}.{block}_{projection}"] = (torch.float32, (len(neurons), 32))
        expected[f"{prefix}.awareness_sums"] = (torch.float32, (1, 2))
    found = load_file(tmp_path / WEIGHTS)
    assert {key: (value.dtype, tuple(value.shape)) for key, value in found.items()} == expected
    for layer in neuron_map.layers("en-de"):
        prefix = f"base_model.model.{neuron_map.neurons[layer].name}.lander_blocks"
        assert found[f"{prefix}.general_neurons"].tolist() == neuron_map.general(layer).tolist()
        sums = torch.tensor([neuron_map.awareness_sums(layer, "en-de")])
        torch.testing.assert_close(found[f"{prefix}.awareness_sums"], sums)


def test_key_mapping(base: PreTrainedModel, tmp_path: Path) -> None:
    """Weights saved under names that an older version of the base model had."""
    model = adapt(base)
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    save_file({key.replace(".layers.", ".blocks."): value for key, value in state.items()}, tmp_path / WEIGHTS)
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({**config, "digest": None}))
    with pytest.raises(AdapterError, match="lacks"):
        PeftModel.from_pretrained(build_model("llama"), str(tmp_path))
    loaded = PeftModel.from_pretrained(build_model("llama"), str(tmp_path), key_mapping={r"\.blocks\.": ".layers."})
    assert logits(loaded, ids()).equal(logits(model, ids()))


# Old formats


def test_a_stored_adapter_of_format_1_still_loads() -> None:
    """`tests/tuner/stored/format-1` was written once; its README says by what. The sums were printed then."""
    model = PeftModel.from_pretrained(build_model("llama"), str(STORED)).eval()
    assert model.peft_config["default"].format_version == 1
    expected = json.loads((STORED / "expected.json").read_text())
    for pair, total in expected.items():
        out = logits(model, ids(), language_pairs=[pair] * 3)
        assert float(out.double().abs().sum()) == pytest.approx(total, rel=1e-5)


# Interrupted saving


@pytest.mark.parametrize("name", ["default", "en-de"])
def test_a_full_disk_leaves_the_older_adapter(base: PreTrainedModel, tmp_path: Path, name: str) -> None:
    model = adapt(base, adapter_name=name)
    model.save_pretrained(str(tmp_path))
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    randomize_adapter(model, seed=9)
    with no_file_beyond(10_000), pytest.raises(OSError, match="cannot be written"):
        model.save_pretrained(str(tmp_path))
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == before


README = {
    "broken YAML": b"---\n: [\n---\nmine",
    "a list": b"---\n- a\n---\nmine",
    "a tag that runs code": b"---\na: !!python/object/apply:os.getcwd []\n---\n",
    "another encoding": b"\xff\xfem\0i\0",
    "a folder": None,
}


@pytest.mark.parametrize("content", README.values(), ids=README)
def test_a_broken_readme_does_not_stop_saving(base: PreTrainedModel, tmp_path: Path, content: bytes | None) -> None:
    model, path = adapt(base), tmp_path / "README.md"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.warns(UserWarning, match="it is no model card"):
        model.save_pretrained(str(tmp_path))
    assert path.is_dir() if content is None else path.read_bytes() == content
    loaded = PeftModel.from_pretrained(build_model("llama"), str(tmp_path))
    assert logits(loaded.eval(), ids()).equal(logits(model, ids()))


def test_threads_that_save_to_one_folder_leave_an_adapter_of_one_of_them(tmp_path: Path) -> None:
    models = [adapt(build_model("llama"), seed=seed) for seed in (1, 2)]
    for _ in range(5):
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda model: model.save_pretrained(str(tmp_path)), models))
        found = logits(PeftModel.from_pretrained(build_model("llama"), str(tmp_path)).eval(), ids())
        assert any(found.equal(logits(model, ids())) for model in models)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", CONFIG, WEIGHTS]


_SAVE_AND_KILL = """
import os, signal, shutil, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.conftest import build_model
from tests.tuner.helpers import lander_layers
from peft import PeftModel, get_peft_model
from peft_landermt import LanderConfig
from peft_landermt.errors import AdapterError
import torch

def weights(model):
    return [weight for layer in lander_layers(model).values() for weight in layer.blocks("default").parameters()]

folder = Path({folder!r})
model = get_peft_model(build_model("llama"), LanderConfig(task_type="CAUSAL_LM", general_rank=None))
for wait in (0.0, 0.011, 0.023, 0.05):
    child = os.fork()
    if not child:
        value = 0
        while True:
            value += 1
            with torch.no_grad():
                for weight in weights(model):
                    weight.fill_(value)
            model.save_pretrained(folder)
            (folder / "saved").touch()
    while not (folder / "saved").exists():
        time.sleep(0.001)
    time.sleep(wait)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    try:
        loaded = PeftModel.from_pretrained(build_model("llama"), folder)
    except AdapterError as error:  # the weights of one save, and the config of the one before
        assert error.field == "digest", error
    else:
        assert len({{float(value) for weight in weights(loaded) for value in weight.unique()}}) == 1
    shutil.rmtree(folder)
    print("whole or refused")
"""


@pytest.mark.slow
def test_a_killed_save_leaves_a_whole_adapter_or_none(tmp_path: Path) -> None:
    """Killed at any moment while it saves again and again, each time with one value everywhere; in a process of one
    thread, which can be copied."""
    script = _SAVE_AND_KILL.format(root=str(Path(__file__).parents[2]), folder=str(tmp_path / "adapter"))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["whole or refused"] * 4, done.stderr[-2000:]


def test_config_class_reads_its_own_folder(base: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path) -> None:
    """A config alone, without weights, is a config like PEFT's."""
    adapt(base, neuron_map, ["en-de", "en-fr"]).save_pretrained(tmp_path / "adapter")
    config = LanderConfig.from_pretrained(str(tmp_path / "adapter"))
    config.save_pretrained(str(tmp_path / "alone"))
    assert [path.name for path in (tmp_path / "alone").iterdir()] == [CONFIG]
    assert LanderConfig.from_pretrained(str(tmp_path / "alone")) == config
    assert make_config(general_rank=4) != config
