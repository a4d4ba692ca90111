"""Files are whole or not there, also on a full disk, and when the process is interrupted or killed."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from peft_landermt import LanderConfig, NeuronMap, outputs, write_model_card
from peft_landermt.cli.outputs import write_json
from peft_landermt.outputs import new_folder, write_text, written_whole
from peft_landermt.report import write_report

from .full_disk import no_file_beyond
from .tuner.helpers import adapt


@pytest.fixture
def architecture() -> str:
    return "llama"


# Every way in which the package writes a file: (folder, which of two contents)


def text(folder: Path, first: bool, **_made: Any) -> None:
    write_text(folder / "file", "one\n" * 5000 if first else "two\n" * 6000)


def numbers(folder: Path, first: bool, **_made: Any) -> None:
    write_json(folder / "file", [1.5] * (500 if first else 600))


def tensors(folder: Path, first: bool, **_made: Any) -> None:
    with written_whole(folder / "file") as partial:
        save_file({"a": torch.full((5000,), float(first))}, partial)


def neuron_map_file(folder: Path, first: bool, neuron_map: NeuronMap, **_made: Any) -> None:
    dataclasses.replace(neuron_map, signature="one" if first else "two").save(folder / "map.safetensors")


def card(folder: Path, first: bool, **_made: Any) -> None:
    config = LanderConfig(task_type="CAUSAL_LM", language_pairs=["en-de" if first else "en-fr"])
    write_model_card(config, folder)


def adapter(folder: Path, first: bool, base: PreTrainedModel, **_made: Any) -> None:
    model = adapt(base, language_pairs=["en-de"], seed=int(first)) if first else base.__dict__["adapted"]
    base.__dict__["adapted"] = model
    model.save_pretrained(str(folder))


WRITERS: dict[str, Callable[..., None]] = {
    writer.__name__: writer for writer in (text, numbers, tensors, neuron_map_file, card, adapter)
}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_full_disk(write: Callable[..., None], tmp_path: Path, base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    """Wherever the room ends: a new file is not there, an old one is as it was, and nothing else is left."""
    made = {"base": base, "neuron_map": neuron_map}
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder, True, **made)
    before = contents(folder)
    size = max(map(len, before.values()))
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    for room in (0, 1, 17, size // 2, size - 1):
        for place, expected in ((folder, before), (fresh, {})):
            with no_file_beyond(room), pytest.raises(OSError):
                write(place, False, **made)
            assert contents(place) == expected, f"{room} bytes of room"
    write(folder, False, **made)
    assert contents(folder).keys() == before.keys()


def test_a_full_disk_and_a_page(tmp_path: Path, neuron_map: NeuronMap) -> None:
    neuron_map.save(tmp_path / "map.safetensors")
    (tmp_path / "report.html").write_text("old")
    with no_file_beyond(5000), pytest.raises(OSError):
        write_report(tmp_path / "map.safetensors", tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == "old" and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError, ValueError])
def test_an_interruption(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(error), written_whole(path) as partial:
        partial.write_text("ne")
        raise error
    with pytest.raises(error), new_folder(tmp_path / "folder") as partial:
        (partial / "file").write_text("ne")
        raise error
    assert contents(tmp_path) == {"file": b"old"}


_WRITE_FOREVER = """
import importlib.util
spec = importlib.util.spec_from_file_location("outputs", {module!r})
outputs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(outputs)
print("ready", flush=True)
count = 0
while True:
    count = (count + 1) % 10
    outputs.write_text({path!r}, str(count) * 300_000)
"""


def test_a_killed_process_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    script = _WRITE_FOREVER.format(module=outputs.__file__, path=str(path))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        seen = set()
        for _ in range(200):
            time.sleep(0.002)
            if path.exists():
                found = path.read_text()
                assert len(found) == 300_000 and len(set(found)) == 1
                seen.add(found[0])
        os.kill(process.pid, signal.SIGKILL)
    assert len(path.read_text()) == 300_000 and len(seen) > 1


def test_writers_at_once(tmp_path: Path) -> None:
    """Two processes, or threads, that write one file: it is one's or the other's."""
    path = tmp_path / "file"
    threads = [threading.Thread(target=write_text, args=(path, letter * 100_000)) for letter in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(path.read_text())) == 1 and len(path.read_text()) == 100_000
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_links_pipes_and_folders(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (tmp_path / "link").symlink_to(outside)
    write_text(tmp_path / "link", "new")
    assert outside.read_text() == "mine" and (tmp_path / "link").read_text() == "new"
    write_text(tmp_path / "a" / "b" / "file", "new")
    assert (tmp_path / "a" / "b" / "file").read_text() == "new"
    write_text("/dev/null", "new")
    assert not Path("/dev/null").is_file()
    os.mkfifo(tmp_path / "pipe")
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    read: list[str] = []
    reader.start()
    write_text(tmp_path / "pipe", "new")
    reader.join()
    assert read == ["new"] and (tmp_path / "pipe").is_fifo()


def test_files_are_as_readable_as_any(tmp_path: Path) -> None:
    (tmp_path / "ordinary").write_text("")
    write_text(tmp_path / "file", "")
    with written_whole(tmp_path / "tensors") as partial:
        save_file({"a": torch.zeros(1)}, partial)
    with new_folder(tmp_path / "folder") as partial:
        save_file({"a": torch.zeros(1)}, partial / "tensors")
    modes = {path.stat().st_mode for path in tmp_path.rglob("*") if path.is_file()}
    assert len(modes) == 1


def test_a_new_folder(tmp_path: Path) -> None:
    for name in ("absent", "empty"):
        if name == "empty":
            (tmp_path / name).mkdir()
        with new_folder(tmp_path / name) as partial:
            write_json(partial / "file.json", {"a": "ä"})
            assert not (tmp_path / name / "file.json").exists()
        assert json.loads((tmp_path / name / "file.json").read_text(encoding="utf-8")) == {"a": "ä"}
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").touch()
    with pytest.raises(OSError, match="not empty"), new_folder(tmp_path / "taken") as partial:
        (partial / "file").touch()
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["mine"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["absent", "empty", "taken"]
