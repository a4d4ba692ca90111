"""What lies in a run's folder: neuron maps, adapters, training logs and scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME

from ..errors import ConfigError
from ..lander import LanderConfig
from ..lslo import LsloConfig
from ..neuron_map import NeuronMap
from ..routed.config import RoutedConfig
from .languages import LanguageFacts, language_facts

_CHECKPOINT = "checkpoint-"
_CONFIGS: dict[str, type[RoutedConfig]] = {each.PEFT_TYPE: each for each in (LanderConfig, LsloConfig)}


def _is_number(value: Any) -> bool:
    """Whether a value is a number that a figure can show."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


_SCORE: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("bleu", "chrf", "num_empty", "num_runaway"), _is_number),
    "bleu_signature": lambda value: isinstance(value, str),
    "hypotheses": _is_list_of_texts,
}
"""What the scores of a pair have; `sources` and `references` may come with them."""


@dataclass(frozen=True)
class AdapterFacts:
    """An adapter folder: its config, the size of its weights, and what those of LSLo tell of its languages."""

    config: RoutedConfig
    megabytes: float
    languages: LanguageFacts | None = None


@dataclass
class Findings:
    """What a page tells, each thing under its path below the folder.

    Attributes:
        neuron_maps: Files that `NeuronMap.save` wrote.
        adapters: Adapters of this package, but for those of checkpoints.
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
        config_class = _CONFIGS.get(str(_read_json(file).get("peft_type")))
        if config_class is not None and weights.exists():
            config = config_class.from_pretrained(str(file.parent))
            languages = language_facts(config, file.parent) if isinstance(config, LsloConfig) else None
            facts = AdapterFacts(config, weights.stat().st_size / 1e6, languages)
            found.adapters[_name(file.parent, path)] = facts
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


def read_scores(file: Path) -> dict[str, dict[str, Any]]:
    """Read what `landermt evaluate --output` wrote: scores, translations and texts of every pair.

    Raises:
        ConfigError: The file is not there, or holds something else.
    """
    scores = _read_json(file) if file.is_file() else {}
    if not scores or not all(_is_score(score) for score in scores.values()):
        raise ConfigError("path", str(file), "holds no scores; name what landermt evaluate --output wrote.")
    return scores


def _files(folder: Path, pattern: str) -> Iterator[Path]:
    """Files below a folder, in order, but for those of checkpoints."""
    for file in sorted(folder.rglob(pattern)):
        inside_checkpoint = any(part.startswith(_CHECKPOINT) for part in file.relative_to(folder).parts)
        if file.is_file() and not inside_checkpoint:
            yield file


def _read_json(file: Path) -> dict[str, Any]:
    """An object; empty where the file holds something else, which is not for the page then."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):  # no JSON, or no UTF-8
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
    if not isinstance(value, dict) or not all(key in value and check(value[key]) for key, check in _SCORE.items()):
        return False
    texts = [value[key] for key in ("sources", "references") if key in value]
    return all(_is_list_of_texts(lines) and len(lines) == len(value["hypotheses"]) for lines in texts)


def _run_folder(state: Path) -> Path:
    return state.parent.parent if state.parent.name.startswith(_CHECKPOINT) else state.parent


def _training_logs(path: Path) -> dict[str, list[dict[str, Any]]]:
    """`log_history` of every run, from the state that is furthest."""
    furthest: dict[str, dict[str, Any]] = {}
    for file in sorted(path.rglob(TRAINER_STATE_NAME)):
        state = _read_json(file) if file.is_file() else {}
        if not _is_number(state.get("global_step")) or not isinstance(state.get("log_history"), list):
            continue
        run = _name(_run_folder(file), path)
        if run not in furthest or state["global_step"] > furthest[run]["global_step"]:
            furthest[run] = state
    return {run: _numbers(state["log_history"]) for run, state in furthest.items()}


def _numbers(log: list[Any]) -> list[dict[str, Any]]:
    """The numbers of a log's entries that have a step."""
    entries = [entry for entry in log if isinstance(entry, dict) and _is_number(entry.get("step"))]
    return [{key: value for key, value in entry.items() if _is_number(value)} for entry in entries]
