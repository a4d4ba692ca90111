"""The programme that decides defaults, as plain data: for every experiment, the arms that are tried.

An arm is what its `Run` has beside the rows, directions and seed that the command line names. `options` may hold
whatever `LoraConfig` or `LanderConfig` takes, `trainer` whatever `LanderTrainer` takes. Each of `learning_rates` is a
run of its own; the likeliest comes first, and where the best turns out to be the lowest or the highest of them,
further ones belong beside it. All arms learn for three epochs, in each of which the rate falls to zero by a cosine,
and what counts is the best of the epochs' development losses.
"""

from __future__ import annotations

from typing import Any

Arms = dict[str, dict[str, Any]]

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
V_O, V_O_DOWN = ["v_proj", "o_proj"], ["v_proj", "o_proj", "down_proj"]


def lora(rates: list[float], **options: Any) -> dict[str, Any]:
    return {"method": "lora", "learning_rates": rates, "options": options, "epochs": 3}


BAR: Arms = {
    "LoRA r=16, all linear": lora([5e-4, 2e-4, 1e-3], target_modules=LINEAR),
    "LoRA r=16, v o": lora([1e-3, 5e-4, 2e-3], target_modules=V_O),
    "LoRA r=16, v o down": lora([5e-4, 2e-4, 1e-3], target_modules=V_O_DOWN),
    "LoRA r=40, v o down": lora([5e-4, 2e-4, 1e-3], r=40, target_modules=V_O_DOWN),
}
"""What LANDeRMT is measured by: LoRA on all linear layers, and on those that write to the residual stream."""

STARTS: Arms = {
    f"{name}, {start}": lora([1e-4, 5e-5, 2e-4], **BAR[name]["options"], init_lora_weights=start, **options)
    for name in ("LoRA r=16, all linear", "LoRA r=16, v o", "LoRA r=16, v o down")
    for start, options in (("eva", {}), ("lora_ga", {"lora_ga_config": {"direction": "ArB2r"}}))
}
"""LoRA whose factors begin in the directions of the inputs or of the gradient. These rows of A meet larger activations
than random ones, so they want lower rates."""


def lander(rates: list[float], **fields: Any) -> dict[str, Any]:
    return {"method": "lander", "learning_rates": rates, "detection": {"num_layers": 18}, "epochs": 3, **fields}


FORMS: Arms = {
    "LANDER": lander([1e-3, 5e-4, 2e-3]),
    "LANDER, general neurons": lander([1e-3, 5e-4, 2e-3], options={"tune": "general"}),
    "LANDER, all neurons": lander([1e-3, 5e-4, 2e-3], options={"tune": "layers"}),
    "LANDER, random neurons": lander([1e-3, 5e-4, 2e-3], control="random neurons"),
}
"""LANDeRMT on all 18 layers of Gemma 3 270M, with all neurons and with random ones as its controls."""

PROGRAMME: dict[str, Arms] = {"bar": BAR, "starts": STARTS, "forms": FORMS}
