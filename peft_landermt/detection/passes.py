"""Passes over calibration text: a model that is only looked at, and taps on FFN activations."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from ..ffn import FFN
from ..linear import allow_packing, keep_unpacked
from ..seq2seq import is_encoder_decoder


def accepts_logits_to_keep(model: nn.Module) -> bool:
    """Tell whether the model can be asked for the logits of the last positions only."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Have evaluation mode and no weight gradients inside; outside all is as before, also on error.

    The graph starts at the output of the input embeddings, an encoder's where there is one, instead of at a weight.
    """
    packing = keep_unpacked(model)
    training = {module: module.training for module in model.modules()}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    reader = model.get_encoder() if is_encoder_decoder(model) else model  # type: ignore[operator]
    embeddings = reader.get_input_embeddings()  # type: ignore[operator]

    def start_graph(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        # a copy, which models that scale it in place may change
        return output.requires_grad_(True).clone() if torch.is_grad_enabled() else output

    with ExitStack() as stack:
        stack.callback(_restore, training, trainable)
        stack.callback(allow_packing, packing)
        model.eval()
        for parameter in trainable:
            parameter.requires_grad_(False)
        stack.callback(embeddings.register_forward_hook(start_graph).remove)
        yield


def _restore(training: dict[nn.Module, bool], trainable: list[nn.Parameter]) -> None:
    for module, mode in training.items():
        module.training = mode
    for parameter in trainable:
        parameter.requires_grad_(True)


@contextmanager
def tap_activations(ffns: Sequence[FFN], collect: Callable[[int, torch.Tensor], None]) -> Iterator[None]:
    """Call `collect(layer, h)` with the activations h that enter every FFN's output projection."""
    with ExitStack() as stack:
        for layer, ffn in enumerate(ffns):

            def hook(_module: nn.Module, args: tuple[torch.Tensor, ...], layer: int = layer) -> None:
                collect(layer, args[0])

            output = ffn.module.get_submodule(ffn.output)
            stack.callback(output.register_forward_pre_hook(hook).remove)
        yield
