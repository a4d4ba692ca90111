"""`landermt inspect`: what is in a neuron map or an adapter folder."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import AdapterError
from ..escaping import printable

if TYPE_CHECKING:
    from ..neuron_map import NeuronMap


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "inspect",
        help="show a neuron map or an adapter",
        description="Show what is in a neuron map or an adapter folder.",
    )
    parser.add_argument("path", help="a neuron map file or an adapter folder")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from ..neuron_map import NeuronMap

    if os.path.isdir(options.path):
        print_adapter(Path(options.path))
    else:
        print_neuron_map(NeuronMap.load(options.path))


def print_neuron_map(neuron_map: NeuronMap) -> None:
    """Print layers and conditional awareness of every pair, and neurons of every language in these layers."""
    print(printable(neuron_map.signature))
    print("\n| pair | layers (CAR) |\n|---|---|")
    for pair in neuron_map.language_pairs:
        layers = ", ".join(f"{layer} ({neuron_map.car(layer, pair):.3f})" for layer in neuron_map.layers(pair))
        print(f"| {pair} | {layers} |")
    print(f"\n| layer | general | {' | '.join(neuron_map.languages)} |")
    print("|---|---|" + "---|" * len(neuron_map.languages))
    used = sorted({layer for pair in neuron_map.language_pairs for layer in neuron_map.layers(pair)})
    for layer in used:
        specific = " | ".join(str(len(neuron_map.specific(layer, language))) for language in neuron_map.languages)
        print(f"| {layer} | {len(neuron_map.general(layer))} | {specific} |")


def print_adapter(folder: Path) -> None:
    """Print pairs, options and sizes of an adapter folder."""
    from peft import PeftConfig
    from peft.utils import SAFETENSORS_WEIGHTS_NAME

    from ..lander import LanderConfig
    from ..routed.config import RoutedConfig

    config = PeftConfig.from_pretrained(str(folder))
    if not isinstance(config, RoutedConfig):
        raise AdapterError(
            "path", str(folder), f"holds a {config.peft_type} adapter, not a LANDER one, nor an LSLO one."
        )
    if config.PEFT_TYPE != "LANDER":
        print(f"method: {config.METHOD_NAME}")
    print(f"language pairs: {', '.join(config.language_pairs or ['none named'])}")
    for origin, of_origin in config.origins.items():
        print(f"{origin.lower()}: {', '.join(of_origin)}")
    base = f"{config.base_model_name_or_path} (weights {config.base_fingerprint or 'not checked'})"
    print(f"base model: {printable(base)}")
    part, chosen_by = config.origin
    print(f"{part.lower()}: {printable(chosen_by)}")
    print("options:", *(f"{name}={value}" for name, value in config.method_options.items()))
    print(f"prompt: {config.prompt!r}")
    size = (folder / SAFETENSORS_WEIGHTS_NAME).stat().st_size
    print(f"size: {size / 1e6:.2f} MB")
    if isinstance(config, LanderConfig) and config.neuron_counts:
        print("\n| FFN | neurons | general | specific | pairs |\n|---|---|---|---|---|")
        for module, counts in config.neuron_counts.items():
            specific = ", ".join(f"{language} {count}" for language, count in counts["specific"].items())
            pairs = ", ".join(counts["language_pairs"])
            name = printable(module).replace("|", "\\|")
            print(f"| {name} | {counts['neurons']} | {counts['general']} | {specific} | {pairs} |")
