"""Train and score one method on real parallel text.

    python benchmarks/finetune.py --data DIR --method lander --pairs en-de de-en

`--data` names a folder with `train/en-XX.tsv.gz` and `flores200/devtest.XX.txt.gz`. Every method sees the same rows in
the same order through the same trainer. With several `--lr` the learning rate is chosen on FLORES lines 101 to 140 by
the loss after training on the first `--search-rows` rows of each direction; the test lines are never looked at.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from common import append_result
from methods import METHODS, Run, Test, Workbench


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and flores200/")
    parser.add_argument("--method", choices=METHODS, default="lander")
    parser.add_argument("--pairs", nargs="+", default=["en-de", "de-en", "en-fr", "fr-en", "en-zh", "zh-en"])
    parser.add_argument("--rows", type=int, default=400, help="sentence pairs per direction")
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--lr", type=float, nargs="+", default=[5e-4, 1e-3, 2e-3])
    parser.add_argument(
        "--search-rows", type=int, default=60, help="rows per direction for choosing among several --lr"
    )
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument(
        "--sampling",
        choices=("group_by_length", "random"),
        default="group_by_length",
        help="which rows share a batch; alike ones need half the padding",
    )
    parser.add_argument("--templates", type=int, default=1, help="how many of the ten prompt templates to draw from")
    parser.add_argument("--test-lines", type=int, nargs=2, default=[201, 260], help="FLORES lines to score; 0 0: none")
    parser.add_argument("--model", default="demo", help="'demo', a GGUF file, a folder or a Hub id")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON lines file that the result is added to")
    lander = parser.add_argument_group("lander")
    lander.add_argument("--num-layers", type=int, default=10, help="relevant layers of a pair")
    lander.add_argument("--general-ratio", type=float, default=0.9)
    lander.add_argument("--general-rank", type=int, default=16, help="0: whole rows, as in the paper")
    lander.add_argument("--car", default="off")
    lander.add_argument("--inactive-neurons", default="keep")
    lander.add_argument("--tune", default="pair")
    lander.add_argument("--row-lr-ratio", type=float, default=0.1, help="learning rate of rows beside factors")
    parser.add_argument("--lora-rank", type=int, default=16)
    return parser.parse_args()


def make_run(args: argparse.Namespace) -> Run:
    names = ("method", "rows", "search_rows", "batch_size", "accumulation", "sampling", "epochs", "templates", "seed")
    options: dict[str, Any] = {}
    if args.method == "lander":
        options = {name: getattr(args, name) for name in ("car", "inactive_neurons", "tune")}
        options["general_rank"] = args.general_rank or None
    elif args.method in ("lora", "lora-ffn"):
        options = {"r": args.lora_rank, "lora_alpha": 2 * args.lora_rank}
    return Run(
        pairs=tuple(args.pairs),
        learning_rates=tuple(args.lr),
        detection={name: getattr(args, name) for name in ("num_layers", "general_ratio")},
        options=options,
        row_lr_ratio=args.row_lr_ratio,
        **{name: getattr(args, name) for name in names},
    )


def main() -> None:
    args = parse_arguments()
    first, last = args.test_lines
    test = Test("flores", first, last)
    result = Workbench(args.data, args.model, args.dtype, args.device).execute(make_run(args), [test] if last else [])
    result.update(model=args.model, dtype=args.dtype, device=args.device, test=str(test))
    scores = result["scores"] = result["scores"].get(str(test), {})
    if scores:
        print(f"| {args.method}, FLORES {first} to {last} | BLEU | chrF++ |\n|---|---|---|")
        for pair, row in scores.items():
            print(f"| {pair} | {row['bleu']:.2f} | {row['chrf']:.2f} |")
        for name in ("bleu", "chrf"):
            result[f"mean_{name}"] = sum(row[name] for row in scores.values()) / len(scores)
        print(f"| mean | {result['mean_bleu']:.2f} | {result['mean_chrf']:.2f} |")
    append_result(args.output, result)


if __name__ == "__main__":
    main()
