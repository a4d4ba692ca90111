"""What a neuron map says of how it was made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ..escaping import last_part, printable
from ..version import __version__


def signature(
    model: nn.Module,
    base: str | None,
    languages: Sequence[str],
    texts: Mapping[str, Sequence[str]],
    options: Mapping[str, Any],
) -> str:
    """Tell in one line how a map was made.

    Args:
        model: The base model.
        base: Its fingerprint, if it has one.
        languages: Of the map.
        texts: Sentences that were read, by language.
        options: Of the detection.
    """
    name = printable(last_part(str(getattr(getattr(model, "config", None), "name_or_path", "")))) or "unnamed"
    data = hashlib.sha256(json.dumps(dict(texts), sort_keys=True).encode()).hexdigest()[:12]
    parts = {
        "base": f"{name}#{base}" if base is not None else name,
        "data": f"{data}x{options['num_sentences']}",
        "languages": "+".join(languages),
        "layers": options["num_layers"],
        "general": options["general_ratio"],
        "activation": options["activation_statistic"],
        "normalized": "yes" if options["normalize_awareness"] else "no",
        "max_length": options["max_length"],
        "version": __version__,
    }
    if "layer_statistic" in options:
        parts["layers_by"] = options["layer_statistic"]
    if "extends" in options:
        parts["extends"] = hashlib.sha256(options["extends"].encode()).hexdigest()[:12]
    return "|".join(f"{key}:{value}" for key, value in parts.items())
