"""`landermt report`: one HTML page about a neuron map or a run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .outputs import add_overwrite_option, claim


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "report",
        help="write an HTML page about a neuron map or a run",
        description="Write one self-contained HTML page: relevant layers, neurons and awareness of a neuron map; and "
        "of a folder also adapters, training curves, and scores and translations that landermt evaluate wrote.",
        epilog="example:\n  landermt report out --output out/report.html",
    )
    parser.add_argument("path", type=Path, help="a neuron map file or a folder")
    parser.add_argument("--output", type=Path, help="HTML file to write (default: report.html beside or in the path)")
    add_overwrite_option(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from ..report import write_report

    folder = options.path if options.path.is_dir() else options.path.parent
    output = options.output or folder / "report.html"
    claim(options, [output])
    write_report(options.path, output)
    print(f"written: {output}")
