"""Write docs/cli.md from the parser of the command line: `python docs/site/cli_page.py`, which `make docs` does."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from peft_landermt.cli import Help, make_parser

PAGE = Path(__file__).parents[1] / "cli.md"
INTRODUCTION = """# Command line

Every command, from its parser; `landermt COMMAND --help` prints the same. The [tutorial](tutorial.md) shows them at
work, [training](training.md) says more on corpora and what is logged.

Options may stand in a YAML file, by the names of their flags, and what the command line says itself wins:

```
landermt train --config examples/configs/train.yaml --dry-run
```

```yaml
{example}```
"""
_USUAL = ("options", "optional arguments", "positional arguments")
"""Groups that argparse makes itself."""
_SHARED = 8
"""Options that as many commands have, in the same words, are listed once."""


def page() -> str:
    """The whole page."""
    subparsers = next(action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction))
    commands: dict[str, argparse.ArgumentParser] = subparsers.choices
    counts = Counter(
        _row(action) for command in commands.values() for action in command._actions if action.dest != "help"
    )
    shared = [row for row, count in counts.items() if count >= _SHARED]
    example = (PAGE.parents[1] / "examples" / "configs" / "train.yaml").read_text(encoding="utf-8")
    parts = [INTRODUCTION.format(example=example)]
    parts += [f"- [`{name}`](#{name}): {action.help}" for name, action in _helps(subparsers).items()]
    parts += ["", "## Shared options", "", *_table(shared)]
    for name, command in commands.items():
        parts += ["", f"## {name}", "", str(command.description)]
        if command.epilog:
            examples = command.epilog.removeprefix("example:").strip("\n").splitlines()
            parts += ["", "```", *(line.strip() for line in examples), "```"]
        for group in command._action_groups:
            rows = [_row(action) for action in group._group_actions if action.dest != "help"]
            if own := [row for row in rows if row not in shared]:
                named = group.title not in _USUAL
                parts += ["", *([f"**{group.title}**", ""] if named else []), *_table(own)]
        taken = [row[0].split()[0].strip("`,") for row in map(_row, command._actions) if row in shared]
        parts += ["", f"Shared: {', '.join(f'`{flag}`' for flag in taken)}."]
    return "\n".join(parts) + "\n"


def _helps(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> dict[str, argparse.Action]:
    return {action.dest: action for action in subparsers._choices_actions}


def _table(rows: list[tuple[str, str]]) -> list[str]:
    return ["| Option | |", "|---|---|", *(f"| {option} | {meaning} |" for option, meaning in rows)]


def _row(action: argparse.Action) -> tuple[str, str]:
    """An option as it is typed, and what it means with its default."""
    value = ""
    if action.nargs != 0:
        name = action.metavar or ("{" + ",".join(map(str, action.choices)) + "}" if action.choices else "")
        value = str(name or action.dest.upper())
        value += {"+": " ...", "*": " ..."}.get(str(action.nargs), "")
    shown = [f"{option} {value}".strip() for option in action.option_strings] or [value]
    meaning = Help("landermt")._expand_help(action) if action.help else ""
    if action.required and action.option_strings:
        meaning = f"{meaning} (required)".strip()
    return ", ".join(f"`{each}`" for each in shown).replace("|", "\\|"), meaning.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
