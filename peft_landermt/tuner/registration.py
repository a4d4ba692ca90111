"""Registers LANDER with PEFT, so that PEFT's own functions know it."""

from __future__ import annotations

import peft
from packaging.version import Version
from peft.utils import register_peft_method
from peft.utils.peft_types import PeftType

from ..errors import RegistrationError

LOWEST_PEFT = "0.21.0"
FIRST_UNSUPPORTED_PEFT = "0.22"
_NAME = "LANDER"


def check_peft_version() -> None:
    """Raise RegistrationError if this PEFT lacks what the tuner is built on, or is newer than any that was tested."""
    found = Version(Version(peft.__version__).base_version)
    if not Version(LOWEST_PEFT) <= found < Version(FIRST_UNSUPPORTED_PEFT):
        raise RegistrationError(
            f"peft=={peft.__version__}: peft_landermt supports peft>={LOWEST_PEFT},<{FIRST_UNSUPPORTED_PEFT}; "
            f"run: pip install 'peft>={LOWEST_PEFT},<{FIRST_UNSUPPORTED_PEFT}'"
        )


def add_peft_type() -> PeftType:
    """The member LANDER of PEFT's closed enumeration `PeftType`, made on the first call."""
    existing = PeftType._member_map_.get(_NAME)
    if existing is not None:
        return PeftType(existing)
    member = str.__new__(PeftType, _NAME)
    member._name_ = _NAME
    member._value_ = _NAME
    member.__objclass__ = PeftType
    member._sort_order_ = len(PeftType._member_names_)
    type.__setattr__(PeftType, _NAME, member)
    PeftType._member_names_.append(_NAME)
    PeftType._member_map_[_NAME] = member
    PeftType._value2member_map_[_NAME] = member
    hashable = getattr(PeftType, "_hashable_values_", None)
    if hashable is not None and _NAME not in hashable:
        hashable.append(_NAME)
    return member


def register() -> None:
    """Add LANDER to PEFT's registry; calling it again, also after a reload of this package, is harmless.

    Raises:
        RegistrationError: If PEFT's version is not supported, or another package took the name.
    """
    check_peft_version()
    from peft.mapping import (
        PEFT_TYPE_TO_CONFIG_MAPPING,
        PEFT_TYPE_TO_PREFIX_MAPPING,
        PEFT_TYPE_TO_TUNER_MAPPING,
    )

    from .config import LanderConfig
    from .model import LanderModel

    member = add_peft_type()
    registered = PEFT_TYPE_TO_CONFIG_MAPPING.get(member)
    if registered is not None:
        if (registered.__module__, registered.__qualname__) != (LanderConfig.__module__, LanderConfig.__qualname__):
            raise RegistrationError(
                f"PEFT type {_NAME} belongs to {registered.__module__}; uninstall that package or peft_landermt."
            )
        for mapping in (PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING):
            mapping.pop(member, None)
    register_peft_method(name=_NAME.lower(), config_cls=LanderConfig, model_cls=LanderModel, prefix=LanderModel.prefix)
