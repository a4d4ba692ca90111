"""Where the FFNs of a model are: the one place that knows architectures.

A neuron of an FFN is row i of every input projection, its activation h_i, and column i of the output projection.
Which child modules are the projections is data: one row of `FFN_LAYOUTS` per naming convention. A module whose
children match no row is recognised by the shapes of its linear layers, if these leave no doubt; where they do, the
user names the layout.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from .errors import ArchitectureError
from .linear import device_and_dtype, features
from .multimodal import language_modules


@dataclass(frozen=True)
class FFNLayout:
    """Names of the projections of one FFN convention.

    With `fused` 2, the input projection stacks the rows of gate and up projection, (2p, d).
    """

    inputs: tuple[str, ...]
    output: str
    used_by: str = ""
    fused: int = 1

    @classmethod
    def from_dict(cls, value: Any) -> FFNLayout:
        """Read a layout that a user named, such as `{"inputs": ["w1", "w3"], "output": "w2"}`.

        Raises:
            ArchitectureError: If it is no such dictionary.
        """
        named = dict(value) if isinstance(value, Mapping) else {}
        inputs, output, fused = named.pop("inputs", None), named.pop("output", None), named.pop("fused", 1)
        names = [*inputs, output] if isinstance(inputs, (list, tuple)) else []
        distinct = all(isinstance(name, str) for name in names) and len(set(names)) == len(names) > 1
        if named or not distinct or fused not in (1, 2):
            raise ArchitectureError(
                "ffn_layout",
                value,
                'must name child modules of the FFN, as {"inputs": ["w1", "w3"], "output": "w2"} does; "fused": 2 '
                "says that one input projection stacks the rows of gate and up projection.",
            )
        return cls(tuple(inputs), output, fused=fused)

    def to_dict(self) -> dict[str, Any]:
        """Return the form that `from_dict` reads, and JSON can hold."""
        return {
            "inputs": list(self.inputs),
            "output": self.output,
            **({"fused": self.fused} if self.fused > 1 else {}),
        }


FFN_LAYOUTS: tuple[FFNLayout, ...] = (
    FFNLayout(("gate_proj", "up_proj"), "down_proj", "Llama, Mistral, Qwen, Gemma, Cohere, OLMo 2, StableLM"),
    FFNLayout(("gate_up_proj",), "down_proj", "Phi-3, GLM-4", fused=2),
    FFNLayout(("dense_h_to_4h",), "dense_4h_to_h", "BLOOM, Falcon, GPT-NeoX"),
    FFNLayout(("up_proj",), "down_proj", "MPT, Nemotron"),
    FFNLayout(("c_fc",), "c_proj", "GPT-2, Starcoder"),
    FFNLayout(("fc_in",), "fc_out", "GPT-J, CodeGen"),
    FFNLayout(("fc1",), "fc2", "Phi 1 and 2, OPT, XGLM, NLLB, M2M100, mBART, Marian"),
    FFNLayout(("wi_0", "wi_1"), "wo", "T5 v1.1, mT5, MADLAD"),
    FFNLayout(("wi",), "wo", "T5"),
)  # fmt: skip


EXPERTS = "experts"
"""Name that transformers gives to the experts of a layer."""


@dataclass(frozen=True)
class FFN:
    """One FFN of a model.

    Attributes:
        name: Module name in the model, such as `model.layers.3.mlp`.
        module: The FFN module.
        inputs: Names of its input projections, each of shape (fused · p, d).
        output: Name of its output projection, of shape (d, p).
        width: Model width d.
        neurons: Number of neurons p.
        fused: How many rows of an input projection belong to a neuron: i, i + p, ...
    """

    name: str
    module: nn.Module
    inputs: tuple[str, ...]
    output: str
    width: int
    neurons: int
    fused: int = 1

    @property
    def layout(self) -> FFNLayout:
        """The names of its projections, as a user would give them."""
        return FFNLayout(self.inputs, self.output, fused=self.fused)

    @property
    def projections(self) -> tuple[str, ...]:
        """Names of its linear layers, the output projection last."""
        return (*self.inputs, self.output)

    @property
    def has_own_module(self) -> bool:
        """False where the projections sit on a decoder layer, beside attention (OPT)."""
        others = [child for name, child in self.module.named_children() if name not in self.projections]
        return not any(features(module) for child in others for module in child.modules())


def recognise(module: nn.Module, name: str = "", layout: FFNLayout | None = None) -> FFN | None:
    """Describe `module` as an FFN, or return None if it is not one.

    Args:
        module: Any module; only its direct children are looked at.
        name: Its name in the model, kept in the result.
        layout: The only layout to look for; all of `FFN_LAYOUTS`, and shapes, by default.
    """
    if layout is not None:
        return _recognise_by_name(module, name, (layout,))
    return _recognise_by_name(module, name) or _recognise_by_shape(module, name)


def _linear_children(module: nn.Module) -> dict[str, tuple[int, int]]:
    return {key: shape for key, child in module.named_children() if (shape := features(child)) is not None}


def _recognise_by_name(module: nn.Module, name: str, layouts: Sequence[FFNLayout] = FFN_LAYOUTS) -> FFN | None:
    linear = _linear_children(module)
    for layout in layouts:
        if layout.output in linear and all(key in linear for key in layout.inputs):
            neurons, width = linear[layout.output]
            if all(linear[key] == (width, layout.fused * neurons) for key in layout.inputs):
                return FFN(name, module, layout.inputs, layout.output, width, neurons, layout.fused)
    return None


def _recognise_by_shape(module: nn.Module, name: str) -> FFN | None:
    """One or two layers d→p and one p→d, p larger than d, and no other linear layer: nothing else it could be."""
    linear = _linear_children(module)
    if len(linear) < 2:
        return None
    widest = max(max(shape) for shape in linear.values())
    outputs = [key for key, (inside, outside) in linear.items() if inside == widest > outside]
    inputs = tuple(key for key in linear if key not in outputs)
    if len(outputs) != 1 or len(inputs) > 2:
        return None
    neurons, width = linear[outputs[0]]
    if any(linear[key] != (width, neurons) for key in inputs):
        return None
    return FFN(name, module, inputs, outputs[0], width, neurons)


def list_ffns(model: nn.Module, layout: FFNLayout | None) -> list[FFN]:
    """List all FFNs of a language model, or of that part of a multimodal one, in the order of its modules.

    Shapes are asked only where no name in the model is known: many models have other bottlenecks beside their FFNs.

    Raises:
        ArchitectureError: If shapes leave a doubt.
    """
    modules = language_modules(model)
    layouts = FFN_LAYOUTS if layout is None else (layout,)
    named = [ffn for name, module in modules if (ffn := _recognise_by_name(module, name, layouts)) is not None]
    if named or layout is not None:
        return named
    shaped = [ffn for name, module in modules if (ffn := _recognise_by_shape(module, name)) is not None]
    if len({ffn.projections for ffn in shaped}) > 1:
        raise _not_recognised(model, "FFNs of several forms were found by their shapes")
    return shaped


def find_ffns(model: nn.Module, layout: FFNLayout | None = None) -> list[FFN]:
    """Find all FFNs of a model, first layer first; of a multimodal one, those of its language model.

    Args:
        model: The base model.
        layout: The only layout to look for, where the user has named one.

    Raises:
        ArchitectureError: If there is none, or shapes leave a doubt, or some are mixtures of experts.
    """
    for name, _ in language_modules(model):
        if name.rpartition(".")[2] == EXPERTS:
            raise ArchitectureError(
                "model",
                type(model).__name__,
                f"{name} is a mixture of experts, which LANDER does not cover: each neuron sees only the tokens that "
                "are routed to it, and transformers reads the weights without a call. target_modules may name the "
                "dense FFNs beside it.",
            )
    ffns = list_ffns(model, layout)
    if not ffns:
        named = "was recognised" if layout is None else f"with {layout.to_dict()} is"
        raise _not_recognised(model, f"no FFN {named} in it")
    return ffns


def _not_recognised(model: nn.Module, problem: str) -> ArchitectureError:
    """An error that lists what the FFNs could be, for the user to choose."""
    candidates = list(_candidates(model))
    if candidates:
        remedy = f"Say which it is with ffn_layout, in detect_neurons or LanderConfig: {' or '.join(candidates)}."
    else:
        rows = "; ".join(f"{'+'.join(row.inputs)} and {row.output}" for row in FFN_LAYOUTS)
        remedy = (
            f"An FFN is a module with these projections as direct children: {rows}; or linear layers d→p and one p→d. "
            "Pass the transformers model itself, without adapters."
        )
    return ArchitectureError("model", type(model).__name__, f"{problem}. {remedy}")


def _candidates(model: nn.Module) -> Iterator[str]:
    """Every layout that shapes allow, once, with the first module that has it; the largest number of neurons first."""
    found: dict[FFNLayout, tuple[int, str]] = {}
    for name, module in language_modules(model, root=True):
        linear = _linear_children(module)
        for output, (neurons, width) in linear.items():
            for fused in (1, 2):
                fitting = (width, fused * neurons)
                inputs = tuple(key for key, shape in linear.items() if key != output and shape == fitting)
                if inputs and neurons != width:
                    found.setdefault(FFNLayout(inputs, output, fused=fused), (neurons, name or type(module).__name__))
    for layout, (neurons, name) in sorted(found.items(), key=lambda item: -item[1][0]):
        yield f"{layout.to_dict()} ({name}, p={neurons})"


def check_addressable(model: nn.Module, ffns: Sequence[FFN], *, only_calls: bool = False) -> None:
    """Check that every FFN is one layer's own, and that this process holds all its neurons.

    Args:
        model: The model.
        ffns: Its FFNs.
        only_calls: Whether weights matter only while the model is called; then FSDP may have split them.

    Raises:
        ArchitectureError: If one is registered at several places, its weights are split over processes, or they are
            on disk and nothing would fetch them.
    """
    parts = [(ffn.name, ffn.module, ffn.module.get_submodule(ffn.output)) for ffn in ffns]
    check_modules_addressable(model, parts, ("FFN", "neurons"), only_calls=only_calls)


def check_modules_addressable(
    model: nn.Module,
    parts: Sequence[tuple[str, nn.Module, nn.Module]],
    called: tuple[str, str],
    *,
    only_calls: bool = False,
) -> None:
    """Check modules as [`check_addressable`] does FFNs.

    Args:
        model: The model.
        parts: For every module its name, itself, and its last linear layer.
        called: What a module is, and what it has of its own, for messages.
        only_calls: Whether weights matter only while the model is called; then FSDP may have split them.
    """
    what, own = called
    places = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    for name, module, output in parts:
        if places[id(module)] > 1:
            raise ArchitectureError(
                "model",
                name,
                f"is one {what} at {places[id(module)]} places, so its {own} belong to no one layer; give each "
                "layer its own with copy.deepcopy, or leave it out of target_modules.",
            )
        split = [weight for weight in module.parameters() if hasattr(weight, "device_mesh")]
        if split and not (only_calls and _gathered_by_fsdp(model, name, split)):
            raise ArchitectureError(
                "model",
                name,
                f"its weights are split over processes (DTensor), and with them its {own}; load the model without a "
                "tensor-parallel plan, and for FSDP adapt it before it is split.",
            )
        if getattr(model, "hf_device_map", None) is not None and device_and_dtype(output)[0].type == "meta":
            raise ArchitectureError(
                "model",
                name,
                "its weights are on disk, and PeftModel.from_pretrained took away the hooks that fetch them; load the "
                "base anew, make the model with get_peft_model and PeftConfig.from_pretrained(folder), and read the "
                "weights with set_peft_model_state_dict(model, load_peft_weights(folder)).",
            )


def _gathered_by_fsdp(model: nn.Module, name: str, split: Sequence[nn.Parameter]) -> bool:
    """Whether FSDP2, and no tensor-parallel plan, has split a module's weights; it gathers them for every call."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # loaded where it was used, and slow to import where not
    if fsdp is None or any(weight.device_mesh.ndim > 1 for weight in split):  # type: ignore[attr-defined]
        return False
    around = [module for each, module in model.named_modules() if f"{name}.".startswith(f"{each}." if each else "")]
    return any(isinstance(module, fsdp.FSDPModule) for module in around)
