"""One language is LoRA: the same logits, and the same weights after ten optimizer steps."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from ..tuner.helpers import ids, logits
from .helpers import adapt, build, layers_of, parameters

RANK = 3


def lora(architecture: str, model: PeftModel) -> PeftModel:
    """PEFT's LoRA on the same modules, with the same factors A and B."""
    names = list(layers_of(model))
    options = {"fan_in_fan_out": architecture == "gpt2", "task_type": model.peft_config["default"].task_type}
    made = get_peft_model(build(architecture), LoraConfig(r=RANK, lora_alpha=RANK, target_modules=names, **options))
    copied = weights(made)
    with torch.no_grad():
        for name, weight in parameters(model).items():
            copied[name].copy_(weight)
    return made


def weights(model: PeftModel) -> dict[str, torch.Tensor]:
    """LoRA's factors under LSLo's names; the target language is de in all layers of these adapters."""
    found = {name.removeprefix("base_model.model."): each for name, each in model.named_parameters()}
    return {
        name.replace(".lora_A.default.weight", ".de_A").replace(".lora_B.default.weight", ".de_B"): each
        for name, each in found.items()
        if ".lora_" in name
    }


@pytest.mark.parametrize(
    "architecture",
    ["llama", "gpt2", "m2m100", *(pytest.param(each, marks=pytest.mark.slow) for each in ("opt", "t5"))],
)
def test_one_language_is_lora(architecture: str) -> None:
    model = adapt(build(architecture), ["en-de"], rank=RANK, index="target", seed=None)
    other = lora(architecture, model)
    models, given = (model.train(), other.train()), {"language_pairs": ["en-de"] * 3}
    optimizers = [torch.optim.AdamW([w for w in each.parameters() if w.requires_grad], lr=1e-2) for each in models]
    for step in range(10):
        batch = ids(seed=step)
        for each, optimizer, keywords in zip(models, optimizers, (given, {}), strict=True):
            optimizer.zero_grad()
            each(input_ids=batch, labels=batch, **keywords).loss.backward()
            torch.nn.utils.clip_grad_norm_(each.parameters(), 1.0)
            optimizer.step()
    expected = weights(other)
    for name, weight in parameters(model).items():
        torch.testing.assert_close(weight, expected[name], msg=name)
        assert not name.endswith("_B") or weight.abs().max() > 1e-3, "trained"
    torch.testing.assert_close(logits(model.eval(), ids()), logits(other.eval(), ids()))
