"""Corpora that are not what their pair says: header lines, exchanged columns, other languages.

Sentences are Article 1 of the Universal Declaration of Human Rights (OHCHR's translations).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from peft_landermt import LanderTrainer
from peft_landermt.translation.direction import check_directions, is_header, names_exchanged, script_of

from ..conftest import build_model, make_tokenizer
from .test_limits import HUMAN_RIGHTS


def row(source: str, target: str, pair: str) -> dict[str, str]:
    return {"source": source, "target": target, "language_pair": pair}


@pytest.mark.parametrize(
    ("source", "target", "pair", "exchanged"),
    [
        ("source", "target", "en-de", False), ("src", "tgt", "en-de", False),
        ("Source", "Translation", "en-de", False),
        ("en", "de", "en-de", False), ("EN", "DE", "en-de", False), ("English", "German", "en-de", False),
        ("eng_Latn", "deu_Latn", "en-de", False), ("en", "de", "eng_Latn-deu_Latn", False),
        ("zh-Hant", "en", "zh_Hant-en", False), ("Chinese", "English", "zh_Hant-en", False),
        ("pt-BR", "en", "pt_BR-en", False), ("de", "en", "en-de", True), ("German", "English", "en-de", True),
        (" de ", "en\u00a0", "en-de", True),
        ("source_text", "Target text", "en-de", False), ("sentence1", "sentence2", "en-de", False),
        ("sentence_eng_Latn", "sentence_deu_Latn", "en-de", False), ("text_de", "text_en", "en-de", True),
        ("EN-GB", "ZH-CN", "en-zh", False), ('"en-US"', '"de-DE"', "en-de", False),
        ("source_en", "target_de", "en-de", False),
        ("German sentence", "English sentence", "en-de", True), ("# src_txt", "trg_txt", "en-th", False),
        ("zh-hant", "eng", "zh-en", False), ("mt", "ref", "en-de", False),
    ],
)  # fmt: skip
def test_header_lines(source: str, target: str, pair: str, exchanged: bool) -> None:
    header = row(source, target, pair)
    assert is_header(header)
    assert names_exchanged(header) is exchanged


@pytest.mark.parametrize(
    ("source", "target", "pair"),
    [
        ("Good morning.", "Guten Morgen.", "en-de"), ("de", "de", "en-de"), ("the source", "die Quelle", "en-de"),
        ("en", "Hund", "sv-de"), ("Text", "Spalte", "en-de"), ("Language", "Sprache", "en-de"),
        ("text", "string", "en-de"), ("1", "2", "en-de"), ("", "", "en-de"),
        ("English", "Englisch", "en-de"), ("fr", "it", "en-de"), ("id", "de", "en-de"),
    ],
)  # fmt: skip
def test_lines_that_are_no_header(source: str, target: str, pair: str) -> None:
    assert not is_header(row(source, target, pair))


CHINESE = {"zh", "zh_Hant"}


@pytest.mark.parametrize("source", HUMAN_RIGHTS)
def test_with_language_identification(source: str) -> None:
    """All that are right pass, and all that are exchanged are found, except Chinese in its two scripts."""
    for target in HUMAN_RIGHTS.keys() - {source}:
        pair = f"{source}-{target}"
        right = [row(HUMAN_RIGHTS[source], HUMAN_RIGHTS[target], pair)] * 2
        wrong = [row(HUMAN_RIGHTS[target], HUMAN_RIGHTS[source], pair)] * 2
        assert check_directions({pair: right}) == []
        doubts = check_directions({pair: wrong})
        if {source, target} == CHINESE:
            continue
        assert [doubt.exchanged for doubt in doubts] == [True], pair
        assert f"{target}-{source}" in doubts[0].text


@pytest.mark.parametrize("source", HUMAN_RIGHTS)
def test_by_script(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without py3langid, where the scripts of the two languages differ."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    for target in HUMAN_RIGHTS.keys() - {source}:
        pair = f"{source}-{target}"
        wrong = [row(HUMAN_RIGHTS[target], HUMAN_RIGHTS[source], pair)] * 2
        differ = script_of(HUMAN_RIGHTS[source] * 2) != script_of(HUMAN_RIGHTS[target] * 2)
        assert [doubt.exchanged for doubt in check_directions({pair: wrong})] == [True] * differ, pair
        assert check_directions({pair: [row(HUMAN_RIGHTS[source], HUMAN_RIGHTS[target], pair)]}) == []


@pytest.mark.parametrize("pairs", [("en-de", "de-en"), ("en-de", "en-fr"), ("sr_Latn-sr", "sr-sr_Latn")])
def test_the_same_rows_for_two_pairs(pairs: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A sentence is in one language; no identification of languages is needed to tell."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    texts = [("one", "eins"), ("two", "zwei"), ("OK", "OK")]
    first, second = (
        [row(*text, pair) for text in order] for pair, order in zip(pairs, (texts, texts[::-1]), strict=True)
    )
    (doubt,) = check_directions({pairs[0]: first, pairs[1]: second})
    assert doubt.exchanged and f"{pairs[0]} and {pairs[1]} have the same sources and targets" in doubt.text
    turned = [row(target, source, pairs[1]) for source, target in texts]
    assert check_directions({pairs[0]: first, pairs[1]: turned}) == []
    assert check_directions({pairs[0]: [row("OK", "OK", pairs[0])], pairs[1]: [row("OK", "OK", pairs[1])]}) == []


def test_one_side_in_another_language() -> None:
    rows = [row(HUMAN_RIGHTS["en"], HUMAN_RIGHTS["tr"], "en-de")]
    (doubt,) = check_directions({"en-de": rows})
    assert not doubt.exchanged and "rows of en-de do not look like German" in doubt.text


@pytest.mark.parametrize("pair", ["en-sr_Latn", "en-zgh", "en-sah", "ja_Latn-en"])
def test_scripts_and_languages_that_are_not_known_pass(pair: str) -> None:
    source, target = pair.split("-")
    texts = {"en": HUMAN_RIGHTS["en"], "sr_Latn": "Sva ljudska bića rađaju se slobodna i jednaka u dostojanstvu.",
             "zgh": "ⵉⵎⴷⴰⵏⵏ ⴰⴽⴽⵯ ⵜⵜⵍⴰⵍⵏ ⴳⴰⵏ ⵉⵍⴻⵍⵍⵉⵢⵏ",
             "sah": "Дьон барыта бэйэ суолтатыгар уонна быраабыгар тэҥ буолан",
             "ja_Latn": "Subete no ningen wa umarenagara ni shite jiyuu de ari"}  # fmt: skip
    assert check_directions({pair: [row(texts[source], texts[target], pair)]}) == []


def test_a_trainer_warns(tmp_path: Path) -> None:
    rows: Any = [row(HUMAN_RIGHTS["de"], HUMAN_RIGHTS["en"], "en-de")] * 2
    options = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no", "max_steps": 1}
    trainer = LanderTrainer(
        build_model("llama"), TrainingArguments(str(tmp_path), **options), None, rows, None, make_tokenizer()
    )
    with pytest.warns(UserWarning, match="train_dataset: sources and targets of en-de look exchanged.*de-en"):
        trainer.train()
