"""The page: findings and figures put into a template."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

from ..errors import ConfigError
from ..escaping import published_name
from ..outputs import write_text
from ..version import __version__
from . import figures
from .findings import find
from .results import find_results

SAMPLES = 5
"""Translations shown of every direction."""


def write_report(path: str | os.PathLike[str], output: str | os.PathLike[str]) -> None:
    """Write a page about a neuron map, or about a run's folder, that needs nothing but itself.

    Args:
        path: A neuron map file; or a folder in which neuron maps, adapters, checkpoints of transformers' Trainer and
            outputs of `landermt evaluate` are looked for.
        output: HTML file to write; an existing one is replaced when the page is whole.

    Raises:
        ConfigError: There is nothing to tell of at `path`, `output` is `path`, or matplotlib is not installed.
        NeuronMapError: A neuron map is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise ConfigError("path", str(path), "there is no such file or folder.")
    if os.path.exists(output) and path.samefile(output):
        raise ConfigError("output", str(output), "is what the page is about; name another file.")
    figures.check_installed()
    from jinja2 import Environment, StrictUndefined

    found = find(path)
    source = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(source).render(
        title=path.resolve().name,
        found=found,
        results=find_results(found.scores),
        figures=figures,
        samples=SAMPLES,
        version=__version__,
        published_name=published_name,
    )
    write_text(output, page, errors="xmlcharrefreplace")
