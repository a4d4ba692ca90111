"""Saving under DDP and FSDP: two processes over gloo write the adapter that one process has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from peft_landermt import LanderConfig

from ..conftest import PAIRS, build_model
from .helpers import adapt, ids, join_processes, logits, same_state

WORLD = 2
WEIGHTS = "adapter_model.safetensors"


def make() -> PeftModel:
    """One step's model: several pairs without a map have one block, so this needs no detection."""
    return adapt(build_model("llama"), language_pairs=PAIRS, general_rank=4, car="learned")


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(input_ids=ids(), labels=ids(), language_pairs=PAIRS).loss.backward()
    optimizer.step()


def trainable(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [weight for weight in model.parameters() if weight.requires_grad]


def worker(rank: int, method: str, folder: Path) -> None:
    join_processes(rank, WORLD, folder)
    try:
        model = make()
        if method == "ddp":
            wrapped: torch.nn.Module = DistributedDataParallel(model)
            step(wrapped, torch.optim.SGD(trainable(model), lr=0.1))
            state = None
        else:
            for block in model.get_base_model().model.layers:
                fully_shard(block)
            fully_shard(model)
            step(model, torch.optim.SGD(trainable(model), lr=0.1))
            full = StateDictOptions(full_state_dict=True, cpu_offload=True)
            state = get_model_state_dict(model, options=full)
        if rank == 0:
            model.save_pretrained(folder / "adapter", state_dict=state)
        dist.barrier()
    finally:
        dist.destroy_process_group()


@pytest.mark.slow  # once, after both had saved, the two processes never ended
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("method", ["ddp", "fsdp2"])
def test_two_processes_save_what_one_has(method: str, tmp_path: Path) -> None:
    mp.spawn(worker, (method, tmp_path), nprocs=WORLD)
    alone = make()
    step(alone, torch.optim.SGD(trainable(alone), lr=0.1))
    expected, found = get_peft_model_state_dict(alone), load_file(tmp_path / "adapter" / WEIGHTS)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value.detach(), msg=key)
    loaded = PeftModel.from_pretrained(build_model("llama"), str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(logits(loaded, ids(), language_pairs=PAIRS), logits(alone, ids(), language_pairs=PAIRS))
    assert isinstance(loaded.peft_config["default"], LanderConfig)
    assert not same_state(found, get_peft_model_state_dict(make()))
