"""What the command costs before it does anything, and what it says by itself."""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import peft_landermt
from peft_landermt.cli import main, make_parser
from peft_landermt.cli.messages import in_words_of, our_messages_only
from peft_landermt.errors import ConfigError, CorpusError

COMMANDS = next(iter(make_parser()._subparsers._group_actions)).choices  # type: ignore[union-attr]
HEAVY = ("torch", "transformers", "peft", "accelerate", "datasets", "sacrebleu", "pandas", "matplotlib")

HELP = """
import sys
sys.argv = [sys.argv[1]]
from peft_landermt.cli import main
for arguments in ([], ["--help"], ["--version"], *([command, "--help"] for command in {commands}), ["train"]):
    try:
        main(arguments)
    except SystemExit:
        pass
print(*(name for name in {heavy} if name in sys.modules), file=sys.stderr)
"""


def test_help_needs_neither_torch_nor_transformers() -> None:
    script = HELP.format(commands=list(COMMANDS), heavy=HEAVY)
    root = Path(peft_landermt.__file__).parents[1]
    run = [sys.executable, "-c", script, "/usr/bin/landermt"]
    done = subprocess.run(run, capture_output=True, text=True, cwd=root, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == ""
    assert all(f"usage: landermt {command}" in done.stdout for command in COMMANDS)


def test_alone_it_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("usage: landermt") and all(command in said.out for command in COMMANDS)
    assert said.err == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_says_what_it_is_and_its_default(command: str) -> None:
    formatter = COMMANDS[command]._get_formatter()
    for action in COMMANDS[command]._actions:
        assert action.help, action.option_strings
        if action.default not in (None, [], argparse.SUPPRESS) and action.nargs != 0:
            assert "default" in formatter._expand_help(action), action.option_strings
    assert "%" not in COMMANDS[command].format_help()


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (ConfigError("neuron_map", "x", "must be a file."), "--neuron-map='x': must be a file."),
        (ConfigError("car", "paper", "needs a neuron_map."), "--car='paper': needs a --neuron-map."),
        (ConfigError("max_length", 3, "lower batch_size."), "--max-length=3: lower --batch-size."),
        (ConfigError("--lr", -1, "must be positive."), "--lr=-1: must be positive."),
        (CorpusError("path", "a: b", "has no row."), "path='a: b': has no row."),
        (
            ConfigError("general_rank, specific_rank", (1, 2), "differ."),
            "--general-rank, --specific-rank=(1, 2): differ.",
        ),
        (OSError("no\nroom"), "no room"),
    ],
)
def test_errors_are_told_in_flags(error: Exception, shown: str) -> None:
    assert in_words_of(COMMANDS["train"]._option_string_actions, error) == shown


def test_only_our_warnings_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    ours = compile("warnings.warn('ours\\n', stacklevel=2)", "ours", "exec")
    theirs = compile("warnings.warn('theirs')", "theirs", "exec")
    before = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with our_messages_only("train"):
            exec(ours, {"__name__": "peft_landermt.lander.layer", "warnings": warnings})
            exec(theirs, {"__name__": "transformers.trainer", "warnings": warnings})
            logging.getLogger("torchao").warning("theirs")
    assert warnings.showwarning is before
    assert capsys.readouterr().err == "landermt train: ours\\n\n"


@pytest.mark.slow
def test_a_command_is_quiet(tmp_path: Path) -> None:
    """Of what torch, PEFT and torchao say when they are imported, nothing is shown."""
    (tmp_path / "x.safetensors").write_bytes(b"")
    root = Path(peft_landermt.__file__).parents[1]
    run = [sys.executable, "-m", "peft_landermt.cli", "inspect", str(tmp_path / "x.safetensors")]
    done = subprocess.run(run, capture_output=True, text=True, cwd=root, timeout=300)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr


def test_the_help_tells_the_defaults_of_the_configs() -> None:
    """The parser imports no config, so its defaults are written beside theirs."""
    from peft_landermt import LanderConfig, LsloConfig
    from peft_landermt.cli.method_options import LANDER_DEFAULTS, LSLO_RANK

    fields = LanderConfig.__dataclass_fields__
    assert {name: fields[name].default for name in LANDER_DEFAULTS} == LANDER_DEFAULTS
    assert LsloConfig.__dataclass_fields__["rank"].default == LSLO_RANK
