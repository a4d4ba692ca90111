"""The programme that decides defaults, as plain data: for every experiment, the arms that are tried.

An arm is what its `Run` has beside the rows, directions and seed that the command line names. `options` may hold
whatever `LoraConfig`, `LanderConfig` or `LsloConfig` takes, `trainer` whatever `LanderTrainer` takes. Each of
`learning_rates` is a run of its own; the likeliest comes first, and where the best turns out to be the lowest or the
highest of them, further ones belong beside it. All arms learn for three epochs, in each of which the rate falls to
zero by a cosine, and what counts is the best of the epochs' development losses.
"""

from __future__ import annotations

from typing import Any

from runs import FFNS_ALONE

Arms = dict[str, dict[str, Any]]

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
V_O, V_O_DOWN = ["v_proj", "o_proj"], ["v_proj", "o_proj", "down_proj"]


def lora(rates: list[float], **options: Any) -> dict[str, Any]:
    return {"method": "lora", "learning_rates": rates, "options": options, "epochs": 1}


BAR: Arms = {
    "LoRA r=16, all linear": lora([5e-4, 2e-4, 1e-3], target_modules=LINEAR),
    "LoRA r=16, v o": lora([1e-3, 5e-4, 2e-3], target_modules=V_O),
    "LoRA r=16, v o down": lora([5e-4, 2e-4, 1e-3], target_modules=V_O_DOWN),
    "LoRA r=40, v o down": lora([5e-4, 2e-4, 1e-3], r=40, target_modules=V_O_DOWN),
}
"""What LANDeRMT is measured by: LoRA on all linear layers, and on those that write to the residual stream."""

RATES_OF_B: Arms = {
    "LoRA r=16, v o, alpha=16": lora([2e-3, 1e-3], lora_alpha=16, target_modules=V_O),
    "LoRA r=16, v o, alpha=64": lora([5e-4, 1e-3], lora_alpha=64, target_modules=V_O),
    "LoRA r=16, v o down, alpha=64": lora([5e-4, 2e-4], lora_alpha=64, target_modules=V_O_DOWN),
    "LoRA r=32, v o": lora([1e-3, 5e-4], r=32, target_modules=V_O),
}
"""LoRA at other ratios of the two factors' rates, which alpha / r is under Adam, and of a higher rank."""

STARTS: Arms = {
    f"{name}, {start}": lora([1e-4, 2e-4, 5e-5], **BAR[name]["options"], init_lora_weights=start, **options)
    for name in ("LoRA r=16, all linear", "LoRA r=16, v o", "LoRA r=16, v o down")
    for start, options in (("eva", {}), ("lora_ga", {"lora_ga_config": {"direction": "ArB2r"}}))
}
"""LoRA whose factors begin in the directions of the inputs or of the gradient. These rows of A meet larger activations
than random ones, so they want lower rates."""


def lander(rates: list[float], **fields: Any) -> dict[str, Any]:
    return {"method": "lander", "learning_rates": rates, "detection": {"num_layers": 18}, "epochs": 1, **fields}


def placed(
    rates: list[float], attention: str = "v o", b: float = 2.0, k: int = 18, control: str = "", **options: Any
) -> dict[str, Any]:
    """LANDeRMT with factors in the attention of all layers, B at `b` times the rate of A, as LoRA with an alpha of `b`
    r has it; of a pair's FFNs, the k relevant ones."""
    form = {**FFNS_ALONE, "projections": "output", "specific_rank": 4}
    if attention:
        form |= {"attention_modules": attention.split(), "attention_layers": "all", "attention_rank": 16}
    options = {**form, **options}
    made = lander(rates, options=options, trainer={"rates": {"factors_b": b}}, control=control)
    return {**made, "detection": {"num_layers": k}}


PLACES: Arms = {
    "v o, output": placed([1e-3, 5e-4, 2e-3]),
    "v o, output r=8": placed([1e-3, 5e-4], general_rank=8),
    "v o, output, 4 layers": placed([1e-3, 5e-4, 2e-3], k=4),
    "v o, output, 4 layers by gradients": placed([1e-3, 5e-4], k=4, control="largest gradients"),
    "v o, output, 9 layers": placed([1e-3, 5e-4], k=9),
    "v o, all projections r=4": placed([1e-3, 5e-4], projections="all", general_rank=4),
    "v o, all projections, 4 layers": placed([1e-3, 5e-4], k=4, projections="all"),
    "v o, input r=4": placed([1e-3, 5e-4], projections="input", general_rank=4),
    "v o r=24, output r=4": placed([1e-3, 5e-4], attention_rank=24, general_rank=4),
    "q k v o r=8, output r=8": placed([1e-3, 5e-4], "q k v o", attention_rank=8, general_rank=8),
    "output r=32": placed([1e-3, 5e-4], "", general_rank=32),
}
"""LANDeRMT by place, at no more than half of the parameters of LoRA on all linear layers."""

RATES_AND_FORMS: Arms = {
    "v o, output, B at 1": placed([2e-3, 1e-3], b=1.0),
    "v o, output, B at 4": placed([5e-4, 1e-3], b=4.0),
    "v o, output, specific rows": placed([1e-3, 5e-4], specific_rank=None),
    "v o, output, specific r=16": placed([1e-3, 5e-4], specific_rank=16),
    "v o, output, learned gates": placed([1e-3], car="learned"),
}
"""LANDeRMT by rate and form, in the places that writes to the residual stream."""


def upper(rates: list[float], k: int, rank: int, specific_rank: int = 2) -> dict[str, Any]:
    form = {"attention_layers": "relevant", "attention_rank": rank, "general_rank": rank}
    made = lander(rates, options={**form, "specific_rank": specific_rank}, control="last layers")
    return {**made, "detection": {"num_layers": k}, "trainer": {"rates": {"factors_b": 2.0}}}


UPPER: Arms = {
    "all linear layers of the last 16": upper([1e-3], 16, 7),
    "all linear layers of the last 14": upper([1e-3, 5e-4], 14, 8),
    "all linear layers of the last 12": upper([1e-3], 12, 9, specific_rank=3),
}
"""The defaults with nothing in the lowest layers, so that the backward pass ends above them; about as large."""

VALUES: Arms = {
    "LANDER, the defaults, v o at 4": lander([3e-4], trainer={"rates": {"factors_b": 2.0, "values": 4.0}}),
    "LoRA r=16, all linear, v o at 4": {
        **lora([3e-4], target_modules=LINEAR), "trainer": {"rates": {"values": 4.0}}
    },
    "LoRA r=16, all linear, alpha of v o at 4": lora(
        [3e-4], target_modules=LINEAR, alpha_pattern={"v_proj": 128, "o_proj": 128}
    ),
}  # fmt: skip
"""v and o of attention at a higher rate than other places; by LoRA's alpha, under Adam, it is that of B alone."""

CHOICES: Arms = {
    "v o, output, random neurons": placed([1e-3, 5e-4], control="random neurons"),
    "v o, output, all neurons": placed([1e-3, 5e-4], tune="layers"),
    "v o, output, general neurons": placed([1e-3, 5e-4], tune="general"),
    "v o, output, 4 random layers": placed([1e-3, 5e-4], k=4, control="random layers"),
    "q k, output, 4 layers": placed([1e-3, 5e-4], "q k", k=4),
    "v o, output, 4 last layers": placed([1e-3, 5e-4], k=4, control="last layers"),
}
"""Controls of what detection chooses, each of about the same size as what it stands for."""

DECIDING: Arms = {
    "LANDER, the defaults": lander([5e-4, 2e-4, 1e-3], trainer={"rates": {"factors_b": 2.0}}),
    "LANDER, 4 layers": placed([5e-4, 1e-3], k=4),
    "LANDER, all layers": placed([5e-4, 1e-3]),
    "LoRA r=16, all linear": lora([5e-4, 2e-4], target_modules=LINEAR),
    "LoRA r=16, v o": lora([1e-3, 5e-4], target_modules=V_O),
    "LoRA r=16, v o down": lora([5e-4, 2e-4], target_modules=V_O_DOWN),
}
"""What is left of LANDeRMT, and LoRA's best, for larger tables; two rates for each that is run."""

FORMS: Arms = {
    "LANDER": lander([1e-3, 5e-4, 2e-3], options=FFNS_ALONE),
    "LANDER, general neurons": lander([1e-3, 5e-4, 2e-3], options={**FFNS_ALONE, "tune": "general"}),
    "LANDER, all neurons": lander([1e-3, 5e-4, 2e-3], options={**FFNS_ALONE, "tune": "layers"}),
    "LANDER, random neurons": lander([1e-3, 5e-4, 2e-3], options=FFNS_ALONE, control="random neurons"),
}
"""LANDeRMT on all 18 layers of Gemma 3 270M, with all neurons and with random ones as its controls."""


def lslo(rates: list[float], **fields: Any) -> dict[str, Any]:
    """Ranks: 3,800,000 parameters are 16 units of rank on all linear layers of Gemma 3 270M."""
    return {"method": "lslo", "learning_rates": rates, "epochs": 1, **fields}


EQUAL_TRAINED = {"en": 1, **dict.fromkeys(("ar", "de", "fr", "it", "zh"), 3)}
LOWER = ["source"] * 13 + ["target"] * 5
"""The lower three quarters of 18 layers by the source language, as in the encoder of the paper."""
LSLO: Arms = {
    "LoRA r=16, all linear": BAR["LoRA r=16, all linear"],
    "LSLo, ranks add up to 16": lslo([1e-3, 5e-4, 2e-3], options={"rank": EQUAL_TRAINED}),
    "LSLo r=16": lslo([5e-4, 1e-3, 2e-4, 2e-3], options={"rank": 16}),
    "LSLo r=16, scaling 2": lslo([5e-4, 1e-3, 2e-4], options={"rank": 16, "scaling": 2.0}),
    "LSLo r=16, source": lslo([5e-4, 1e-3], options={"rank": 16, "index": "source"}),
    "LSLo r=16, source in 13 of 18 layers": lslo([5e-4, 1e-3], options={"rank": 16, "index": LOWER}),
    "LSLo r=16, learned": lslo([5e-4, 1e-3], options={"rank": 16, "index": "learned"}),
    "LSLo r=16, pruned by 0.9": lslo([5e-4, 1e-3], options={"rank": 16}, pruning={"ratio": 0.9}),
    "LSLo r=16, pruned by 0.9 in each layer": lslo(
        [5e-4, 1e-3], options={"rank": 16}, pruning={"ratio": 0.9, "scope": "layer"}
    ),
    "LSLo r=8, init of the paper": lslo([1e-3, 3e-4, 3e-3], options={"rank": 8, "init_weights": "paper"}),
    "LSLo r=16, FFNs": lslo([1e-3, 5e-4], options={"rank": 16, "target_modules": LINEAR[4:]}),
    "LSLo r=16, attention": lslo([1e-3, 5e-4], options={"rank": 16, "target_modules": LINEAR[:4]}),
}
"""Language-specific LoRA against LoRA that all directions share: at equal trained parameters (ranks that add up to
16), and at equal active parameters (16 for each language); by which language layers are indexed; pruned; where.

Expectation, written before anything ran. At equal trained parameters, with 100 to 1,000 rows of a direction, LSLo does
not beat joint LoRA (80%): directions help each other on this base and no interference was measured, while here the
factors of a module see a fraction of the rows. At equal active parameters it comes near joint LoRA, or behind it by
some hundredths of the development loss. The target index is better than the source index in a decoder-only model; the
learned one is between them, or as good. Pruning to 0.9 costs less than 0.05. The paper's gain is over full finetuning
in 132 directions of which many have few resources, which this is not. LSLo's case here is elsewhere: languages that
are added change nothing for others, n languages serve n² directions, and each direction is a plain LoRA adapter."""

PROGRAMME: dict[str, Arms] = {
    "bar": BAR,
    "places": PLACES,
    "rates of B": RATES_OF_B,
    "rates and forms": RATES_AND_FORMS,
    "upper layers": UPPER,
    "values": VALUES,
    "controls": CHOICES,
    "deciding": DECIDING,
    "starts": STARTS,
    "forms": FORMS,
    "lslo": LSLO,
}
