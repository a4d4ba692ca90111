"""The model card of an adapter folder."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Protocol

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..cache import is_demo
from ..escaping import code_span, is_hub_id, markdown, printable, published_name
from ..language_pair import TRANSLATION_PROMPT, languages_of, parse_pairs
from ..outputs import written_whole


class Carded(Protocol):
    """What a card is told by an adapter's config."""

    base_model_name_or_path: str | None
    task_type: Any
    prompt: str | None
    language_pairs: list[str] | None
    PEFT_TYPE: ClassVar[str]
    METHOD_NAME: ClassVar[str]
    METHOD_LINK: ClassVar[str]

    @property
    def method_options(self) -> dict[str, Any]:
        """Return the options of the method, by name."""

    @property
    def origins(self) -> dict[str, list[str]]:
        """Return pairs that the adapter was not made with, by where they come from."""

    @property
    def origin(self) -> tuple[str, str]:
        """What its parts were chosen by, and which that is."""


Scores = Mapping[str, Mapping[str, float]]

_BEGIN, _END = "<!-- written by peft_landermt; text outside of these marks is kept -->", "<!-- peft_landermt -->"
_TEMPLATE = "# Model Card for Model ID"
"""Title of the empty card that PEFT and transformers write."""
_PEFT_LINES = re.compile(r"### Framework versions|- PEFT .*|## Training procedure|")
"""What PEFT adds to every card."""

_ELSEWHERE = """
## The prompt elsewhere

`landermt merge` writes a plain model. Give it the prompt above with the source in place of `{source}` and the English
names of the languages; the translation follows after a space, or stands where the prompt says `{target}`. It ends with
what follows `{target}`, else with the end-of-sentence token, and at the latest at the end of its line.
"""

_TEXT = """# {title}

{link} adapter, made with peft_landermt.

| | |
|---|---|
| Base model | {base} |
| Language pairs | {pairs} |{origins}
| Options | {options} |
| Versions | {versions} |
{rows}
{origin}

Prompt: {prompt}

## How to load it

`import peft_landermt` registers the adapter type with PEFT. Without it, PEFT fails with `KeyError: '{peft_type}'`.

```python
import peft_landermt
from peft import PeftModel
{imports}

{load}
model = PeftModel.from_pretrained(base, "path/to/this/adapter")
print(peft_landermt.translate(model, tokenizer, ["..."], {pair}))
```
{elsewhere}
The licence of the base model holds for what is made with this adapter; that of the adapter is its owner's to name, as
`license` in the metadata above.
"""


def write_model_card(
    config: Carded, folder: Path, scores: Scores | None = None, training: Mapping[str, Any] | None = None
) -> None:
    """Write `README.md` into an adapter folder, or renew the part of it that an earlier call wrote.

    What others wrote is kept: text outside of our marks, and metadata that is not of this adapter. A `README.md` that
    is no model card, because its metadata or its encoding is broken, is left alone with a warning.

    Args:
        config: The adapter's config.
        folder: The adapter folder.
        scores: For every pair, scores by name, such as `{"en-de": {"BLEU": 21.4}}`.
        training: Settings of the training by name, such as `{"Learning rate": 5e-4}`.

    Raises:
        OSError: The card cannot be written, because the disk is full, for example; an older one is as it was.
    """
    results = _results(scores or {})
    path, text = Path(folder) / "README.md", _text(config, scores or {}, training)
    renew_card(path, text, lambda card: _add_metadata(card, config, results))


def renew_card(path: Path, text: str, add_metadata: Callable[[ModelCard], None]) -> None:
    """Write our part of a card, or renew the one that an earlier call wrote; see `write_model_card`.

    Args:
        path: The card.
        text: Our part.
        add_metadata: Puts our metadata into the card that it is given.

    Raises:
        OSError: The card cannot be written; an older one is as it was.
    """
    try:
        card = _card(path, add_metadata)
        card.text = _insert(card.text, f"{_BEGIN}\n\n{text}\n{_END}")
        content = re.sub("\r\n?", "\n", str(card))  # PEFT leaves some lines of each kind
    except Exception as error:  # of whatever kind: what a stranger wrote must not stop an adapter from being saved
        warnings.warn(f"{path} was left as it is: it is no model card ({error!r}).", stacklevel=3)
        return
    with written_whole(path) as partial:
        partial.write_text(content, encoding="utf-8", newline="")


def _card(path: Path, add_metadata: Callable[[ModelCard], None]) -> ModelCard:
    """The card that is at `path`, or an empty one, with our metadata."""
    card = ModelCard.load(path) if path.exists() else ModelCard("---\n{}\n---\n")
    add_metadata(card)
    return card


def is_model_card(path: Path, config: Carded) -> bool:
    """Whether a file, if it is there, is a model card that an adapter's metadata can be added to."""
    try:
        _card(path, lambda card: _add_metadata(card, config, []))
    except Exception:  # of whatever kind: what a stranger wrote may fail in many
        return not os.path.lexists(path)
    return True


def _insert(text: str, ours: str) -> str:
    """Put our part in place of an earlier one or of an empty template; before any other text."""
    begin = text.find(_BEGIN)
    end = text.find(_END, begin) if begin >= 0 else -1
    if end >= 0:
        return text[:begin] + ours + text[end + len(_END) :]
    return ours + "\n" if _is_empty(text) else f"{ours}\n\n{text.lstrip()}"


def _is_empty(text: str) -> bool:
    """Whether a card's text is nothing, or the template with nothing filled in."""
    if _TEMPLATE not in text:
        return not text.strip()
    template = set(ModelCard.from_template(ModelCardData()).text.splitlines())
    return all(line in template or _PEFT_LINES.fullmatch(line) for line in text.splitlines())


def _results(scores: Scores) -> list[EvalResult]:
    rows = [
        (printable(pair), printable(name), round(value, 2))
        for pair, row in scores.items()
        for name, value in row.items()
    ]
    return [
        EvalResult("translation", "translation", pair, pair, name, value, metric_name=name)  # type: ignore[arg-type]
        for pair, name, value in rows
    ]


def _add_metadata(card: Any, config: Carded, results: list[EvalResult]) -> None:
    """Add what the Hub's filters go by; take out what an earlier card of the adapter, or PEFT, said in its place."""
    data = card.data
    data.library_name = "peft"
    tags = [data.tags] if isinstance(data.tags, str) else data.tags or []
    data.tags = sorted(
        {config.PEFT_TYPE.lower(), "translation", *(tag for tag in tags if not tag.startswith("base_model:"))}
    )
    if data.pipeline_tag in (None, "text-generation"):  # PEFT's guess
        data.pipeline_tag = "translation"
    if config.base_model_name_or_path and is_hub_id(config.base_model_name_or_path):
        data.base_model = config.base_model_name_or_path
    elif isinstance(data.base_model, str) and not is_hub_id(data.base_model):  # PEFT's, and a path of this machine
        data.base_model = None
    codes = [data.language] if isinstance(data.language, str) else data.language or []
    pairs = parse_pairs(config.language_pairs) if config.language_pairs else []
    ours = {code.split("_")[0] for code in languages_of(pairs)}
    data.language = sorted((set(codes) - _earlier_codes(card.text)) | ours) or None
    ours_named = f"{config.METHOD_NAME} adapter"  # scores under another name are the owner's
    if data.model_name in (None, ours_named):
        data.model_name, data.eval_results = (ours_named, results) if results else (None, None)


def _earlier_codes(text: str) -> set[str]:
    """Languages that our part of a card names."""
    found = re.search(rf"{re.escape(_BEGIN)}.*?^\| Language pairs \|(.*)\|$", text, re.DOTALL | re.MULTILINE)
    return {code.split("_")[0] for code in re.split("[, -]+", found[1])} if found else set()


def _loading(base: str, two_stacks: bool) -> tuple[str, str]:
    """Return the lines of Python that import what loads a base model, and those that load it."""
    if is_demo(base):
        return "from peft_landermt.demo import load_demo_base", "base, tokenizer = load_demo_base()"
    if base.endswith(".gguf"):
        load = 'base, tokenizer = load_base("path/to/the/base/model.gguf")'
        return "from peft_landermt.demo import load_base", load
    name = json.dumps(base if is_hub_id(base) else "path/to/the/base/model")
    kind = "AutoModelForSeq2SeqLM" if two_stacks else "AutoModelForCausalLM"
    load = f"base = {kind}.from_pretrained({name})\ntokenizer = AutoTokenizer.from_pretrained({name})"
    return f"from transformers import {kind}, AutoTokenizer", load


def _text(config: Carded, scores: Scores, training: Mapping[str, Any] | None) -> str:
    pairs = [markdown(pair) for pair in config.language_pairs or []]
    lines = [f"| {markdown(name)} | {markdown(str(value))} |" for name, value in (training or {}).items()]
    lines += [
        f"| {markdown(pair)} {markdown(name)} | {value:.2f} |"
        for pair, row in scores.items()
        for name, value in row.items()
    ]
    two_stacks = config.task_type == "SEQ_2_SEQ_LM"
    imports, load = _loading(config.base_model_name_or_path or "", two_stacks)
    base, (part, chosen_by) = config.base_model_name_or_path or "", config.origin
    return _TEXT.format(
        link=config.METHOD_LINK,
        peft_type=config.PEFT_TYPE,
        title=f"{config.METHOD_NAME} adapter for {', '.join(pairs) or 'translation'}",
        base=markdown(published_name(base)) or "the base model",
        imports=imports,
        load=load,
        prompt=code_span(config.prompt or ("the tokenizer's own" if two_stacks else TRANSLATION_PROMPT)),
        elsewhere="" if two_stacks else _ELSEWHERE,
        versions=", ".join(f"{name} {version(name)}" for name in ("peft", "transformers", "torch")),
        pairs=", ".join(pairs) or "none named",
        origins="".join(f"\n| {origin} | {markdown(', '.join(of))} |" for origin, of in config.origins.items()),
        pair=json.dumps(str((config.language_pairs or ["en-de"])[0])),
        options=", ".join(f"{name}={value}" for name, value in config.method_options.items()),
        origin=f"{part}: {code_span(chosen_by)}",
        rows="".join(line + "\n" for line in lines),
    )
