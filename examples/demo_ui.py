"""Compare adapters with their base in a browser; needs the extra `demo-ui`.

    python examples/demo_ui.py --adapters out/pairs

Shows one page, to this machine alone. `--adapters` is an adapter folder, or a folder of them: what `landermt split`
writes. The base is the one that the adapters name, unless `--model` gives another; both can be changed on the page.
Every line of the text is a sentence. What goes wrong is told on the page.
"""

from __future__ import annotations

import argparse
import os
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before the import, which asks for a newer version otherwise

import gradio as gr
from peft import PeftConfig, PeftModel

from peft_landermt.demo import load_base
from peft_landermt.errors import AdapterError, CorpusError, LanderError
from peft_landermt.translation import translate_counted

STYLE = """
.gradio-container { width: 100%; max-width: 64rem !important; margin: auto !important }
#load { align-self: end; margin-bottom: 0.6rem }
.status, .problem { overflow-wrap: anywhere; padding: 0 0.3rem }
.problem { color: var(--error-text-color, #b91c1c) }
"""


class Choice(NamedTuple):
    """A direction that can be chosen: the adapter's name in the model, its pair, and its prompt."""

    adapter: str
    pair: str
    prompt: str | None


class Comparison:
    """The model of the page, and what its buttons do."""

    def __init__(self) -> None:
        self.model: Any = None
        self.tokenizer: Any = None
        self.choices: dict[str, Choice] = {}

    def load(self, folder: str, base: str) -> tuple[Any, str]:
        """Load all adapters of a folder; the first of its directions is chosen."""
        self.model, self.choices = None, {}  # memory for one base
        model, choices = None, {}
        for index, path in enumerate(adapter_folders(folder)):
            config, name = PeftConfig.from_pretrained(str(path)), f"adapter_{index}"
            if model is None:
                named = base.strip() or config.base_model_name_or_path
                if not named:
                    raise AdapterError("base model", base, "the adapter names none; give one.")
                plain, self.tokenizer = load_base(named)
                model = PeftModel.from_pretrained(plain, str(path), adapter_name=name)
            else:
                model.load_adapter(str(path), adapter_name=name)
            for pair in getattr(config, "language_pairs", None) or []:
                label = pair if pair not in choices else f"{pair} ({path.name})"
                choices[label] = Choice(name, pair, config.prompt)
        if not choices:
            raise AdapterError("adapters", folder, "names no language pairs; name a LANDER or LSLO adapter.")
        self.model, self.choices = model.eval(), choices
        return self.chosen(), told(f"{len(choices)} language pairs on {named}")

    def chosen(self) -> Any:
        """The list of directions, with its first chosen."""
        return gr.Dropdown(choices=list(self.choices), value=next(iter(self.choices), None))

    def translate(self, text: str, label: str | None) -> tuple[str, str, str]:
        """Each line by the base and by the adapter, with the adapter's prompt."""
        if label not in self.choices:
            raise AdapterError("pair", label, "load adapters, and choose one of their pairs.")
        if not text.strip():
            raise CorpusError("text", text, "there is nothing to translate; write a sentence.")
        choice, lines = self.choices[label], text.strip().splitlines()
        names = ["__base__"] * len(lines) + [choice.adapter] * len(lines)
        found = translate_counted(
            self.model, self.tokenizer, lines * 2, choice.pair, template=choice.prompt, adapter_names=names
        )
        texts, cut = found.texts, len(found.cut)
        status = told(f"{cut} of {len(texts)} translations found no end and were cut." if cut else "")
        return "\n".join(texts[: len(lines)]), "\n".join(texts[len(lines) :]), status


def adapter_folders(folder: str) -> list[Path]:
    """The adapter folders that a path names: itself, or those in it."""
    path = Path(folder.strip()).expanduser()
    found = [one.parent for one in (*path.glob("adapter_config.json"), *sorted(path.glob("*/adapter_config.json")))]
    if not found or not folder.strip():
        raise AdapterError("adapters", folder, "there is no adapter; name an adapter folder, or a folder of them.")
    return found


def told(text: str, kind: str = "status") -> str:
    """A line below the page's buttons."""
    return f'<p class="{kind}">{escape(text)}</p>'


def make_page(adapters: str, base: str) -> gr.Blocks:
    """The page, which loads `adapters` on `base` when it is first opened."""
    comparison = Comparison()

    def guarded(action: Any, failed: tuple[Any, ...]) -> Any:
        def run(*values: Any) -> Any:
            try:
                return action(*values)
            except Exception as error:  # of whatever kind: what strangers wrote may fail in many
                kind = "" if isinstance(error, LanderError) else f"{type(error).__name__}: "
                return *failed, told(f"{kind}{error}", "problem")

        return run

    def opened(folder: str, named: str) -> Any:
        return (comparison.chosen(), told("")) if comparison.model else comparison.load(folder, named)

    nothing = gr.Dropdown(choices=[], value=None)
    with gr.Blocks(title="peft_landermt", analytics_enabled=False, fill_width=True) as page:
        gr.Markdown("# Base and adapter, side by side\nA direction, a sentence, and what the adapter changes.")
        with gr.Row():
            line = {"max_lines": 1, "min_width": 280, "scale": 3}
            folder = gr.Textbox(adapters, label="Adapters", placeholder="a folder", **line)
            named = gr.Textbox(base, label="Base model", placeholder="the one they name", **line)
            load = gr.Button("Load", scale=1, min_width=90, elem_id="load")
        with gr.Row():
            text = gr.Textbox(label="Text", placeholder="one sentence a line", lines=3, min_width=280, scale=6)
            pair = gr.Dropdown(choices=[], label="Language pair", scale=1, min_width=170)
        go = gr.Button("Translate", variant="primary")
        status = gr.HTML(told(""))
        with gr.Row(equal_height=True):
            before, after = (
                gr.Textbox(label=label, lines=3, min_width=280, interactive=False)
                for label in ("Base's translation", "Adapter's translation")
            )
        one = {"concurrency_id": "model", "concurrency_limit": 1}  # one model: a load waits for a translation
        asked = [load.click, folder.submit, named.submit]
        gr.on(asked, guarded(comparison.load, (nothing,)), [folder, named], [pair, status], **one)
        go.click(guarded(comparison.translate, ("", "")), [text, pair], [before, after, status], **one)
        if adapters:
            page.load(guarded(opened, (nothing,)), [folder, named], [pair, status], **one)
    return page


def show(page: gr.Blocks, port: int | None, **options: Any) -> str:
    """Serve the page to this machine until it is interrupted, and return its address."""
    theme = gr.themes.Default(primary_hue="indigo", font=["system-ui", "sans-serif"])
    place = {"server_name": "127.0.0.1", "server_port": port, "share": False}
    return page.launch(theme=theme, css=STYLE, footer_links=[], **place, **options)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", default="", help="an adapter folder, or a folder of them")
    parser.add_argument("--model", default="", help="base model (default: the one that the adapters name)")
    parser.add_argument("--port", type=int, default=7860)
    args = parser.parse_args()
    show(make_page(args.adapters, args.model), args.port)


if __name__ == "__main__":
    main()
