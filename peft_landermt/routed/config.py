"""What the configs of this package's adapters have in common: their files, and checks of their fields."""

from __future__ import annotations

import copy
import os
import tempfile
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import regex
from peft.config import PeftConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, PeftType
from safetensors import safe_open
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..errors import AdapterError, ConfigError, UnknownOptionError
from ..language_pair import parse_pairs
from ..outputs import SAVING
from ..prompt import Prompt
from .card import write_model_card
from .folder import PREFIX, AdapterFolder, LoadedState, bind_to_weights
from .schema import check_fields

SaveDtype = Literal["fp32", "bf16"]


@dataclass
class RoutedConfig(PeftConfig):
    """Base class of this package's configs; see [`LanderConfig`] for what the fields mean.

    Attributes:
        source: The folder that the config was read from; its weights are checked before an adapter with this config is
            put into a model. None for a config made by hand.
    """

    language_pairs: list[str] | None = None
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    embedding_layers: list[str] | None = None
    save_dtype: SaveDtype | None = None
    prompt: str | None = None
    verify_base: bool = True
    base_fingerprint: str | None = None
    format_version: int = 1
    digest: str | None = field(default=None, repr=False, compare=False)
    source: AdapterFolder | LoadedState | None = field(default=None, init=False, repr=False, compare=False)

    PEFT_TYPE: ClassVar[str]
    METHOD_NAME: ClassVar[str]
    METHOD_LINK: ClassVar[str]
    ABSENT: ClassVar[Mapping[str, Any]] = {}
    """What fields stand for that a file lacks, because they came later: what adapters did before."""
    NEWEST_FORMAT: ClassVar[int]
    NOT_SAVED: ClassVar[tuple[str, ...]] = ("source",)
    """Fields that are not part of a saved adapter."""
    FORM: ClassVar[tuple[str, ...]] = (
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "modules_to_save",
        "base_fingerprint",
    )
    """Fields that decide, beside its sizes, what the tensors of an adapter mean."""
    SIZES: ClassVar[tuple[str, ...]] = ("language_pairs",)
    """Fields that decide which blocks an adapter has."""

    def __new__(cls, *values: Any, **options: Any) -> RoutedConfig:
        # PEFT drops fields that it does not know with a warning; an adapter that loads otherwise than it was made
        # would translate wrongly
        known = {item.name for item in fields(cls) if item.init}
        for name in options:
            if name not in known:
                raise UnknownOptionError(name, options[name], f"is no field of {cls.__name__}; see its documentation.")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        if self.language_pairs is not None:
            self.language_pairs = [str(pair) for pair in parse_pairs(self.language_pairs)]
        check_fields(self)
        super().__post_init__()
        self.peft_type = PeftType(self.PEFT_TYPE)
        if self.prompt is not None:
            Prompt.parse(self.prompt, "prompt", ConfigError)
        for name in ("target_modules", "exclude_modules"):
            self._check_names(name, getattr(self, name))
        for name in ("modules_to_save", "layers_pattern"):
            given = getattr(self, name)
            for each in [given] if isinstance(given, str) else given or ():
                if not regex.fullmatch(r"[\w.]+", each):  # PEFT puts them into patterns of its own
                    raise ConfigError(name, each, "must be the end of a module's name.")
        if self.format_version > self.NEWEST_FORMAT:
            raise ConfigError(
                "format_version",
                self.format_version,
                f"this version reads up to {self.NEWEST_FORMAT}; update peft_landermt.",
            )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ConfigError("layers_pattern", self.layers_pattern, "give layers_to_transform too.")
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ConfigError(
                "layers_to_transform", self.layers_to_transform, "cannot be combined with a regular expression."
            )

    def _check_names(self, name: str, value: Any) -> None:
        if value is not None and not value:
            raise ConfigError(name, value, "names nothing; leave it out for the default.")
        if isinstance(value, str):
            try:
                regex.compile(value)
            except (regex.error, RecursionError) as error:
                raise ConfigError(name, value, f"is no regular expression ({error}).") from error
        elif value is not None:
            setattr(self, name, set(value))

    def check_same_form(self, other: PeftConfig) -> None:
        """Check that another adapter's tensors mean the same as this one's, so that they can take their place.

        Raises:
            AdapterError: It is of another method, or a field of `FORM` or the language pairs differ; the message names
                the field.
        """
        for name in ("peft_type", *self.SIZES, *self.FORM):
            mine, theirs = getattr(self, name), getattr(other, name, None)
            if mine != theirs:
                mine, theirs = what_differs(mine, theirs)
                raise AdapterError(name, theirs, f"the loaded adapter has {mine}; load the other under another name.")

    def take_over(self, other: RoutedConfig) -> None:
        """Take from another adapter's config what describes its tensors, which are loaded now."""
        self.base_model_name_or_path: str | None = other.base_model_name_or_path
        self.prompt = other.prompt

    @property
    def method_options(self) -> dict[str, Any]:
        """Return the options of the method, by name."""
        raise NotImplementedError

    @property
    def origins(self) -> dict[str, list[str]]:
        """Return pairs that the adapter was not made with, by where they come from, for its card."""
        return {}

    @property
    def origin(self) -> tuple[str, str]:
        """What the adapter's parts were chosen by, and which that is."""
        raise NotImplementedError

    @property
    def unlisted_pairs(self) -> list[str]:
        """Pairs beside `language_pairs` that calls may name; by default there are none."""
        return []

    def is_delta(self, key: str) -> bool:
        """Tell whether a key of an adapter's state names a delta, which `save_dtype` is about."""
        raise NotImplementedError

    def types_of_deltas(self, file: Any) -> set[str]:
        """List the types of the adapter's rows and factors in an open safetensors file, as it calls them."""
        return {file.get_slice(key).get_dtype() for key in file.keys() if self.is_delta(key)}  # noqa: SIM118

    # Files

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> RoutedConfig:
        """Read the config of an adapter folder or Hub repository; see `PeftConfig.from_pretrained`.

        Raises:
            AdapterError: A file of the folder is truncated or damaged, or its weights are pickled.
            ConfigError: A field is unknown or wrong.
        """
        options, *_ = cls._split_kwargs(kwargs)
        folder = AdapterFolder(pretrained_model_name_or_path, subfolder, **options)
        folder.check()
        config = super().from_pretrained(pretrained_model_name_or_path, subfolder, **kwargs)
        config.source = folder
        return config

    @classmethod
    def check_kwargs(cls, **kwargs: Any) -> dict[str, Any]:
        """Refuse what no saved config holds; PEFT calls this with the fields of a file."""
        for name in cls.NOT_SAVED:
            if kwargs.get(name) is not None:
                raise ConfigError(name, kwargs[name], "is never part of a saved adapter; take it out of the file.")
        absent = cls.ABSENT if "format_version" in kwargs else {}  # a dictionary of the user's has none
        return super().check_kwargs(**{**absent, **kwargs})

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write `adapter_config.json`, and a model card where the adapter's weights are, which PEFT saves before.

        Each file is replaced only when the new one is whole.
        """
        directory = Path(save_directory)
        weights = directory / SAFETENSORS_WEIGHTS_NAME
        saved = copy.copy(self)
        saved.digest = None
        if weights.exists():
            with safe_open(weights, framework="pt") as file:
                saved.embedding_layers = self._embeddings_among(file.keys())
                types = self.types_of_deltas(file)
            # a model saves into a folder beside the files that are there, and puts the new ones in their place
            target = directory.parent if directory.name.startswith(SAVING) else directory
            if self.save_dtype is None and types - {"F32"} and target.name.startswith(PREFIX_CHECKPOINT_DIR):
                warnings.warn(
                    f"{target} holds deltas in {' and '.join(sorted(types))}, the type of the base: training that "
                    "resumes from it goes on from rounded values. Give the trainer "
                    "callbacks=[FullPrecisionCheckpoints()] (peft_landermt.translation).",
                    stacklevel=2,
                )
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory, prefix=SAVING) as folder:
            super(RoutedConfig, saved).save_pretrained(folder, **kwargs)
            if weights.exists():
                bind_to_weights(Path(folder, CONFIG_NAME), weights)
            os.replace(Path(folder, CONFIG_NAME), directory / CONFIG_NAME)
        if weights.exists():
            write_model_card(self, directory)

    def _embeddings_among(self, keys: Collection[str]) -> list[str] | None:
        """Embedding layers that PEFT saved with the adapter: all that is neither blocks nor saved modules."""
        modules = {key.removeprefix(PREFIX).rpartition(".")[0] for key in keys if "_blocks." not in key}
        wanted = tuple(self.modules_to_save or ())  # matched by the ends of names, as PEFT does

        def is_saved(name: str) -> bool:
            parts = name.split(".")
            return any(".".join(parts[: end + 1]).endswith(wanted) for end in range(len(parts)))

        return sorted(name for name in modules if not is_saved(name)) or None

    def to_dict(self) -> dict[str, Any]:
        """Return all fields but those that are not part of a saved adapter."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in self.NOT_SAVED}
        return {name: sorted(value) if isinstance(value, set) else value for name, value in values.items()}


def what_differs(mine: Any, theirs: Any) -> tuple[Any, Any]:
    """Leave out of two values what they have in common: entries of dictionaries, and of lists of these."""
    if isinstance(mine, list) and isinstance(theirs, list) and len(mine) == len(theirs):
        first = next(pair for pair in zip(mine, theirs, strict=True) if pair[0] != pair[1])
        return what_differs(*first) if isinstance(first[0], dict) else (mine, theirs)
    if isinstance(mine, dict) and isinstance(theirs, dict):
        names = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
        return {name: mine.get(name) for name in names}, {name: theirs.get(name) for name in names}
    return mine, theirs
