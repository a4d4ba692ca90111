"""Files and standard input: encodings, line ends and limits are the same by every road."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from peft_landermt.errors import CorpusError
from peft_landermt.translation import read_corpus, read_jsonl, read_moses, read_tmx, read_tsv
from peft_landermt.translation.lines import (
    ALWAYS_UNPACKED,
    MAX_EXPANSION,
    MAX_LINE_BYTES,
    read_lines,
    read_text_lines,
)

# characters at which text mode or str.splitlines split, a byte order mark inside, what is beyond 16 bits, a ZWNJ
SOURCES = [
    "It is late.",
    "a\rb",
    "c\u2028d\u2029e",
    "f\x0bg\x0ch\x1ci\x85j",
    "\ufeffk",
    "𝔏 🙂 𠮶",
    "می\u200cخواهم",
    "\u0a0a",
    "ende",
]
TARGETS = ["Es ist spät.", "x\ry", "你好，世界。", "ไทย", "ß", "ё", "日本\u3000語", "\u0a00\u0aff", "Schluß"]
PAIR = "en-de"


def as_tsv(root: Path, encode: Callable[[str], bytes], end: str) -> list[tuple[str, str]]:
    text = "".join(f"{source}\t{target}{end}" for source, target in zip(SOURCES, TARGETS, strict=True))
    (root / "c.tsv").write_bytes(encode(text))
    return pairs(read_tsv(root / "c.tsv", PAIR))


def as_jsonl(root: Path, encode: Callable[[str], bytes], end: str) -> list[tuple[str, str]]:
    rows = [{"en": source, "de": target} for source, target in zip(SOURCES, TARGETS, strict=True)]
    (root / "c.jsonl").write_bytes(encode("".join(json.dumps(row, ensure_ascii=False) + end for row in rows)))
    return pairs(read_jsonl(root / "c.jsonl", PAIR))


def as_moses(root: Path, encode: Callable[[str], bytes], end: str) -> list[tuple[str, str]]:
    for code, texts in (("en", SOURCES), ("de", TARGETS)):
        (root / f"c.{code}").write_bytes(encode("".join(text + end for text in texts)))
    return pairs(read_moses(root / "c.en", root / "c.de", PAIR))


def as_packed(root: Path, encode: Callable[[str], bytes], end: str) -> list[tuple[str, str]]:
    text = "".join(f"{source}\t{target}{end}" for source, target in zip(SOURCES, TARGETS, strict=True))
    (root / "c.tsv.gz").write_bytes(gzip.compress(encode(text)))
    return pairs(read_corpus(root / "c.tsv.gz", PAIR))


def as_text(root: Path, encode: Callable[[str], bytes], end: str) -> list[tuple[str, str]]:
    found = []
    for texts in (SOURCES, TARGETS):
        (root / "text").write_bytes(encode("".join(text + end for text in texts)))
        found.append(read_text_lines(str(root / "text")))
    return list(zip(*found, strict=True))


def as_input(root: Path, encode: Callable[[str], bytes], end: str) -> list[tuple[str, str]]:
    found = []
    before = sys.stdin
    try:
        for texts in (SOURCES, TARGETS):
            sys.stdin = io.TextIOWrapper(io.BytesIO(encode("".join(text + end for text in texts))))
            found.append(read_text_lines(None))
    finally:
        sys.stdin = before
    return list(zip(*found, strict=True))


def pairs(corpus: object) -> list[tuple[str, str]]:
    assert not corpus.skipped  # type: ignore[attr-defined]
    return [(example.source, example.target) for example in corpus]  # type: ignore[attr-defined]


ROADS = [as_tsv, as_jsonl, as_moses, as_packed, as_text, as_input]
ENCODINGS = {
    "utf-8": lambda text: text.encode(),
    "utf-8 marked": lambda text: text.encode("utf-8-sig"),
    "utf-16-le marked": lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
    "utf-16-be marked": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    "utf-32-le marked": lambda text: codecs.BOM_UTF32_LE + text.encode("utf-32-le"),
    "utf-32-be marked": lambda text: codecs.BOM_UTF32_BE + text.encode("utf-32-be"),
}
UNMARKED = ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CR LF"])
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("road", ROADS)
def test_text_is_the_same_by_every_road(
    tmp_path: Path, road: Callable[..., list[tuple[str, str]]], encoding: str, end: str
) -> None:
    assert road(tmp_path, ENCODINGS[encoding], end) == list(zip(SOURCES, TARGETS, strict=True))


@pytest.mark.parametrize("encoding", UNMARKED)
@pytest.mark.parametrize("road", ROADS)
def test_without_a_mark_it_is_refused(
    tmp_path: Path, road: Callable[..., list[tuple[str, str]]], encoding: str
) -> None:
    with pytest.raises(CorpusError) as caught:
        road(tmp_path, lambda text: text.encode(encoding), "\n")
    assert "NUL character, as in UTF-16 without a byte order mark" in str(caught.value)


@pytest.mark.parametrize("encoding", ["cp1252", "shift-jis", "gb18030", "koi8-r"])
def test_rows_in_other_encodings_are_left_out_and_counted(tmp_path: Path, encoding: str) -> None:
    foreign = {"cp1252": "Käse", "shift-jis": "日本語", "gb18030": "你好世界", "koi8-r": "привет"}[encoding]
    (tmp_path / "c.tsv").write_bytes(f"tea\tTee\nx\t{foreign}\n".encode(encoding))
    corpus = read_tsv(tmp_path / "c.tsv", PAIR)
    assert ([example.target for example in corpus], corpus.skipped) == (["Tee"], {"not UTF-8": 1})
    with pytest.raises(CorpusError, match=r"line 2 is not UTF-8; convert the file"):
        read_text_lines(str(tmp_path / "c.tsv"))


def test_rows_with_nul_are_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "c.tsv").write_bytes(b"Tea\0 please\tTee\ntea\tTee\na\tb\0b\n")
    (tmp_path / "c.jsonl").write_text('{"en": "a\\u0000", "de": "b"}\n{"en": "tea", "de": "Tee"}\n', encoding="utf-8")
    (tmp_path / "m.en").write_bytes(b"a\0a\ntea\n")
    (tmp_path / "m.de").write_bytes(b"b\nTee\n")
    for name, count in (("c.tsv", 2), ("c.jsonl", 1), ("m", 1)):
        corpus = read_corpus(tmp_path / name, PAIR)
        assert ([example.source for example in corpus], corpus.skipped) == (["tea"], {"NUL character": count})
    with pytest.raises(CorpusError, match=r"line 1 holds a NUL character"):
        read_text_lines(str(tmp_path / "c.tsv"))
    (tmp_path / "c.tsv").write_bytes(b"tea\tTee\ntea\tTee\0\n")
    with pytest.raises(CorpusError, match="line 2 begins or ends with a NUL character, as in UTF-16"):
        read_tsv(tmp_path / "c.tsv", PAIR)


def test_marked_text_that_is_damaged(tmp_path: Path) -> None:
    row = "tea\tTee\n".encode("utf-16-le")
    (tmp_path / "odd.tsv").write_bytes(codecs.BOM_UTF16_LE + row * 3 + b"\n")
    with pytest.raises(CorpusError, match="not in the encoding that its byte order mark says"):
        read_tsv(tmp_path / "odd.tsv", PAIR)
    lone = b"\x00\xd8" + "\tx\n".encode("utf-16-le")  # half of a surrogate pair
    (tmp_path / "lone.tsv").write_bytes(codecs.BOM_UTF16_LE + row + lone + row)
    corpus = read_tsv(tmp_path / "lone.tsv", PAIR)
    assert (len(corpus), corpus.skipped) == (2, {"not UTF-8": 1})


@pytest.mark.parametrize("content", [b"", codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF32_BE])
def test_nothing_but_a_mark_has_no_lines(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "text").write_bytes(content)
    assert read_text_lines(str(tmp_path / "text")) == []
    with pytest.raises(CorpusError, match="none; it is empty"):
        (tmp_path / "c.tsv").write_bytes(content)
        read_tsv(tmp_path / "c.tsv", PAIR)


@pytest.mark.parametrize("content", [b"a\n\nb\n\n", b"a\r\n\r\nb\r\n\r\n", b"a\n\nb\n", b"\n", b"a"])
def test_empty_lines_count(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text").write_bytes(content)
    expected = content.decode().replace("\r\n", "\n").removesuffix("\n").split("\n")
    assert read_text_lines(str(tmp_path / "text")) == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert read_text_lines(None) == expected
    monkeypatch.setattr(sys, "stdin", io.StringIO(content.decode(), newline=""))  # no bytes below it
    assert read_text_lines(None) == expected


def test_a_line_has_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "c.tsv"
    path.write_bytes(b"tea\tTee\n" + b"x" * (MAX_LINE_BYTES - 2) + b"\ty\n")
    with pytest.raises(CorpusError, match="line 2 is longer than 4 MiB"):
        read_tsv(path, PAIR)
    path.write_bytes(b"tea\tTee\n" + b"x" * (MAX_LINE_BYTES - 3) + b"\ty\n")
    assert len(read_tsv(path, PAIR)) == 2
    text = codecs.BOM_UTF16_LE + ("x" * (MAX_LINE_BYTES + 1)).encode("utf-16-le")
    (tmp_path / "wide.tsv").write_bytes(text)
    with pytest.raises(CorpusError, match="line 1 is longer than 4 MiB"):
        read_tsv(tmp_path / "wide.tsv", PAIR)


@pytest.mark.parametrize("reader", [read_tsv, read_jsonl, read_tmx])
def test_a_file_may_not_unpack_to_much_more_than_text_does(tmp_path: Path, reader: Callable[..., object]) -> None:
    block = (b"x" * 999 + b"\n") * 1_000
    path = tmp_path / "bomb.gz"
    with gzip.open(path, "wb") as file:
        if reader is read_tmx:
            file.write(b"<tmx>")
        for _ in range(ALWAYS_UNPACKED // len(block) + 1):
            file.write(block)
    assert path.stat().st_size * MAX_EXPANSION < ALWAYS_UNPACKED
    with pytest.raises(CorpusError, match="unpacks to more than 200 times its size"):
        reader(path, PAIR)


def test_what_opens_fails_with_its_name(tmp_path: Path) -> None:
    for name, problem in (("none", "no such file"), ("\0", "cannot be read"), (str(tmp_path), "cannot be read")):
        with pytest.raises(CorpusError, match=problem) as caught:
            list(read_lines(name, "path"))
        assert (caught.value.field, caught.value.value) == ("path", name)
