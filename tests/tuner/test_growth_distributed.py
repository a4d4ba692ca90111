"""Two processes over gloo train what was added to an adapter; they save what one has, and the rest as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel

from .growing import adapted, grown, holds
from .helpers import ids, join_processes

WORLD, NAME = 2, "Gemma 3"
ROUTE = ["en-es", "es-de", "en-es"]


def step(model: torch.nn.Module, plain: PeftModel) -> None:
    trained = [weight for weight in plain.parameters() if weight.requires_grad]
    model(input_ids=ids(), labels=ids(), language_pairs=ROUTE).loss.backward()
    torch.optim.SGD(trained, lr=0.1).step()


def worker(rank: int, folder: Path) -> None:
    join_processes(rank, WORLD, folder)
    try:
        model = grown(NAME, car="learned")
        step(DistributedDataParallel(model), model)
        if rank == 0:
            model.save_pretrained(folder / "adapter")
        dist.barrier()
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    mp.spawn(worker, (tmp_path,), nprocs=WORLD)
    alone = grown(NAME, car="learned")
    before = {key: value.clone() for key, value in get_peft_model_state_dict(alone).items()}
    step(alone, alone)
    found = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    expected = get_peft_model_state_dict(alone)
    assert found.keys() == expected.keys()
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key].detach(), msg=key)
    moved = {key for key, value in found.items() if not value.equal(before[key])}
    assert moved and all(key.rpartition(".")[2].startswith(("es_", "gates_e")) for key in moved)
    assert holds(found, get_peft_model_state_dict(adapted(NAME, car="learned")))
