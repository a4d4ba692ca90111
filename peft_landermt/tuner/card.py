"""The model card of an adapter folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ..language_pair import languages_of, parse_pairs
from .config import LanderConfig

_TEXT = """
# {title}

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


def write_model_card(
    config: LanderConfig, folder: Path, scores: Mapping[str, Mapping[str, float]] | None = None
) -> None:
    """Write `README.md` into an adapter folder.

    Args:
        config: The adapter's config.
        folder: The adapter folder.
        scores: For every pair, scores by name, such as `{"en-de": {"BLEU": 21.4}}`.
    """
    pairs = config.language_pairs or []
    base = config.base_model_name_or_path or "the base model"
    if os.path.isabs(base):
        base = os.path.basename(base.rstrip("/"))
    data: dict[str, Any] = {"library_name": "peft", "pipeline_tag": "translation", "tags": ["lander", "translation"]}
    if pairs:
        data["language"] = sorted({code.split("_")[0] for code in languages_of(parse_pairs(pairs))})
    lines = [f"| {pair} {name} | {value:.2f} |" for pair, row in (scores or {}).items() for name, value in row.items()]
    text = _TEXT.format(
        title=f"LANDeRMT adapter for {', '.join(pairs) or 'translation'}",
        base=base,
        pairs=", ".join(pairs) or "none named",
        pair=pairs[0] if pairs else "en-de",
        car=config.car,
        inactive=config.inactive_neurons,
        tune=config.tune,
        rank=config.general_rank,
        signature=config.neuron_map_signature or "none: all neurons are general",
        scores="".join(line + "\n" for line in lines),
    )
    ModelCard(f"---\n{ModelCardData(**data).to_yaml()}\n---\n{text}").save(folder / "README.md")
