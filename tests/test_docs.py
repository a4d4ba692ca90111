"""Every Python block of README and docs runs, with tiny models in place of those that it names; and what pages name is
there: commands, options, targets of make, files, functions."""

from __future__ import annotations

import argparse
import copy
import importlib.util
import itertools
import re
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from transformers import PreTrainedTokenizerFast

import peft_landermt.demo
from peft_landermt import LanderConfig, LsloConfig, detect_neurons, split_adapter
from peft_landermt.cli import make_parser
from peft_landermt.cli.config_file import expand

from .conftest import SENTENCES, build_model
from .engines.page import HEADINGS, PAGE
from .translation.test_encoder_decoders import build as build_encoder_decoder
from .tuner.behaviours.case import ADAPTERS, MODULES
from .tuner.test_architectures import tiny
from .tuner.test_behaviours import BEHAVIOURS

ROOT = Path(__file__).parents[1]
PAIRS = ["en-de", "de-en"]
SENTENCES = {language: SENTENCES[language] for language in ("en", "de")}
Names = dict[str, Any]


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S)


def adapted(tokenizer: Any) -> PeftModel:
    base = build_model("gemma3")
    found = detect_neurons(base, tokenizer, SENTENCES, PAIRS, num_layers=2, progress=False)
    return get_peft_model(base, LanderConfig(task_type="CAUSAL_LM", neuron_map=found)).eval()


def whole_way(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Names:
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda _name: build_model("gemma3"))
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda _name: tokenizer)
    return {"english": SENTENCES["en"], "german": SENTENCES["de"]}


def loading(tokenizer: Any, _monkeypatch: pytest.MonkeyPatch) -> Names:
    split_adapter(adapted(tokenizer), "out/pairs")
    return {"base": build_model("gemma3")}


def several_pairs(tokenizer: Any, _monkeypatch: pytest.MonkeyPatch) -> Names:
    model = adapted(tokenizer)
    split_adapter(model, "out/pairs")
    model.load_adapter("out/pairs/en-de", adapter_name="en-de")
    ids = torch.tensor([[1, 40, 41, 42], [1, 50, 51, 52]])
    return {"model": model, "batch": {"input_ids": ids, "attention_mask": torch.ones_like(ids)}}


def sharing(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Names:
    def upload_folder(repo_id: str, folder_path: str) -> None:
        card = (Path(folder_path) / "README.md").read_text(encoding="utf-8")
        assert repo_id == "me/adapter" and "21.4" in card

    monkeypatch.setattr(huggingface_hub, "upload_folder", upload_folder)
    model = adapted(tokenizer)
    model.save_pretrained("out/adapter")
    return {"model": model}


LIBRARY = {"LanderConfig": LanderConfig, "detect_neurons": detect_neurons, "get_peft_model": get_peft_model}


def named_layout(tokenizer: Any, _monkeypatch: pytest.MonkeyPatch) -> Names:
    base = copy.deepcopy(tiny("named: RWKV's channel mix"))
    return {**LIBRARY, "base": base, "tokenizer": tokenizer, "sentences": SENTENCES, "pairs": PAIRS}


def encoder_decoder(_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Names:
    base, tokenizer = build_encoder_decoder("nllb")
    monkeypatch.setattr(transformers.AutoModelForSeq2SeqLM, "from_pretrained", lambda _name: base)
    names = {"AutoModelForSeq2SeqLM": transformers.AutoModelForSeq2SeqLM, "tokenizer": tokenizer}
    words = {"en": ["tea", "house"], "de": ["Tee", "Haus"]}
    return {**LIBRARY, **names, "sentences": words, "detect_neurons": partial(detect_neurons, num_layers=2)}


def corpus(_tokenizer: Any, _monkeypatch: pytest.MonkeyPatch) -> Names:
    texts = zip(SENTENCES["en"], SENTENCES["de"], strict=True)
    variants = '<tu><tuv xml:lang="en"><seg>{}</seg></tuv><tuv xml:lang="de"><seg>{}</seg></tuv></tu>'
    units = "".join(variants.format(*pair) for pair in texts)
    Path("corpus.tmx").write_text(f"<tmx version='1.4'><body>{units}</body></tmx>", encoding="utf-8")
    return {}


def own_text(_tokenizer: Any, _monkeypatch: pytest.MonkeyPatch) -> Names:
    return {}


def demo_adapters(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Names:
    split_adapter(adapted(tokenizer), "run/pairs")
    monkeypatch.setattr(peft_landermt.demo, "load_demo_base", lambda: (build_model("gemma3"), tokenizer))
    return {}


def training(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Names:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "events")
    texts = list(zip(SENTENCES["en"], SENTENCES["de"], strict=True))
    rows = [{"source": en, "target": de, "language_pair": "en-de"} for en, de in texts]
    return {"model": adapted(tokenizer), "tokenizer": tokenizer, "rows": rows, "development": rows[:2]}


def chats(tokenizer: Any, _monkeypatch: pytest.MonkeyPatch) -> Names:
    instruct = copy.deepcopy(tokenizer)
    instruct.chat_template = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    return {"model": adapted(tokenizer), "tokenizer": instruct}


def adding(tokenizer: Any, _monkeypatch: pytest.MonkeyPatch) -> Names:
    base = build_model("gemma3")
    found = detect_neurons(base, tokenizer, SENTENCES, PAIRS, num_layers=2, progress=False)
    found.save("map.safetensors")
    model = get_peft_model(copy.deepcopy(base), LanderConfig(task_type="CAUSAL_LM", neuron_map=found))
    rows = [{"source": "We drink tea.", "target": "Nous buvons du thé.", "language_pair": "en-fr"}] * 4
    args = transformers.TrainingArguments("run", use_cpu=True, report_to=[], save_strategy="no")
    texts = {"english": SENTENCES["en"], "french": ["tout", "le", "monde", "dort"][: len(SENTENCES["en"])]}
    return {**texts, "base": base, "tokenizer": tokenizer, "model": model, "rows": rows, "args": args}


def composing(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Names:
    names = adding(tokenizer, monkeypatch)
    exec(blocks("docs/growing.md")[0], names)
    return names


def serving(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Names:
    return {**loading(tokenizer, monkeypatch), "tokenizer": tokenizer}


def lslo_training(tokenizer: Any, _monkeypatch: pytest.MonkeyPatch) -> Names:
    texts = list(zip(SENTENCES["en"], SENTENCES["de"], strict=True))
    rows = [{"source": en, "target": de, "language_pair": "en-de"} for en, de in texts]
    arguments = transformers.TrainingArguments("out", max_steps=3, report_to=[], use_cpu=True, disable_tqdm=True)
    return {"base": build_model("gemma3"), "tokenizer": tokenizer, "rows": rows, "arguments": arguments}


def lslo_pruning(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Names:
    names = lslo_training(tokenizer, monkeypatch)
    config = LsloConfig(task_type="CAUSAL_LM", language_pairs=PAIRS, rank=2)
    return {**names, "model": get_peft_model(names["base"], config)}


NEEDED: dict[str, list[Callable[[Any, pytest.MonkeyPatch], Names]]] = {
    "README.md": [whole_way, loading, several_pairs, sharing],
    "docs/tutorial.md": [own_text],
    "docs/adapter.md": [demo_adapters],
    "docs/training.md": [corpus, training, chats],
    "docs/serving.md": [serving],
    "docs/growing.md": [adding, composing, composing],
    "docs/architectures.md": [named_layout, encoder_decoder],
    "docs/lslo.md": [lslo_training, lslo_pruning],
}
"""For every page, what each of its blocks takes for granted."""


@pytest.mark.parametrize(("page", "index"), [(page, i) for page, needed in NEEDED.items() for i in range(len(needed))])
def test_block(
    page: str, index: int, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names = NEEDED[page][index](tokenizer, monkeypatch)
    exec(compile(blocks(page)[index], f"{page}, block {index}", "exec"), names)


def test_no_block_is_left_out() -> None:
    pages = ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
    run = {PAGE: len(HEADINGS), **{page: len(needed) for page, needed in NEEDED.items()}}
    assert {page: len(blocks(page)) for page in pages if blocks(page)} == run


def commands(page: str) -> list[str]:
    """Lines of a page's blocks that call `landermt`, in whatever way."""
    text = (ROOT / page).read_text(encoding="utf-8")
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.M | re.S)
    lines = [line for language, block in fenced if not language for line in block.replace("\\\n", " ").splitlines()]
    called = (re.split(r"(?:^|&& |\| )landermt |-m peft_landermt.cli ", line) for line in lines)
    return [parts[-1].partition("#")[0].partition(" < ")[0] for parts in called if len(parts) > 1]


def subparsers() -> dict[str, argparse.ArgumentParser]:
    found = next(action for action in make_parser()._actions if action.dest == "command")
    assert isinstance(found.choices, dict)
    return found.choices


WITH_COMMANDS = ("tutorial", "adapter", "cli", "training", "growing", "serving", "lslo", "scale", "elsewhere")


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{name}.md" for name in WITH_COMMANDS)])
def test_commands_have_the_options_that_there_are(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # where files of options are
    found = commands(page)
    assert found
    for command in found:
        words = expand(shlex.split(command), subparsers())
        assert make_parser().parse_args(words).command == words[0]


def test_every_command_is_in_the_readme() -> None:
    assert {shlex.split(command)[0] for command in commands("README.md")} == set(subparsers())


PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


@pytest.mark.parametrize("page", PAGES)
def test_files_and_targets_that_a_page_names_are_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for name in re.findall(r"\b(?:tests|examples|benchmarks|peft_landermt|docs)/[\w/.]*\w", text):
        assert (ROOT / name).exists(), name
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)
    for line in re.findall(r"(?:`|^)make ([a-z ]+)", text, flags=re.M):
        assert set(line.split()) <= set(targets), line


def test_files_that_make_and_its_targets_name_are_there() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    for name in re.findall(r"\b(?:tests|benchmarks|docs)/[\w/]+\.\w+", text):
        assert (ROOT / name).exists() or name.startswith("benchmarks/results/"), name


def test_functions_of_the_paper_are_where_the_table_says() -> None:
    """Rows name a file of the package, then functions in it, then maybe another file."""
    table = re.findall(r"^\|.*\|$", (ROOT / "docs" / "method.md").read_text(encoding="utf-8"), flags=re.M)
    checked = 0
    for row in itertools.takewhile(lambda row: not row.startswith("| Tensor"), table):
        source = ""
        for name in re.findall(r"`([\w/.]+)`", row):
            if name.endswith(".py"):
                source = (ROOT / "peft_landermt" / name).read_text(encoding="utf-8")
            else:
                assert re.search(rf"^ *def {name}\(", source, flags=re.M), (row, name)
                checked += 1
    assert checked > 10


def test_the_readme_counts_behaviours() -> None:
    numbers = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
    kinds, others = numbers[len(ADAPTERS) - 2], numbers[len(MODULES) - 3]
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"{len(BEHAVIOURS)} behaviours of PEFT and transformers, on Llama with {kinds} kinds of adapter" in text
    assert f"on {others} other architectures with two" in text


def test_the_command_line_page_is_what_the_parser_says() -> None:
    """`make docs` writes it."""
    spec = importlib.util.spec_from_file_location("cli_page", ROOT / "docs" / "site" / "cli_page.py")
    assert spec is not None and spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    text = maker.PAGE.read_text(encoding="utf-8")
    assert text == maker.page()
    for name, command in subparsers().items():
        section = re.split(rf"^## {name}$", text, flags=re.M)[1].partition("\n## ")[0]
        flags = {option for action in command._actions for option in action.option_strings} - {"-h", "--help"}
        assert flags <= set(re.findall(r"`(--[\w-]+)", section)), name


def benchmark_commands(page: str) -> list[list[str]]:
    """Calls of scripts in a page's blocks, split into words."""
    text = (ROOT / page).read_text(encoding="utf-8")
    fenced = "\n".join(code for kind, code in re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.M | re.S) if not kind)
    calls = re.findall(r"^python (benchmarks/\w+\.py(?:[^\n']|'[^']*')*)$", fenced, flags=re.M)
    return [shlex.split(call, comments=True) for call in calls]


def test_options_of_benchmarks_are_there() -> None:
    calls = benchmark_commands("docs/paper.md")
    assert len(calls) > 6
    run = (ROOT / "benchmarks" / "run.py").read_text(encoding="utf-8")
    for script, *words in calls:
        source = (ROOT / script).read_text(encoding="utf-8") + (run if "add_scale_options" in run else "")
        for word in words:
            assert not word.startswith("--") or f'"{word}"' in source, (script, word)
