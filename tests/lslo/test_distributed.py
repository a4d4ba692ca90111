"""Two processes whose batches have different languages train as one process does on both."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from peft import get_peft_model_state_dict
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from ..conftest import PAIRS
from ..tuner.helpers import ids, join_processes
from .helpers import adapt, build

BATCHES = [["en-de", "en-fr"], ["de-en", "en-de"]]
WEIGHTS = "adapter_model.safetensors"


def loss(model: torch.nn.Module, rank: int) -> torch.Tensor:
    batch = ids(2, seed=rank)
    return model(input_ids=batch, labels=batch, language_pairs=BATCHES[rank]).loss


def worker(rank: int, method: str, folder: Path) -> None:
    join_processes(rank, 2, folder)
    try:
        model = adapt(build("llama"), PAIRS, index="learned").train()
        wrapped: torch.nn.Module = model
        if method == "ddp":
            wrapped = DistributedDataParallel(model, find_unused_parameters=True)  # as transformers' Trainer does
        else:
            for block in model.get_base_model().model.layers:
                fully_shard(block)
            fully_shard(model)
        optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            loss(wrapped, rank).backward()
            optimizer.step()
        full = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = None if method == "ddp" else get_model_state_dict(model, options=full)
        if rank == 0:
            model.save_pretrained(folder / "adapter", state_dict=state)
        dist.barrier()
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("method", ["ddp", "fsdp2"])
def test_two_processes_train_as_one(method: str, tmp_path: Path) -> None:
    mp.spawn(worker, (method, tmp_path), nprocs=2)
    model = adapt(build("llama"), PAIRS, index="learned").train()
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        ((loss(model, 0) + loss(model, 1)) / 2).backward()
        optimizer.step()
    found = load_file(tmp_path / "adapter" / WEIGHTS)
    for key, value in get_peft_model_state_dict(model).items():
        torch.testing.assert_close(found[key], value.detach(), rtol=1e-4, atol=1e-5, msg=key)
