"""How each method is put onto a base."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from common import ffn_projections
from houlsby import add_bottlenecks
from peft import LoraConfig, ShiraConfig, get_peft_model, initialize_lora_eva_weights, inject_adapter_in_model
from runs import LANDER, LORA, Run

from peft_landermt import LanderConfig, LsloConfig, NeuronMap

Batches = Callable[[], Sequence[dict[str, Any]]]
"""Gives batches of training rows, for starts that look at data."""


def lora(r: int = 16, **options: Any) -> LoraConfig:
    """PEFT's LoRA on all linear layers, with an alpha of twice its rank where the options say nothing else."""
    defaults = {"lora_alpha": 2 * r, "target_modules": "all-linear"}
    return LoraConfig(task_type="CAUSAL_LM", r=r, **{**defaults, **options})


def adapt(model: Any, run: Run, neuron_map: NeuronMap | None, batches: Batches = tuple) -> Any:
    """The base with a run's adapter in it."""
    if run.method in LORA:
        options = dict(run.options)
        if run.method == "lora-ffn":
            options["target_modules"] = ffn_projections(model, neuron_map, run.pairs)
        elif run.method == "lora-attention":
            options["exclude_modules"] = ffn_projections(model)
        model = _with_lora(model, lora(**options), batches)
    elif run.method == "shira":
        options = {"r": 16, "target_modules": "all-linear", "random_seed": run.seed, **run.options}
        model = get_peft_model(model, ShiraConfig(task_type="CAUSAL_LM", **options))
    elif run.method == "lslo":
        config = LsloConfig(task_type="CAUSAL_LM", language_pairs=list(run.pairs), **run.options)
        model = get_peft_model(model, config)
    if run.method == "adapter":
        add_bottlenecks(model.requires_grad_(False), **run.options)
    elif run.method == "adapter-lora":
        add_bottlenecks(model)
    elif run.method in LANDER:
        model = _with_lander(model, run, neuron_map)
    return model


def _with_lora(model: Any, config: LoraConfig, batches: Batches) -> Any:
    """LoRA, started as its config says."""

    def pass_all() -> None:
        for batch in batches():
            model(**batch, use_cache=False).loss.backward()

    if config.init_lora_weights == "lora_ga":
        from peft.tuners.lora.loraga import preprocess_loraga  # PEFT has it from 0.20 on

        preprocess_loraga(model, config, pass_all)
    model = get_peft_model(model, config)
    if config.init_lora_weights == "eva":
        initialize_lora_eva_weights(model, batches(), show_progress_bar=False)
    return model


def _with_lander(model: Any, run: Run, neuron_map: NeuronMap | None) -> Any:
    if run.method == "lander-lora":
        model = inject_adapter_in_model(lora(lora_alpha=16, exclude_modules=ffn_projections(model)), model)
        del model.peft_config  # else PEFT takes LoRA for an adapter of LANDeRMT's
    config = LanderConfig(task_type="CAUSAL_LM", neuron_map=neuron_map, language_pairs=list(run.pairs), **run.options)
    model = get_peft_model(model, config)
    for name, weight in model.named_parameters():
        if ".lora_" in name:  # beside it, and frozen by PEFT
            weight.requires_grad_(True)
    return model
