"""Whose turn it is in the server example, with a translator that only counts, so that every wait can be counted."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import batching
from batching import SHARE, Batches, Full, Job, Sentence

STEP = 0.001


class Translator:
    """Writes one token after the other, as `generate` does; a text of capitals cannot be translated."""

    def __init__(self, step: float = STEP) -> None:
        self.step = step
        self.batches: list[list[str]] = []
        self.tokens = 0
        self.may_go = threading.Event()
        self.may_go.set()

    def __call__(self, sentences: Sequence[Sentence], processors: Any) -> list[str]:
        self.may_go.wait(timeout=30)
        self.batches.append([sentence.text for sentence in sentences])
        if any(sentence.text.isupper() for sentence in sentences):
            raise RuntimeError("out of memory")
        for _ in range(max(sentence.limit for sentence in sentences)):
            processors[0](None, None)
            self.tokens += 1
            time.sleep(self.step)
        return [sentence.text[::-1] for sentence in sentences]


@contextmanager
def running(translator: Translator, batch_size: int = 4, room: int = 1000) -> Iterator[Batches]:
    batches = Batches(translator, batch_size, room, lambda sentences: True)
    batches.start()
    try:
        yield batches
    finally:
        translator.may_go.set()
        batches.stop()
        assert not batches.thread.is_alive()


def job(*texts: str, client: str = "a", limit: int = 20) -> Job:
    return Job(client, [Sentence(text, "en-de", [7] * 10, limit) for text in texts])


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), timeout=60))


def test_requests_take_turns() -> None:
    """One sentence that comes after requests of ninety is in the next batch but one, not in the last."""

    async def test() -> None:
        translator = Translator()
        translator.may_go.clear()
        with running(translator) as batches:
            large = [job(*(f"{name}{index}" for index in range(90))) for name in "xyz"]
            small = job("small")
            for one in (*large, small):
                batches.submit(one)
            translator.may_go.set()
            assert await small.future == ["llams"]
            assert len(translator.batches) <= 3
            for one in large:
                assert await one.future == [sentence.text[::-1] for sentence in one.sentences]
            assert all(len(batch) == 4 for batch in translator.batches[1:-1])

    run(test)


def test_clients_take_turns() -> None:
    """However many requests one of them sends."""

    async def test() -> None:
        translator = Translator()
        translator.may_go.clear()
        with running(translator) as batches:
            many = [job(f"m{index}", client="greedy") for index in range(200)]
            few = [job(f"f{index}", client="modest") for index in range(4)]
            for one in (*many, *few):
                batches.submit(one)
            translator.may_go.set()
            await asyncio.gather(*(one.future for one in few))
            assert len(translator.batches) <= 4

    run(test)


def by_tokens(translator: Translator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only tokens move, whatever else the machine does."""
    monkeypatch.setattr(batching, "GATHER", 0)
    monkeypatch.setattr(
        batching, "time", SimpleNamespace(monotonic=lambda: translator.tokens * STEP, sleep=time.sleep)
    )


def test_short_sentences_do_not_wait_for_long_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        translator = Translator()
        by_tokens(translator, monkeypatch)
        with running(translator) as batches:
            long = job("long", limit=1000)
            batches.submit(long)
            await asyncio.sleep(0.05)
            for count in range(1, 6):
                short = job("short")
                begun = translator.tokens
                batches.submit(short)
                assert await short.future == ["trohs"]
                # its own 20 tokens, and as many of the long one's as that one may run for earlier interruptions
                assert translator.tokens - begun <= 20 + SHARE * 20 * count + 50
            assert not long.future.done() and batches.stepped_aside == 5
            assert await long.future == ["gnol"]

    run(test)


def test_a_large_request_steps_aside_for_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of a sentence each do not wait for a batch of a fourth that has as many tokens before it as they have."""

    async def test() -> None:
        translator = Translator()
        by_tokens(translator, monkeypatch)
        with running(translator) as batches:
            large = job(*(f"l{index}" for index in range(12)), limit=150)
            batches.submit(large)
            await asyncio.sleep(0.02)
            begun = translator.tokens
            small = [job(f"s{index}", limit=60) for index in range(3)]
            for one in small:
                batches.submit(one)
            assert await asyncio.gather(*(one.future for one in small)) == [[f"{index}s"] for index in range(3)]
            assert translator.tokens - begun < 150 and batches.stepped_aside >= 1
            assert await large.future == [f"l{index}"[::-1] for index in range(12)]

    run(test)


def test_long_sentences_are_not_starved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside short ones without end, a long one gets a fifth of the time."""

    async def test() -> None:
        translator = Translator()
        by_tokens(translator, monkeypatch)
        with running(translator) as batches:
            long = job("long", limit=300)
            batches.submit(long)
            ended = False

            async def flood() -> None:
                while not ended:
                    short = job("short", limit=60)
                    batches.submit(short)
                    await short.future

            floods = [asyncio.create_task(flood()) for _ in range(3)]
            assert await long.future == ["gnol"]
            ended = True
            await asyncio.gather(*floods)
            assert translator.tokens <= 300 * (1 + 2 / SHARE)

    run(test)


def test_sentences_of_like_length_share_a_batch() -> None:
    async def test() -> None:
        translator = Translator(step=0)
        translator.may_go.clear()
        with running(translator) as batches:
            limits = {"a": 20, "b": 60, "c": 70, "d": 250, "e": 260, "f": 1000, "g": 16, "h": 1023}
            jobs = [job(name, limit=limit) for name, limit in limits.items()]
            for one in jobs:
                batches.submit(one)
            translator.may_go.set()
            await asyncio.gather(*(one.future for one in jobs))
            for batch in translator.batches:
                shared = [limits[name] for name in batch]
                assert max(shared) < 4 * min(shared)

    run(test)


def test_work_of_clients_that_left_is_dropped() -> None:
    async def test() -> None:
        translator = Translator()
        with running(translator) as batches:
            first, second, third = job("first", limit=1000), job("second", limit=1000), job("third")
            batches.submit(first)
            await asyncio.sleep(0.05)
            batches.submit(second)
            batches.drop(second)
            assert batches.waiting == 0
            batches.drop(first)
            await asyncio.sleep(0.05)
            stopped = translator.tokens
            assert stopped < 500
            batches.submit(third)
            assert await third.future == ["driht"]
            assert translator.tokens == stopped + 20 and ["second"] not in translator.batches
            assert batches.dropped == 2 and not first.future.done()

    run(test)


def test_the_largest_request_makes_room() -> None:
    async def test() -> None:
        translator = Translator()
        translator.may_go.clear()
        with running(translator, room=100) as batches:
            blocking = job("blocking")
            batches.submit(blocking)
            while batches.waiting:
                await asyncio.sleep(0.001)
            large, medium, small = job(*["l"] * 60), job(*["m"] * 40), job(*["s"] * 30)
            batches.submit(large)
            batches.submit(medium)
            batches.submit(small)
            with pytest.raises(Full, match="too many sentences are waiting; try again in"):
                await large.future
            with pytest.raises(Full) as full:
                batches.submit(job(*["x"] * 50))
            assert 1 <= full.value.seconds <= 60
            assert batches.waiting == 70
            translator.may_go.set()
            assert await medium.future == ["m"] * 40 and await small.future == ["s"] * 30
            assert await blocking.future == ["gnikcolb"]

    run(test)


def test_only_the_bad_sentence_of_a_batch_fails() -> None:
    async def test() -> None:
        translator = Translator(step=0)
        translator.may_go.clear()
        with running(translator) as batches:
            good, bad, mixed = job("good"), job("BAD"), job("fine", "WORSE", "well")
            for one in (good, bad, mixed):
                batches.submit(one)
            translator.may_go.set()
            assert await good.future == ["doog"]
            for one in (bad, mixed):
                with pytest.raises(RuntimeError, match="out of memory"):
                    await one.future
            again = job("again")
            batches.submit(again)
            assert await again.future == ["niaga"]

    run(test)


def test_whoever_waits_is_told_of_the_end() -> None:
    async def test() -> None:
        translator = Translator()
        translator.may_go.clear()
        with running(translator) as batches:
            first, second = job("first"), job("second")
            batches.submit(first)
            while batches.waiting:
                await asyncio.sleep(0.001)
            batches.submit(second)
            threading.Timer(0.05, translator.may_go.set).start()
            await asyncio.to_thread(batches.stop)
            assert await first.future == ["tsrif"]
            with pytest.raises(Full):
                await second.future
            assert batches.stuck(60)

    run(test)


def test_a_model_that_does_not_come_back() -> None:
    async def test() -> None:
        translator = Translator()
        with running(translator) as batches:
            assert not batches.stuck(0.05)
            translator.may_go.clear()
            waiting = job("first")
            batches.submit(waiting)
            await asyncio.sleep(0.1)
            assert batches.stuck(0.05) and not batches.stuck(10)
            translator.may_go.set()
            await waiting.future
            await asyncio.sleep(0.02)
            assert not batches.stuck(0.05)

    run(test)
