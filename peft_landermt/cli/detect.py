"""`landermt detect`: a neuron map from parallel text files."""

from __future__ import annotations

import argparse
import json
from typing import Any, get_args

from ..choices import ActivationStatistic, LayerStatistic
from .inspect import print_neuron_map
from .options import (
    add_model_options,
    is_main,
    layer_count,
    load_model,
    parse_assignments,
    processes,
    read_lines,
)
from .outputs import add_overwrite_option, claim

_EXAMPLE = """example:
  landermt detect --sentences en=calib.en de=calib.de --pairs en-de de-en --output map.safetensors"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "detect",
        help="find the layers and neurons of language pairs",
        description="Find the layers and neurons that matter to language pairs, from parallel sentences.",
        epilog=_EXAMPLE,
    )
    add_model_options(parser)
    parser.add_argument(
        "--sentences",
        nargs="+",
        required=True,
        metavar="LANG=FILE",
        help="one sentence a line, the same in every file",
    )
    parser.add_argument("--pairs", nargs="+", required=True, help="directions, such as en-de de-en")
    parser.add_argument("--output", required=True, help="neuron map to write, such as map.safetensors")
    add_overwrite_option(parser)
    parser.add_argument(
        "--num-layers", type=layer_count, default="all", help="relevant layers of a pair, such as 4, or all"
    )
    parser.add_argument("--general-ratio", type=float, default=0.9, help="share of language-general neurons")
    parser.add_argument("--batch-size", type=int, default=8, help="sentences of a forward pass")
    parser.add_argument("--max-length", type=int, default=256, help="tokens of a sentence")
    parser.add_argument(
        "--activation-statistic",
        choices=get_args(ActivationStatistic),
        default="mean",
        help="what a layer's activation is: the mean of its neurons', or of their absolute values",
    )
    parser.add_argument(
        "--layer-statistic",
        choices=get_args(LayerStatistic),
        default="activation",
        help="what layers are chosen by; gradient: also which parts of the model matter",
    )
    parser.add_argument(
        "--no-normalize-awareness",
        dest="normalize_awareness",
        action="store_false",
        help="compare awareness between languages as it is, as in the paper; otherwise each has a sum of 1 in a layer",
    )
    parser.add_argument(
        "--ffn-layout",
        type=json.loads,
        metavar="JSON",
        help='projections of FFNs that are not recognised, such as \'{"inputs": ["w1", "w3"], "output": "w2"}\'',
    )
    parser.add_argument(
        "--extends", metavar="MAP", help="neuron map that gets further languages and pairs; what it says stays"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from ..detection import detect_neurons

    claim(options, [options.output])
    sentences = {
        language: read_lines(path) for language, path in parse_assignments(options.sentences, "--sentences").items()
    }
    model, tokenizer = load_model(options)
    neuron_map = detect_neurons(
        model,
        tokenizer,
        sentences,
        options.pairs,
        num_layers=options.num_layers,
        general_ratio=options.general_ratio,
        batch_size=options.batch_size,
        max_length=options.max_length,
        activation_statistic=options.activation_statistic,
        normalize_awareness=options.normalize_awareness,
        progress=is_main(options),
        ffn_layout=options.ffn_layout,
        distributed=processes(options) is not None,
        extends=options.extends,
        layer_statistic=options.layer_statistic,
    )
    if is_main(options):
        neuron_map.save(options.output)
        print_neuron_map(neuron_map)
        print(f"written: {options.output}")
