"""What detection could leave changed on a model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def used(model: nn.Module) -> None:
    """As a caller might hand a model in: some modules training, some weights frozen, an own hook, an own gradient."""
    model.train()
    blocks = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
    blocks[1].eval()
    for parameter in blocks[0].parameters():
        parameter.requires_grad_(False)
    model.get_input_embeddings().weight.requires_grad_(False)
    blocks[2].register_forward_hook(lambda *_: None)
    weight = next(blocks[3].parameters())
    weight.grad = torch.ones_like(weight)


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def state(model: nn.Module) -> dict[str, Any]:
    """All that detection could leave changed; tensors by value."""
    return {
        "training": {name: module.training for name, module in model.named_modules()},
        "hooks": {(name, key): list(getattr(module, key)) for name, module in model.named_modules() for key in HOOKS},
        "attributes": {name: set(vars(module)) for name, module in model.named_modules()},
        "parameters": {name: (id(p), p.requires_grad, p.device, p.dtype) for name, p in model.named_parameters()},
        "without_grad": {name for name, p in model.named_parameters() if p.grad is None},
        "grad": {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None},
        "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "config": model.config.to_dict() if hasattr(model, "config") else None,
    }


def assert_unchanged(model: nn.Module, before: dict[str, Any]) -> None:
    after = state(model)
    for key in ("grad", "weights"):
        torch.testing.assert_close(after.pop(key), before[key], rtol=0, atol=0, equal_nan=True)
    assert after == {key: value for key, value in before.items() if key in after}
