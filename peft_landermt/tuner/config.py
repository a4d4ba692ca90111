"""The configuration of a LANDER adapter."""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from peft.config import PeftConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, PeftType

from ..errors import ConfigError, UnknownOptionError
from ..ffn import FFNLayout
from ..language_pair import LanguagePair, languages_of, parse_pairs
from ..neuron_map import NeuronMap
from ..prompt import Prompt
from .card import write_model_card
from .checks import check_counts, check_types, check_weights

CarMode = Literal["off", "paper", "proportional", "token", "learned"]
InactiveNeurons = Literal["keep", "drop"]
Tune = Literal["pair", "general", "specific", "layers"]
SaveDtype = Literal["fp32", "bf16"]

FORMAT_VERSION = 1

CHOICES = {"car": get_args(CarMode), "inactive_neurons": get_args(InactiveNeurons), "tune": get_args(Tune)}
"""Fields of a config that take one of a few values, and these."""
_NEEDS_MAP = ("paper", "proportional", "token")


@dataclass
class LanderConfig(PeftConfig):
    """Configuration of a [`LanderModel`].

    Args:
        neuron_map (`NeuronMap` or `str`, *optional*):
            What [`detect_neurons`] found, or the path of a saved map. It is needed once, when the adapter is made;
            it is not saved with the adapter. Without a map every neuron of the target FFNs is language-general.
        language_pairs (`list[str]`, *optional*):
            The directions of the adapter, such as `["en-de", "de-en"]`; all pairs of the neuron map by default.
        target_modules (`list[str]` or `str`, *optional*):
            Names of FFN modules, or a regular expression for them; every recognised FFN by default. With a neuron
            map the map names the layers, and this can only narrow them.
        exclude_modules (`list[str]` or `str`, *optional*):
            Names of FFN modules, or a regular expression for them, that are left alone.
        layers_to_transform (`list[int]` or `int`, *optional*):
            Indices of the layers to adapt; only without a neuron map.
        layers_pattern (`list[str]` or `str`, *optional*):
            Name of the module list that `layers_to_transform` counts in, where it is not a common one.
        ffn_layout (`dict`, *optional*):
            For FFNs that are not recognised: the names of their projections, such as
            `{"inputs": ["w1", "w3"], "output": "w2"}`, with `"fused": 2` where one input projection stacks the rows
            of gate and up projection. Only modules with these are FFNs then. Filled from the neuron map.
        modules_to_save (`list[str]`, *optional*):
            Other modules that are trained and saved whole.
        init_weights (`bool`):
            `True`: a fresh adapter changes no weight. `False`: random deltas, for tests.
        car (`str`):
            Conditional awareness-based routing (eq. 6 to 8). `"off"`: no gate. `"paper"`: the input of general
            neurons is scaled by CAR and that of specific neurons by 1 - CAR. `"proportional"`: the two exchanged, so
            each group gets its own share of awareness. `"token"`: what the adapter adds to a neuron is scaled by CAR
            of the token relative to its calibration mean. `"learned"`: a trainable gate for each group, conditional
            on the token, that starts at 1.
        inactive_neurons (`str`):
            Specific neurons of languages outside the pair: `"keep"` them as they are in the base, or `"drop"` them
            from the forward pass (the paper).
        tune (`str`):
            What is tuned: `"pair"`, the general and the pair's specific neurons; `"general"` or `"specific"`, one of
            the two groups; `"layers"`, all neurons of the pair's layers.
        general_rank (`int`, *optional*):
            An integer: the delta of the general neurons is a product of two factors of this rank, while specific
            neurons keep whole rows. `None`: one delta row per general neuron (the paper).
        save_dtype (`str`, *optional*):
            Type of the deltas in saved files: `"fp32"` or `"bf16"`; that of the base weights by default, float32 where
            quantized weights have none.
        prompt (`str`, *optional*):
            Prompt template that the adapter is trained with, which translation uses by default; see
            [`build_prompt`][peft_landermt.translation.build_prompt]. [`LanderTrainer`] fills it in. For another
            trainer, set it where training uses another template than `TEMPLATES`, such as a chat template.
        verify_base (`bool`):
            Whether an adapter made with a neuron map is refused on base weights other than those it was made on;
            weights that cannot be read (quantized, offloaded) are not compared.
        neuron_counts (`dict`, *optional*):
            Filled from the neuron map: how many neurons each block of each FFN has.
        neuron_map_signature (`str`, *optional*):
            Filled from the neuron map: base, data, options and version of the detection.
        base_fingerprint (`str`, *optional*):
            Filled from the neuron map: identifies the base weights.
        format_version (`int`):
            Version of the adapter format.

    Raises:
        ArchitectureError: `ffn_layout` is no layout.
        ConfigError: An option is unknown, or options contradict each other.
        LanguagePairError: A pair is malformed or not in the neuron map.
        NeuronMapError: The neuron map's file is missing or damaged.
    """

    neuron_map: NeuronMap | str | os.PathLike[str] | None = field(default=None, repr=False, compare=False)
    language_pairs: list[str] | None = None
    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    ffn_layout: dict[str, Any] | None = None
    modules_to_save: list[str] | None = None
    init_weights: bool = True
    car: CarMode = "off"
    inactive_neurons: InactiveNeurons = "keep"
    tune: Tune = "pair"
    general_rank: int | None = 16
    save_dtype: SaveDtype | None = None
    prompt: str | None = None
    verify_base: bool = True
    neuron_counts: dict[str, dict[str, Any]] | None = None
    neuron_map_signature: str | None = None
    base_fingerprint: str | None = None
    format_version: int = FORMAT_VERSION

    def __new__(cls, *values: Any, **options: Any) -> LanderConfig:
        # PEFT drops fields that it does not know with a warning; an adapter that loads otherwise than it was made
        # would translate wrongly
        known = {item.name for item in fields(cls)}
        for name in options:
            if name not in known:
                raise UnknownOptionError(name, options[name], "is no field of LanderConfig; see its documentation.")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        check_types({item.name: getattr(self, item.name) for item in fields(self)})
        super().__post_init__()
        self.peft_type = PeftType("LANDER")
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            if isinstance(value, (list, tuple)):
                setattr(self, name, set(value))
        self._check_options()
        if isinstance(self.neuron_map, (str, os.PathLike)):
            self.neuron_map = NeuronMap.load(self.neuron_map)
        if self.language_pairs is not None:
            self.language_pairs = [str(pair) for pair in parse_pairs(self.language_pairs)]
        if self.neuron_map is not None:
            self._read_neuron_map(self.neuron_map)
        elif self.neuron_counts is not None:
            check_counts(self.neuron_counts, self.language_pairs)

    # Files of adapters made by this config

    _weights = "made"
    """Where the adapter's weights are: `"made"` fresh, `"awaited"` after its config was read, `"loaded"`."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> LanderConfig:
        """Read the config of an adapter folder or Hub repository; see `PeftConfig.from_pretrained`.

        PEFT calls this before it touches a model, so the weights next to the config are looked at too.

        Raises:
            AdapterError: The weights are truncated, are no safetensors file, or lack a module of `modules_to_save`.
        """
        folder = os.path.join(pretrained_model_name_or_path, subfolder or "")
        config = super().from_pretrained(pretrained_model_name_or_path, subfolder, **kwargs)
        if os.path.isdir(folder):
            check_weights(Path(folder), config.modules_to_save or [])
        config._weights = "awaited"
        return config

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write `adapter_config.json`, and a model card where the adapter's weights are, which PEFT saves before.

        Each file is replaced only when the new one is whole.
        """
        os.makedirs(save_directory, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=save_directory, prefix=".saving-") as folder:
            super().save_pretrained(folder, **kwargs)
            os.replace(os.path.join(folder, CONFIG_NAME), os.path.join(save_directory, CONFIG_NAME))
        if os.path.exists(os.path.join(save_directory, SAFETENSORS_WEIGHTS_NAME)):
            write_model_card(self, Path(save_directory))

    @classmethod
    def paper(cls, **options: Any) -> LanderConfig:
        """The paper's literal choices; `options` are the other arguments of the class, and may override these.

        Detect with `activation_statistic="mean"` and `normalize_awareness=False` for a literal neuron map too.
        """
        literal: dict[str, Any] = {"car": "paper", "inactive_neurons": "drop", "tune": "pair", "general_rank": None}
        return cls(**{**literal, **options})

    @property
    def layout(self) -> FFNLayout | None:
        """`ffn_layout`, read."""
        return None if self.ffn_layout is None else FFNLayout.from_dict(self.ffn_layout)

    @property
    def has_neuron_map(self) -> bool:
        """Whether the adapter was made with a neuron map."""
        return self.neuron_counts is not None

    @property
    def changes_fresh_output(self) -> bool:
        """Whether a fresh adapter already changes the model's output."""
        return self.car in ("paper", "proportional") or (self.inactive_neurons == "drop" and self.has_neuron_map)

    def to_dict(self) -> dict[str, Any]:
        """All fields but the neuron map, which is not part of a saved adapter."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "neuron_map"}
        return {name: sorted(value) if isinstance(value, set) else value for name, value in values.items()}

    def _check_options(self) -> None:
        if self.prompt is not None:
            Prompt.parse(self.prompt, "prompt", ConfigError)
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(name, getattr(self, name), f"must be one of {', '.join(allowed)}.")
        if self.ffn_layout is not None:
            self.ffn_layout = FFNLayout.from_dict(self.ffn_layout).to_dict()
        if self.save_dtype not in (None, "fp32", "bf16"):
            raise ConfigError("save_dtype", self.save_dtype, "must be 'fp32' or 'bf16', or None for that of the base.")
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            if value is not None and not value:
                raise ConfigError(name, value, "names nothing; leave it out for the default.")
            if isinstance(value, str):
                try:
                    re.compile(value)
                except re.error as error:
                    raise ConfigError(name, value, f"is no regular expression ({error}).") from error
        if self.format_version > FORMAT_VERSION:
            raise ConfigError(
                "format_version",
                self.format_version,
                f"this version reads up to {FORMAT_VERSION}; update peft_landermt.",
            )
        if self.target_modules == "all-linear":
            raise ConfigError(
                "target_modules", self.target_modules, "LANDER adapts whole FFN modules; name them, or leave this out."
            )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ConfigError("layers_pattern", self.layers_pattern, "give layers_to_transform too.")
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ConfigError(
                "layers_to_transform", self.layers_to_transform, "cannot be combined with a regular expression."
            )
        with_map = self.neuron_map is not None or self.neuron_counts is not None
        if with_map and self.layers_to_transform is not None:
            raise ConfigError("layers_to_transform", self.layers_to_transform, "the neuron map chooses the layers.")
        if not with_map and self.car in _NEEDS_MAP:
            raise ConfigError("car", self.car, "needs a neuron_map, which holds the awareness that it is made of.")
        if not with_map and self.tune == "specific":
            raise ConfigError("tune", self.tune, "needs a neuron_map, which tells the specific neurons.")
        if self.tune == "layers" and (self.car in _NEEDS_MAP or self.inactive_neurons == "drop"):
            raise ConfigError(
                "tune",
                self.tune,
                "knows no groups of neurons; use car='off' or 'learned' and inactive_neurons='keep'.",
            )

    def _read_neuron_map(self, neuron_map: NeuronMap) -> None:
        pairs = neuron_map.for_pairs(self.language_pairs)
        self.language_pairs = [str(pair) for pair in pairs]
        detected = neuron_map.options.get("ffn_layout")
        if self.ffn_layout not in (None, detected):
            raise ConfigError("ffn_layout", self.ffn_layout, f"the neuron map has {detected}; leave it out.")
        self.ffn_layout = detected
        self.neuron_map_signature = neuron_map.signature
        self.base_fingerprint = neuron_map.fingerprint
        self.neuron_counts = {}
        for layer, entry in enumerate(neuron_map.neurons):
            here = [pair for pair in pairs if layer in neuron_map.layers(str(pair))]
            if here:
                self.neuron_counts[entry.name] = self._count(neuron_map, layer, here)

    def _count(self, neuron_map: NeuronMap, layer: int, pairs: list[LanguagePair]) -> dict[str, Any]:
        neurons = int(neuron_map.neurons[layer].owner.shape[0])
        counts = {language: len(neuron_map.specific(layer, language)) for language in languages_of(pairs)}
        if self.tune == "layers":
            counts = {}
        return {
            "layer": layer,
            "neurons": neurons,
            "width": neuron_map.width,
            "general": neurons if self.tune == "layers" else len(neuron_map.general(layer)),
            "specific": {language: count for language, count in counts.items() if count},
            "language_pairs": [str(pair) for pair in pairs],
        }
