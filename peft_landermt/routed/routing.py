"""Which language pairs the adapters of a model hold, and the calls that follow from what a caller names."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..errors import ConcurrencyError, LanguagePairError
from .call import Call, Destination, entered

BASE = "__base__"
"""PEFT's name for no adapter."""


class Routing:
    """What all routed layers of a model share.

    Attributes:
        pairs: The pairs of every adapter; empty for an adapter without pairs.
        unlisted: Further pairs that calls may name, of adapters that have such.
        chosen: The pair that `set_language_pair` chose, by adapter.
    """

    def __init__(self) -> None:
        self.pairs: dict[str, tuple[str, ...]] = {}
        self.unlisted: dict[str, tuple[str, ...]] = {}
        self.chosen: dict[str, str] = {}
        self._running: dict[int, list[bool]] = {}  # by thread, for every call in progress whether it trains
        self._writer: int | None = None  # the thread that writes weights

    def pair_of(self, adapter: str) -> str | None:
        """Return the pair that all samples of an adapter take when the call names none.

        Raises:
            LanguagePairError: If the adapter has several pairs and none was chosen.
        """
        pairs = self.pairs.get(adapter, ())
        if adapter in self.chosen:
            return self.chosen[adapter]
        if len(pairs) > 1:
            raise LanguagePairError(
                "language_pairs",
                None,
                f"adapter {adapter!r} holds {', '.join(pairs)}; pass language_pairs=[...] with one pair per sample, "
                "or call model.set_language_pair(...).",
            )
        return pairs[0] if pairs else None

    def check_pair(self, adapter: str, pair: str) -> str:
        """Return `pair` if the adapter holds it.

        Raises:
            LanguagePairError: If it does not.
        """
        pairs = self.pairs.get(adapter, ())
        if pair not in pairs and pair not in self.unlisted.get(adapter, ()):
            held = f"holds {', '.join(pairs)}" if pairs else "was made without language pairs"
            raise LanguagePairError("language_pair", pair, f"adapter {adapter!r} {held}.")
        return pair

    def arguments(
        self,
        language_pairs: Sequence[str],
        adapter_names: Sequence[str] | None,
        active_adapters: Sequence[str],
        merged_adapters: Sequence[str],
    ) -> dict[str, list[str | None]]:
        """Tell what `RoutedTuner.routing_arguments` returns, and raise what it raises."""
        if adapter_names is not None:
            routed = [bool(self.pairs.get(name)) for name in adapter_names]
            pairs = [pair if has_pairs else None for pair, has_pairs in zip(language_pairs, routed, strict=True)]
            return {"language_pairs": pairs} if any(routed) else {}
        serving = [name for name in merged_adapters or active_adapters if self.pairs.get(name)]
        if not merged_adapters and list(active_adapters) == serving[:1]:
            held = [self.check_pair(serving[0], pair) for pair in language_pairs]
            return {"language_pairs": [*held]} if len({*held, *self.pairs[serving[0]]}) > 1 else {}
        served = [self.pair_of(name) for name in serving]
        for pair in language_pairs if served else ():
            if pair not in served:
                state = "the model is merged for" if merged_adapters else "the active adapters together serve"
                raise LanguagePairError("language_pair", pair, f"{state} {', '.join(map(str, served))}.")
        return {}

    def call(self, active_adapters: Sequence[str]) -> Call:
        """Make the call in which all samples go to the active adapters.

        Raises:
            LanguagePairError: One of them has several pairs and none was chosen.
        """
        return Call(self, active=tuple((name, self.pair_of(name)) for name in active_adapters))

    def call_of(
        self,
        active_adapters: Sequence[str],
        language_pairs: Sequence[str | None] | None,
        adapter_names: Sequence[str] | None,
        batch: int | None,
    ) -> Call:
        """Make the call that `language_pairs` and `adapter_names` describe, one of each per sample.

        A pair that is None is the one that the sample's adapter takes when the call names none.

        Args:
            active_adapters: The active adapters; one of them serves samples for which no adapter is named.
            language_pairs: A pair for every sample.
            adapter_names: An adapter for every sample, or `__base__`.
            batch: Number of samples, where it is known.

        Raises:
            LanguagePairError: Lengths do not fit, or a pair or adapter is unknown.
        """
        given = {"language_pairs": language_pairs, "adapter_names": adapter_names}
        for name, values in given.items():
            if isinstance(values, str):
                raise LanguagePairError(name, values, "expected a list with one entry per sample.")
            if values is not None and batch is not None and len(values) != batch:
                raise LanguagePairError(name, len(values), f"give one entry for each of the {batch} samples.")
        if language_pairs is not None and adapter_names is not None and len(language_pairs) != len(adapter_names):
            raise LanguagePairError(
                "language_pairs", len(language_pairs), f"{len(adapter_names)} adapter_names given."
            )
        if adapter_names is None:
            if len(active_adapters) != 1:
                raise LanguagePairError(
                    "language_pairs", list(active_adapters), "needs one active adapter; pass adapter_names too."
                )
            adapter_names = [active_adapters[0]] * len(language_pairs or ())
        unknown = sorted({name for name in adapter_names if name != BASE} - set(self.pairs))
        if unknown:
            raise ValueError(f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}")
        samples: list[Destination | None] = []
        for index, name in enumerate(adapter_names):
            pair = None if language_pairs is None else language_pairs[index]
            if name == BASE:
                samples.append(None)
            else:
                samples.append((name, self.pair_of(name) if pair is None else self.check_pair(name, pair)))
        return Call(self, tuple(samples), named="adapter_names" if language_pairs is None else "language_pairs")

    # Threads: any number may read the model at a time; one may train it, or write its weights

    @contextmanager
    def running(self, call: Call, trains: bool = False) -> Iterator[None]:
        """Have `call` be this thread's call inside.

        Args:
            call: The call.
            trains: Whether gradients will be taken.

        Raises:
            ConcurrencyError: Another thread trains the model too, or writes its weights.
        """
        me = threading.get_ident()
        if self._writer not in (None, me):
            raise ConcurrencyError("model", "in use", "another thread merges or loads weights; wait until it is done.")
        if trains and any(any(calls) for thread, calls in list(self._running.items()) if thread != me):
            raise ConcurrencyError(
                "model",
                "in training",
                "another thread trains it; give each thread a model of its own.",
            )
        mine = self._running.setdefault(me, [])
        mine.append(trains)
        try:
            with entered(call):
                yield
        finally:
            mine.pop()
            if not mine:
                self._running.pop(me, None)

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """Keep other threads from calling the model inside.

        Args:
            what: What is done, for the message.

        Raises:
            ConcurrencyError: Another thread's call is in progress, or another thread writes.
        """
        me = threading.get_ident()
        if self._writer not in (None, me) or any(thread != me for thread in list(self._running)):
            raise ConcurrencyError("model", "in use", f"{what} would disturb another thread's call; wait.")
        before, self._writer = self._writer, me
        try:
            yield
        finally:
            self._writer = before
