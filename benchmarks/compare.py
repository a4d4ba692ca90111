"""Tell by how much one run translates better than another: paired bootstrap, by direction and over all together.

    python benchmarks/compare.py --data DIR --runs runs.jsonl --keys OURS OTHER --results results/comparisons.jsonl

Both runs have scored the same lines. Directions of FLORES-200 are resampled together, sentence by sentence, for it is
the same sentences in all languages.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from common import append_result, read_results, read_test, table
from lines import label
from run import translations
from runs import Test

from peft_landermt.translation import compare_over_pairs, compare_translations
from peft_landermt.translation.significance import Difference

Compared = dict[str, dict[str, Difference]]


def compare(ours: dict[str, Any], other: dict[str, Any], test: Test, data: Path, runs: Path) -> Compared:
    """Compare two runs' translations of a test set, by direction, and `"all"`: their means over directions."""
    references = {}
    for pair in ours["scores"][str(test)]:
        texts = read_test(data, test.name, pair, test.first, test.last)
        assert texts is not None
        references[pair] = texts[1]
    hypotheses, baseline = (
        {
            pair: translations(runs, line["model"], line["key"], str(test), pair).read_text("utf-8").splitlines()
            for pair in references
        }
        for line in (ours, other)
    )
    by_pair = {
        pair: compare_translations(hypotheses[pair], baseline[pair], references[pair], pair) for pair in references
    }
    return {**by_pair, "all": compare_over_pairs(hypotheses, baseline, references)}


def read_comparison(line: dict[str, Any]) -> Compared:
    """The comparison that a line of results holds."""
    return {
        pair: {metric: Difference(**found) for metric, found in metrics.items()}
        for pair, metrics in line["compared"].items()
    }


def comparison_table(compared: Compared, names: tuple[str, str], test: str) -> tuple[list[str], list[list[Any]]]:
    """One row for each direction, and for all."""
    rows = []
    for pair, metrics in compared.items():
        rows.append([pair])
        for found in metrics.values():
            difference = f"{found.difference:+.2f} ({found.low:+.2f} to {found.high:+.2f})"
            rows[-1] += [f"{found.score + found.difference:.2f}", f"{found.score:.2f}", difference]
    heads = [f"{metric}, {name}" for metric in ("BLEU", "chrF++") for name in (*names, "difference")]
    return [f"paired bootstrap, {test}", *heads], rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with flores200/ and test/")
    parser.add_argument("--runs", type=Path, required=True, help="results of run.py, translations beside them")
    parser.add_argument("--keys", nargs=2, required=True, metavar="KEY", help="of the two runs")
    parser.add_argument("--results", type=Path, help="JSON lines to add the comparison to")
    args = parser.parse_args()
    by_key = {line["key"]: line for line in read_results(args.runs)}
    ours, other = (by_key[key] for key in args.keys)
    for name in ours["scores"]:
        words = name.split()
        test = Test(words[0], int(words[1]), int(words[3]))
        compared = compare(ours, other, test, args.data, args.runs)
        print(table(*comparison_table(compared, ("first", "second"), name)))
        if args.results is not None:
            append_result(
                args.results,
                {
                    "runs": [label(ours), label(other)],
                    "keys": args.keys,
                    "seeds": [ours["seed"], other["seed"]],
                    "test": name,
                    "model": ours["model"],
                    "compared": {
                        pair: {metric: found._asdict() for metric, found in metrics.items()}
                        for pair, metrics in compared.items()
                    },
                },
            )


if __name__ == "__main__":
    main()
