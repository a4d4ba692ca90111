"""The server example: mixed requests at once, and what clients see when something is wrong."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import pytest
import uvicorn
from transformers import PreTrainedTokenizerFast

from peft_landermt import detect_neurons, split_adapter, translate

from ..conftest import PAIRS, SENTENCES, build_model
from ..tuner.helpers import adapt
from .test_examples import load as load_example


class Client:
    """A server in a thread, and requests to it."""

    def __init__(self, folders: list[str], tokenizer: Any) -> None:
        self.example: ModuleType = load_example("serve")
        self.model = self.example.load(build_model("llama"), folders)
        self.tokenizer = tokenizer
        app = self.example.make_app(self.model, tokenizer, batch_size=4)
        self.server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical"))
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]

    def ask(self, pair: str, sentences: list[str]) -> tuple[int, Any]:
        body = json.dumps({"language_pair": pair, "sentences": sentences}).encode()
        url, header = f"http://127.0.0.1:{self.port}/translate", {"Content-Type": "application/json"}
        try:
            with urllib.request.urlopen(urllib.request.Request(url, body, header), timeout=60) as response:
                return response.status, json.loads(response.read())["translations"]
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Iterator[Client]:
    base = build_model("llama")
    found = detect_neurons(base, tokenizer, SENTENCES, PAIRS, num_layers=2, general_ratio=0.7, progress=False)
    folders = split_adapter(adapt(base, found), tmp_path_factory.mktemp("pairs"))
    made = Client([str(folder) for folder in folders.values()], tokenizer)
    yield made
    made.server.should_exit = True
    made.thread.join(timeout=30)
    assert not made.thread.is_alive()


def test_requests_of_several_pairs_at_once(client: Client) -> None:
    requests = [(pair, SENTENCES["en"][index : index + 2]) for index in range(3) for pair in PAIRS] * 2
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda request: client.ask(*request), requests))
    names = {config.language_pairs[0]: name for name, config in client.model.peft_config.items()}
    for (pair, sentences), (status, translations) in zip(requests, answers, strict=True):
        client.model.set_adapter(names[pair])
        expected = [translate(client.model, client.tokenizer, [text], pair)[0] for text in sentences]
        assert (status, translations) == (200, expected)
    assert len({str(translations) for _, translations in answers[:3]}) == 3, "pairs differ"


def test_a_pair_that_is_not_served(client: Client) -> None:
    status, text = client.ask("en-it", ["Good morning."])
    assert status == 404 and "language_pair='en-it': one of en-de, de-en, en-fr." in text


def test_nothing_to_translate(client: Client) -> None:
    assert client.ask("en-de", [])[0] == 422
    assert client.ask("en-de", [""]) == (200, [""])


def test_a_failure_is_told_and_survived(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any, **_options: Any) -> list[str]:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(client.example, "translate", fail)
        assert client.ask("en-de", ["Good morning."])[0] == 500
    assert client.ask("en-de", ["Good morning."])[0] == 200
