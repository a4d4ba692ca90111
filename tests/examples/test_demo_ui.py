"""The page that compares adapters with their base, in a real browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedTokenizerFast

from peft_landermt import translate

from ..conftest import build_model
from .test_examples import load as load_example
from .test_serve import make_folders

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ("gpu", "quic", "background-networking", "component-update", "sync")
FLAGS = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in QUIET)]
SENTENCE = "We drink tea."
LONG = 2000  # characters; the model reads 256 tokens, one for each

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome"),
    pytest.mark.usefixtures("usual_lengths"),
]


@pytest.fixture(scope="module")
def example() -> ModuleType:
    pytest.importorskip("gradio", reason="needs the extra demo-ui")
    return load_example("demo_ui")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A base, adapters of three pairs, a folder that has none, one with LoRA, and one that is damaged."""
    folder = tmp_path_factory.mktemp("made")
    build_model("llama").save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    make_folders("llama", tokenizer, folder / "pairs")
    get_peft_model(build_model("llama"), LoraConfig(task_type="CAUSAL_LM")).save_pretrained(str(folder / "lora"))
    shutil.copytree(folder / "pairs" / "en-de", folder / "damaged")
    (folder / "damaged" / "adapter_model.safetensors").write_bytes(b"0" * 99)
    (folder / "<b>none").mkdir()
    for name, config in {
        "empty": "{}",
        "no-object": "[]",
        "unknown": '{"peft_type": "NEWER"}',
        "no-json": "{",
    }.items():
        (folder / name).mkdir()
        (folder / name / "adapter_config.json").write_text(config, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra demo-ui")
    with playwright.sync_playwright() as running:
        profile = str(tmp_path_factory.mktemp("profile"))
        options = {"executable_path": BROWSER, "args": FLAGS, "viewport": {"width": 1100, "height": 700}}
        context = running.chromium.launch_persistent_context(profile, headless=True, **options)
        context.set_default_timeout(60_000)
        yield context
        context.close()


@pytest.fixture
def page(example: ModuleType, made: Path, browser: Any) -> Iterator[Any]:
    """The page as `main` shows it; it must ask nobody but its own server, and tell the console nothing."""
    blocks = example.make_page(str(made / "pairs"), str(made / "base"))
    address = example.show(blocks, None, prevent_thread_lock=True, quiet=True)
    opened = browser.new_page()
    asked, told = [], []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("console", lambda message: told.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: told.append(str(error)))
    try:
        opened.goto(address)
        opened.get_by_text("3 language pairs on").wait_for()
        yield opened
        assert {url for url in asked if not url.startswith((address, "data:", "blob:"))} == set()
        assert told == []
    finally:
        opened.close()
        blocks.close()


def asked_to_translate(page: Any, text: str) -> None:
    page.get_by_label("Text").fill(text)
    page.get_by_role("button", name="Translate").click()


@pytest.mark.parametrize("pair", ["en-de", "de-en"])
@pytest.mark.parametrize("text", [SENTENCE, f"{SENTENCE}\n\nDie Nacht."], ids=["a line", "lines"])
def test_translations_are_those_of_translate(
    page: Any, made: Path, tokenizer: PreTrainedTokenizerFast, pair: str, text: str
) -> None:
    from playwright.sync_api import expect

    page.get_by_label("Language pair").click()
    page.get_by_role("option", name=pair).click()
    asked_to_translate(page, text)
    base, model = build_model("llama"), PeftModel.from_pretrained(build_model("llama"), str(made / "pairs" / pair))
    shown = {
        "Adapter's": "\n".join(translate(model, tokenizer, text.split("\n"), pair)),
        "Base's": "\n".join(translate(base, tokenizer, text.split("\n"), pair)),
    }
    assert shown["Adapter's"] != shown["Base's"]
    for whose, lines in shown.items():
        expect(page.get_by_label(f"{whose} translation")).to_have_value(lines, timeout=120_000)


@pytest.mark.parametrize(
    ("adapters", "base", "problem"),
    [
        ("<b>none", "base", "there is no adapter; name an adapter folder, or a folder of them."),
        ("lora", "base", "names no language pairs; name a LANDER or LSLO adapter."),
        ("damaged", "base", "damaged"),
        ("pairs", "no-base", "no-base"),
        *((name, "base", "Error") for name in ("empty", "no-object", "unknown", "no-json")),
    ],
)
def test_what_cannot_be_loaded_is_told(page: Any, made: Path, adapters: str, base: str, problem: str) -> None:
    page.get_by_label("Adapters").fill(str(made / adapters))
    page.get_by_label("Base model").fill(str(made / base))
    page.get_by_role("button", name="Load").click()
    told = page.locator(".problem")
    told.wait_for()
    assert problem in told.inner_text() and "Traceback" not in page.content()
    asked_to_translate(page, SENTENCE)  # with nothing loaded
    page.get_by_text("load adapters, and choose one of their pairs.").wait_for()


@pytest.mark.parametrize(
    ("text", "problem"),
    [(" ", "there is nothing to translate; write a sentence."), ("a" * LONG, "the model reads 256")],
)
def test_what_cannot_be_translated_is_told(page: Any, text: str, problem: str) -> None:
    asked_to_translate(page, text)
    page.get_by_text(problem).wait_for()
    assert "Traceback" not in page.content()
    asked_to_translate(page, SENTENCE)
    page.get_by_text(problem).wait_for(state="hidden")
