"""Clients that others must not suffer from: each does one bad thing again and again, as fast as it can."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

HEAD = "POST /translate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def post(port: int, body: bytes, timeout: float = 120) -> int:
    """Status of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("POST", "/translate", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def asked(pair: str, sentences: Sequence[str]) -> bytes:
    return json.dumps({"language_pair": pair, "sentences": list(sentences)}).encode()


def no_text(port: int, pair: str) -> int:
    return post(port, b'{"language_pair":"%s","sentences":["\\ud800"]}' % pair.encode())


def one_bad_of_many(port: int, pair: str) -> int:
    return post(port, asked(pair, [*["Good morning."] * 50, "a" * 100_000]))


def much_text(port: int, pair: str) -> int:
    return post(port, asked(pair, ["many words " * 50_000]))


def longest_allowed(port: int, pair: str) -> int:
    return post(port, asked(pair, ["It rained. " * 20]))


def many_sentences(port: int, pair: str) -> int:
    return post(port, asked(pair, ["We drink tea."] * 100))


def no_json(port: int, pair: str) -> int:
    return post(port, b"[" * 100_000)


def no_such_pair(port: int, pair: str) -> int:
    return post(port, asked("xx-yy", ["Good morning."]))


def large_body(port: int, pair: str) -> int:
    return post(port, asked(pair, ["a" * 5_000_000]))


def send_and_leave(port: int, pair: str) -> int:
    body = asked(pair, ["The house is old."] * 96)
    with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
        connection.sendall(f"{HEAD}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        time.sleep(0.05)
    return 0


def half_a_body(port: int, pair: str) -> int:
    with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
        connection.sendall(f"{HEAD}Content-Length: 1000\r\n\r\n{{".encode())
        time.sleep(0.5)
    return 0


def silence(port: int, pair: str) -> int:
    """Twenty connections on which nothing comes."""
    connections = [socket.create_connection(("127.0.0.1", port), timeout=120) for _ in range(20)]
    time.sleep(0.5)
    for connection in connections:
        connection.close()
    return 0


HOSTILE: dict[str, Callable[[int, str], int]] = {
    act.__name__: act
    for act in (
        no_text, one_bad_of_many, much_text, longest_allowed, many_sentences, no_json, no_such_pair, large_body,
        send_and_leave, half_a_body, silence,
    )
}  # fmt: skip


class Hostile:
    """One client of each kind, in threads, until the block ends; `sent` counts what they did, `answers` what came."""

    def __init__(self, port: int, pairs: Sequence[str]) -> None:
        self.sent: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.errors: list[str] = []
        self._stopped = threading.Event()
        chosen = {name: pairs[place % len(pairs)] for place, name in enumerate(HOSTILE)}
        self._threads = [threading.Thread(target=self._go_on, args=(port, *item)) for item in chosen.items()]

    def _go_on(self, port: int, name: str, pair: str) -> None:
        while not self._stopped.is_set():
            try:
                status = HOSTILE[name](port, pair)
                self.answers[f"{name} {status}"] += 1
                if status == 500:
                    self.errors.append(name)
            except (OSError, http.client.HTTPException):
                self.answers[f"{name} cut off"] += 1
                time.sleep(0.05)
            self.sent[name] += 1

    def __enter__(self) -> Hostile:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()
