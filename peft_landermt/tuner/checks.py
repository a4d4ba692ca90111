"""Checks of an adapter folder, its config and its file, before a model is touched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import SafetensorError, safe_open

from ..errors import AdapterError, ConfigError
from ..language_pair import check_language, parse_pairs


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _list_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (list, tuple, set)) and all(map(check, value))


def _is_str(value: Any) -> bool:
    return isinstance(value, str)


_are_strs, _are_ints = _list_of(_is_str), _list_of(_is_int)

_TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "modules_to_save": ("a list of strings", lambda value: value is None or _are_strs(value)),
    **dict.fromkeys(
        ("target_modules", "exclude_modules", "layers_pattern"),
        ("a string or a list of strings", lambda value: value is None or _is_str(value) or _are_strs(value)),
    ),
    "layers_to_transform": (
        "an integer or a list of integers",
        lambda value: value is None or _is_int(value) or _are_ints(value),
    ),
    **dict.fromkeys(
        ("init_weights", "verify_base", "inference_mode"), ("true or false", lambda value: isinstance(value, bool))
    ),
    **dict.fromkeys(("car", "inactive_neurons", "tune"), ("a string", _is_str)),
    "general_rank": (
        "a positive integer, or None for whole rows",
        lambda value: value is None or (_is_int(value) and value > 0),
    ),
    "format_version": ("an integer", _is_int),
    **dict.fromkeys(
        (
            "prompt",
            "save_dtype",
            "neuron_map_signature",
            "base_fingerprint",
            "base_model_name_or_path",
            "revision",
            "peft_version",
            "task_type",
        ),
        ("a string", lambda value: value is None or _is_str(value)),
    ),
    **dict.fromkeys(
        ("neuron_counts", "auto_mapping", "ffn_layout"),
        ("a mapping", lambda value: value is None or isinstance(value, dict)),
    ),
}


def check_types(values: Mapping[str, Any]) -> None:
    """Check the types of config fields.

    Raises:
        ConfigError: One has another type.
    """
    for name, (expected, is_right) in _TYPES.items():
        if name in values and not is_right(values[name]):
            raise ConfigError(name, values[name], f"must be {expected}.")


_COUNTS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("layer", "neurons", "width", "general"), lambda value: _is_int(value) and value >= 0),
    "specific": lambda value: (
        isinstance(value, dict) and all(_is_int(count) and count > 0 for count in value.values())
    ),
    "language_pairs": _are_strs,
}


def check_counts(neuron_counts: Mapping[str, Any], language_pairs: list[str] | None) -> None:
    """Check the sizes of an adapter's blocks.

    Args:
        neuron_counts: For every FFN: layer, p, d, numbers of general and of every language's specific neurons, pairs.
        language_pairs: The pairs of the adapter.

    Raises:
        ConfigError: A field is missing, unknown or wrong, or there are more neurons than the FFN has.
        LanguagePairError: A language or pair is malformed.
    """
    if not neuron_counts:
        raise ConfigError("neuron_counts", neuron_counts, "names no FFN; save the adapter anew.")
    for module, counts in neuron_counts.items():
        field = f"neuron_counts[{module!r}]"
        if not isinstance(counts, dict) or counts.keys() != _COUNTS.keys():
            raise ConfigError(field, counts, f"must have the fields {', '.join(_COUNTS)}; save the adapter anew.")
        for name, is_right in _COUNTS.items():
            if not is_right(counts[name]):
                raise ConfigError(f"{field}[{name!r}]", counts[name], "is no such count; save the adapter anew.")
        if counts["general"] + sum(counts["specific"].values()) > counts["neurons"]:
            raise ConfigError(field, counts, "holds more neurons than the FFN has; save the adapter anew.")
        here = parse_pairs(counts["language_pairs"], f"{field}['language_pairs']")
        for language in counts["specific"]:
            check_language(language, f"{field}['specific']")
        strangers = {str(pair) for pair in here} - set(language_pairs or ())
        if strangers or not set(counts["specific"]) <= {language for pair in here for language in pair}:
            raise ConfigError(field, counts, f"does not fit language_pairs={language_pairs}; save the adapter anew.")


def check_weights(folder: Path, modules_to_save: Iterable[str]) -> None:
    """Check that the weights in an adapter folder, if there are any, are a whole safetensors file that holds every
    module of `modules_to_save`.

    Raises:
        AdapterError: The file is truncated or no safetensors file, or lacks a module, or there is only a pickle, which
            is never read.
    """
    path = folder / SAFETENSORS_WEIGHTS_NAME
    if path.exists():
        try:
            with safe_open(path, framework="pt") as file:
                keys = list(file.keys())
        except (SafetensorError, OSError) as error:
            raise AdapterError(
                "adapter", str(path), f"is truncated or damaged ({error}); save or download it anew."
            ) from error
        for name in modules_to_save:
            if not any(f".{name}." in f".{key}" for key in keys):
                raise AdapterError(
                    "modules_to_save", name, f"{path} holds no weights of it; download or save the adapter anew."
                )
    elif (folder / WEIGHTS_NAME).exists():
        raise AdapterError(
            "adapter",
            str(folder / WEIGHTS_NAME),
            f"may run code when read; LANDER reads {SAFETENSORS_WEIGHTS_NAME} only.",
        )
