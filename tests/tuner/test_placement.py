"""Bases whose weights wait elsewhere (offloaded), are used twice (shared, tied), or are split over processes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import cpu_offload, disk_offload, dispatch_model
from peft import PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from transformers import AutoModelForCausalLM, PreTrainedModel

from peft_landermt import LanderConfig, NeuronMap, detect_neurons
from peft_landermt.errors import AdapterError, ArchitectureError
from peft_landermt.fingerprint import fingerprint

from ..conftest import PAIRS, SENTENCES, build_model
from .helpers import adapt, cloned_state, ids, join_processes, lander_layers, logits, same_state

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

DEVICE_MAP = {
    **dict.fromkeys(("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head"), "cpu"),
    **{f"model.layers.{layer}": "cpu" if layer < 2 else "disk" for layer in range(4)},
}
OFFLOADED: dict[str, Callable[[PreTrainedModel, Path], nn.Module]] = {
    "cpu_offload": lambda model, _: cpu_offload(model, torch.device("cpu")),
    "disk_offload": lambda model, folder: disk_offload(model, str(folder), torch.device("cpu")),
    "device_map, half on disk": lambda model, folder: dispatch_model(
        model, DEVICE_MAP, "cpu", offload_dir=str(folder)
    ),
}


@pytest.fixture(params=["llama"])
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=OFFLOADED)
def offloaded(request: pytest.FixtureRequest, base: PreTrainedModel, tmp_path: Path) -> nn.Module:
    return OFFLOADED[request.param](copy.deepcopy(base), tmp_path / "offloaded")


def on_meta(model: nn.Module) -> set[str]:
    names = {name for name, weight in model.named_parameters() if weight.is_meta}
    return {name.removeprefix("base_model.model.").replace(".base_layer", "") for name in names}


def detect(model: nn.Module, tokenizer: Any) -> NeuronMap:
    return detect_neurons(model, tokenizer, SENTENCES, PAIRS, num_layers=2, general_ratio=0.7, progress=False)


def test_offloaded_bases_compute_the_same(base: PreTrainedModel, offloaded: nn.Module, neuron_map: NeuronMap) -> None:
    waiting = on_meta(offloaded)
    assert "model.layers.3.mlp.down_proj.weight" in waiting and fingerprint(offloaded) is None
    expected, model = adapt(base, neuron_map, PAIRS, car="learned"), adapt(offloaded, neuron_map, PAIRS, car="learned")
    assert logits(model, ids(), language_pairs=PAIRS).equal(logits(expected, ids(), language_pairs=PAIRS))
    options = {"attention_mask": torch.ones_like(ids()), "max_new_tokens": 3, "do_sample": False}
    tokens = [each.generate(input_ids=ids(), language_pairs=PAIRS, **options) for each in (model, expected)]
    assert tokens[0].equal(tokens[1])
    assert on_meta(model) == waiting, "the base is offloaded again, the adapter stays"


def test_adapters_of_offloaded_bases_train_and_are_saved(
    base: PreTrainedModel, offloaded: nn.Module, neuron_map: NeuronMap, tmp_path: Path
) -> None:
    models = [adapt(each, neuron_map, PAIRS, verify_base=False) for each in (base, offloaded)]
    for model in models:
        trainable = [weight for weight in model.parameters() if weight.requires_grad]
        model.train()(input_ids=ids(), labels=ids(), language_pairs=PAIRS).loss.backward()
        torch.optim.SGD(trainable, lr=0.1).step()
    models[1].save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(build_model("llama"), tmp_path / "adapter").eval()
    torch.testing.assert_close(
        logits(loaded, ids(), language_pairs=PAIRS), logits(models[0].eval(), ids(), language_pairs=PAIRS)
    )


def test_detection_on_offloaded_bases(offloaded: nn.Module, neuron_map: NeuronMap, tokenizer: Any) -> None:
    waiting = on_meta(offloaded)
    found = detect(offloaded, tokenizer)
    assert found.pair_layers == neuron_map.pair_layers and found.layer_changes == neuron_map.layer_changes
    assert all(ours.owner.equal(theirs.owner) for ours, theirs in zip(found.neurons, neuron_map.neurons, strict=True))
    assert on_meta(offloaded) == waiting


@pytest.mark.parametrize("kind", ["disk_offload", "device_map, half on disk"])
@pytest.mark.parametrize("merge", ["merge_adapter", "merge_and_unload"])
def test_merging_into_weights_on_disk_is_refused(base: PreTrainedModel, kind: str, merge: str, tmp_path: Path) -> None:
    offloaded = OFFLOADED[kind](copy.deepcopy(base), tmp_path)
    model, expected = adapt(offloaded), logits(adapt(base), ids())
    with pytest.raises(ArchitectureError, match=r"gate_proj is quantized, offloaded to disk or split"):
        getattr(model, merge)()
    assert not any(layer.merged for layer in lander_layers(model).values())
    assert logits(model, ids()).equal(expected)


@pytest.mark.parametrize("options", [{}, {"car": "paper", "inactive_neurons": "drop"}], ids=str)
def test_merging_into_weights_that_wait_in_memory(
    base: PreTrainedModel, neuron_map: NeuronMap, options: dict[str, Any], tmp_path: Path
) -> None:
    """As with LoRA: a base that accelerate offloads to the CPU keeps what is merged, and gets it back."""
    offloaded = OFFLOADED["cpu_offload"](copy.deepcopy(base), tmp_path)
    plain = logits(base, ids())
    expected, model = (adapt(each, neuron_map, ["en-de"], **options) for each in (base, offloaded))
    waiting, unmerged = on_meta(model), logits(expected, ids())
    for each in (expected, model):
        each.merge_adapter(safe_merge=True)
    assert logits(model, ids()).equal(logits(expected, ids())) and on_meta(model) == waiting
    model.unmerge_adapter()
    assert logits(model, ids()).equal(unmerged)
    merged = model.merge_and_unload()
    assert logits(merged, ids()).equal(logits(expected.merge_and_unload(), ids())) and on_meta(merged) == waiting
    assert not logits(merged, ids()).equal(plain)


def test_peft_offloads_a_loaded_adapter_with_its_base(base: PreTrainedModel, tmp_path: Path) -> None:
    trained = adapt(copy.deepcopy(base), language_pairs=PAIRS)
    trained.save_pretrained(tmp_path / "adapter")
    dispatched = dispatch_model(base, {"": "cpu"})
    device_map = {f"base_model.model.{name}": device for name, device in DEVICE_MAP.items()}
    model = PeftModel.from_pretrained(
        dispatched, tmp_path / "adapter", device_map=device_map, offload_dir=str(tmp_path / "offloaded")
    ).eval()
    assert any(".lander_blocks." in name for name in on_meta(model))
    expected = logits(trained, ids(), language_pairs=PAIRS)
    for _ in range(2):
        assert logits(model, ids(), language_pairs=PAIRS).equal(expected)
    with pytest.raises(AdapterError, match="the adapter is offloaded; load it into a base that is not"):
        model.save_pretrained(tmp_path / "again")


def test_loading_into_a_base_on_disk(base: PreTrainedModel, tmp_path: Path) -> None:
    """`PeftModel.from_pretrained` looks for the base's modules by names that wrapping an FFN changes; the way that the
    error names works."""
    trained = adapt(copy.deepcopy(base), language_pairs=PAIRS)
    trained.save_pretrained(tmp_path / "adapter")
    base.save_pretrained(tmp_path / "base")

    def load() -> PreTrainedModel:
        folder = str(tmp_path / "offloaded")
        return AutoModelForCausalLM.from_pretrained(tmp_path / "base", device_map=DEVICE_MAP, offload_folder=folder)

    with pytest.raises(ArchitectureError, match=r"model='model\.layers\.2\.mlp': its weights are on disk"):
        PeftModel.from_pretrained(load(), tmp_path / "adapter")
    model = get_peft_model(load(), LanderConfig.from_pretrained(tmp_path / "adapter"))
    set_peft_model_state_dict(model, load_peft_weights(str(tmp_path / "adapter"), device="cpu"))
    expected = logits(trained, ids(), language_pairs=PAIRS)
    assert logits(model.eval(), ids(), language_pairs=PAIRS).equal(expected)


def _share_ffns(model: PreTrainedModel) -> None:
    model.model.layers[2].mlp = model.model.layers[1].mlp


def _share_layers(model: PreTrainedModel) -> None:
    model.model.layers[2] = model.model.layers[1]


@pytest.mark.parametrize("share", [_share_ffns, _share_layers])
def test_ffns_at_several_layers_are_refused(
    base: PreTrainedModel, share: Callable[[PreTrainedModel], None], tokenizer: Any
) -> None:
    share(base)
    before = cloned_state(base)
    with pytest.raises(ArchitectureError, match=r"model='model\.layers\.1\.mlp': is one FFN at 2 places"):
        adapt(base)
    with pytest.raises(ArchitectureError, match=r"model='model\.layers\.1\.mlp': is one FFN at 2 places"):
        detect(base, tokenizer)
    assert same_state(base.state_dict(), before) and not lander_layers(base)
    alone = [f"model.layers.{layer}.mlp" for layer in (0, 3)]
    assert set(lander_layers(adapt(base, target_modules=alone))) == set(alone)


class _Twice(nn.ModuleList):
    """Runs all of its layers, then all again, as ALBERT does."""

    def __getitem__(self, index: Any) -> Any:
        return [*self._modules.values()] * 2


def test_layers_that_run_twice_share_their_adapter(base: PreTrainedModel, tokenizer: Any) -> None:
    unrolled = copy.deepcopy(base)
    unrolled.model.layers.extend(copy.deepcopy(list(unrolled.model.layers)))
    unrolled.config.num_hidden_layers = 8
    base.model.layers = _Twice(base.model.layers)
    model, expected = adapt(base), adapt(unrolled)
    layers = lander_layers(expected)
    for name, layer in lander_layers(model).items():
        later = name.replace(f"layers.{name.split('.')[2]}", f"layers.{int(name.split('.')[2]) + 4}")
        for twin in (name, later):
            layers[twin].lander_blocks.load_state_dict(layer.lander_blocks.state_dict())
    adapted = logits(model, ids(), use_cache=False)
    torch.testing.assert_close(adapted, logits(expected, ids(), use_cache=False))
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged, ids(), use_cache=False), adapted, rtol=1e-4, atol=1e-4)
    with pytest.raises(ArchitectureError, match=r"'down_proj', which runs 2 times in a pass"):
        detect(merged, tokenizer)


def test_tied_weights_are_adapted_apart_and_not_merged(base: PreTrainedModel) -> None:
    untied = copy.deepcopy(base)
    first, second = (base.model.layers[layer].mlp for layer in (1, 2))
    untied.model.layers[2].mlp.down_proj.weight.data.copy_(first.down_proj.weight)
    second.down_proj.weight = first.down_proj.weight
    model = adapt(base)
    expected, before = logits(adapt(untied), ids()), cloned_state(model)
    assert logits(model, ids()).equal(expected)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ArchitectureError, match="down_proj with tied weight"):
            merge()
    assert same_state(model.state_dict(), before) and logits(model, ids()).equal(expected)


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    join_processes(0, 1, tmp_path)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_tensor_parallel_bases_are_refused(base: PreTrainedModel, tokenizer: Any) -> None:
    plan = {"gate_proj": ColwiseParallel(), "up_proj": ColwiseParallel(), "down_proj": RowwiseParallel()}
    for layer in base.model.layers:
        parallelize_module(layer.mlp, init_device_mesh("cpu", (1,)), plan)
    before = logits(base, ids())
    with pytest.raises(ArchitectureError, match="without a tensor-parallel plan"):
        adapt(base)
    with pytest.raises(ArchitectureError, match="without a tensor-parallel plan"):
        detect(base, tokenizer)
    assert logits(base, ids()).equal(before) and not lander_layers(base)
