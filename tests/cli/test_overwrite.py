"""No command writes over what it reads, nor without `--overwrite` over anything; what it writes is whole."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast, Trainer

from peft_landermt.cli import main, make_parser, outputs

from ..conftest import build_model
from ..full_disk import no_file_beyond
from ..tuner.helpers import adapt
from .test_cli import PAIRS, WEIGHTS, Workshop, fails


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Workshop:
    """With a map, and an adapter that was not trained."""
    made = Workshop(tmp_path_factory.mktemp("workshop"), tokenizer)
    assert main(made.detect()) == 0
    adapt(build_model("llama"), language_pairs=PAIRS, general_rank=4).save_pretrained(made.adapter)
    adapt(build_model("llama"), language_pairs=["en-de"], general_rank=4).save_pretrained(made.root / "one")
    return made


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# What each command writes: its arguments but for the output, and one file of it, "" where the output is that file


def detect(shop: Workshop) -> tuple[list[str], str]:
    return shop.detect()[:-2], ""


def evaluate(shop: Workshop) -> tuple[list[str], str]:
    return ["evaluate", *shop.model, "--adapter", str(shop.adapter), *shop.data, "--limit", "1"], ""


def report(shop: Workshop) -> tuple[list[str], str]:
    return ["report", str(shop.map)], ""


def train(shop: Workshop) -> tuple[list[str], str]:
    return shop.train("--epochs", "1", "--save-steps", "2")[:-6] + ["--epochs", "1", "--save-steps", "2"], WEIGHTS


def split(shop: Workshop) -> tuple[list[str], str]:
    return ["split", *shop.model, "--adapter", str(shop.adapter)], f"en-de/{WEIGHTS}"


def join(shop: Workshop) -> tuple[list[str], str]:
    return ["join", *shop.model, str(shop.root / "one")], WEIGHTS


COMMANDS: dict[str, Callable[[Workshop], tuple[list[str], str]]] = {
    command.__name__: command for command in (detect, evaluate, report, train, split, join)
}
every_command = pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)


@every_command
def test_what_is_there_is_kept(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: Callable[..., tuple[list[str], str]]
) -> None:
    """Refused before any work; `--overwrite` replaces it."""
    arguments, name = command(shop)
    output = tmp_path / "output"
    there = output / name if name else output
    there.parent.mkdir(parents=True, exist_ok=True)
    there.write_bytes(b"mine")
    (tmp_path / "other").write_bytes(b"mine")
    before = contents(tmp_path)
    fails(capsys, [*arguments, "--output", str(output)], "is there already; name another, or add --overwrite")
    assert contents(tmp_path) == before
    assert main([*arguments, "--output", str(output), "--overwrite"]) == 0
    assert there.read_bytes() != b"mine" and (tmp_path / "other").read_bytes() == b"mine"
    assert not [path for path in tmp_path.rglob("*") if "partial" in path.name or "saving" in path.name]


@every_command
@pytest.mark.parametrize("room", [0, 300])
def test_a_full_disk(
    shop: Workshop,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: Callable[..., tuple[list[str], str]],
    room: int,
) -> None:
    """One line says so, and what was there before is there, whole."""
    arguments, name = command(shop)
    output = tmp_path / "output"
    there = output / name if name else output
    there.parent.mkdir(parents=True, exist_ok=True)
    there.write_bytes(b"mine")
    with no_file_beyond(room):
        assert main([*arguments, "--output", str(output), "--overwrite"]) == 2
    assert re.search(rf"^landermt {arguments[0]}: .*([Tt]oo large|room|space|write)", capsys.readouterr().err, re.M)
    assert there.read_bytes() == b"mine"
    assert not [path for path in tmp_path.rglob("*") if "partial" in path.name or "saving" in path.name]


INPUTS: dict[str, Callable[[Workshop], tuple[list[str], Path]]] = {
    "sentences": lambda shop: (detect(shop)[0], shop.root / "calib.de"),
    "a file of the base": lambda shop: (detect(shop)[0], shop.base / "model.safetensors"),
    "a corpus": lambda shop: (evaluate(shop)[0], shop.root / "en-de.tsv"),
    "half of a corpus": lambda shop: (
        ["evaluate", *shop.model, "--data", f"en-de={shop.root / 'calib'}"], shop.root / "calib.de",
    ),
    "the adapter": lambda shop: (evaluate(shop)[0], shop.adapter / WEIGHTS),
    "the map": lambda shop: (report(shop)[0], shop.map),
    "the options": lambda shop: ([*evaluate(shop)[0], "--config", str(shop.root / "config.yaml")],
                                 shop.root / "config.yaml"),
    "the base": lambda shop: (train(shop)[0], shop.base),
    "an adapter to join": lambda shop: (join(shop)[0], shop.root / "one"),
    "the pair's folder to split": lambda shop: (
        ["split", *shop.model, "--adapter", str(shop.root / "pairs" / "en-de")], shop.root / "pairs",
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", ["as it is", "relative", "through a link", "as a hard link"])
@pytest.mark.parametrize("case", INPUTS.values(), ids=INPUTS)
def test_what_is_read_is_never_written(
    shop: Workshop,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    case: Callable[..., tuple[list[str], Path]],
    way: str,
) -> None:
    """With `--overwrite` too, whatever name it goes by."""
    (shop.root / "config.yaml").write_text("num-beams: 1\n")
    shutil.copytree(shop.root / "one", shop.root / "pairs" / "en-de", dirs_exist_ok=True)
    arguments, path = case(shop)
    name = path
    if way == "relative":
        monkeypatch.chdir(shop.root)
        name = Path("base", "..", path.relative_to(shop.root))
    elif way == "through a link" or path.is_dir():
        name = tmp_path / "link"
        name.symlink_to(path)
    elif way == "as a hard link":
        name = tmp_path / "hard"
        os.link(path, name)
    before = contents(shop.root)
    fails(capsys, [*arguments, "--output", str(name), "--overwrite"], "is what the command reads; name another")
    assert contents(shop.root) == before


@pytest.mark.parametrize("options", [["--overwrite"], []], ids=["overwrite", "plain"])
def test_an_output_that_cannot_be_written_is_told_first(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    (tmp_path / "file").touch()
    for arguments in (detect(shop)[0], evaluate(shop)[0], train(shop)[0], join(shop)[0]):
        output = ["--output", str(tmp_path / "file" / "output"), *options]
        fails(capsys, [*arguments, *output], "cannot be written", "is no folder for it")
        if arguments[0] in ("train", "join"):
            fails(capsys, [*arguments, "--output", str(tmp_path / "file"), *options], "is a file; name a folder")


def test_texts_of_an_evaluation(shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "en-de.ref").write_text("mine")
    arguments = [*evaluate(shop)[0], "--texts", str(tmp_path)]
    fails(capsys, arguments, "en-de.ref", "is there already")
    assert main([*arguments, "--overwrite"]) == 0
    assert (tmp_path / "en-de.ref").read_text() != "mine" and len(list(tmp_path.iterdir())) == 6


def test_train_into_the_folder_of_a_run(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its adapter and checkpoints stay; with `--overwrite` they go when the new run begins, the card's text stays."""
    output = tmp_path / "out"
    command = [*train(shop)[0], "--output", str(output)]
    assert main(command) == 0
    (output / "checkpoint-4").rename(output / "checkpoint-40")
    (output / "README.md").write_text((output / "README.md").read_text() + "\nFilled in by hand.\n")
    before = contents(output)
    fails(capsys, [*command, "--seed", "5"], "is there already")
    fails(capsys, [*command, "--dry-run"], "is there already")
    for name in (*outputs.ADAPTER, "trainer_state.json"):
        (output / name).rename(tmp_path / name)
    fails(capsys, command, "checkpoint-", "is there already")
    for name in (*outputs.ADAPTER, "trainer_state.json"):
        (tmp_path / name).rename(output / name)
    assert contents(output) == before
    with monkeypatch.context() as patch:
        patch.setattr(
            "peft_landermt.cli.training.load_model", lambda options: (_ for _ in ()).throw(OSError("no model"))
        )
        fails(capsys, [*command, "--overwrite"], "no model")
    assert contents(output) == before
    assert main([*command, "--seed", "5", "--overwrite"]) == 0
    assert {path.name for path in output.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    assert contents(output)[WEIGHTS] != before[WEIGHTS]
    assert "Filled in by hand." in (output / "README.md").read_text()


def test_a_merged_model_is_whole_or_not_there(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["merge", *shop.model, "--adapter", str(shop.root / "one"), "--output", str(tmp_path / "model")]
    for room in (0, 300, 5000):
        with no_file_beyond(room):
            assert main(command) == 2
        assert list(tmp_path.iterdir()) == []
    assert main(command) == 0
    merged = contents(tmp_path)
    assert not [name for name, content in merged.items() if str(shop.root).encode() in content]
    fails(capsys, command, "is there already")
    assert contents(tmp_path) == merged


@pytest.mark.parametrize("where", ["neuron_map.safetensors", "adapter/adapter_config.json", "results.json"])
def test_quickstart_into_a_folder_of_its_own(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    (tmp_path / where).parent.mkdir(exist_ok=True)
    (tmp_path / where).touch()
    fails(capsys, ["quickstart", *shop.model, "--output", str(tmp_path)], where, "is there already")


def test_every_command_with_an_output_has_the_option() -> None:
    subparsers = next(action for action in make_parser()._actions if action.dest == "command")
    assert isinstance(subparsers.choices, dict)
    for name, parser in subparsers.choices.items():
        known = parser._option_string_actions
        assert ("--overwrite" in known) == ("--output" in known and name != "merge"), name


# Checkpoints


BREAKS: dict[str, Callable[[Path], Any]] = {
    "no state": lambda folder: (folder / "trainer_state.json").unlink(),
    "a cut state": lambda folder: os.truncate(folder / "trainer_state.json", 20),
    "an empty state": lambda folder: (folder / "trainer_state.json").write_text(""),
    "the state of another step": lambda folder: (folder / "trainer_state.json").write_text('{"global_step": 3}'),
    "no weights": lambda folder: (folder / WEIGHTS).unlink(),
    "cut weights": lambda folder: os.truncate(folder / WEIGHTS, 1000),
    "no optimizer": lambda folder: (folder / "optimizer.pt").unlink(),
    "a cut optimizer": lambda folder: os.truncate(folder / "optimizer.pt", 1000),
    "an empty optimizer": lambda folder: (folder / "optimizer.pt").write_bytes(b""),
    "no scheduler": lambda folder: (folder / "scheduler.pt").unlink(),
    "no random state": lambda folder: (folder / "rng_state.pth").unlink(),
    "nothing": lambda folder: [path.unlink() for path in folder.iterdir() if path.is_file()],
}


@pytest.fixture(scope="module")
def run(shop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps, with checkpoints of the second and the fourth."""
    output = tmp_path_factory.mktemp("run") / "out"
    assert main([*train(shop)[0], "--output", str(output)]) == 0
    return output


@pytest.mark.parametrize("damage", BREAKS.values(), ids=BREAKS)
def test_resume_takes_the_newest_whole_checkpoint(
    shop: Workshop,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], Any],
) -> None:
    output = tmp_path / "out"
    shutil.copytree(run, output)
    damage(output / "checkpoint-4")
    taken: list[str | None] = []
    whole = Trainer.train

    def spy(self: Trainer, resume_from_checkpoint: str | None = None, **options: Any) -> Any:
        taken.append(resume_from_checkpoint)
        return whole(self, resume_from_checkpoint, **options)

    monkeypatch.setattr(Trainer, "train", spy)
    command = [*train(shop)[0], "--output", str(output), "--resume"]
    assert main(command) == 0
    assert taken == [str(output / "checkpoint-2")]
    assert contents(output)[WEIGHTS] == contents(run)[WEIGHTS], "as if it had never stopped"
    damage(output / "checkpoint-2")
    damage(output / "checkpoint-4")
    fails(capsys, command, "--resume=", "holds no whole checkpoint; leave out --resume")


@pytest.mark.slow
def test_an_interruption_names_only_a_whole_checkpoint(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C at every stage of writing the second checkpoint, and of the first."""
    for method in ("save_model", "_save_optimizer_and_scheduler", "_save_scaler", "_save_rng_state"):
        for last, kept in ((2, "kept: {}/checkpoint-2; --resume goes on"), (1, "no checkpoint yet in {}")):
            output, calls = tmp_path / f"{method}-{last}", []

            def interrupted(
                self: Trainer,
                *args: Any,
                calls: list[int] = calls,
                last: int = last,
                method: str = method,
                **options: Any,
            ) -> None:
                calls.append(1)
                ORIGINAL[method](self, *args, **options)
                if len(calls) == last:
                    raise KeyboardInterrupt

            with monkeypatch.context() as patch:
                patch.setattr(Trainer, method, interrupted)
                assert main([*train(shop)[0], "--output", str(output)]) == 130
            assert kept.format(output) in capsys.readouterr().err


ORIGINAL = {
    name: getattr(Trainer, name)
    for name in ("save_model", "_save_optimizer_and_scheduler", "_save_scaler", "_save_rng_state")
}
