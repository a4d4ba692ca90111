"""`examples/serve.py` under load, and adapters loaded, swapped and deleted again and again.

    python benchmarks/serving.py --adapters out/pairs/*               # load test on the demo base
    python benchmarks/serving.py --requests 10000 --cycles 1000       # soak, on a random model of two layers
    python benchmarks/serving.py --requests 0 --hostile 400           # beside clients that do what they can

Every answer is compared with what the same adapter gives for that sentence alone. Without `--adapters`, ten pair
adapters with random deltas are made for a small random model.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import quantiles
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import serve
import torch
from common import append_result
from contenders import PAIRS
from hostile import Hostile
from peft import get_peft_model
from random_base import save_random

from peft_landermt import LanderConfig, detect_neurons, split_adapter, translate
from peft_landermt.demo import load_base, load_demo_corpus


def resident(pid: int | str = "self") -> float:
    """MiB of memory that a process has in use."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS"))) / 1024


def make_small(folder: Path) -> tuple[str, list[str]]:
    """A small random model and a folder for each of ten pairs."""
    sizes = {"num_hidden_layers": 2, "initializer_range": 0.2}
    model, tokenizer = save_random("tiny", folder / "base", **sizes)
    corpus = load_demo_corpus()
    calibration = {language: texts[:4] for language, texts in corpus.calibration.items()}
    found = detect_neurons(model, tokenizer, calibration, PAIRS, num_layers=1, general_ratio=0.7, progress=False)
    config = LanderConfig(task_type="CAUSAL_LM", neuron_map=found, init_weights=False)
    paths = split_adapter(get_peft_model(model, config), folder / "pairs")
    return str(folder / "base"), [str(path) for path in paths.values()]


def ask(port: int, sentence: str, pair: str) -> tuple[str, float]:
    """A translation, and the seconds it took."""
    body = json.dumps({"language_pair": pair, "sentences": [sentence]}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/translate", body, {"Content-Type": "application/json"})
    start = time.perf_counter()
    with urllib.request.urlopen(request, timeout=600) as response:
        return json.loads(response.read())["translations"][0], time.perf_counter() - start


def start_server(name: str, folders: list[str]) -> tuple[subprocess.Popen[bytes], int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, serve.__file__, "--model", name, "--port", str(port), "--adapters", *folders]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return server, port
        except OSError:
            time.sleep(0.2)
    raise RuntimeError("the server did not start; run examples/serve.py with the same options to see why")


Question = tuple[str, str]
"""A sentence and its pair."""


def expected_answers(name: str, folders: list[str], sentences: int) -> dict[Question, str]:
    """What every adapter gives for each of the shortest sentences of the corpus, by itself."""
    base, tokenizer = load_base(name)
    model = serve.load(base, folders)
    expected: dict[Question, str] = {}
    for key, config in model.peft_config.items():
        model.set_adapter(key)
        for pair in config.language_pairs:
            for text in sorted(load_demo_corpus().pair(pair)[0], key=len)[:sentences]:
                expected[text, pair] = translate(model, tokenizer, [text], pair)[0]
    return expected


def ask_all(
    port: int, chosen: list[Question], clients: int, expected: dict[Question, str], outcomes: Counter[str]
) -> list[float]:
    """Ask from several clients at once, and count what is right; the seconds of each answer."""
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(lambda question: ask(port, *question), chosen))
    pairs = {pair for _, pair in expected}
    for (text, pair), (answer, _) in zip(chosen, answers, strict=True):
        others = {expected.get((text, other)) for other in pairs if other != pair}
        same = answer == expected[text, pair]
        outcomes["same" if same else "of another pair" if answer in others else "different"] += 1
    return [taken for _, taken in answers]


def shape(seconds: list[float]) -> dict[str, float]:
    cuts = quantiles(seconds, n=20)
    return {"median_seconds": cuts[9], "p95_seconds": cuts[18]}


def load_test(name: str, folders: list[str], requests: int, clients: int, sentences: int) -> dict[str, Any]:
    """Mixed requests from several clients; every answer compared, memory of the server watched."""
    expected = expected_answers(name, folders, sentences)
    drawn = random.Random(0).choices(list(expected), k=requests)
    server, port = start_server(name, folders)
    outcomes: Counter[str] = Counter()
    seconds, memory, latencies = 0.0, [], []
    try:
        for part in range(0, requests, max(1, requests // 10)):
            start = time.perf_counter()
            chosen = drawn[part : part + max(1, requests // 10)]
            latencies += ask_all(port, chosen, clients, expected, outcomes)
            seconds += time.perf_counter() - start
            memory.append(round(resident(server.pid)))
    finally:
        server.terminate()
        server.wait()
    return {
        "part": "requests",
        "requests": requests,
        "clients": clients,
        "pairs": len({pair for _, pair in expected}),
        "answers": dict(outcomes),
        "requests_per_second": requests / seconds,
        **shape(latencies),
        "server_mib_by_tenth": memory,
    }


def hostile_test(name: str, folders: list[str], requests: int, clients: int, sentences: int) -> dict[str, Any]:
    """The same requests without and beside hostile clients, in turns; every answer compared."""
    expected = expected_answers(name, folders, sentences)
    server, port = start_server(name, folders)
    outcomes: Counter[str] = Counter()
    hostile_answers: Counter[str] = Counter()
    alone, beside = [], []
    try:
        memory = [round(resident(server.pid))]
        for part in range(4):
            drawn = random.Random(part).choices(list(expected), k=requests // 4)
            alone += ask_all(port, drawn, clients, expected, outcomes)
            with Hostile(port, sorted({pair for _, pair in expected})) as hostile:
                time.sleep(1)
                beside += ask_all(port, drawn, clients, expected, outcomes)
            hostile_answers += hostile.answers
            memory.append(round(resident(server.pid)))
    finally:
        server.terminate()
        server.wait()
    shapes = {"alone": shape(alone), "beside": shape(beside)}
    return {
        "part": "hostile",
        "requests": len(alone),
        "clients": clients,
        "pairs": len({pair for _, pair in expected}),
        "answers": dict(outcomes),
        **shapes,
        "times_alone": {key: shapes["beside"][key] / shapes["alone"][key] for key in shapes["alone"]},
        "hostile_answers": dict(sorted(hostile_answers.items())),
        "server_mib": memory,
    }


@torch.no_grad()
def cycle_test(name: str, folders: list[str], cycles: int) -> dict[str, Any]:
    """Load an adapter, swap to it, compare, delete it; one stays loaded throughout."""
    base, tokenizer = load_base(name)
    ids = torch.tensor([tokenizer("The house is old.")["input_ids"]])
    model = serve.load(base, folders)
    expected, names = [], list(model.peft_config)
    for name in names:
        model.set_adapter(name)
        expected.append(model(input_ids=ids).logits)
    for name in names[1:]:
        model.delete_adapter(name)
    wrong, memory = 0, []
    for count in range(cycles):
        index = 1 + count % (len(folders) - 1)
        model.load_adapter(folders[index], adapter_name="guest")
        model.set_adapter("guest")
        wrong += not torch.equal(model(input_ids=ids).logits, expected[index])
        model.set_adapter(names[0])
        wrong += not torch.equal(model(input_ids=ids).logits, expected[0])
        model.delete_adapter("guest")
        if (count + 1) % max(1, cycles // 10) == 0:
            memory.append(round(resident()))
    return {"part": "cycles", "cycles": cycles, "pairs": len(folders), "wrong": wrong, "mib_by_tenth": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="with --adapters: 'demo', a folder or a Hub id")
    parser.add_argument("--adapters", nargs="+", help="folders of pair adapters")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--sentences", type=int, default=20, help="sentences of each pair, the shortest of the corpus")
    parser.add_argument("--cycles", type=int, default=0)
    parser.add_argument("--hostile", type=int, default=0, help="requests without, and as many beside, hostile clients")
    parser.add_argument("--output", type=Path, help="JSON lines to append to")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as work:
        name, folders = (args.model, args.adapters) if args.adapters else make_small(Path(work))
        results = [load_test(name, folders, args.requests, args.clients, args.sentences)] if args.requests else []
        results += [hostile_test(name, folders, args.hostile, args.clients, args.sentences)] if args.hostile else []
        results += [cycle_test(name, folders, args.cycles)] if args.cycles else []
    for result in results:
        print(json.dumps(result))
        if args.output:
            append_result(args.output, {**result, "model": "small" if not args.adapters else args.model})


if __name__ == "__main__":
    main()
