"""Typed errors. Every message names the field, the value that was given and the remedy."""

from __future__ import annotations

from typing import Any

from .escaping import printable

_LONGEST, _LONGEST_REMEDY = 200, 500
"""Characters of a field or value, and of a remedy, that a message shows."""


class LanderError(ValueError):
    """Base class of all errors of this package.

    Args:
        field: Name of the argument, option or file that is wrong.
        value: What was given; shortened in the message when long.
        remedy: What is allowed, or what to do instead.
    """

    def __init__(self, field: str, value: Any, remedy: str) -> None:
        self.field, self.value, self.remedy = field, value, remedy
        given = f"{_shortened(field)}={_shortened(repr(value))}"
        super().__init__(printable(f"{given}: {_shortened(remedy, _LONGEST_REMEDY)}"))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.field, self.value, self.remedy)


def _shortened(text: str, longest: int = _LONGEST) -> str:
    return text if len(text) <= longest else text[: longest - 3] + "..."


class LanguagePairError(LanderError):
    """A language code or language pair is malformed, unknown or missing."""


class CorpusError(LanderError):
    """Sentences or corpus files cannot be used as they are."""


class DetectionError(LanderError):
    """Neuron detection cannot run with these arguments, or its statistics are not finite."""


class NeuronMapError(LanderError):
    """A neuron map file is damaged, or the map was made for another base model."""


class ArchitectureError(LanderError):
    """The model has no FFN that can be recognised, or one that cannot be adapted."""


class ConfigError(LanderError):
    """An option of a config is wrong, or options contradict each other."""


class UnknownOptionError(ConfigError, TypeError):
    """A config has no such field; a `TypeError` too, as for any unknown keyword."""


class AdapterError(LanderError):
    """An adapter file is damaged, or does not fit its config or the base model."""


class RegistrationError(ImportError):
    """PEFT is too old or too new, or another package took the name LANDER or LSLO."""


class ConcurrencyError(LanderError):
    """Threads use one model in ways that would disturb each other: training twice, or writing while others read."""
