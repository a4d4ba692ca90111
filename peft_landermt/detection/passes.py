"""Passes over calibration text: batches, a model that is only looked at, and taps on FFN activations."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from ..errors import CorpusError
from ..ffn import FFN


class Batch(NamedTuple):
    """Right-padded token ids and their mask, both int64 (B, T)."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor


def make_batches(
    tokenizer: Any, texts: Sequence[str], batch_size: int, max_length: int, device: torch.device
) -> list[Batch]:
    """Tokenize, cut at `max_length`, and group texts of similar length; the tokenizer is left as it is.

    Raises:
        CorpusError: If a text has fewer than two tokens, so that nothing is predicted.
    """
    encoded = [tokenizer(text)["input_ids"][:max_length] for text in texts]
    for text, ids in zip(texts, encoded, strict=True):
        if len(ids) < 2:
            raise CorpusError("sentences", text, "has fewer than two tokens; leave it out in every language.")
    order = sorted(range(len(encoded)), key=lambda index: (len(encoded[index]), index))
    batches = []
    for start in range(0, len(order), batch_size):
        rows = [torch.tensor(encoded[index]) for index in order[start : start + batch_size]]
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        input_ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        batches.append(Batch(input_ids.to(device), mask.to(device)))
    return batches


def accepts_logits_to_keep(model: nn.Module) -> bool:
    """Whether the model can be asked for the logits of the last positions only."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no weight gradients inside; every module and parameter as before outside, also on error.

    The graph starts at the output of the input embeddings instead of at a weight.
    """
    training = {module: module.training for module in model.modules()}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    embeddings = model.get_input_embeddings()  # type: ignore[operator]

    def start_graph(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        return output.requires_grad_(True) if torch.is_grad_enabled() else output

    with ExitStack() as stack:
        stack.callback(_restore, training, trainable)
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
