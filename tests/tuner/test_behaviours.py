"""What PEFT users do: every kind of adapter on one architecture, and two kinds on each of the others.

`make behaviours` prints the table: rows are behaviours, columns architectures.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from peft_landermt import NeuronMap

from .behaviours import adapters, calls, files, merging
from .behaviours.case import ADAPTERS, MODULES, Case

CASES = [
    (kind, architecture)
    for architecture in MODULES
    for kind in (ADAPTERS if architecture == "llama" else ("dense", "paper"))
]
"""No behaviour depends on kind and architecture together; these two kinds have whole rows and factors, with gates and
without, with dropped neurons and without."""

BEHAVIOURS: dict[str, Callable[[Case], None]] = {
    "get_peft_model": adapters.makes_an_adapter,
    "add_adapter": adapters.adds_an_adapter,
    "load_adapter": files.loads_an_adapter,
    "set_adapter": adapters.sets_the_adapter,
    "delete_adapter": adapters.deletes_an_adapter,
    "disable_adapter": adapters.disables_the_adapter,
    "set_requires_grad": adapters.sets_requires_grad,
    "train, eval": adapters.follows_training_mode,
    "attributes of the base FFN": adapters.hands_on_attributes,
    "copy.deepcopy": adapters.deep_copies,
    "merge_adapter, unmerge_adapter": merging.merges_and_unmerges,
    "merge_and_unload": merging.merges_and_unloads,
    "unload": merging.unloads,
    "safe_merge": merging.merges_safely,
    "PeftModel.from_pretrained": files.saves_and_loads,
    "AutoPeftModelForCausalLM": files.loads_base_and_adapter,
    "get_ and set_peft_model_state_dict": files.hands_on_its_state,
    "saving again gives the same bytes": files.saves_the_same_bytes,
    "no warnings in a usual life": files.lives_without_warnings,
    "inject_adapter_in_model": adapters.injects_an_adapter,
    "transformers' own adapter methods": files.transformers_loads_it,
    "pipeline('text-generation')": calls.generates_text,
    "print_trainable_parameters": adapters.counts_parameters,
    "modules_to_save": files.saves_other_modules,
    "prepare_model_for_kbit_training": calls.trains_on_prepared_base,
    "gradient checkpointing, both variants": calls.checkpoints_gradients,
    "torch.compile of an FFN": calls.compiles_without_graph_breaks,
    "fp16 and bf16 base, fp32 adapter": calls.runs_in_half_precision,
    "hotswap_adapter": files.swaps_weights,
    "mixed batches, forward and generate": calls.mixes_adapters,
    "mixed batches, training": calls.mixes_adapters_in_training,
    "several active adapters": merging.adds_active_adapters,
    "PeftMixedModel is refused": adapters.refuses_mixed_methods,
}


SLOW = ("gemma3", "qwen2", "gpt2", "proportional", "dense", "drop", "attention", "one pair", ("paper", "llama"))
"""Architectures and kinds of a form that another one has too; in `make behaviours` and with the slow tests."""


@pytest.fixture(
    params=[pytest.param(case, marks=pytest.mark.slow) if {*case, case} & {*SLOW} else case for case in CASES],
    ids=[f"{kind}-{architecture}" for kind, architecture in CASES],
)
def case(
    request: pytest.FixtureRequest,
    _bases: Callable[[str], tuple[PreTrainedModel, NeuronMap]],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> Case:
    kind, architecture = request.param
    model, neuron_map = _bases(architecture)
    return Case(architecture, kind, model, neuron_map, tokenizer, tmp_path)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "error:.*missing adapter keys")
@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_behaviour(behaviour: str, case: Case) -> None:
    BEHAVIOURS[behaviour](case)
