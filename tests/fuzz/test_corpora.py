"""Corpora from strangers: a typed error or right rows, whatever the bytes, within bounded time."""

from __future__ import annotations

import gzip
import io
import json
import re
import sys
import tempfile
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock
from xml.sax.saxutils import escape

import datasets
import pytest
from babel.core import get_global
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from peft_landermt.errors import CorpusError, LanderError, LanguagePairError
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

from .campaign import at_most, attempt
from .mutations import damaged

PAIR = "en-de"
SECONDS = 20

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


def timed(name: str, read: Callable[[], Any]) -> Any:
    """What is read, or the typed error; nothing else may come of it, nor may it take long."""
    start = time.perf_counter()
    result = attempt(f"corpus, {name}", read)
    assert time.perf_counter() - start < SECONDS
    assert not isinstance(result, LanderError) or isinstance(result, CorpusError)
    return result


def check(corpus: Corpus) -> None:
    """Rows that tokenizers and Arrow take, before and after cleaning."""
    assert len(corpus) == len(list(corpus)) > 0
    for example in corpus:
        assert example.language_pair == PAIR
        for text in (example.source, example.target):
            assert text.encode().decode() == text and "\0" not in text
    kept = timed("clean", lambda: clean(corpus)[0])
    if isinstance(kept, CorpusError):
        return
    assert len(set(kept)) == len(kept) <= len(corpus)
    for example in kept:
        for text in (example.source, example.target):
            assert text == " ".join(text.split()) == unicodedata.normalize("NFC", text) != ""
            assert len(text) <= 1_000


def same(one: Any, other: Any) -> bool:
    """Whether two attempts gave the same rows, or both none."""
    refused = [isinstance(result, CorpusError) for result in (one, other)]
    return all(refused) or (not any(refused) and one == other)


@pytest.mark.parametrize("form", FORMS)
@given(data=st.data())
def test_damaged_files(form: str, data: st.DataObject) -> None:
    start, read = FORMS[form]
    encoding = data.draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1"]))
    content = data.draw(damaged(start.encode(encoding)) | st.binary(max_size=64))
    with tempfile.TemporaryDirectory() as folder:
        path, packed = Path(folder, f"c.{form}"), Path(folder, f"c.{form}.gz")
        path.write_bytes(content)
        packed.write_bytes(gzip.compress(content, 1))
        corpus = timed(form, lambda: read(path))
        assert same(corpus, timed(form, lambda: read(packed)))
        with mock.patch.object(examples, "IN_MEMORY", 150):  # on disk
            assert same(corpus, timed(form, lambda: read(path)))
    if not isinstance(corpus, CorpusError):
        check(corpus)


@given(content=damaged(gzip.compress(TSV.encode() * 50)))
def test_damaged_packed_files(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "c.tsv.gz")
        path.write_bytes(content)
        corpus = timed("gzip", lambda: read_corpus(path, PAIR))
    if not isinstance(corpus, CorpusError):
        check(corpus)


TEXT = st.text(st.characters(exclude_characters="\0\t\n", exclude_categories=["Cs"]), max_size=30).filter(
    lambda text: not text.endswith("\r") and not text.startswith("\ufeff")
)
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32"]


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
        corpus = timed("variants", lambda: read_tmx(path, "-".join(pair)))
    for example in [] if isinstance(corpus, CorpusError) else corpus:
        assert example.source != example.target
        for text, wanted in ((example.source, pair[0]), (example.target, pair[1])):
            asked, found = maximal(wanted), maximal(text.split(" ")[1])
            assert asked[0] == found[0] or {asked[0], found[0]} == {"no", "nb"}
            assert "_" not in wanted or asked[1] == found[1]
            assert asked[2] in (None, found[2])


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


@given(text=st.text(st.sampled_from("aé\u0301\u0323\u0300가각 \u1ab0\u093f字.") | st.characters(), max_size=60))
def test_composing(text: str) -> None:
    if not has_too_many_marks(text):
        assert compose(text) == unicodedata.normalize("NFC", text)
    heap = text + "\u0301\u0323" * 20 + text
    assert compose(compose(heap)) == compose(heap)


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
@at_most(2)
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
            corpus = timed(f"data set {name}", lambda: read_dataset(path.parent, PAIR))
            if not isinstance(corpus, CorpusError):
                check(corpus)
