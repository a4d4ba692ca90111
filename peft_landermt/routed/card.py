"""The model card of an adapter folder."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub import EvalResult, ModelCard

from ..language_pair import languages_of, parse_pairs


class Carded(Protocol):
    """What a card is told by an adapter's config."""

    base_model_name_or_path: str | None
    language_pairs: list[str] | None

    def to_dict(self) -> dict[str, Any]:
        """All its fields."""


_BEGIN, _END = "<!-- written by peft_landermt; text outside of these marks is kept -->", "<!-- peft_landermt -->"
_TEMPLATE = "# Model Card for Model ID"
"""Title of the empty card that PEFT and transformers write."""

_TEXT = """# {title}

A [LANDeRMT](https://aclanthology.org/2024.acl-long.656) adapter, made with peft_landermt.

| | |
|---|---|
| Base model | {base} |
| Language pairs | {pairs} |
| Routing | car={car}, inactive_neurons={inactive}, tune={tune}, general_rank={rank} |
| Neuron map | `{signature}` |
{scores}
## How to load it

`import peft_landermt` registers the adapter type with PEFT. Without it, PEFT fails with `KeyError: 'LANDER'`.

```python
import peft_landermt
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("{base}")
tokenizer = AutoTokenizer.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "path/to/this/adapter")
print(peft_landermt.translate(model, tokenizer, ["..."], "{pair}"))
```
"""


def write_model_card(config: Carded, folder: Path, scores: Mapping[str, Mapping[str, float]] | None = None) -> None:
    """Write `README.md` into an adapter folder, or renew the part of it that an earlier call wrote.

    Args:
        config: The adapter's config.
        folder: The adapter folder.
        scores: For every pair, scores by name, such as `{"en-de": {"BLEU": 21.4}}`.
    """
    path = folder / "README.md"
    card = ModelCard.load(path) if path.exists() else ModelCard(f"---\n{{}}\n---\n{_TEMPLATE}\n")
    card.text = _insert(card.text, f"{_BEGIN}\n\n{_text(config, scores or {})}\n{_END}")
    for key, value in _metadata(config, scores or {}).items():
        setattr(card.data, key, value)  # None leaves a key out
    partial = folder / "README.md.partial"
    card.save(partial)
    partial.replace(path)


def _insert(text: str, ours: str) -> str:
    """Put our part in place of an earlier one or of an empty template; before any other text."""
    if _BEGIN in text and _END in text:
        return text[: text.index(_BEGIN)] + ours + text[text.index(_END) + len(_END) :]
    return ours + "\n" if _TEMPLATE in text or not text.strip() else f"{ours}\n\n{text.lstrip()}"


def _base(config: Carded) -> str | None:
    """Name of the base model; of a local folder only the last part, which tells nothing about a machine."""
    base = config.base_model_name_or_path
    return os.path.basename(base.rstrip("/")) if base and os.path.isabs(base) else base


def _metadata(config: Carded, scores: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    data: dict[str, Any] = {"library_name": "peft", "pipeline_tag": "translation", "tags": ["lander", "translation"]}
    base = _base(config) or ""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", base):
        data["base_model"] = base
    codes = languages_of(parse_pairs(config.language_pairs)) if config.language_pairs else []
    data["language"] = sorted({code.split("_")[0] for code in codes}) or None
    results = [
        EvalResult("translation", "translation", pair, pair, name, round(value, 2), metric_name=name)  # type: ignore[arg-type]
        for pair, row in scores.items()
        for name, value in row.items()
    ]
    data.update(model_name="LANDeRMT adapter" if results else None, eval_results=results or None)
    return data


def _text(config: Carded, scores: Mapping[str, Mapping[str, float]]) -> str:
    pairs, fields = config.language_pairs or [], config.to_dict()
    lines = [f"| {pair} {name} | {value:.2f} |" for pair, row in scores.items() for name, value in row.items()]
    return _TEXT.format(
        title=f"LANDeRMT adapter for {', '.join(pairs) or 'translation'}",
        base=_base(config) or "the base model",
        pairs=", ".join(pairs) or "none named",
        pair=pairs[0] if pairs else "en-de",
        car=fields["car"],
        inactive=fields["inactive_neurons"],
        tune=fields["tune"],
        rank=fields["general_rank"],
        signature=fields["neuron_map_signature"] or "none: all neurons are general",
        scores="".join(line + "\n" for line in lines),
    )
