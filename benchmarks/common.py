"""What the benchmarks share: real corpora from a folder, timing, results with their provenance, and tables."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from peft_landermt import NeuronMap, __version__
from peft_landermt.ffn import find_ffns

CALIBRATION, GRADIENTS, DEVELOPMENT, SHOTS, KNOCK_OUT = (1, 32), (1, 8), (101, 140), (141, 145), (146, 165)
"""Lines of FLORES-200 devtest for neuron detection, for choosing layers by gradients, for the learning rate, for
examples in the prompt and for silencing neurons. Lines up to 200 are never scored."""
RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "peft", "safetensors", "sacrebleu")


def languages_of(pairs: Iterable[str]) -> list[str]:
    """The languages of directions, sorted, each once."""
    return sorted({language for pair in pairs for language in pair.split("-")})


def ffn_projections(model: nn.Module, neuron_map: NeuronMap | None = None, pairs: Iterable[str] = ()) -> list[str]:
    """Names of the linear layers in the FFNs that are relevant to some of the pairs; in all FFNs without a map."""
    ffns = find_ffns(model)
    layers: Iterable[int] = range(len(ffns))
    if neuron_map is not None:
        layers = sorted({layer for pair in pairs for layer in neuron_map.layers(pair)})
    return [f"{ffns[layer].name}.{projection}" for layer in layers for projection in ffns[layer].projections]


def read_cells(path: Path) -> Iterator[list[str]]:
    """The cells of every line of a packed TSV file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield line.rstrip("\n").split("\t")


def read_flores(data: Path, first: int, last: int, languages: list[str]) -> dict[str, list[str]]:
    """Lines `first` to `last` (counted from 1, both included) of FLORES-200 devtest, by language."""
    sentences = {}
    for language in languages:
        with gzip.open(data / "flores200" / f"devtest.{language}.txt.gz", "rt", encoding="utf-8") as file:
            sentences[language] = [line.rstrip("\n") for line in file][first - 1 : last]
    return sentences


def read_test(data: Path, name: str, pair: str, first: int, last: int) -> tuple[list[str], list[str]] | None:
    """Lines `first` to `last` of a test set, sources and references; None where it has not this direction."""
    source, target = pair.split("-")
    if name == "flores":
        texts = read_flores(data, first, last, [source, target])
        return texts[source], texts[target]
    path = data / "test" / f"{name}.en-{target if source == 'en' else source}.tsv.gz"
    if not path.exists():
        return None
    rows = list(itertools.islice(read_cells(path), first - 1, last))
    english, foreign = ([row[side] for row in rows] for side in (0, 1))
    return (english, foreign) if source == "en" else (foreign, english)


def read_training_rows(data: Path, language_pairs: list[str], rows: int) -> list[dict[str, str]]:
    """The first `rows` usable sentence pairs of every direction; all directions hold English."""
    examples = []
    for pair in language_pairs:
        source, target = pair.split("-")
        other = target if source == "en" else source
        cells = read_cells(data / "train" / f"en-{other}.tsv.gz")
        # A direction and its reverse take different sentences, as two corpora would.
        start = 0 if source == "en" else rows
        usable = [row for row in cells if len(row) >= 2 and all(0 < len(text) <= 300 for text in row[:2])]
        for english, foreign, *_ in usable[start : start + rows]:
            texts = {"en": english, other: foreign}
            examples.append({"source": texts[source], "target": texts[target], "language_pair": pair})
    return examples


@torch.no_grad()
def plain_text_loss(model: Any, tokenizer: Any, texts: Iterable[str], **inputs: Any) -> float:
    """Mean token loss of texts, one at a time."""
    total, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]], device=model.device)
        loss = model(input_ids=ids, labels=ids, **inputs).loss
        total, count = total + float(loss) * (ids.shape[1] - 1), count + ids.shape[1] - 1
    return total / count


def interleave(
    contenders: Mapping[str, Callable[[], Any]],
    repeats: int,
    device: str,
    warmup: int = 2,
    after: Mapping[str, Callable[[], Any]] | None = None,
) -> dict[str, list[float]]:
    """Seconds that every contender took, one value a repetition.

    In a repetition all contenders run once, in turn and every other time in reverse, so that whatever else the machine
    does meets all of them. `after` names what undoes a contender's work; it is not timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for repetition in range(-warmup, repeats):
        for name in list(contenders)[:: -1 if repetition % 2 else 1]:
            synchronize(device)
            start = time.perf_counter()
            contenders[name]()
            synchronize(device)
            taken = time.perf_counter() - start
            if repetition >= 0:
                seconds[name].append(taken)
            if after and name in after:
                after[name]()
    return seconds


def synchronize(device: str) -> None:
    """Wait until an accelerator has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def memory_now(device: str) -> int:
    """Bytes in use, the allocator's on a GPU and resident ones on a CPU; `memory_peak` counts from here on."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    status = Path("/proc/self/status")
    if not status.exists():
        return memory_peak(device)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew
    return _status_bytes(status, "VmRSS")


def memory_peak(device: str) -> int:
    """Most bytes in use since `memory_now`; where the system does not reset the peak, since the process began."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():
        return _status_bytes(status, "VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _status_bytes(status: Path, field: str) -> int:
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


def provenance() -> dict[str, Any]:
    """Versions, commit and hardware, for every result."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False
        ).stdout.strip()

    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    return {
        "versions": {**versions, "peft_landermt": __version__},
        "commit": git("rev-parse", "--short", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--", "peft_landermt", "benchmarks")),
        "hardware": {
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
            "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "command": shlex.join(_shareable(sys.argv)),
        "date": time.strftime("%Y-%m-%d"),
    }


def _shareable(arguments: list[str]) -> list[str]:
    """The command without where files lie on this machine."""
    named = [os.path.basename(part) if os.path.isabs(part) else part for part in arguments]
    return ["python", *named]


def append_result(path: Path | None, result: dict[str, Any]) -> None:
    """Add one JSON line to a results file."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**result, "provenance": provenance()}, ensure_ascii=False) + "\n")


def read_results(path: Path) -> list[dict[str, Any]]:
    """The lines of a results file; none where there is no file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def shown(cell: Any) -> str:
    return f"{cell:.2f}" if isinstance(cell, float) else str(cell)


def table(header: list[str], rows: list[list[Any]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(shown, line))} |" for line in lines)
