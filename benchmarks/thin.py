"""How long a projection's low-rank update takes forward and backward, by rank, and by how its factors lie in memory.

    python benchmarks/thin.py
    python benchmarks/thin.py --threads 2 --tokens 2048

"As stored": A and B row by row, as LoRA multiplies them. "Long side": as `Update.low_rank` lays them out on a CPU.
Sizes are those of Gemma 3 270M; milliseconds, the lower quartile of the repetitions, in which both take turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from common import interleave, table
from speed_report import quartiles

from peft_landermt.routed.projection import Update, add_updates

SIZES = {"gate, up": (640, 2048), "down": (2048, 640), "q": (640, 1024), "v": (640, 256)}
RANKS = (2, 6, 10, 16, 18, 32)


def step(make: Callable[..., Update], rank: int, inside: int, outside: int, tokens: int) -> Callable[[], None]:
    """Forward and backward of `make`'s update alone."""
    states = torch.randn(1, tokens, inside, requires_grad=True)
    down = torch.randn(rank, inside, requires_grad=True)
    up = torch.randn(outside, rank, requires_grad=True)
    zero, gradient = torch.zeros(1, tokens, outside), torch.randn(1, tokens, outside)

    def run() -> None:
        add_updates(zero, states, [make(down, up)]).backward(gradient)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for name, (inside, outside) in SIZES.items():
        for rank in RANKS:
            makes = {"as stored": Update, "long side": Update.low_rank}
            calls = {kind: step(make, rank, inside, outside, args.tokens) for kind, make in makes.items()}
            found = interleave(calls, args.repeats, "cpu")
            milliseconds = [f"{quartiles(values)[0] * 1e3:.2f}" for values in found.values()]
            rows.append([f"{name}, {inside} to {outside}", str(rank), *milliseconds])
    print(table(["projection", "rank", "as stored, ms", "long side, ms"], rows))


if __name__ == "__main__":
    main()
