"""Corpora from strangers: a typed error or right rows, whatever the bytes, within bounded time.

Short by default. With `LANDERMT_FUZZ_EXAMPLES=20000`, `pytest tests/translation/test_fuzz_corpora.py -s --timeout 0`
tries that many inputs a test, other ones each time, and prints how they ended.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import os
import re
import sys
import tempfile
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock
from xml.sax.saxutils import escape

import datasets
import pytest
from babel.core import get_global
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peft_landermt.errors import CorpusError, LanguagePairError
from peft_landermt.language_pair import language_name, parse_language, parse_pair
from peft_landermt.translation import (
    Corpus,
    clean,
    examples,
    read_corpus,
    read_dataset,
    read_jsonl,
    read_moses,
    read_tmx,
    read_tsv,
    score_translations,
)
from peft_landermt.translation.composing import compose, has_too_many_marks
from peft_landermt.translation.lines import read_text_lines

COUNT = int(os.environ.get("LANDERMT_FUZZ_EXAMPLES", "0"))
PAIR = "en-de"
SECONDS = 20
OUTCOMES: Counter[str] = Counter()

fuzz = settings(
    max_examples=COUNT or 40,
    deadline=None,
    derandomize=not COUNT,
    database=None,
    suppress_health_check=list(HealthCheck),
)
few = settings(fuzz, max_examples=COUNT // 50 or 5)


@pytest.fixture(scope="module", autouse=True)
def _printed() -> Iterator[None]:
    yield
    if COUNT:
        for outcome, count in sorted(OUTCOMES.items()):
            print(f"\n{outcome}: {count}", end="")


TSV = "tea\tTee\nThe house is old.\tDas Haus ist alt.\r\ncafé\tKäse\n"
JSONL = "".join(
    json.dumps(row, ensure_ascii=False) + "\n"
    for row in (
        {"translation": {"en": "tea", "de": "Tee"}},
        {"en": "The house is old.", "de": "Das Haus ist alt.", "id": 3},
        {"source": "café", "target": "Käse", "language_pair": PAIR},
    )
)
TMX = (
    '<?xml version="1.0" encoding="UTF-8"?><!DOCTYPE tmx SYSTEM "tmx14.dtd"><tmx version="1.4"><header/><body>'
    '<tu><tuv xml:lang="en-US"><seg>The <bpt i="1">&lt;b></bpt>house<ept i="1"/></seg></tuv>'
    '<tuv xml:lang="de"><seg>Das <hi>Haus</hi></seg></tuv></tu>'
    '<tu><tuv lang="en"><seg>café</seg></tuv><tuv lang="de-AT"><seg>Käse</seg></tuv></tu></body></tmx>'
)
MOSES = "tea\nThe house is old.\ncafé\n"
FORMS: dict[str, tuple[str, Callable[[Path], Corpus]]] = {
    "tsv": (TSV, lambda path: read_tsv(path, PAIR)),
    "jsonl": (JSONL, lambda path: read_jsonl(path, PAIR)),
    "tmx": (TMX, lambda path: read_tmx(path, PAIR)),
    "moses": (MOSES, lambda path: read_moses(path, path, PAIR)),
}
NASTY = [
    *(b"\0", b"\r", b"\n", b"\t", b"\r\n", b"\xff", b"\xfe\xff", b"\xff\xfe", b"\xff\xfe\0\0", codecs.BOM_UTF8),
    *(b"\xed\xa0\x80", b"\xf4\x90\x80\x80", "\u2028\x85\x0b\x1e".encode(), "\u0301".encode() * 40, b"x" * 70_000),
    *(b"\\ud800", b"\\u0000", b"[", b"{" * 2_000, b"[" * 90_000, b"9" * 5_000, b"null", b"NaN", b"-1e999", b'"'),
    *(
        b"<",
        b">",
        b"&",
        b"&#0;",
        b"&#xD800;",
        b"<hi>" * 120,
        b"<tu>",
        b"</tu>",
        b"<seg>",
        b"</seg>",
        b"<tuv>",
        b"<!--",
    ),
    *(
        b"]]>",
        b"<![CDATA[",
        b'<!DOCTYPE a [<!ENTITY b "c">]>',
        b'<?xml encoding="x"?>',
        b'encoding="UTF-16"',
        b"lang='",
    ),
    *(b"\x1f\x8b\x08", b"\x1f\x8b\x08\0\0\0\0\0"),
]


@st.composite
def damaged(draw: st.DrawFn, start: bytes) -> bytes:
    """`start` after a few edits: bytes changed, cut out, repeated or put in."""
    data = bytearray(start)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 12))
        edit = draw(st.sampled_from(["set", "cut", "repeat", "insert", "bytes", "end"]))
        if edit == "set" and at < len(data):
            data[at] = draw(st.integers(0, 255))
        elif edit == "cut":
            del data[at : at + length]
        elif edit == "repeat":
            data[at:at] = bytes(data[at : at + length]) * draw(st.sampled_from([1, 3, 300]))
        elif edit == "insert":
            data[at:at] = draw(st.sampled_from(NASTY))
        elif edit == "bytes":
            data[at:at] = draw(st.binary(max_size=8))
        else:
            del data[at:]
    return bytes(data)


def attempt(name: str, read: Callable[[], Any]) -> Any:
    """What is read, or the message of the typed error; nothing else may come of it."""
    start = time.perf_counter()
    try:
        result = read()
    except CorpusError as error:
        assert error.field and error.remedy
        result = str(error)
    assert time.perf_counter() - start < SECONDS
    OUTCOMES[f"{name}: {'refused' if isinstance(result, str) else 'read'}"] += 1
    return result


def check(corpus: Corpus) -> None:
    """Rows that tokenizers and Arrow take, before and after cleaning."""
    assert len(corpus) == len(list(corpus)) > 0
    for example in corpus:
        assert example.language_pair == PAIR
        for text in (example.source, example.target):
            assert text.encode().decode() == text and "\0" not in text
    kept = attempt("clean", lambda: clean(corpus)[0])
    if isinstance(kept, str):
        return
    assert len(set(kept)) == len(kept) <= len(corpus)
    for example in kept:
        for text in (example.source, example.target):
            assert text == " ".join(text.split()) == unicodedata.normalize("NFC", text) != ""
            assert len(text) <= 1_000


def same(one: Any, other: Any) -> bool:
    """Whether two attempts gave the same rows, or both none."""
    return isinstance(one, str) == isinstance(other, str) and (isinstance(one, str) or one == other)


@pytest.mark.parametrize("form", FORMS)
@fuzz
@given(data=st.data())
def test_damaged_files(form: str, data: st.DataObject) -> None:
    start, read = FORMS[form]
    encoding = data.draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1"]))
    content = data.draw(damaged(start.encode(encoding)) | st.binary(max_size=64))
    with tempfile.TemporaryDirectory() as folder:
        path, packed = Path(folder, f"c.{form}"), Path(folder, f"c.{form}.gz")
        path.write_bytes(content)
        packed.write_bytes(gzip.compress(content, 1))
        corpus = attempt(form, lambda: read(path))
        assert same(corpus, attempt(form, lambda: read(packed)))
        with mock.patch.object(examples, "IN_MEMORY", 150):  # on disk
            assert same(corpus, attempt(form, lambda: read(path)))
    if not isinstance(corpus, str):
        check(corpus)


@fuzz
@given(content=damaged(gzip.compress(TSV.encode() * 50)))
def test_damaged_packed_files(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "c.tsv.gz")
        path.write_bytes(content)
        corpus = attempt("gzip", lambda: read_corpus(path, PAIR))
    if not isinstance(corpus, str):
        check(corpus)


TEXT = st.text(st.characters(exclude_characters="\0\t\n", exclude_categories=["Cs"]), max_size=30).filter(
    lambda text: not text.endswith("\r") and not text.startswith("\ufeff")
)
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32"]


@fuzz
@given(
    rows=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8),
    encoding=st.sampled_from(ENCODINGS),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_any_text_comes_back_by_every_road(rows: list[tuple[str, str]], encoding: str, end: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "c")
        sides = list(zip(*rows, strict=True))
        for name, texts in zip(("en", "de"), sides, strict=True):
            Path(folder, f"c.{name}").write_bytes("".join(text + end for text in texts).encode(encoding))
            lines = Path(folder, f"c.{name}").read_bytes()
            assert read_text_lines(str(Path(folder, f"c.{name}"))) == list(texts)
            with mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines))):
                assert read_text_lines(None) == list(texts)
        Path(folder, "c.tsv").write_bytes("".join("\t".join(row) + end for row in rows).encode(encoding))
        written = [
            json.dumps({"en": source, "de": target}, ensure_ascii=len(source) % 2 == 0) for source, target in rows
        ]
        Path(folder, "c.jsonl").write_bytes("".join(line + end for line in written).encode(encoding))
        for name in ("c", "c.tsv", "c.jsonl"):
            corpus = read_corpus(path if name == "c" else Path(folder, name), PAIR)
            assert [(example.source, example.target) for example in corpus] == rows
            assert not corpus.skipped


CODES = [
    *(
        "en",
        "en-US",
        "EN-gb",
        "de",
        "de-CH",
        "zh",
        "zh-CN",
        "zh-TW",
        "zh-Hant",
        "zh-Hans-SG",
        "zh_HK",
        "sr",
        "sr-Latn",
    ),
    *("sr-Cyrl-RS", "sr-ME", "pt", "pt-BR", "pt-PT", "uz-AF", "uz", "no", "nb-NO", "yue", "", "x-none", "de-1996"),
    *("*all*", "ja-JP", "pa-PK"),
]
WANTED = [
    "en",
    "de",
    "zh",
    "zh_Hans",
    "zh_Hant",
    "zh_TW",
    "sr_Latn",
    "sr_Cyrl",
    "pt",
    "pt_BR",
    "pt_PT",
    "uz_Latn",
    "no",
    "zho_Hant",
]


def maximal(code: str) -> tuple[str, str | None, str | None]:
    """Language, script and region by CLDR's likely subtags."""
    parts = re.split("[-_]", code)
    language = get_global("language_aliases").get(parts[0].lower(), parts[0].lower())
    script = next((part.title() for part in parts[1:] if len(part) == 4 and part.isalpha()), None)
    region = next((part.upper() for part in parts[1:] if len(part) == 2), None)
    likely = get_global("likely_subtags")
    full = likely.get(f"{language}_{region}") or likely.get(language) or "_"
    return language, script or full.split("_")[1], region


@fuzz
@given(
    units=st.lists(st.lists(st.sampled_from(CODES), max_size=6), min_size=1, max_size=4),
    pair=st.tuples(st.sampled_from(WANTED), st.sampled_from(WANTED)).filter(
        lambda pair: language_name(pair[0]) != language_name(pair[1])
    ),
)
def test_variants_are_what_the_pair_asks_for(units: list[list[str]], pair: tuple[str, str]) -> None:
    """Scripts are those of CLDR; what names a script or region never gets another."""
    variants = [
        [f"<tuv xml:lang='{code}'><seg>{place} {escape(code)}</seg></tuv>" for place, code in enumerate(unit)]
        for unit in units
    ]
    body = "".join(f"<tu>{''.join(unit)}</tu>" for unit in variants)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "c.tmx")
        path.write_text(f"<tmx><body>{body}</body></tmx>", encoding="utf-8")
        corpus = attempt("variants", lambda: read_tmx(path, "-".join(pair)))
    for example in [] if isinstance(corpus, str) else corpus:
        assert example.source != example.target
        for text, wanted in ((example.source, pair[0]), (example.target, pair[1])):
            asked, found = maximal(wanted), maximal(text.split(" ")[1])
            assert asked[0] == found[0] or {asked[0], found[0]} == {"no", "nb"}
            assert "_" not in wanted or asked[1] == found[1]
            assert asked[2] in (None, found[2])


@fuzz
@given(text=st.text(max_size=12) | st.from_regex(r"[a-z]{2,3}(_[A-Z][a-z]{3})?(_[A-Z]{2})?", fullmatch=True))
def test_any_language_code(text: str) -> None:
    try:
        tag = parse_language(text)
    except LanguagePairError as error:
        assert error.value == text
        return
    assert len(tag.written_in) == 4
    assert language_name(text).startswith(tag.language.name) and tag.language.name
    if tag.language.code != "en":
        assert parse_pair(f"{text}-en") == (text, "en")


@fuzz
@given(text=st.text(st.sampled_from("aé\u0301\u0323\u0300가각 \u1ab0\u093f字.") | st.characters(), max_size=60))
def test_composing(text: str) -> None:
    if not has_too_many_marks(text):
        assert compose(text) == unicodedata.normalize("NFC", text)
    heap = text + "\u0301\u0323" * 20 + text
    assert compose(compose(heap)) == compose(heap)


@fuzz
@given(
    rows=st.lists(st.tuples(st.text(max_size=40), st.text(max_size=40)), min_size=1, max_size=4),
    language=st.sampled_from(["de", "zh", "th", "zh_TW", "my"]),
)
def test_any_translations_have_scores(rows: list[tuple[str, str]], language: str) -> None:
    hypotheses, references = zip(*rows, strict=True)
    scores = score_translations(hypotheses, references, f"en-{language}")
    assert 0 <= scores.bleu <= 100.0001 and 0 <= scores.chrf <= 100.0001
    apart = [unicodedata.normalize("NFD", text) for text in hypotheses]
    if not any(map(has_too_many_marks, [*hypotheses, *references])):
        assert score_translations(apart, references, f"en-{language}").bleu == scores.bleu


@pytest.mark.parametrize(
    "name", ["train.jsonl", "train.csv", "train.tsv", "train.parquet", "train.txt", "data.arrow", "state.json"]
)
@few
@given(data=st.data())
def test_damaged_data_sets(name: str, data: st.DataObject) -> None:
    rows = Dataset.from_list([{"en": "tea", "de": "Tee"}, {"en": "café", "de": "Käse"}])
    with tempfile.TemporaryDirectory() as folder:
        saved = name in ("data.arrow", "state.json")
        path = Path(folder, "set", "data-00000-of-00001.arrow" if name == "data.arrow" else name)
        path.parent.mkdir()
        if saved:
            rows.save_to_disk(path.parent)
        elif name == "train.parquet":
            rows.to_parquet(path)
        elif name.endswith("sv"):
            rows.to_csv(path, sep="\t" if name == "train.tsv" else ",", index=False)
        else:
            rows.to_json(path)
        path.write_bytes(data.draw(damaged(path.read_bytes())))
        with mock.patch.object(datasets.config, "HF_DATASETS_CACHE", Path(folder, "cache")):
            corpus = attempt(f"data set {name}", lambda: read_dataset(path.parent, PAIR))
            if not isinstance(corpus, str):
                check(corpus)
