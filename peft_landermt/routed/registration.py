"""Registers this package's PEFT types, so that PEFT's own functions know them."""

from __future__ import annotations

import functools
import inspect
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
from packaging.version import Version
from peft import PeftConfig, PeftModel
from peft.config import PeftConfigMixin
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import register_peft_method
from peft.utils.peft_types import PeftType

from ..errors import RegistrationError
from ..escaping import printable
from ..outputs import files_in_place
from .card import is_model_card
from .config import RoutedConfig
from .folder import AdapterFolder, keys_renamed
from .hotswap import replacing
from .older_peft import have_tuners_asked
from .tuner import RoutedTuner

LOWEST_PEFT = "0.18"
NEWEST_TESTED_PEFT = "0.21"


def check_peft_version() -> None:
    """Raise RegistrationError if this PEFT lacks what the tuner is built on."""
    if Version(Version(peft.__version__).base_version) < Version(LOWEST_PEFT):
        raise RegistrationError(
            f"peft=={peft.__version__}: peft_landermt supports peft>={LOWEST_PEFT}; "
            f"run: pip install -U 'peft>={LOWEST_PEFT}'"
        )


def warn_of_newer_peft() -> None:
    """Warn if this PEFT is newer than any that the package was tested with."""
    if Version(peft.__version__).release[:2] > Version(NEWEST_TESTED_PEFT).release:
        warnings.warn(
            f"peft=={peft.__version__} is newer than any that peft_landermt was tested with ({NEWEST_TESTED_PEFT}); "
            f"if something fails, try: pip install 'peft=={NEWEST_TESTED_PEFT}.*'",
            stacklevel=5,  # whoever imports the package
        )


def add_peft_type(name: str) -> PeftType:
    """Return a member of PEFT's closed enumeration `PeftType`, made on the first call."""
    existing = PeftType._member_map_.get(name)
    if existing is not None:
        return PeftType(existing)
    member = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    member.__objclass__ = PeftType
    member._sort_order_ = len(PeftType._member_names_)
    type.__setattr__(PeftType, name, member)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    hashable = getattr(PeftType, "_hashable_values_", None)
    if hashable is not None and name not in hashable:
        hashable.append(name)
    return member


def register(config_class: type[RoutedConfig], model_class: type[RoutedTuner]) -> None:
    """Add a method to PEFT's registry; calling it again, also after a reload of this package, is harmless.

    Raises:
        RegistrationError: If PEFT's version is not supported, or another package took the name.
    """
    check_peft_version()
    name = config_class.PEFT_TYPE
    member = add_peft_type(name)
    registered = PEFT_TYPE_TO_CONFIG_MAPPING.get(member)
    if registered is not None:
        if (registered.__module__, registered.__qualname__) != (config_class.__module__, config_class.__qualname__):
            raise RegistrationError(
                f"PEFT type {name} belongs to {registered.__module__}; uninstall that package or peft_landermt."
            )
        for mapping in (PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING):
            mapping.pop(member, None)
    register_peft_method(name=name.lower(), config_cls=config_class, model_cls=model_class, prefix=model_class.prefix)
    if not hasattr(PeftModel.save_pretrained, "asks_peft_landermt"):
        warn_of_newer_peft()
        _ask_our_configs()
        have_tuners_asked()


def _ask_our_configs() -> None:
    """Have PEFT ask our configs in four places where it does not ask the class of a config that it reads.

    `PeftConfig.from_pretrained` makes a config of the right class, but not by that class's own `from_pretrained`, so
    the folder would not be checked. `PeftModel.load_adapter` reads no config for a name that is loaded, so tensors
    that mean something else would be taken for it. Both it and `PeftModel.from_pretrained` may rename keys, which a
    check before must know. `PeftModel.save_pretrained` overwrites files in place, and stops at a `README.md` that is
    no model card. Other methods' adapters go the way they always went.
    """
    for owner, name, around in (
        (PeftConfigMixin, "from_pretrained", _read_config),
        (PeftModel, "from_pretrained", _load_model),
        (PeftModel, "load_adapter", _load_adapter),
        (PeftModel, "save_pretrained", _save_model),
    ):
        original = owner.__dict__[name]
        function = getattr(original, "__func__", original)
        wrapper = _around(function, around)
        setattr(owner, name, classmethod(wrapper) if isinstance(original, classmethod) else wrapper)


def _around(function: Callable[..., Any], around: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return around(function, *args, **kwargs)

    wrapper.asks_peft_landermt = True  # type: ignore[attr-defined]
    return wrapper


def _read_config(original: Any, cls: Any, name: Any, *args: Any, **kwargs: Any) -> Any:
    config = original(cls, name, *args, **kwargs)
    if isinstance(config, RoutedConfig) and not issubclass(cls, RoutedConfig):
        return type(config).from_pretrained(name, *args, **kwargs)
    return config


def _load_model(original: Any, cls: Any, *args: Any, **kwargs: Any) -> Any:
    with keys_renamed(kwargs.get("key_mapping")):
        return original(cls, *args, **kwargs)


def _load_adapter(original: Any, model: PeftModel, model_id: Any, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
    loaded = model.peft_config.get(adapter_name)
    with keys_renamed(kwargs.get("key_mapping")):
        if not isinstance(loaded, RoutedConfig):
            return original(model, model_id, adapter_name, *args, **kwargs)
        source = loaded.source
        if isinstance(source, AdapterFolder) and source.is_awaited and source.name == str(model_id):
            # PEFT has put the adapter into the model, checked, and loads it now
            return original(model, model_id, adapter_name, *args, **kwargs)
        options, _ = model._split_kwargs(kwargs)
        with replacing(model, adapter_name, PeftConfig.from_pretrained(model_id, **options)):
            return original(model, model_id, adapter_name, *args, **kwargs)


def _save_model(original: Any, model: PeftModel, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
    given = inspect.signature(original).bind(model, save_directory, *args, **kwargs)
    given.apply_defaults()
    names = given.arguments["selected_adapters"] or list(model.peft_config)
    ours = [config for name in names if isinstance(config := model.peft_config.get(name), RoutedConfig)]
    if not ours or not given.arguments["is_main_process"] or Path(save_directory).is_file():
        return original(model, save_directory, *args, **kwargs)
    cards = {Path("" if name == "default" else name, "README.md") for name in ("default", *names)}
    broken = [str(card) for card in cards if not is_model_card(Path(save_directory, card), ours[0])]
    for path in (str(Path(save_directory, card)) for card in broken):
        warnings.warn(f"{printable(path)} was left as it is: it is no model card.", stacklevel=3)
    with files_in_place(save_directory, kept=broken) as folder:
        for card in cards:
            if str(card) not in broken and (there := Path(save_directory, card)).is_file():
                (folder / card).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(there, folder / card)
        return original(model, str(folder), *args, **kwargs)
