"""The server example: mixed requests at once, what clients see when something is wrong, bad clients beside good."""

from __future__ import annotations

import http.client
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import uvicorn
from transformers import PreTrainedTokenizerFast

from peft_landermt import detect_neurons, split_adapter
from peft_landermt.translation import translate_counted

from ..conftest import PAIRS, SENTENCES, build_model
from ..tuner.helpers import adapt
from .test_examples import load as load_example

pytestmark = pytest.mark.usefixtures("usual_lengths")

Answer = tuple[int, Any, dict[str, str]]


class Client:
    """A server in a thread, and requests to it."""

    def __init__(self, folders: list[str], tokenizer: Any, architecture: str, **limits: Any) -> None:
        self.example: ModuleType = load_example("serve")
        self.model = self.example.load(build_model(architecture), folders)
        self.tokenizer = tokenizer
        self.known: dict[tuple[str, str], str] = {}
        self.limits = self.example.Limits(**{"refusal": 0.01, **limits})
        app = self.example.make_app(self.model, tokenizer, batch_size=4, limits=self.limits)
        self.server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical"))
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(timeout=30)
        assert not self.thread.is_alive()

    def send(self, body: bytes, method: str = "POST", path: str = "/translate", **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json", **headers})
            answer = connection.getresponse()
            text = answer.read().decode()
            kind = answer.headers.get("Content-Type", "")
            return answer.status, json.loads(text) if "json" in kind else text, dict(answer.headers)
        finally:
            connection.close()

    def ask(self, pair: str, sentences: list[str]) -> tuple[int, Any]:
        status, answer, _ = self.send(json.dumps({"language_pair": pair, "sentences": sentences}).encode())
        return status, answer["translations"] if status == 200 else answer

    def alone(self, pair: str, sentences: list[str]) -> list[str]:
        """What the pair's adapter gives for each sentence by itself, once the server has nothing to do."""
        while self.metrics()["landermt_translating"]:
            time.sleep(0.05)
        names = {config.language_pairs[0]: name for name, config in self.model.peft_config.items()}
        self.model.set_adapter(names[pair])
        for text in sentences:
            if (pair, text) not in self.known:
                self.known[pair, text] = translate_counted(self.model, self.tokenizer, [text], pair).texts[0]
        return [self.known[pair, text] for text in sentences]

    def leave(self, pair: str, sentences: list[str]) -> None:
        """Send a request, and do not wait for the answer."""
        body = json.dumps({"language_pair": pair, "sentences": sentences}).encode()
        head = "POST /translate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            time.sleep(0.1)

    def metrics(self) -> dict[str, float]:
        status, text, _ = self.send(b"", "GET", "/metrics")
        assert status == 200
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in text.splitlines())}


def make_folders(architecture: str, tokenizer: Any, folder: Path) -> list[str]:
    base = build_model(architecture)
    found = detect_neurons(base, tokenizer, SENTENCES, PAIRS, num_layers=2, general_ratio=0.7, progress=False)
    return [str(path) for path in split_adapter(adapt(base, found), folder).values()]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    return make_folders("llama", tokenizer, tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def client(folders: list[str], tokenizer: PreTrainedTokenizerFast) -> Iterator[Client]:
    made = Client(folders, tokenizer, "llama")
    yield made
    made.stop()


def test_translations_that_were_cut_are_told(client: Client) -> None:
    """As `translate_counted` tells of each sentence alone; a random model finds an end for some."""
    sentences = ["", *SENTENCES["en"]]
    status, answer, _ = client.send(json.dumps({"language_pair": PAIRS[0], "sentences": sentences}).encode())
    assert status == 200
    assert answer["translations"] == client.alone(PAIRS[0], sentences)  # which takes the pair's adapter
    found = translate_counted(client.model, client.tokenizer, sentences, PAIRS[0])
    assert answer["cut"] == list(found.cut)
    assert answer["cut"] and 0 not in answer["cut"]


def test_requests_of_several_pairs_at_once(client: Client) -> None:
    asked = [(pair, SENTENCES["en"][index : index + 2]) for index in range(2) for pair in PAIRS] * 2
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda request: client.ask(*request), asked))
    for (pair, sentences), (status, translations) in zip(asked, answers, strict=True):
        assert (status, translations) == (200, client.alone(pair, sentences))
    assert len({str(translations) for _, translations in answers[:3]}) == 3, "pairs differ"


def test_answers_stay_right_when_batches_step_aside(client: Client) -> None:
    """Long sentences and short ones of all pairs at once: batches are interrupted between tokens, many times."""
    before = client.metrics()["landermt_stepped_aside_total"]
    long = [("en-de", [" ".join(SENTENCES["en"][:3])[:60]]), ("de-en", [" ".join(SENTENCES["de"])[:55]])]
    short = [(pair, [text]) for pair in PAIRS for text in ("Hi.", "Tea.", "It is old.")] * 2
    with ThreadPoolExecutor(8) as pool:
        slow = [pool.submit(client.ask, *request) for request in long]
        time.sleep(0.1)
        quick = [pool.submit(client.ask, *request) for request in short]
        answers = [future.result() for future in (*slow, *quick)]
    assert client.metrics()["landermt_stepped_aside_total"] > before
    for (pair, sentences), (status, translations) in zip((*long, *short), answers, strict=True):
        assert (status, translations) == (200, client.alone(pair, sentences))


def test_a_pair_that_is_not_served(client: Client) -> None:
    status, answer = client.ask("en-it", ["Good morning."])
    assert status == 404 and "language_pair='en-it': one of en-de, de-en, en-fr." in answer["detail"]


def test_nothing_to_translate(client: Client) -> None:
    assert client.ask("en-de", [])[0] == 422
    assert client.ask("en-de", [""]) == (200, [""])
    tea = client.alone("en-de", ["Tea."])
    assert client.ask("en-de", ["", " \n\t", "Tea.", "\u3000"]) == (200, ["", "", *tea, ""])


def test_a_failure_is_told_and_survived(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any, **_options: Any) -> list[str]:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(client.example, "translate_counted", fail)
        assert client.ask("en-de", ["Good morning."])[0] == 500
    assert client.ask("en-de", ["Good morning."])[0] == 200


def test_a_sentence_that_nobody_foresaw_fails_alone(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that fails is tried again sentence by sentence."""
    real = translate_counted

    def fail(model: Any, tokenizer: Any, sentences: list[str], *args: Any, **options: Any) -> Any:
        if "poison" in sentences:
            raise RuntimeError("index out of range")
        return real(model, tokenizer, sentences, *args, **options)

    good = [("en-de", ["Tea."]), ("de-en", ["Tee."]), ("en-fr", ["Tea."])]
    with monkeypatch.context() as patch, ThreadPoolExecutor(8) as pool:
        patch.setattr(client.example, "translate_counted", fail)
        bad = [pool.submit(client.ask, "en-de", ["poison"]) for _ in range(3)]
        answers = [pool.submit(client.ask, *request) for request in good]
        assert [future.result()[0] for future in bad] == [500] * 3
        found = [future.result() for future in answers]
    assert found == [(200, client.alone(*request)) for request in good]


# What is refused, before anything waits


def asked(sentences: Any, pair: Any = "en-de") -> bytes:
    return json.dumps({"language_pair": pair, "sentences": sentences}).encode()


BAD: dict[str, tuple[bytes, int, str]] = {
    "half of a surrogate pair": (
        b'{"language_pair":"en-de","sentences":["\\ud800"]}',
        422,
        "{'sentence': 0, 'problem'",
    ),
    "one among good ones": (
        b'{"language_pair":"en-de","sentences":["a","\\udfff","b"]}',
        422,
        "{'sentence': 1, 'problem'",
    ),
    "in the pair": (b'{"language_pair":"\\ud800","sentences":["a"]}', 404, "language_pair='\\ud800'"),
    "many characters": (asked(["a" * 2001]), 422, "has 2001 characters; at most 2000 are allowed"),
    "many tokens": (asked(["a" * 257]), 422, "has 258 tokens; at most 256 are allowed"),
    "the third of four": (asked(["a", "b", "c" * 999, "d"]), 422, "{'sentence': 2, 'problem': 'has 1000 tokens"),
    "many sentences": (asked(["a"] * 101), 422, "101 sentences; from 1 to 100 are allowed"),
    "no sentence": (asked([]), 422, "0 sentences"),
    "a number": (asked([5]), 422, "valid string"),
    "null": (asked([None]), 422, "valid string"),
    "a string": (asked("a"), 422, "valid list"),
    "a nested list": (asked([["a"]]), 422, "valid string"),
    "an object": (asked({"a": "b"}), 422, "valid list"),
    "no pair": (b'{"sentences":["a"]}', 422, "language_pair"),
    "a long pair": (asked(["a"], "en-" + "x" * 10_000), 404, "one of en-de, de-en, en-fr."),
    "a pair that is a list": (asked(["a"], ["en-de"]), 422, "valid string"),
    "a list": (b"[1]", 422, ""),
    "nothing": (b"", 422, ""),
    "no JSON": (b"{", 422, "JSON"),
    "no UTF-8": (b'{"language_pair":"en-de","sentences":["\xff\xfe"]}', 400, ""),
    "nested without end": (b"[" * 100_000, 400, ""),
    "many digits": (b'{"language_pair":"en-de","sentences":[' + b"9" * 10_000 + b"]}", 400, ""),
    "not a number": (b'{"language_pair":"en-de","sentences":[NaN]}', 422, "valid string"),
    "a large body": (asked(["a" * 1_000_000]), 413, "has more than 1000000 bytes"),
}


@pytest.mark.parametrize(("body", "status", "shown"), BAD.values(), ids=BAD)
def test_what_is_refused(client: Client, body: bytes, status: int, shown: str) -> None:
    """By name, in an answer that is small whatever was sent; nothing of it is translated, and others do not notice."""
    before = client.metrics()
    with ThreadPoolExecutor(2) as pool:
        good = pool.submit(client.ask, "en-de", ["Tea."])
        found, answer, _ = client.send(body)
        assert good.result()[0] == 200
    assert found == status and shown in str(answer["detail"]) and len(str(answer)) < 500
    after = client.metrics()
    assert after["landermt_translated_total"] == before["landermt_translated_total"] + 1
    name = f'landermt_answers_total{{status="{status}"}}'
    assert after[name] == before.get(name, 0) + 1


def test_a_large_body_in_pieces_of_untold_length(client: Client) -> None:
    with socket.create_connection(("127.0.0.1", client.port), timeout=30) as connection:
        connection.sendall(b"POST /translate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        sent = 0
        try:
            while sent < 3_000_000:
                connection.sendall(b"fff0\r\n" + b"a" * 0xFFF0 + b"\r\n")
                sent += 0xFFF0
            connection.sendall(b"0\r\n\r\n")
        except OSError:
            pass  # the server has closed the connection
        else:
            assert connection.recv(100).startswith(b"HTTP/1.1 413")
    assert client.ask("en-de", ["Tea."])[0] == 200


def test_other_paths_and_methods(client: Client) -> None:
    for method, path, status in (("GET", "/translate", 405), ("DELETE", "/translate", 405), ("POST", "/health", 405),
                                 ("GET", "/nowhere", 404), ("GET", "/docs", 404)):  # fmt: skip
        assert client.send(b"", method, path)[0] == status


@pytest.mark.parametrize("architecture", ["gpt2", pytest.param("opt", marks=pytest.mark.slow)])
def test_a_sentence_that_is_too_long_for_the_model(
    architecture: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Where positions are learned, the first token beyond them would fail a whole batch. All that is let in, works."""
    client = Client(make_folders(architecture, tokenizer, tmp_path), tokenizer, architecture)
    try:
        sentences = ["a" * count for count in (5, 40, 56, 58, 60, 62, 80, 200)]
        answers = {text: client.ask("en-de", [text]) for text in sentences}
        refused = [text for text, (status, _) in answers.items() if status == 422]
        assert refused == sentences[-len(refused) :] and "a" * 200 in refused and "a" * 40 not in refused
        assert "needs" in str(answers["a" * 200][1]) and "the model has 256" in str(answers["a" * 200][1])
        taken = [text for text in sentences if text not in refused]
        with ThreadPoolExecutor(8) as pool:
            mixed = list(pool.map(lambda text: client.ask("en-de", [text]), taken))
        assert mixed == [(200, client.alone("en-de", [text])) for text in taken]
    finally:
        client.stop()


# Limits of time and room


@pytest.fixture(scope="module")
def strict(folders: list[str], tokenizer: PreTrainedTokenizerFast) -> Iterator[Client]:
    made = Client(folders, tokenizer, "llama", waiting=20, seconds=2.0, reading=0.5)
    yield made
    made.stop()


def slow(client: Client, monkeypatch: pytest.MonkeyPatch, seconds: float) -> threading.Event:
    """Every batch takes at least so long, unless the event is set."""
    real, go = translate_counted, threading.Event()

    def waiting(*args: Any, **options: Any) -> Any:
        go.wait(seconds)
        return real(*args, **options)

    monkeypatch.setattr(client.example, "translate_counted", waiting)
    return go


def test_a_full_queue(strict: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """429 with Retry-After, and the one that has the most waiting is refused for one that has less."""
    go = slow(strict, monkeypatch, 1.0)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(strict.ask, "en-de", ["Tea."])
        time.sleep(0.2)
        large = pool.submit(strict.send, asked(["It rained."] * 18))
        time.sleep(0.2)
        small = [pool.submit(strict.ask, "en-de", ["We drink tea."]) for _ in range(3)]
        status, answer, headers = large.result()
        assert status == 429 and "too many sentences are waiting" in answer["detail"]
        assert 1 <= int(headers["retry-after"]) <= 60
        status, _, headers = strict.send(asked(["a"] * 21))
        assert status == 429 and "retry-after" in headers
        go.set()
        assert [future.result()[0] for future in (first, *small)] == [200] * 4
    assert strict.ask("en-de", ["Tea."])[0] == 200


def test_a_model_that_takes_too_long(strict: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        go = slow(strict, patch, 30.0)
        status, answer, headers = strict.send(asked(["Tea."]))
        assert status == 503 and "not translated in 2.0 seconds" in answer["detail"] and "retry-after" in headers
        time.sleep(0.2)
        told = strict.send(b"", "GET", "/health")[:2]
        go.set()
        assert told == (503, {"status": "stuck", "language_pairs": PAIRS, "waiting": 0})
    assert strict.ask("en-de", ["Tea."])[0] == 200
    assert strict.send(b"", "GET", "/health")[1] == {"status": "ok", "language_pairs": PAIRS, "waiting": 0}


def test_a_body_that_does_not_arrive(strict: Client) -> None:
    with socket.create_connection(("127.0.0.1", strict.port), timeout=30) as connection:
        connection.sendall(b"POST /translate HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert strict.ask("en-de", ["Tea."])[0] == 200
        assert connection.recv(100).startswith(b"HTTP/1.1 408")


def test_work_of_clients_that_left_is_dropped(client: Client) -> None:
    """Twenty requests of ninety-six sentences, and one of the longest, without anyone who waits for them."""
    before = client.metrics()
    start = time.monotonic()
    assert client.ask("en-de", ["We drink tea."])[0] == 200
    alone = time.monotonic() - start
    for _ in range(20):
        client.leave("en-de", ["We drink tea."] * 96)
    client.leave("de-en", ["a" * 200])
    start = time.monotonic()
    assert client.ask("en-de", ["We drink tea."])[0] == 200
    assert time.monotonic() - start < 5 + 3 * alone
    after = client.metrics()
    assert after["landermt_dropped_total"] - before["landermt_dropped_total"] > 1000
    assert after["landermt_waiting_sentences"] == 0


# Everything at once


@pytest.mark.slow
def test_bad_clients_beside_good_ones(client: Client) -> None:
    """Every answer to a good client is right, while others send what they can; `benchmarks/serving.py` times it."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    from hostile import HOSTILE, Hostile

    with Hostile(client.port, PAIRS) as hostile:
        good = [(PAIRS[index % 3], ["Hi.", "Tea."][index % 2 :][:1]) for index in range(18)]
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda request: client.ask(*request), good))
    assert set(hostile.sent) == set(HOSTILE) and all(count > 0 for count in hostile.sent.values())
    assert not hostile.errors
    expected = {str(request): client.alone(*request) for request in good}
    assert answers == [(200, expected[str(request)]) for request in good]
