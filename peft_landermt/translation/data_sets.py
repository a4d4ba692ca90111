"""Parallel corpora from data sets, and from anything else by its name."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from typing import Any

from datasets import DatasetDict, get_dataset_config_names, load_dataset, load_from_disk

from ..errors import CorpusError
from ..language_pair import LanguagePair, flores_code, parse_pair
from .corpus import MISSING_COLUMN, Corpus, collect_examples, select_texts
from .files import read_jsonl, read_moses, read_tsv
from .tmx import read_tmx

_FORMS = (
    "a corpus is *.tsv[.gz], *.jsonl[.gz], *.json[.gz], *.tmx[.gz], the prefix of two line-aligned files (corpus for "
    "corpus.en and corpus.de), or the folder or Hub id of a data set"
)


def read_dataset(
    name_or_path: str | os.PathLike[str],
    language_pair: str,
    split: str = "train",
    columns: tuple[str, str] | None = None,
    config_name: str | None = None,
    streaming: bool = False,
) -> Corpus:
    """Read a data set from the Hub, a folder that `datasets` can load, or one that `save_to_disk` wrote.

    Rows have the forms of [`read_jsonl`], or FLORES' columns `sentence_eng_Latn` and `sentence_deu_Latn`, unless
    `columns` names the text; `language_pair` columns count either way.

    Args:
        name_or_path: Hub id or folder.
        language_pair: Direction of the examples, such as `en-de`.
        split: Which split to read. A folder of `save_to_disk` may hold one data set without splits; that is read
            whole.
        columns: Names of the source and the target column.
        config_name: Configuration of the data set. By default, of a data set that has several (OPUS-100, WMT, FLORES),
            the one for this pair: `en-de`, `de-en`, `eng_Latn-deu_Latn` or `deu_Latn-eng_Latn`. Unused for folders of
            `save_to_disk`.
        streaming: Read while downloading, without a copy in the cache; unused for folders of `save_to_disk`.

    Raises:
        CorpusError: The data set cannot be loaded, lacks the split or the columns, or has no usable row.
        LanguagePairError: `language_pair` is malformed.
    """
    pair = parse_pair(language_pair)
    name = os.fspath(name_or_path)
    rows = _load_rows(name, pair, split, config_name, streaming)
    head = list(itertools.islice(rows, 1))
    # all rows of a data set have the same columns, so that what the first lacks, all lack
    if head and select_texts(head[0], pair, columns) == MISSING_COLUMN:
        found = [f"{key} ({', '.join(v)})" if isinstance(v, Mapping) else key for key, v in head[0].items()]
        remedy = f"{name} has no such text for {pair}; give two of its columns: {', '.join(found)}."
        raise CorpusError("columns", columns, remedy)
    outcomes = (select_texts(row, pair, columns) for row in itertools.chain(head, rows))
    return collect_examples(outcomes, pair, "name_or_path", name)


def read_corpus(path: str | os.PathLike[str], language_pair: str, split: str = "train") -> Corpus:
    """Read a corpus with the reader for its form.

    Args:
        path: `*.tsv` ([`read_tsv`]); `*.jsonl` or `*.json` ([`read_jsonl`]); `*.tmx` ([`read_tmx`]), each also with
            `.gz`; for `en-de`, the prefix of `prefix.en` and `prefix.de` ([`read_moses`]); else a data set
            ([`read_dataset`]).
        language_pair: Direction of the examples, such as `en-de`.
        split: Split of a data set; files have none.

    Raises:
        CorpusError: The corpus has none of these forms, or its reader refuses it.
        LanguagePairError: `language_pair` is malformed.
    """
    pair, name = parse_pair(language_pair), os.fspath(path)
    uncompressed = name.removesuffix(".gz")
    if uncompressed.endswith(".tsv"):
        return read_tsv(name, language_pair)
    if uncompressed.endswith((".jsonl", ".json")):
        return read_jsonl(name, language_pair)
    if uncompressed.endswith(".tmx"):
        return read_tmx(name, language_pair)
    source_path, target_path = (f"{name}.{language}" for language in pair)
    # one file is enough to tell what is meant; the reader then names the other as missing
    if os.path.isfile(source_path) or os.path.isfile(target_path):
        return read_moses(source_path, target_path, language_pair)
    if os.path.isfile(name):
        raise CorpusError("path", name, f"{_FORMS}.")
    return read_dataset(name, language_pair, split)


def _load_rows(
    name: str, pair: LanguagePair, split: str, config_name: str | None, streaming: bool
) -> Iterator[Mapping[str, Any]]:
    try:
        if any(os.path.isfile(os.path.join(name, file)) for file in ("state.json", "dataset_dict.json")):
            saved = load_from_disk(name)
            if isinstance(saved, DatasetDict) and split not in saved:
                raise ValueError(f"it has the splits {', '.join(saved)}")
            yield from saved[split] if isinstance(saved, DatasetDict) else saved
        else:
            config_name = config_name or _config_for(name, pair)
            yield from load_dataset(name, config_name, split=split, streaming=streaming)
    except Exception as error:  # of whatever kind: empty and damaged files fail in many, in datasets and Arrow
        remedy = f"cannot be loaded ({str(error) or repr(error)}); {_FORMS}."
        raise CorpusError("name_or_path, split", (name, split), remedy) from error


def _config_for(name: str, pair: LanguagePair) -> str | None:
    """Find the configuration of a data set that is named after the pair; None, the data set's default, without one."""
    there = get_dataset_config_names(name)
    codes = [tuple(pair), tuple(flores_code(language) for language in pair)]
    named = [f"{first}-{second}" for source, target in codes for first, second in ((source, target), (target, source))]
    return next((config for config in named if config in there), None)
