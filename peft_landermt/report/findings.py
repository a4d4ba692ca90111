"""What lies in a run's folder: neuron maps, adapters, training logs and scores."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME

from ..errors import ConfigError
from ..lander import LanderConfig
from ..neuron_map import NeuronMap

_CHECKPOINT = "checkpoint-"
_SCORE = {"bleu", "chrf", "bleu_signature", "num_empty", "num_runaway", "hypotheses"}


@dataclass(frozen=True)
class AdapterFacts:
    """An adapter folder: its config and the size of its weights."""

    config: LanderConfig
    megabytes: float


@dataclass
class Findings:
    """What a page tells, each thing under its path below the folder.

    Attributes:
        neuron_maps: Files that `NeuronMap.save` wrote.
        adapters: LANDER adapters, but for those of checkpoints.
        training: `log_history` of transformers' Trainer, of every run its newest state.
        scores: What `landermt evaluate --output` wrote: for every pair its scores, translations and texts.
    """

    neuron_maps: dict[str, NeuronMap] = field(default_factory=dict)
    adapters: dict[str, AdapterFacts] = field(default_factory=dict)
    training: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    scores: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)


def find(path: Path) -> Findings:
    """Look at a neuron map file, or at everything below a folder.

    Raises:
        ConfigError: There is nothing there to tell of.
        NeuronMapError: A single file is no neuron map.
    """
    if path.is_file():
        return Findings(neuron_maps={path.name: NeuronMap.load(path)})
    found = Findings(training=_training_logs(path))
    for file in _files(path, "*.safetensors"):
        if _is_neuron_map(file):
            found.neuron_maps[str(file.relative_to(path))] = NeuronMap.load(file)
    for file in _files(path, CONFIG_NAME):
        weights = file.with_name(SAFETENSORS_WEIGHTS_NAME)
        if _read_json(file).get("peft_type") == "LANDER" and weights.exists():
            config = LanderConfig.from_pretrained(str(file.parent))
            found.adapters[_name(file.parent, path)] = AdapterFacts(config, weights.stat().st_size / 1e6)
    for file in _files(path, "*.json"):
        scores = _read_json(file)
        if scores and all(_is_score(score) for score in scores.values()):
            found.scores[str(file.relative_to(path))] = scores
    if not (found.neuron_maps or found.adapters or found.training or found.scores):
        raise ConfigError(
            "path",
            str(path),
            "name a neuron map file, or a folder with a neuron map, an adapter, checkpoints or the output of "
            "landermt evaluate.",
        )
    return found


def _files(folder: Path, pattern: str) -> Iterator[Path]:
    """Files below a folder, in order, but for those of checkpoints."""
    for file in sorted(folder.rglob(pattern)):
        if not any(part.startswith(_CHECKPOINT) for part in file.relative_to(folder).parts):
            yield file


def _read_json(file: Path) -> dict[str, Any]:
    """An object; empty where the file holds something else, which is not for the page then."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:  # no JSON, or no UTF-8
        return {}
    return value if isinstance(value, dict) else {}


def _name(folder: Path, root: Path) -> str:
    return str(folder.relative_to(root)) if root in folder.parents else root.name


def _is_neuron_map(file: Path) -> bool:
    try:
        with safe_open(file, framework="pt") as opened:
            return "neuron_map" in (opened.metadata() or {})
    except SafetensorError:
        return False


def _is_score(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() >= _SCORE


def _run_folder(state: Path) -> Path:
    return state.parent.parent if state.parent.name.startswith(_CHECKPOINT) else state.parent


def _training_logs(path: Path) -> dict[str, list[dict[str, Any]]]:
    """`log_history` of every run, from the state that is furthest."""
    furthest: dict[str, dict[str, Any]] = {}
    for file in sorted(path.rglob(TRAINER_STATE_NAME)):
        state = _read_json(file)
        if not {"global_step", "log_history"} <= state.keys():
            continue
        run = _name(_run_folder(file), path)
        if run not in furthest or state["global_step"] > furthest[run]["global_step"]:
            furthest[run] = state
    return {run: state["log_history"] for run, state in furthest.items()}
