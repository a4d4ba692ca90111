"""Training, generating, compiling, and batches over several adapters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import pipeline

from ...conftest import randomize_adapter
from ..helpers import ids, logits, same_state
from .case import Case, close, trainable

NAMES = ["second", "__base__", "default"]


def generates_text(case: Case) -> None:
    model = case.adapted()
    case.choose(model)
    generate = pipeline("text-generation", model=model, tokenizer=case.tokenizer)
    text = generate("We drink", max_new_tokens=3, do_sample=False)[0]["generated_text"]
    assert text.startswith("We drink")


def trains_on_prepared_base(case: Case) -> None:
    """Freezes the base and turns gradient checkpointing on; what it prepares must still train."""
    base = prepare_model_for_kbit_training(case.base())
    model = get_peft_model(base, case.config()).train()
    model(input_ids=ids(), labels=ids(), **case.route).loss.backward()
    assert all(weight.grad is not None for weight in trainable(model).values())


def checkpoints_gradients(case: Case) -> None:
    gradients = []
    for keywords in (None, {"use_reentrant": False}, {"use_reentrant": True}):
        model = case.adapted().train()
        if keywords is not None:
            model.gradient_checkpointing_enable(keywords)
            model.enable_input_require_grads()
        model(input_ids=ids(), labels=ids(), **case.route).loss.backward()
        gradients.append({name: weight.grad for name, weight in trainable(model).items()})
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient, msg=name)


def compiles_without_graph_breaks(case: Case) -> None:
    if case.architecture == "opt":
        pytest.skip("not applicable: OPT's FFN is no module that could be compiled alone")
    model = case.adapted(**({"inactive_neurons": "drop"} if case.kind == "learned" else {}))
    case.choose(model)
    layer = next(iter(case.layers(model).values()))
    states = torch.randn(3, 8, layer.in_features)
    arguments = (states, torch.randn_like(states)) if case.architecture == "bloom" else (states,)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*arguments), layer(*arguments), atol=1e-6, rtol=1e-6)


def runs_in_half_precision(case: Case) -> None:
    """Deltas stay in float32, also in a file that is asked for them."""
    for dtype in (torch.bfloat16, torch.float16):
        options = {"verify_base": dtype == torch.bfloat16, "save_dtype": "fp32"}
        model = case.adapted(base=case.base().to(dtype), **options)
        assert all(weight.dtype == torch.float32 for weight in trainable(model).values())
        out = case.out(model)
        assert out.dtype == dtype and torch.isfinite(out).all()
        model.save_pretrained(case.folder)
        for low_cpu_mem_usage in (False, True):
            base = case.base().to(dtype)
            loaded = PeftModel.from_pretrained(base, case.folder, low_cpu_mem_usage=low_cpu_mem_usage)
            assert same_state(loaded.state_dict(), model.state_dict()) and case.out(loaded).equal(out)
        mask = torch.ones(3, 8, dtype=torch.long)
        assert loaded.generate(ids(), attention_mask=mask, max_new_tokens=2, **case.route).shape == (3, 10)
        model.train()(input_ids=ids(), labels=ids(), **case.route).loss.backward()


def _two_adapters(case: Case) -> PeftModel:
    model = case.adapted(seed=1)
    model.add_adapter("second", case.config())
    model.set_adapter("second")
    randomize_adapter(model, seed=2)
    return model.eval()


def _of_rows(case: Case, rows: list[int]) -> dict[str, Any]:
    """Adapters, and pairs where there are several, of some of three samples."""
    pairs = {key: [value[row] for row in rows] for key, value in case.route.items()}
    return {"adapter_names": [NAMES[row] for row in rows], **pairs}


def mixes_adapters(case: Case) -> None:
    """Each row of a batch over two adapters, pairs and the base equals the row alone."""
    model = _two_adapters(case)
    mixed = logits(model, ids(), **_of_rows(case, [0, 1, 2]))
    for row in range(3):
        close(logits(model, ids()[row : row + 1], **_of_rows(case, [row])), mixed[row : row + 1])
    mask = torch.ones(3, 8, dtype=torch.long)
    for how in ({"do_sample": False}, {"do_sample": False, "num_beams": 2}, {"do_sample": True, "top_k": 1}):
        options = {"max_new_tokens": 3, "min_new_tokens": 3, **how}
        together = model.generate(input_ids=ids(), attention_mask=mask, **_of_rows(case, [0, 1, 2]), **options)
        for row in range(3):
            alone = {"input_ids": ids()[row : row + 1], "attention_mask": mask[:1], **_of_rows(case, [row])}
            assert model.generate(**alone, **options)[0].equal(together[row])


def mixes_adapters_in_training(case: Case) -> None:
    """Every adapter of a mixed batch gets the gradient of its own rows."""
    model = _two_adapters(case)
    for name in ("default", "second"):
        model.set_requires_grad(name)

    def gradients(rows: list[int]) -> dict[str, torch.Tensor | None]:
        model.zero_grad()
        model(input_ids=ids()[rows], **_of_rows(case, rows)).logits.square().sum().backward()
        return {name: weight.grad for name, weight in trainable(model).items()}

    model.train()
    together, alone = gradients([0, 1, 2]), [gradients([0]), gradients([2])]
    assert any(gradient is not None and gradient.abs().max() > 0 for gradient in together.values())
    for name, gradient in together.items():
        parts = [part[name] for part in alone if part[name] is not None]
        if gradient is None:
            assert not parts
        else:
            scale = float(gradient.abs().max()) + 1e-6
            torch.testing.assert_close(sum(parts), gradient, rtol=1e-3, atol=1e-4 * scale, msg=name)
