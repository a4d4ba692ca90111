"""Batches out of the sentences of many clients: whose turn it is, and who has to wait for whom.

One thread translates: calls side by side would only take time from each other, and a batch gives more for it. Clients
take turns, and so do the requests of one client: a batch takes one sentence of each before it takes a second of any. A
batch holds sentences of like length, and steps aside, between two tokens, for one of shorter sentences; so short
sentences do not wait for long ones.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from transformers import LogitsProcessor, LogitsProcessorList

LIKE = 4
"""Sentences share a batch where none may become so many times as long as another; a batch that has so many times as
many tokens before it as a sentence that waits steps aside for it."""
GATHER = 0.01
"""Seconds for which a batch that could begin waits for more sentences."""
SHARE = 0.25
"""What a batch that steps aside may run for every second that it has stepped aside."""


class Full(Exception):
    """There is no room to wait in; `seconds` is when there may be."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"too many sentences are waiting; try again in {seconds} seconds.")
        self.seconds = seconds


class _Abandoned(Exception):
    """Nobody waits for a batch any more."""


@dataclass(eq=False)
class Sentence:
    """One sentence of a request.

    Attributes:
        text: The sentence.
        language_pair: Its direction.
        prompt: Tokens that the model reads.
        limit: Tokens that its translation usually is within.
    """

    text: str
    language_pair: str
    prompt: Sequence[int]
    limit: int


class Answer(NamedTuple):
    """A translation, and whether it found no end and was cut."""

    text: str
    cut: bool = False


@dataclass(eq=False)
class Job:
    """The sentences of one request, and what became of them; `future` is of the event loop that made it."""

    client: str
    sentences: Sequence[Sentence]
    future: asyncio.Future[list[Answer]] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    gone: bool = False
    arrived: float = 0.0

    def __post_init__(self) -> None:
        self.waiting = deque(range(len(self.sentences)))
        self.answers: list[Answer | None] = [None] * len(self.sentences)

    def _finish(self, set_result: Callable[[Any], None], result: Any) -> None:
        self.gone = True

        def finish() -> None:
            if not self.future.done():
                set_result(result)

        self.future.get_loop().call_soon_threadsafe(finish)

    def answer(self, index: int, answer: Answer) -> None:
        self.answers[index] = answer
        if None not in self.answers and not self.gone:
            self._finish(self.future.set_result, list(self.answers))

    def fail(self, error: Exception) -> None:
        if not self.gone:
            self._finish(self.future.set_exception, error)


Place = tuple[Job, int]
"""A sentence of a job."""


class Batches:
    """Sentences that wait, and the thread that translates them.

    Args:
        translate: Gives the translations of like sentences; its second argument goes to `generate`.
        batch_size: Sentences of a batch; fewer where they are long.
        room: Sentences that may wait. When there is no more, the request with the most of them is refused.
        fits: Whether sentences can share a call of the model.
        end: The token that ends a translation, if there is one.
    """

    def __init__(
        self,
        translate: Callable[[Sequence[Sentence], LogitsProcessorList], list[Answer]],
        batch_size: int,
        room: int,
        fits: Callable[[Sequence[Sentence]], bool],
        end: int | None = None,
    ) -> None:
        self.translate, self.batch_size, self.room, self.fits, self.end = translate, batch_size, room, fits, end
        self.clients: dict[str, deque[Job]] = {}
        self.changed = threading.Condition()
        self.stopped = False
        self.translated = self.batches = self.stepped_aside = self.dropped = 0
        self.pace = 0.1  # seconds for a sentence, lately
        self.running_since: float | None = None
        self.thread = threading.Thread(target=self._work, name="translation", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        """End the thread; whoever still waits is told."""
        with self.changed:
            self.stopped = True
            left = [job for jobs in self.clients.values() for job in jobs]
            self.clients.clear()
            self.changed.notify()
        for job in left:
            job.fail(Full(1))
        self.thread.join(timeout=60)

    @property
    def waiting(self) -> int:
        """Sentences that wait."""
        with self.changed:
            return sum(len(job.waiting) for jobs in self.clients.values() for job in jobs)

    def stuck(self, seconds: float) -> bool:
        """Whether the thread has ended, or has made no token for so long."""
        since = self.running_since
        return not self.thread.is_alive() or (since is not None and time.monotonic() - since > seconds)

    def submit(self, job: Job) -> None:
        """Let a job wait for its turn.

        Raises:
            Full: There is no room for it, and no other job takes more.
        """
        with self.changed:
            jobs = [other for others in self.clients.values() for other in others]
            count = sum(len(other.waiting) for other in jobs)
            if count + len(job.waiting) > self.room:
                full = Full(min(60, math.ceil(1 + count * self.pace)))
                largest = max(jobs, key=lambda other: len(other.waiting), default=job)
                if len(largest.waiting) <= len(job.waiting):
                    raise full
                self._remove(largest)
                largest.fail(full)
            job.arrived = time.monotonic()
            self.clients.setdefault(job.client, deque()).append(job)
            self.changed.notify()

    def drop(self, job: Job) -> None:
        """Forget a job whose client does not wait any more."""
        with self.changed:
            if not job.gone:
                self.dropped += sum(answer is None for answer in job.answers)
            job.gone = True
            self._remove(job)

    def _remove(self, job: Job) -> None:
        jobs = self.clients.get(job.client, deque())
        if job in jobs:
            jobs.remove(job)
        if not jobs:
            self.clients.pop(job.client, None)

    # Turns

    def _take(self, below: float = math.inf, without: Collection[Job] = ()) -> list[Place]:
        """The next batch: sentences of like length, of `below` tokens at most, and none of some jobs."""
        batch: list[Place] = []
        with self.changed:
            found = True
            while found and len(batch) < self.batch_size:
                found = False
                for client in list(self.clients):
                    place = self._next(client, batch, below, without)
                    if place is not None and len(batch) < self.batch_size:
                        found = True
                        batch.append(place)
                        self._to_the_end(*place)
        return batch

    def _take_shorter(self, running: Collection[Job], remaining: int) -> list[Place]:
        """A batch for which that of `running`, which has so many tokens before it, should step aside: because it is
        much shorter, or because all requests together then wait less."""
        latest = time.monotonic() - GATHER
        with self.changed:
            jobs = [job for jobs in self.clients.values() for job in jobs if job not in running]
            limits = [
                min(job.sentences[index].limit for index in job.waiting) for job in jobs if job.arrived <= latest
            ]
        shorter = [limit for limit in limits if limit <= remaining][: self.batch_size]
        if not shorter:
            return []
        worth = len(shorter) * remaining > len(running) * max(shorter)
        return self._take(remaining if worth else remaining / LIKE, running)

    def _to_the_end(self, job: Job, index: int) -> None:
        """A sentence was taken: its client, and its job among the client's, is behind all others now."""
        job.waiting.remove(index)
        jobs = self.clients.pop(job.client)
        jobs.remove(job)
        if job.waiting:
            jobs.append(job)
        if jobs:
            self.clients[job.client] = jobs

    def _next(self, client: str, batch: Sequence[Place], below: float, without: Collection[Job]) -> Place | None:
        chosen = [job.sentences[index] for job, index in batch]
        latest = math.inf if batch else time.monotonic() - GATHER
        for job in self.clients.get(client, ()):
            for index in job.waiting if job.arrived <= latest and job not in without else ():
                sentence = job.sentences[index]
                limits = [one.limit for one in chosen] + [sentence.limit]
                alike = max(limits) < LIKE * min(limits) and max(limits) <= below
                if alike and self.fits([*chosen, sentence]):
                    return job, index
        return None

    def _work(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.clients or self.stopped)
                if self.stopped:
                    return
            time.sleep(GATHER)
            self._run(self._take())
            self.running_since = None

    def _run(self, batch: list[Place]) -> None:
        """Translate a batch. Where that fails, each of its sentences is tried alone, and only the bad ones fail."""
        batch = [(job, index) for job, index in batch if not job.gone]
        if not batch:
            return
        start = self.running_since = time.monotonic()
        try:
            sentences = [job.sentences[index] for job, index in batch]
            answers = self.translate(sentences, LogitsProcessorList([_Turn(self, batch)]))
        except _Abandoned:
            return
        except Exception as error:  # of whatever kind: its client hears of it, and the server goes on
            if len(batch) == 1:
                batch[0][0].fail(error)
            else:
                for place in batch:
                    self._run([place])
            return
        with self.changed:
            self.batches += 1
            self.translated += len(batch)
            self.pace += 0.1 * ((time.monotonic() - start) / len(batch) - self.pace)
        for (job, index), answer in zip(batch, answers, strict=True):
            job.answer(index, answer)


class _Turn(LogitsProcessor):
    """Called before every token of a batch: lets shorter sentences in, and ends what nobody waits for."""

    def __init__(self, batches: Batches, batch: Sequence[Place]) -> None:
        self.batches, self.batch = batches, batch
        self.start, self.aside = time.monotonic(), 0.0
        self.tokens = self.usual = max(job.sentences[index].limit for job, index in batch)
        self.owners: list[list[Job]] | None = None

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        now = self.batches.running_since = time.monotonic()
        self.tokens = self.tokens - 1 if self.tokens else self.usual  # what goes on may become as long again
        if now - self.start - self.aside >= SHARE * self.aside:
            shorter = self.batches._take_shorter({job for job, _ in self.batch if not job.gone}, self.tokens)
            if shorter:
                self.batches.stepped_aside += 1
                self.batches._run(shorter)
                self.aside += time.monotonic() - now
        if all(job.gone for job, _ in self.batch):
            raise _Abandoned
        return self._without_the_gone(input_ids, scores)

    def _without_the_gone(self, input_ids: Any, scores: Any) -> Any:
        """The scores (rows, vocabulary), with nothing but the end for rows that nobody waits for."""
        if self.batches.end is None:
            return scores
        if self.owners is None:
            self.owners = [self._owners(row) for row in input_ids.tolist()]
        gone = [row for row, jobs in enumerate(self.owners) if jobs and all(job.gone for job in jobs)]
        if gone:
            scores = scores.clone()
            scores[gone] = -math.inf
            scores[gone, self.batches.end] = 0.0
        return scores

    def _owners(self, row: list[int]) -> list[Job]:
        """Whose sentence a row of tokens may be: of all whose prompt it ends with. Nobody's in an encoder-decoder,
        which writes from an empty start."""
        prompts = [(job, list(job.sentences[index].prompt)) for job, index in self.batch]
        return [job for job, prompt in prompts if prompt and row[-len(prompt) :] == prompt]
