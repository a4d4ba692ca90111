"""Examples beyond a few megabytes: on disk, the same as a list in all else, within bounded memory."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import concatenate_datasets

from peft_landermt.errors import CorpusError
from peft_landermt.translation import Corpus, TranslationExample, clean, examples, read_corpus, read_tsv
from peft_landermt.translation.examples import StoredExamples, _folder, _remove_folder, store

EXAMPLES = [TranslationExample(f"{n} 猫 \u2028", f"Käse {n % 70}" * (n % 5), "en-de") for n in range(200)]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files from a few examples on."""
    monkeypatch.setattr(examples, "IN_MEMORY", 1_000)


@pytest.fixture
def stored(small: None) -> StoredExamples:
    kept = store(iter(EXAMPLES))
    assert isinstance(kept, StoredExamples)
    return kept


def files() -> set[str]:
    return set(os.listdir(_folder()))


def test_a_short_list_stays_one() -> None:
    before = files()
    assert store(iter(EXAMPLES)) == EXAMPLES and store([]) == []
    assert files() == before


def test_stored_examples_are_a_sequence(stored: StoredExamples) -> None:
    assert len(stored) == len(EXAMPLES)
    assert list(stored) == list(stored) == EXAMPLES
    assert stored == EXAMPLES and stored == EXAMPLES and stored == store(EXAMPLES)
    assert stored != EXAMPLES[:-1] and stored != [*EXAMPLES[:-1], EXAMPLES[0]] and stored != 3
    assert [stored[0], stored[150], stored[-1]] == [EXAMPLES[0], EXAMPLES[150], EXAMPLES[-1]]
    for chosen in (slice(None), slice(3), slice(150, 3, -7), slice(-5, None), slice(9, 2)):
        assert stored[chosen] == EXAMPLES[chosen]
    with pytest.raises(IndexError):
        stored[len(EXAMPLES)]
    assert EXAMPLES[42] in stored and list(reversed(stored)) == EXAMPLES[::-1]
    assert repr(stored) == f"<200 examples in {stored.path}>"


def test_rows_come_from_the_file(stored: StoredExamples) -> None:
    corpus = Corpus(stored)
    rows = corpus.to_dataset()
    assert rows is corpus.to_dataset()
    assert [file["filename"] for file in rows.cache_files] == [stored.path]
    assert rows.features == Corpus([]).to_dataset().features
    assert rows.to_list() == [example.to_row() for example in EXAMPLES]
    both = concatenate_datasets([rows, rows]).shuffle(seed=1)
    assert sorted(both["source"]) == sorted(example.source for example in EXAMPLES for _ in range(2))


def test_readers_and_cleaning_keep_what_is_long_on_disk(small: None, tmp_path: Path) -> None:
    lines = [f"sentence {n}\tSatz Nummer {n}\n" for n in range(300)]
    (tmp_path / "c.tsv").write_text("".join([*lines, *lines[::3], "alone\n", "a \ta\n"]), encoding="utf-8")
    before = files()
    corpus = read_tsv(tmp_path / "c.tsv", "en-de")
    kept, report = clean(corpus)
    assert isinstance(corpus.examples, StoredExamples) and isinstance(kept.examples, StoredExamples)
    assert report.removed == {"empty": 0, "too_long": 0, "length_ratio": 0, "copy": 1, "duplicate": 100}
    assert [example.source for example in kept] == [f"sentence {n}" for n in range(300)]
    assert (len(corpus), kept.skipped) == (401, {"missing column": 1})
    assert files() - before == {Path(corpus.examples.path).name, Path(kept.examples.path).name}


def test_cleaning_is_the_same_in_memory_and_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = clean(Corpus(EXAMPLES))
    monkeypatch.setattr(examples, "IN_MEMORY", 300)
    kept, report = clean(Corpus(EXAMPLES))
    assert isinstance(kept.examples, StoredExamples)
    assert (kept.examples, report) == (alone[0].examples, alone[1])


def test_short_rows_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A million empty rows are no characters, but much memory."""
    monkeypatch.setattr(examples, "IN_MEMORY", 100_000)
    sizes = [len(chunk) for chunk in examples._chunks(TranslationExample("", "", "en-de") for _ in range(5_000))]
    assert max(sizes) <= 1_001


def test_what_fails_on_the_way_leaves_no_file(small: None) -> None:
    def broken() -> Iterator[TranslationExample]:
        yield from EXAMPLES
        raise KeyError("broken")

    before = files()
    with pytest.raises(KeyError):
        store(broken())
    with pytest.raises(CorpusError, match=r"cannot be kept on disk .*surrogates not allowed"):
        store([*EXAMPLES, TranslationExample("\ud800", "x", "en-de")])
    assert files() == before


def test_a_disk_that_is_full(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "_folder", lambda: "/dev/full/none")
    with pytest.raises(CorpusError, match=r"cannot be kept on disk .*TMPDIR"):
        store(EXAMPLES)

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.undo()
    monkeypatch.setattr(examples, "IN_MEMORY", 1_000)
    before = files()
    monkeypatch.setattr(examples.pa.ipc, "new_stream", full)
    with pytest.raises(CorpusError, match=r"cannot be kept on disk .*No space left on device.*TMPDIR"):
        store(EXAMPLES)
    assert files() == before


@pytest.mark.slow
def test_files_go_with_the_process(tmp_path: Path) -> None:
    """Not with one that was forked from it."""
    script = (
        "import os\n"
        "from peft_landermt.translation import examples\n"
        "examples.IN_MEMORY = 10\n"
        "kept = examples.store([examples.TranslationExample('a', 'b', 'en-de')] * 9)\n"
        "print(kept.path)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    raise SystemExit\n"
        "os.waitpid(child, 0)\n"
        "assert len(list(kept)) == 9\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    path = Path(done.stdout.split()[0])
    assert path.is_relative_to(tmp_path) and not path.parent.exists()


def test_a_folder_is_removed_by_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "corpora"
    folder.mkdir()
    _remove_folder(str(folder), os.getpid() + 1)
    assert folder.exists()
    _remove_folder(str(folder), os.getpid())
    assert not folder.exists()


_MEASURE = """
import resource, sys
from peft_landermt.translation import clean, read_corpus
def now(): return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
start = now()
corpus = read_corpus(sys.argv[1], "en-de")
read = peak() - start
kept, report = clean(corpus)
cleaned = peak() - start
rows = kept.to_dataset()
trained = sum(len(text) for batch in rows.iter(1000) for text in batch["source"])
print(read, cleaned, peak() - start, len(corpus), report.kept)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_300_mb_within_400_mib(tmp_path: Path) -> None:
    words = [f"Wort{n}" for n in range(997)]
    rows = 0
    with open(tmp_path / "c.tsv", "w", encoding="utf-8") as file:
        while file.tell() < 300_000_000:
            for number in range(rows, rows + 10_000):
                chosen = itertools.islice(itertools.cycle(words), number % 997, number % 997 + 8)
                file.write(f"{number} {' '.join(chosen)}\tÜbersetzung {number} {' '.join(words[:7])}\n")
            rows += 10_000
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(tmp_path / "c.tsv")], capture_output=True, text=True, check=True
    )
    read, cleaned, used, count, kept = map(float, done.stdout.split())
    assert count == kept == rows
    assert read < 150 and cleaned < 250 and used < 400, done.stdout


def test_reading_is_what_it_was(tmp_path: Path) -> None:
    """Beyond the size that is kept in memory, through the public reader."""
    count = examples.IN_MEMORY // 130
    text = "".join(f"row {n} {'x' * 20}\tZeile {n} {'y' * 20}\n" for n in range(count))
    (tmp_path / "c.tsv").write_text(text, encoding="utf-8")
    corpus = read_corpus(tmp_path / "c.tsv", "en-de")
    assert isinstance(corpus.examples, StoredExamples)
    assert [f"{example.source}\t{example.target}\n" for example in corpus] == text.splitlines(keepends=True)
    assert corpus.examples[count // 2].target.startswith(f"Zeile {count // 2} ")
