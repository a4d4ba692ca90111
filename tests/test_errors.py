"""Typed errors: what the message says, and that errors survive a process boundary."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from peft_landermt import errors
from peft_landermt.errors import LanderError, RegistrationError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LanderError)]


def test_all_kinds_are_here() -> None:
    assert {kind.__name__ for kind in KINDS} == {
        "LanderError",
        "LanguagePairError",
        "CorpusError",
        "DetectionError",
        "NeuronMapError",
        "ArchitectureError",
        "ConfigError",
        "UnknownOptionError",
        "AdapterError",
        "ConcurrencyError",
    }


@pytest.mark.parametrize("kind", KINDS)
def test_message_names_field_value_and_remedy(kind: type[LanderError]) -> None:
    error = kind("num_layers", "four", "must be an integer.")
    assert str(error) == "num_layers='four': must be an integer."
    assert (error.field, error.value, error.remedy) == ("num_layers", "four", "must be an integer.")
    with pytest.raises(ValueError):
        raise error


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("again", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])
def test_pickle_and_copy(kind: type[LanderError], again: Any) -> None:
    error = kind("sentences", {"en": 3, "de": 4}, "same number.")
    found = again(error)
    assert type(found) is kind
    assert (found.field, found.value, found.remedy, str(found)) == (
        error.field,
        error.value,
        error.remedy,
        str(error),
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("x" * 198, "'" + "x" * 198 + "'"),  # repr of 200 characters, the longest shown whole
        ("x" * 199, "'" + "x" * 196 + "..."),  # 197 characters and an ellipsis
        (list(range(100_000)), repr(list(range(100)))[:197] + "..."),
        (None, "None"),
        ("", "''"),
    ],
)
def test_long_values_are_shortened(value: Any, shown: str) -> None:
    error = LanderError("field", value, "remedy.")
    assert str(error) == f"field={shown}: remedy."
    assert error.value is value


def test_registration_error_is_an_import_error() -> None:
    assert issubclass(RegistrationError, ImportError)
    assert not issubclass(RegistrationError, LanderError)
