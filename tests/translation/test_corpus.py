"""Readers: every form of corpus, rows that are skipped and counted, and errors that say what to do."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import pytest
from datasets import Dataset, DatasetDict

from peft_landermt.errors import CorpusError, LanguagePairError
from peft_landermt.translation import (
    Corpus,
    TranslationExample,
    read_corpus,
    read_dataset,
    read_jsonl,
    read_moses,
    read_tsv,
)

from ..versions import DATASETS_3

PAIR = "en-de"
TEXTS = [("The house is old.", "Das Haus ist alt."), ("We drink tea.", "Wir trinken Tee.")]
EXAMPLES = [TranslationExample(source, target, PAIR) for source, target in TEXTS]
TSV = "".join(f"{source}\t{target}\n" for source, target in TEXTS)
# characters at which str.splitlines splits, and which are text all the same
SEPARATORS = "a\u2028b\x0bc\x0cd\x1ee\x85f\rg"


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def write(path: Path, content: bytes | str) -> Path:
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def fails(read: Callable[[], Any], field: str, value: Any, *remedies: str) -> None:
    with pytest.raises(CorpusError) as caught:
        read()
    assert caught.value.field == field
    assert caught.value.value == value
    for remedy in remedies:
        assert remedy in str(caught.value)


def test_corpus_is_sized_iterable_and_becomes_a_dataset() -> None:
    corpus = Corpus(EXAMPLES)
    assert (len(corpus), list(corpus), corpus.skipped) == (2, EXAMPLES, Counter())
    assert EXAMPLES[0].to_row() == {"source": TEXTS[0][0], "target": TEXTS[0][1], "language_pair": PAIR}
    assert corpus.to_dataset().to_list() == [example.to_row() for example in EXAMPLES]
    assert corpus.to_dataset().features == Corpus([]).to_dataset().features


@pytest.mark.parametrize("name", ["corpus.tsv", "corpus.tsv.gz"])
@pytest.mark.parametrize("content", [TSV, TSV.rstrip("\n"), TSV.replace("\n", "\r\n"), "\ufeff" + TSV])
def test_tsv_endings_marks_and_compression(tmp_path: Path, name: str, content: str) -> None:
    path = write(tmp_path / name, content)
    for corpus in (read_tsv(path, PAIR), read_tsv(str(path), PAIR), read_corpus(path, PAIR)):
        assert corpus == Corpus(EXAMPLES)


def test_tsv_columns_are_chosen_by_position(tmp_path: Path) -> None:
    path = write(tmp_path / "corpus.tsv", "1\tHaus\t-\thouse\n")
    assert read_tsv(path, PAIR, columns=(3, 1)).examples == [TranslationExample("house", "Haus", PAIR)]


def test_tsv_bad_rows_are_counted_and_all_else_is_text(tmp_path: Path) -> None:
    rows = [b'"a\tb"', b"alone", b"", b"caf\xe9\tKaffee", b"\xef\xbb\xbfx\ty", SEPARATORS.encode() + b"\t", b"\t"]
    corpus = read_tsv(write(tmp_path / "corpus.tsv", b"\n".join(rows) + b"\n"), PAIR)
    texts = [('"a', 'b"'), ("\ufeffx", "y"), (SEPARATORS, ""), ("", "")]
    assert corpus.examples == [TranslationExample(source, target, PAIR) for source, target in texts]
    assert corpus.skipped == {"missing column": 1, "empty line": 1, "not UTF-8": 1}


@pytest.mark.parametrize("columns", [(0, 0), (-1, 0), (0,), (0, 1, 2)])
def test_tsv_refuses_columns(columns: Any) -> None:
    fails(lambda: read_tsv("unread.tsv", PAIR, columns), "columns", columns, "two different positions")


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.json", "corpus.jsonl.gz", "corpus.json.gz"])
def test_jsonl_forms(tmp_path: Path, name: str) -> None:
    rows = [
        {"translation": {"de": "t1", "en": "s1", "fr": "-"}},
        {"en": "s2", "de": "t2", "source": "news", "target": "-", "translation": "-"},
        {"source": "s3", "target": "t3", "language_pair": PAIR},
    ]
    path = write_jsonl(tmp_path / name, rows)
    for corpus in (read_jsonl(path, PAIR), read_corpus(str(path), PAIR)):
        assert corpus.examples == [TranslationExample(f"s{i}", f"t{i}", PAIR) for i in (1, 2, 3)]
    assert read_jsonl(path, "de-en").examples == [TranslationExample(f"t{i}", f"s{i}", "de-en") for i in (1, 2)]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"en": "caf\xe9", "de": "x"}', "not UTF-8"),
        (rb'{"en": "\ud800", "de": "x"}', "not UTF-8"),
        (b" \r", "empty line"),
        (b'["house", "Haus"]', "not a JSON object"),
        (b'{"en": "house"}', "missing column"),
        (b'{"translation": {"en": "house", "fr": "maison"}}', "missing column"),
        (b'{"en": "house", "de": null}', "not text"),
        (b'{"source": 1, "target": "x"}', "not text"),
        (b'{"en": "a", "de": "b", "language_pair": "de-en"}', "other language pair"),
    ],
)
def test_jsonl_bad_rows_are_counted(tmp_path: Path, row: bytes, reason: str) -> None:
    good = json.dumps({"en": SEPARATORS, "de": "x"}, ensure_ascii=False).encode()
    path = write(tmp_path / "corpus.jsonl", b"\xef\xbb\xbf" + good + b"\r\n" + row + b"\n" + row + b"\n" + good)
    corpus = read_jsonl(path, PAIR)
    assert corpus.examples == [TranslationExample(SEPARATORS, "x", PAIR)] * 2
    assert corpus.skipped == {reason: 2}


def test_jsonl_refuses_an_array(tmp_path: Path) -> None:
    path = write(tmp_path / "corpus.json", '[{"en": "a", "de": "b"},\n{"en": "c", "de": "d"}\n]')
    fails(lambda: read_jsonl(path, PAIR), "path", str(path), "JSON array", "one object a line")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_moses(tmp_path: Path, suffix: str) -> None:
    source = write(tmp_path / f"corpus.en{suffix}", f"\ufeff{SEPARATORS}\n\n")
    target = write(tmp_path / f"corpus.de{suffix}", "\ufeffHaus\r\nTee")
    examples = [TranslationExample(SEPARATORS, "Haus", PAIR), TranslationExample("", "Tee", PAIR)]
    assert read_moses(source, target, PAIR) == Corpus(examples)


def test_moses_skips_both_lines_if_one_is_not_utf8(tmp_path: Path) -> None:
    source = write(tmp_path / "corpus.en", b"a\ncaf\xe9\nc\n")
    target = write(tmp_path / "corpus.de", b"A\nB\n\xff\n")
    corpus = read_moses(source, target, PAIR)
    assert corpus.examples == [TranslationExample("a", "A", PAIR)]
    assert corpus.skipped == {"not UTF-8": 2}


def test_moses_refuses_unequal_files(tmp_path: Path) -> None:
    paths = (str(write(tmp_path / "c.en", "a\nb\nc\n")), str(write(tmp_path / "c.de", "A\nB")))
    fails(lambda: read_moses(*paths, PAIR), "source_path, target_path", paths, "have 3 and 2 lines", "same number")


@pytest.mark.parametrize("pair", ["en-de", "de-en"])
def test_corpus_of_a_prefix_is_moses(tmp_path: Path, pair: str) -> None:
    for language in ("en", "de"):
        write(tmp_path / f"news.de-en.{language}", f"{language}\n")
    source, target = pair.split("-")
    assert read_corpus(tmp_path / "news.de-en", pair).examples == [TranslationExample(source, target, pair)]


FORMS = {
    "translation": lambda s, t: {"id": 1, "translation": {"de": t, "en": s}},
    "codes": lambda s, t: {"de": t, "en": s, "id": "1"},
    "own": lambda s, t: TranslationExample(s, t, PAIR).to_row(),
}


@pytest.mark.parametrize("form", FORMS)
def test_saved_dataset(tmp_path: Path, form: str) -> None:
    Dataset.from_list([FORMS[form](*texts) for texts in TEXTS]).save_to_disk(tmp_path / "saved")
    assert read_dataset(tmp_path / "saved", PAIR, split="any").examples == EXAMPLES
    assert read_corpus(str(tmp_path / "saved"), PAIR).examples == EXAMPLES


def test_saved_dataset_dict_has_splits(tmp_path: Path) -> None:
    train, test = (Dataset.from_list([FORMS["codes"](*texts)]) for texts in TEXTS)
    DatasetDict(train=train, test=test).save_to_disk(tmp_path / "saved")
    assert read_corpus(tmp_path / "saved", PAIR).examples == EXAMPLES[:1]
    assert read_corpus(tmp_path / "saved", PAIR, split="test").examples == EXAMPLES[1:]
    value = (str(tmp_path / "saved"), "dev")
    fails(lambda: read_corpus(value[0], PAIR, "dev"), "name_or_path, split", value, "has the splits train, test")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_loaded_dataset(tmp_path: Path, form: str, streaming: bool) -> None:
    for split, texts in zip(("train", "test"), TEXTS, strict=True):
        write_jsonl(tmp_path / "data" / f"{split}.jsonl", [FORMS[form](*texts)])
    assert read_dataset(tmp_path / "data", PAIR, "test", streaming=streaming).examples == EXAMPLES[1:]
    assert read_corpus(tmp_path / "data", PAIR).examples == EXAMPLES[:1]
    value = (str(tmp_path / "data"), "dev")
    fails(lambda: read_dataset(value[0], PAIR, "dev", streaming=streaming), "name_or_path, split", value, "'train'")


def test_dataset_columns_and_config(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data" / "a.jsonl", [{"src": "house", "tgt": "Haus", "en": "-", "de": "-"}])
    write_jsonl(tmp_path / "data" / "b.jsonl", [{"src": "tea", "tgt": "Tee"}])
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in "ab")
    write(tmp_path / "data" / "README.md", f"---\nconfigs:\n{configs}---\n")
    for name, source, target in (("a", "house", "Haus"), ("b", "tea", "Tee")):
        corpus = read_dataset(tmp_path / "data", PAIR, columns=("src", "tgt"), config_name=name)
        assert corpus.examples == [TranslationExample(source, target, PAIR)]
    value = (str(tmp_path / "data"), "train")
    fails(lambda: read_dataset(value[0], PAIR), "name_or_path, split", value, "['a', 'b']")


def test_dataset_bad_rows_are_counted(tmp_path: Path) -> None:
    rows = {"en": [None, "a", "a"], "de": ["b", "b", "b"], "language_pair": [PAIR, PAIR, "en-fr"]}
    Dataset.from_dict(rows).save_to_disk(tmp_path / "saved")
    for columns in (None, ("en", "de")):
        corpus = read_dataset(tmp_path / "saved", PAIR, columns=columns)
        assert corpus.examples == [TranslationExample("a", "b", PAIR)]
        assert corpus.skipped == {"not text": 1, "other language pair": 1}


@pytest.mark.parametrize(
    ("row", "columns", "found"),
    [
        ({"id": 1, "text": "a"}, None, "id, text."),
        ({"translation": {"en": "a", "fr": "b"}, "id": 1}, None, "translation (en, fr), id."),
        ({"en": "a", "de": "b"}, ("en", "ger"), "en, de."),
    ],
)
def test_dataset_without_the_columns_lists_those_it_has(
    tmp_path: Path, row: dict[str, Any], columns: tuple[str, str] | None, found: str
) -> None:
    Dataset.from_list([row]).save_to_disk(tmp_path / "saved")
    fails(lambda: read_dataset(tmp_path / "saved", PAIR, columns=columns), "columns", columns, "for en-de", found)


def test_what_is_no_corpus_tells_all_forms(tmp_path: Path) -> None:
    forms = ("*.tsv[.gz]", "*.jsonl[.gz]", "*.json[.gz]", "corpus.en and corpus.de", "Hub id")
    value = ("no-such-owner/corpus", "train")
    fails(lambda: read_corpus(value[0], PAIR), "name_or_path, split", value, *forms)
    path = str(write(tmp_path / "corpus.csv", "a,b\n"))
    fails(lambda: read_corpus(path, PAIR), "path", path, *forms)


@pytest.mark.parametrize(
    ("name", "field", "missing"),
    [
        *((name, "path", name) for name in ("c.tsv", "c.tsv.gz", "c.jsonl", "c.json.gz")),
        ("only-source", "target_path", "only-source.de"),
        ("only-target", "source_path", "only-target.en"),
    ],
)
def test_missing_file(tmp_path: Path, name: str, field: str, missing: str) -> None:
    write(tmp_path / "only-source.en", "a\n")
    write(tmp_path / "only-target.de", "a\n")
    fails(lambda: read_corpus(tmp_path / name, PAIR), field, str(tmp_path / missing), "no such file", "check the path")


@pytest.mark.parametrize("damage", [lambda data: data[:-12], lambda data: b"plain", lambda data: data[:10] + b"\xff"])
def test_damaged_gzip_and_folder(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "c.tsv.gz"
    path.write_bytes(damage(gzip.compress(TSV.encode())))
    fails(lambda: read_tsv(path, PAIR), "path", str(path), "cannot be read", "undamaged")
    fails(lambda: read_tsv(tmp_path, PAIR), "path", str(tmp_path), "cannot be read", "directory")


@pytest.mark.parametrize(
    ("name", "content", "skipped"),
    [
        ("c.tsv", b"", "skipped: none; it is empty"),
        ("c.tsv", b"one\ntwo\n\xff\n", "skipped: missing column 2, not UTF-8 1"),
        ("c.jsonl", b"{\n[]\n", "skipped: not JSON 1, not a JSON object 1"),
    ],
)
def test_file_without_a_usable_row(tmp_path: Path, name: str, content: bytes, skipped: str) -> None:
    path = write(tmp_path / name, content)
    fails(lambda: read_corpus(path, PAIR), "path", str(path), "no usable row for en-de", skipped, "check its form")


def test_moses_and_datasets_without_a_usable_row(tmp_path: Path) -> None:
    paths = (str(write(tmp_path / "c.en", b"\xff\n")), str(write(tmp_path / "c.de", "x\n")))
    fails(lambda: read_corpus(tmp_path / "c", PAIR), "source_path, target_path", paths, "skipped: not UTF-8 1")
    saved, empty, damaged = (str(tmp_path / name) for name in ("saved", "empty", "damaged"))
    Dataset.from_list([{"en": None, "de": "x"}]).save_to_disk(saved)
    fails(lambda: read_dataset(saved, PAIR), "name_or_path", saved, "no usable row for en-de", "skipped: not text 1")
    Corpus([]).to_dataset().save_to_disk(empty)
    if DATASETS_3:  # which loads an empty one
        fails(lambda: read_dataset(empty, PAIR), "name_or_path", empty, "no usable row for en-de")
    else:
        fails(lambda: read_dataset(empty, PAIR), "name_or_path, split", (empty, "train"), "cannot be loaded")
    write(tmp_path / "damaged" / "state.json", "{}")
    fails(lambda: read_dataset(damaged, PAIR), "name_or_path, split", (damaged, "train"), "cannot be loaded")
    for name in ("train.jsonl", "train.csv", "train.tsv", "train.parquet", "train.txt", "train.arrow"):
        folder = tmp_path / f"folder of {name}"
        write(folder / name, "")
        fails(
            lambda folder=folder: read_dataset(folder, PAIR), "name_or_path, split", (str(folder), "train"), "cannot"
        )


@pytest.mark.parametrize("pair", ["en", "en-en", "english-german"])
@pytest.mark.parametrize(
    "read", [read_tsv, read_jsonl, read_dataset, read_corpus, lambda path, pair: read_moses(path, path, pair)]
)
def test_malformed_pair_is_refused_before_anything_is_read(read: Callable[..., Corpus], pair: str) -> None:
    with pytest.raises(LanguagePairError, match="language_pair="):
        read("unread", pair)


def write_configs(folder: Path, rows: dict[str, list[Any]]) -> Path:
    """A data set of several configurations, as repositories on the Hub have them."""
    entries = [f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in rows]
    write(folder / "README.md", "---\nconfigs:\n" + "".join(entries) + "---\n")
    for name, content in rows.items():
        write_jsonl(folder / f"{name}.jsonl", content)
    return folder


@pytest.mark.parametrize("pair", ["en-de", "de-en"])
def test_the_configuration_of_a_pair_is_found(tmp_path: Path, pair: str) -> None:
    """As in OPUS-100 and WMT: one configuration for both directions, named with one of them."""
    rows = {"de-en": [{"translation": {"en": en, "de": de}} for en, de in TEXTS]}
    rows["en-fr"] = [{"translation": {"en": "tea", "fr": "thé"}}]
    corpus = read_corpus(write_configs(tmp_path / "opus", rows), pair)
    expected = TEXTS if pair == "en-de" else [(de, en) for en, de in TEXTS]
    assert [(example.source, example.target) for example in corpus] == expected


def test_flores_columns(tmp_path: Path) -> None:
    rows = {
        "eng_Latn-deu_Latn": [{"sentence_eng_Latn": en, "sentence_deu_Latn": de, "id": 1} for en, de in TEXTS],
        "eng_Latn-fra_Latn": [{"sentence_eng_Latn": "tea", "sentence_fra_Latn": "thé", "id": 1}],
    }
    folder = write_configs(tmp_path / "flores", rows)
    assert read_dataset(folder, "en-de").examples == EXAMPLES
    assert [example.source for example in read_dataset(folder, "de-en")] == [de for _, de in TEXTS]
    fails(lambda: read_dataset(folder, "en-it"), "name_or_path, split", (str(folder), "train"), "eng_Latn-fra_Latn")
