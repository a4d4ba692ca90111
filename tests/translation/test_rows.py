"""Rows that cannot be used, that are cut, or that have several lines: found before the first step, or counted."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset
from torch.utils import data
from transformers import TrainingArguments

from peft_landermt import LanderTrainer, TranslationCollator
from peft_landermt.errors import ConfigError, CorpusError
from peft_landermt.padding import IGNORED
from peft_landermt.translation import usable_rows

from ..conftest import build_model, make_tokenizer
from ..prompt_tokenizers import byte_tokenizer
from ..tuner.helpers import adapt
from .test_encoder_decoders import build as build_encoder_decoder

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def row(source: Any, target: Any, pair: Any = "en-de") -> dict[str, Any]:
    return {"source": source, "target": target, "language_pair": pair}


GOOD = [row(f"Tea {number}?", f"Tee {number}?") for number in range(6)]
SHORT = {"templates": ["{source}="], "max_length": 40}
END = make_tokenizer().eos_token
BAD = {
    "blank": (row("", ""), "lacks source, target"),
    "of white space": (row("Tea?", " \u3000\n"), "lacks target"),
    "no text": (row("Tea?", None), "lacks target"),
    "a number": (row(7, "sieben"), "lacks source"),
    "without a field": ({"source": "Tea?", "language_pair": "en-de"}, "lacks target"),
    "no mapping": (["Tea?", "Tee?", "en-de"], "is no mapping"),
    "too long a prompt": (row("tea " * 50, "Tee?"), "no room for a translation in 40 tokens"),
    "no pair": (row("Tea?", "Tee?", "ende"), "language_pair='ende'"),
    "another pair": (row("Tea?", "Tee?", "de-fr"), "the adapter holds en-de"),
    "a header": (row("source", "target"), "is a header line"),
    "an end inside": (row("Tea?", f"Tee{END}?"), f"its target holds {END!r}"),
    "a NUL": (row("Tea\0?", "Tee?"), "NUL character"),
}


def trainer_of(rows: Any, folder: Path, evaluated: Any = None, collator: Any = None, **options: Any) -> LanderTrainer:
    tokenizer = make_tokenizer()
    settings = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}
    settings |= {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2, **options}
    if evaluated is not None:
        settings["eval_strategy"] = "epoch"
    return LanderTrainer(
        adapt(build_model("llama"), language_pairs=["en-de"]),
        TrainingArguments(str(folder), **settings),
        collator or TranslationCollator(tokenizer, **SHORT),
        rows,
        evaluated,
        tokenizer,
    )


@pytest.mark.parametrize("name", BAD)
def test_refused_before_the_first_step(name: str, tmp_path: Path) -> None:
    """In the rows for training and in those for evaluation; the first of which lies anywhere."""
    bad, reason = BAD[name]
    for trained, evaluated, where in (([*GOOD, bad], None, "train"), (GOOD, [*GOOD, bad], "eval")):
        trainer = trainer_of(trained, tmp_path, evaluated)
        before = {key: value.clone() for key, value in trainer.model.named_parameters()}
        with pytest.raises(CorpusError, match=f"{where}_dataset.*1 of 7 rows.*row 6: .*{reason}.*usable_rows"):
            trainer.train()
        assert trainer.state.global_step == 0
        assert all(value.equal(before[key]) for key, value in trainer.model.named_parameters())
    with pytest.raises(CorpusError, match=reason):
        trainer_of(GOOD, tmp_path).evaluate([*GOOD, bad])


def test_the_rest_can_be_used(tmp_path: Path) -> None:
    everything = [each for bad, _ in BAD.values() for each in (bad, GOOD[0])]
    collator = TranslationCollator(make_tokenizer(), **SHORT)
    usable, report = usable_rows(everything, collator, ["en-de"])
    assert usable == [GOOD[0]] * len(BAD)
    assert (report.total, list(report.unusable)) == (2 * len(BAD), list(range(0, 2 * len(BAD), 2)))
    for (_, reason), found in zip(BAD.values(), report.unusable.values(), strict=True):
        assert reason in found
    trainer_of(usable, tmp_path, max_steps=1).train()


def test_named_evaluation_sets_are_looked_at(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"eval_dataset\['second'\].*row 1"):
        trainer_of(GOOD, tmp_path, {"first": GOOD, "second": [GOOD[0], row("", "")]}).train()


class Stream(data.IterableDataset):
    """A stream of torch's."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("make", [Stream, lambda rows: IterableDataset.from_generator(lambda: iter(rows))])
def test_streamed_ones_are_left_out_and_counted(make: Any, workers: int, tmp_path: Path) -> None:
    bad = [bad for bad, _ in BAD.values() if isinstance(bad, dict)]
    cut = row("Tea?", "Tee " * 30)
    rows = [*bad, *GOOD, *bad, cut, *GOOD]  # thirteen that are good, one of them cut
    trainer = trainer_of(make(rows), tmp_path, max_steps=7, dataloader_num_workers=workers)
    trainer.train()
    last = [entry for entry in trainer.state.log_history if "loss" in entry][-1]
    assert (trainer.state.global_step, last["skipped_rows"], last["cut_rows"]) == (7, 2 * len(bad), 1)
    metrics = trainer.evaluate(make([*bad, *GOOD, cut]))
    assert (metrics["eval_skipped_rows"], metrics["eval_cut_rows"]) == (len(bad), 1)
    assert metrics["eval_loss"] == pytest.approx(trainer.evaluate([*GOOD, cut])["eval_loss"])


# Rows that are cut


def test_cut_rows_are_told(tmp_path: Path) -> None:
    rows = [*GOOD, row("Tea?", "Tee " * 30), row("Tea!", "Tee " * 40)]
    with pytest.warns(
        UserWarning, match="train_dataset: 2 of 8 rows are cut at max_length=40; they do not teach where"
    ):
        trainer_of(Dataset.from_list(rows), tmp_path, max_steps=1).train()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*rows are cut")
        trainer_of(GOOD, tmp_path, max_steps=1).train()


@pytest.mark.parametrize("room", range(2, 12))
def test_cut_translations_do_not_end(room: int) -> None:
    tokenizer, long = byte_tokenizer(), row("Hi", "1234567")  # a space, seven bytes, the end
    collator = TranslationCollator(tokenizer, templates=["{source}="], max_length=4 + room)  # <s> H i =
    labels = [label for label in collator([long])["labels"][0].tolist() if label != IGNORED]
    assert len(labels) == min(room, 9)
    assert (labels[-1] == tokenizer.eos_token_id) == (room >= 9) == (not collator.cuts(long))
    assert tokenizer.decode(labels, skip_special_tokens=True) == " 1234567"[:room]


@pytest.mark.parametrize("kind", ["nllb", "m2m100", "mbart", "marian", "t5"])
def test_nor_do_those_of_an_encoder_decoder(kind: str) -> None:
    """Their end has no label; the code of the language, which begins a translation, has."""
    model, tokenizer = build_encoder_decoder(kind)
    long, end = row("tea house", "tea house " * 9), tokenizer.eos_token_id
    whole, cut = (TranslationCollator(tokenizer, model=model, max_length=length) for length in (512, 8))
    assert end in whole([long])["labels"][0].tolist()
    assert end not in cut([long])["labels"][0].tolist()
    assert cut.cuts(long) and not whole.cuts(long)
    expected = [label for label in whole([long])["labels"][0].tolist() if label != IGNORED]
    found = [label for label in cut([long])["labels"][0].tolist() if label != IGNORED]
    assert found and found == expected[: len(found)]
    assert cut([long])["decoder_input_ids"].shape == cut([long])["labels"].shape
    assert torch.isfinite(model(**{k: v for k, v in cut([long]).items() if k != "language_pairs"}).loss)


# Rows of several lines


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\u2028", "\x85", "\n\n", " \n "])
def test_lines_are_taught_as_translations_are_given(end: str) -> None:
    """In one line, as `translate` gives them."""
    tokenizer = byte_tokenizer()
    collator = TranslationCollator(tokenizer, templates=["{source}="])
    one, two = (collator.encode(row(f"a{mark}b", f"erste Zeile{mark}zweite")) for mark in (" ", end))
    assert one == two
    assert tokenizer.decode(two[1]) == " erste Zeile zweite</s>"


@pytest.mark.parametrize("name", ["", "news"])
def test_scores_that_cannot_be_made_are_told_before_the_first_step(name: str, tmp_path: Path) -> None:
    """As where BLEU of Korean lacks its package."""
    trainer = trainer_of(GOOD, tmp_path, {name: GOOD} if name else GOOD)
    trainer.predict_with_generate, trainer.generation_options = True, {"bleu_tokenizer": "none-such"}
    with pytest.raises(ConfigError, match="bleu_tokenizer='none-such'"):
        trainer.train()
    assert trainer.state.global_step == 0
