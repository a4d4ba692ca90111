"""Translation memories (TMX), read as a stream."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple
from xml.parsers import expat

from ..errors import CorpusError
from ..language_pair import LanguagePair, LanguageTag, parse_language, parse_pair
from ..languages import SCRIPTS, find_language
from .corpus import MISSING_COLUMN, Corpus, Outcome, collect_examples
from .lines import MAX_LINE_BYTES, opened

OTHER_VARIANT = "other script or region"

_MAX_DEPTH = 100
_MAX_CODES = 50
"""How many codes of a file an error may list."""
_MAX_CODE = 40
"""Characters of a code; those of languages have no more."""
_BLOCK = 1 << 16
_TAG = re.compile(r"([a-z]{2,3})(?:-([a-z]{3}))?(?:-([a-z]{4}))?(?:-([a-z]{2}|[0-9]{3}))?(?:-.*)?")
_OLD_TAGS = {"zh-chs": "zh-hans", "zh-cht": "zh-hant"}


def read_tmx(path: str | os.PathLike[str], language_pair: str) -> Corpus:
    """Read a translation memory (TMX 1.1 to 1.4), plain or, if the name ends in `.gz`, compressed.

    A unit's text is that of its variants (`tuv`) in the two languages, without inline codes (`bpt`, `ept`, `it`, `ph`,
    `ut`) but with what `hi` marks. A variant is found by its `xml:lang`: it must have the language, and the script and
    region that the pair asks for, where it does. A variant that names no script has the usual one of its region or
    language: `zh-TW` is `zh_Hant`, `zh` is `zh_Hans`. Where the pair asks for neither, a variant in the usual script
    and without a region goes first. Units without such variants are skipped, and so are those where one variant would
    have to be both source and target.

    Args:
        path: The file.
        language_pair: Direction of the examples, such as `en-de`.

    Raises:
        CorpusError: The file cannot be read, is not XML, declares entities, is nested deeper than 100 elements, has a
            unit or token of more than 4 MiB, or has no usable unit.
        LanguagePairError: `language_pair` is malformed.
    """
    pair = parse_pair(language_pair)
    found: dict[str, None] = {}
    return collect_examples(_outcomes(path, pair, found), pair, "path", os.fspath(path), found)


class Variant(NamedTuple):
    """One language's text of a unit."""

    code: str
    text: str


def _outcomes(path: str | os.PathLike[str], pair: LanguagePair, found: dict[str, None]) -> Iterator[Outcome]:
    for unit in _units(os.fspath(path)):
        found.update(dict.fromkeys(variant.code[:_MAX_CODE] for variant in unit if len(found) < _MAX_CODES))
        yield _select(unit, pair)


def _units(name: str) -> Iterator[list[Variant]]:
    units = _Units(name)
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = units.start, units.end
    parser.CharacterDataHandler, parser.EntityDeclHandler = units.text, units.entity
    with opened(name, "path") as file:
        given, last = 0, False
        while not last:
            block = file.read(_BLOCK)
            given, last = given + len(block), not block
            try:
                parser.Parse(block, last)
            except CorpusError:
                raise
            # ValueError, LookupError: encodings that Python's expat does not take
            except (expat.ExpatError, ValueError, LookupError) as error:
                raise CorpusError("path", name, f"is not well-formed XML ({error}); export it again.") from error
            if given - max(parser.CurrentByteIndex, 0) > MAX_LINE_BYTES + _BLOCK:
                units.refuse(f"has a tag or comment of more than {MAX_LINE_BYTES >> 20} MiB")
            while units.done:
                yield units.done.popleft()


class _Units:
    """Gathers the units of a file from the parser's events, one at a time."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.done: deque[list[Variant]] = deque()
        self._unit: list[Variant] | None = None
        self._size = 0
        self._code = ""
        self._pieces: list[str] | None = None
        self._depth = self._segment = self._left_out = 0

    def refuse(self, problem: str) -> None:
        raise CorpusError("path", self.name, f"{problem}, as no translation memory does; export it again.")

    def start(self, element: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            self.refuse(f"is nested deeper than {_MAX_DEPTH} elements")
        if self._pieces is not None:
            if element != "hi" and not self._left_out:
                self._left_out = self._depth
        elif element == "tu":
            self._unit, self._size = [], 0
        elif element == "tuv":
            self._code = attributes.get("xml:lang") or attributes.get("lang") or ""
        elif element == "seg" and self._unit is not None:
            self._pieces, self._segment = [], self._depth
        self._count(100 + len(self._code))

    def text(self, text: str) -> None:
        if self._pieces is not None and not self._left_out:
            self._pieces.append(text)
            self._count(len(text))

    def end(self, element: str) -> None:
        if self._depth == self._left_out:
            self._left_out = 0
        elif self._pieces is not None:
            if self._depth == self._segment and self._unit is not None:
                self._unit.append(Variant(self._code, "".join(self._pieces)))
                self._pieces = None
        elif element == "tu" and self._unit is not None:
            self.done.append(self._unit)
            self._unit = None
        self._depth -= 1

    def entity(self, *_: object) -> None:
        self.refuse("declares entities")

    def _count(self, size: int) -> None:
        self._size += size
        if self._unit is not None and self._size > MAX_LINE_BYTES:
            self.refuse(f"has a unit of more than {MAX_LINE_BYTES >> 20} MiB")


@lru_cache(4096)
def _parse_tag(code: str) -> LanguageTag | None:
    """Tell what a tag of BCP 47 says, in any case and with hyphens or underscores; None if no language is found in
    it."""
    lower = code.replace("_", "-").lower()
    match = _TAG.fullmatch(_OLD_TAGS.get(lower, lower))
    if match is None:
        return None
    name, extension, script, region = match.groups()
    language = find_language(extension or name)
    script = script and script.title()
    if language is None or (script is not None and script not in SCRIPTS):
        return None
    return LanguageTag(language, script, region and region.upper())


def _rank(wanted: LanguageTag, found: LanguageTag) -> tuple[bool, bool, bool] | None:
    """Tell how well a variant fits, the lower the better; None where it does not."""
    if (wanted.language.macro or wanted.language.code) != (found.language.macro or found.language.code):
        return None
    region = wanted.region if wanted.region != "XX" else None
    same_script = found.written_in == wanted.written_in
    if ((wanted.script or region) and not same_script) or (region and found.region != region):
        return None
    return wanted.language != found.language, not same_script, found.region is not None and not region


def _select(unit: list[Variant], pair: LanguagePair) -> Outcome:
    """Select source and target of a unit, of two variants."""
    tags = [
        (place, tag) for place, variant in enumerate(unit) if (tag := _parse_tag(variant.code[:_MAX_CODE])) is not None
    ]
    sides = [parse_language(language) for language in pair]
    fitting = [
        sorted((rank, place) for place, tag in tags if (rank := _rank(side, tag)) is not None)[:2] for side in sides
    ]
    choices = [(source, target) for source in fitting[0] for target in fitting[1] if source[1] != target[1]]
    if choices:
        (_, source), (_, target) = min(choices)
        return unit[source].text, unit[target].text
    spoken = {tag.language.macro or tag.language.code for _, tag in tags}
    there = all((side.language.macro or side.language.code) in spoken for side in sides)
    return OTHER_VARIANT if there else MISSING_COLUMN
