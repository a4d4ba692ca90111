"""How much Python stands between a mixed batch and its matrix products: LANDeRMT beside PEFT's LoRA.

    python benchmarks/calls.py

A tiny Llama with random weights, three adapted FFNs, and one forward of three samples: LANDeRMT with three language
pairs in one adapter, LoRA on the projections of the same FFNs with three adapters. Counted are the calls of functions
in the method's own package (`peft_landermt`, or `peft` for LoRA), how many functions and files these are, how many of
its frames stand above a matrix product or its indexing at most, and how many modules are made while the model runs.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import peft
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import LlamaConfig, LlamaForCausalLM

import peft_landermt
from peft_landermt import LanderConfig, NeuronMap
from peft_landermt.neuron_map import LayerNeurons

SIZES = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
LAYERS = (0, 1, 2)
LINEARS = r".*\.[012]\.mlp\.(gate|up|down)_proj"
LANGUAGES = ("en", "de", "fr")
PAIRS = ("en-de", "de-en", "en-fr")
LANDER: dict[str, dict[str, Any]] = {
    "LANDeRMT": {},
    "LANDeRMT, whole rows": {"general_rank": None},
    "LANDeRMT, paper": {"general_rank": None, "car": "paper", "inactive_neurons": "drop"},
    "LANDeRMT, learned gates": {"car": "learned"},
    "LANDeRMT, gates of the token": {"car": "token"},
}
PRODUCTS = ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum")
INDEXING = ("index_select", "index_add", "index_copy", "index_put", "gather", "scatter", "scatter_add", "getitem")


def make_neuron_map(neurons: int, width: int) -> NeuronMap:
    """Seven of ten neurons are general and one belongs to each language, in every layer; all three are relevant."""
    owner = torch.tensor([(-1, -1, -1, -1, -1, -1, -1, 0, 1, 2)[neuron % 10] for neuron in range(neurons)])
    values = torch.ones(len(LANGUAGES), neurons)
    layers = tuple(
        LayerNeurons(f"model.layers.{layer}.mlp", owner, values, values, values)
        for layer in range(SIZES["num_hidden_layers"])
    )
    changes = dict.fromkeys(PAIRS, (0.0,) * (len(layers) - 1))
    return NeuronMap(LANGUAGES, dict.fromkeys(PAIRS, LAYERS), changes, layers, width, None, "by hand")


class Depth(TorchFunctionMode):
    """Sees every function of torch, and keeps how many frames of a folder were above those of some names at most."""

    def __init__(self, folder: Path, names: Collection[str]) -> None:
        super().__init__()
        self.folder, self.names, self.deepest = str(folder), names, 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "").strip("_") in self.names:
            frame: FrameType | None = sys._getframe()
            depth = 0
            while frame is not None:
                depth += frame.f_code.co_filename.startswith(self.folder)
                frame = frame.f_back
            self.deepest = max(self.deepest, depth)
        return function(*args, **(kwargs or {}))


def count_calls(run: Callable[[], Any]) -> Counter[CodeType]:
    """How often each Python function is called while `run` runs; a generator counts each time that it goes on."""
    calls: Counter[CodeType] = Counter()

    def profile(frame: FrameType, event: str, _argument: Any) -> None:
        if event == "call":
            calls[frame.f_code] += 1

    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(None)
    return calls


def measure(run: Callable[[], Any], folder: Path) -> dict[str, int]:
    """The numbers of the second call of `run`, for the functions whose files are in a folder."""
    run()
    calls = count_calls(run)
    own = {code: count for code, count in calls.items() if code.co_filename.startswith(str(folder))}
    with Depth(folder, PRODUCTS) as products, Depth(folder, INDEXING) as indexing:
        run()
    return {
        "calls": sum(own.values()),
        "functions": len(own),
        "files": len({code.co_filename for code in own}),
        "frames above a product": products.deepest,
        "frames above indexing": indexing.deepest,
        "modules made": calls[nn.Module.__init__.__code__],
    }


def forward(model: nn.Module, **inputs: Any) -> Callable[[], Any]:
    """Three samples of eight tokens, in evaluation mode and without gradients."""
    tokens = torch.arange(3 * 8).reshape(3, 8)
    model.eval()
    return torch.no_grad()(partial(model, input_ids=tokens, **inputs))


def make_base() -> nn.Module:
    """A Llama with random weights."""
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def make_lander(**options: Any) -> nn.Module:
    """One adapter of all pairs."""
    neuron_map = make_neuron_map(SIZES["intermediate_size"], SIZES["hidden_size"])
    options = {"attention_modules": None, **options}
    config = LanderConfig(task_type="CAUSAL_LM", neuron_map=neuron_map, language_pairs=list(PAIRS), **options)
    return get_peft_model(make_base(), config)


def make_lora() -> nn.Module:
    """One adapter for each pair, on every projection of the FFNs that LANDeRMT adapts."""
    config = partial(LoraConfig, task_type="CAUSAL_LM", r=16, target_modules=LINEARS)
    model = get_peft_model(make_base(), config(), PAIRS[0])
    for pair in PAIRS[1:]:
        model.add_adapter(pair, config())
    return model


def main() -> None:
    """Print a table; modules that the base makes for itself are left out."""
    warnings.simplefilter("ignore")
    ours, lora = Path(peft_landermt.__file__).parent, Path(peft.__file__).parent
    rows = {
        name: measure(forward(make_lander(**options), language_pairs=list(PAIRS)), ours)
        for name, options in LANDER.items()
    }
    rows["LoRA"] = measure(forward(make_lora(), adapter_names=list(PAIRS)), lora)
    made = measure(forward(make_base()), ours)["modules made"]
    columns = list(rows["LoRA"])
    print("| method | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for name, row in rows.items():
        row["modules made"] -= made
        print(f"| {name} | " + " | ".join(str(row[column]) for column in columns) + " |")


if __name__ == "__main__":
    main()
