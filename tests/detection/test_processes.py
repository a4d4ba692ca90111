"""Detection whose passes several processes share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedTokenizerFast

from peft_landermt import NeuronMap, detect_neurons
from peft_landermt.errors import DetectionError
from peft_landermt.processes import shared

from ..conftest import PAIRS, SENTENCES, build_model
from ..tuner.helpers import join_processes

WORLD = 2
OPTIONS: dict[str, Any] = {"num_layers": 2, "batch_size": 3, "progress": False}
"""Two batches of each language: six for the sentences, two for each pair."""


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    join_processes(0, 1, tmp_path)
    yield
    dist.destroy_process_group()


def test_without_processes(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DetectionError, match="distributed=True: there are no other processes; start the script with"):
        detect_neurons(build_model("llama"), tokenizer, SENTENCES, PAIRS, distributed=True)


@pytest.mark.usefixtures("one_process")
def test_one_process_shares_with_itself(tokenizer: PreTrainedTokenizerFast) -> None:
    model = build_model("llama")
    alone = detect_neurons(model, tokenizer, SENTENCES, PAIRS, **OPTIONS)
    assert detect_neurons(model, tokenizer, SENTENCES, PAIRS, **OPTIONS, distributed=True) == alone
    assert detect_neurons(model, tokenizer, SENTENCES, PAIRS[:2], **OPTIONS) != alone
    with pytest.raises(ZeroDivisionError):
        list(shared([1, 0], lambda number: 1 / number, distributed=True))


def detect_in_a_process(rank: int, method: str, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    join_processes(rank, WORLD, folder)
    model = build_model("llama")
    sentences = {language: texts[:3] for language, texts in SENTENCES.items()}  # an odd number of batches
    if method == "fsdp2":
        for block in model.model.layers:
            fully_shard(block)
        fully_shard(model)
    found = detect_neurons(model, tokenizer, sentences, PAIRS, **OPTIONS, distributed=True)
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())
    found.save(folder / f"{method}.{rank}.safetensors")
    with pytest.raises(DetectionError, match="the processes differ in sentences, pairs or options"):
        detect_neurons(model, tokenizer, sentences, PAIRS, num_layers=1 + rank, progress=False, distributed=True)

    def failing(number: int) -> int:
        if number == 3:  # the last item, which one process has in the second round
            raise FloatingPointError(f"in process {rank}")
        return number

    with pytest.raises(FloatingPointError, match="in process 1"):
        list(shared([0, 1, 2, 3], failing, distributed=True))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("method", ["replicas", "fsdp2"])
def test_two_processes_find_what_one_does(method: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    mp.spawn(detect_in_a_process, (method, tokenizer, tmp_path), nprocs=WORLD)
    sentences = {language: texts[:3] for language, texts in SENTENCES.items()}
    alone = detect_neurons(build_model("llama"), tokenizer, sentences, PAIRS, **OPTIONS)
    for rank in range(WORLD):
        found = NeuronMap.load(tmp_path / f"{method}.{rank}.safetensors")
        assert found.neurons == alone.neurons and found.pair_layers == alone.pair_layers
        assert found.layer_changes == alone.layer_changes
        assert (found.fingerprint is None) == (method == "fsdp2")
