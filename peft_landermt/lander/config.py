"""The configuration of a LANDER adapter."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, get_args

from ..choices import AttentionLayers, CarMode, InactiveNeurons, Projections, Role, Tune
from ..errors import ConfigError
from ..ffn import FFN, FFNLayout
from ..neuron_map import NeuronMap
from ..routed.config import RoutedConfig
from .additions import Addition, check_growth, grown_layout, read_additions
from .deltas import is_row_per_pair
from .layout import CONSTANT, BlockLayout, Counts, check_counts

FORMAT_VERSION = 4
"""2 has factors in attention and of specific neurons, or deltas on some projections only; 3 has pairs that were added
or composed, 4 some whose blocks stand in the place of general ones; others are written as 1."""
METHOD = (
    "car",
    "inactive_neurons",
    "tune",
    "general_rank",
    "specific_rank",
    "projections",
    "attention_modules",
    "attention_layers",
    "attention_rank",
)
"""Fields that say what an adapter makes of its neurons and of attention."""
AUTO = "auto"
GROWN = ("additions", "composed_pairs")
"""Fields of an adapter that has grown; others are saved without them."""
NEEDS_MAP = (*CONSTANT, "token")
"""Values of `car` that are made of awareness."""


@dataclass
class LanderConfig(RoutedConfig):
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
        specific_rank (`int`, *optional*):
            The same for the specific neurons of each language; `None`: whole rows (the paper).
        projections (`str`):
            Which projections of a neuron are tuned: `"all"` (the paper), `"input"` or `"output"`.
        attention_modules (`list[str]`, *optional*):
            Projections of the attention that get low-rank factors, shared by all pairs: some of `"q"`, `"k"`, `"v"`
            and `"o"`, whatever the base calls them. `"auto"`: all of them, where the base's attention is known and no
            other method's adapter is in it; else none, with a warning. `None`: none (the paper).
        attention_layers (`str`):
            Where: `"relevant"`, in the layers whose FFNs are adapted, for the pairs that they are adapted for; or
            `"all"`, in every layer.
        attention_rank (`int`):
            Rank of these factors.
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
        additions (`list[dict]`, *optional*):
            Filled by [`add_language_pairs`]: languages that were added later, and the form of their blocks.
        composed_pairs (`list[str]`, *optional*):
            Filled by [`compose_language_pair`]: pairs that nobody trained.
        neuron_counts (`dict`, *optional*):
            Filled from the neuron map: how many neurons each block of each FFN has.
        neuron_map_signature (`str`, *optional*):
            Filled from the neuron map: base, data, options and version of the detection.
        base_fingerprint (`str`, *optional*):
            Filled from the neuron map: identifies the base weights.
        embedding_layers (`list[str]`, *optional*):
            Filled when an adapter is saved: embedding layers that PEFT saved with it, because they were resized.
        format_version (`int`):
            Version of the adapter format.
        digest (`str`, *optional*):
            Filled when an adapter is saved: binds the config to its weights, so that a mix of two saves is refused.

    Raises:
        ArchitectureError: `ffn_layout` is no layout.
        ConfigError: An option is unknown, or options contradict each other.
        LanguagePairError: A pair is malformed or not in the neuron map.
        NeuronMapError: The neuron map's file is missing or damaged.
    """

    neuron_map: NeuronMap | str | os.PathLike[str] | None = field(default=None, repr=False, compare=False)
    ffn_layout: dict[str, Any] | None = None
    init_weights: bool = True
    car: CarMode = "off"
    inactive_neurons: InactiveNeurons = "keep"
    tune: Tune = "pair"
    general_rank: int | None = field(default=6, metadata={"must be": "a positive integer, or None for whole rows"})
    specific_rank: int | None = field(default=2, metadata={"must be": "a positive integer, or None for whole rows"})
    projections: Projections = "all"
    attention_modules: list[Role] | Literal["auto"] | None = "auto"
    attention_layers: AttentionLayers = "all"
    attention_rank: int = field(default=6, metadata={"must be": "a positive integer"})
    neuron_counts: dict[str, Any] | None = None
    neuron_map_signature: str | None = None
    additions: list[dict[str, Any]] | None = None
    composed_pairs: list[str] | None = None

    PEFT_TYPE: ClassVar[str] = "LANDER"
    METHOD_NAME: ClassVar[str] = "LANDeRMT"
    METHOD_LINK: ClassVar[str] = "A [LANDeRMT](https://aclanthology.org/2024.acl-long.656)"
    NEWEST_FORMAT: ClassVar[int] = FORMAT_VERSION
    ABSENT: ClassVar[Mapping[str, Any]] = {
        "projections": "all",
        "specific_rank": None,
        "attention_modules": None,
        "attention_layers": "relevant",
    }
    NOT_SAVED: ClassVar[tuple[str, ...]] = (*RoutedConfig.NOT_SAVED, "neuron_map")
    FORM: ClassVar[tuple[str, ...]] = (*RoutedConfig.FORM, *METHOD)
    SIZES: ClassVar[tuple[str, ...]] = ("language_pairs", "neuron_counts", "additions", "composed_pairs")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.format_version = max(self.format_version, self.needed_format)
        if self.ffn_layout is not None:
            self.ffn_layout = FFNLayout.from_dict(self.ffn_layout).to_dict()
        self._check_options()
        check_growth(self)
        if isinstance(self.neuron_map, (str, os.PathLike)):
            self.neuron_map = NeuronMap.load(self.neuron_map)
        if self.neuron_map is not None:
            self._read_neuron_map(self.neuron_map)
        elif self.neuron_counts is not None:
            check_counts(self.neuron_counts, self.language_pairs, self.added)

    @classmethod
    def paper(cls, **options: Any) -> LanderConfig:
        """Make a config with the paper's literal choices.

        Args:
            options: The other arguments of the class; they may override these choices.

        Detect with `activation_statistic="mean"` and `normalize_awareness=False` for a literal neuron map too.
        """
        literal: dict[str, Any] = {"car": "paper", "inactive_neurons": "drop", "tune": "pair", "projections": "all",
            "general_rank": None, "specific_rank": None, "attention_modules": None}  # fmt: skip
        return cls(**{**literal, **options})

    @property
    def method_options(self) -> dict[str, Any]:
        """The options of the method, by name; those that say nothing here are left out."""
        unused = () if self.attention_modules else [name for name in METHOD if name.startswith("attention")]
        return {name: getattr(self, name) for name in METHOD if name not in unused}

    @property
    def origin(self) -> tuple[str, str]:
        """What the adapter's parts were chosen by, and which that is."""
        return "Neuron map", self.neuron_map_signature or "none: all neurons are general"

    @property
    def layout(self) -> FFNLayout | None:
        """`ffn_layout`, read."""
        return None if self.ffn_layout is None else FFNLayout.from_dict(self.ffn_layout)

    @property
    def has_neuron_map(self) -> bool:
        """Whether the adapter was made with a neuron map."""
        return self.neuron_counts is not None

    @property
    def added(self) -> dict[str, Addition]:
        """The languages that were added later, each with its addition, in this order."""
        additions = read_additions(self.additions, self.language_pairs or ()) if self.additions is not None else []
        return {language: addition for addition in additions for language in addition.languages}

    @property
    def later_pairs(self) -> set[str]:
        """The pairs that were added or composed."""
        added = (pair for addition in self.added.values() for pair in addition.language_pairs)
        return {*added, *(self.composed_pairs or ())}

    @property
    def origins(self) -> dict[str, list[str]]:
        """The pairs that were added later, and those that nobody trained."""
        added = [pair for addition in self.additions or () for pair in addition["language_pairs"]]
        found = {"Added later": added, "Composed, not trained": self.composed_pairs or []}
        return {origin: pairs for origin, pairs in found.items() if pairs}

    @property
    def needed_format(self) -> int:
        """The oldest version of the format that can say what the adapter is."""
        if any(addition.replaces_general for addition in self.added.values()):
            return 4
        if self.additions is not None or self.composed_pairs is not None:
            return 3
        return 2 if self.attention_modules or self.specific_rank or self.projections != "all" else 1

    @property
    def needs_groups(self) -> bool:
        """Whether an FFN must know which neurons are whose, tuned or not: to gate or to drop them."""
        return self.car != "off" or self.inactive_neurons == "drop"

    @property
    def changes_fresh_output(self) -> bool:
        """Whether a fresh adapter already changes the model's output."""
        return self.car in CONSTANT or (self.inactive_neurons == "drop" and self.has_neuron_map)

    def take_over(self, other: RoutedConfig) -> None:
        """Take from another adapter's config what describes its tensors, which are loaded now."""
        super().take_over(other)
        assert isinstance(other, LanderConfig)
        self.neuron_map_signature = other.neuron_map_signature

    def is_delta(self, key: str) -> bool:
        """Tell whether a key names rows or factors, not indices nor what gates are made of."""
        name = key.rpartition(".")[2]
        return ".lander_blocks." in key and not is_row_per_pair(name) and not name.endswith("_neurons")

    def block_layout(self, module: str, neurons: int, width: int) -> BlockLayout:
        """Lay out the adapter's blocks at an FFN with p `neurons` and model width d, by the module's name."""
        counts = (self.neuron_counts or {}).get(
            module, {"general": neurons, "specific": {}, "language_pairs": self.language_pairs or ()}
        )
        return BlockLayout(
            neurons=neurons,
            width=width,
            general=counts["general"],
            specific=dict(counts["specific"]),
            language_pairs=tuple(counts["language_pairs"]),
            partitioned=self.has_neuron_map and self.tune != "layers",
            car=self.car,
            inactive_neurons=self.inactive_neurons,
            tune=self.tune,
            projections=self.projections,
            general_rank=self.general_rank,
            specific_rank=self.specific_rank,
            **grown_layout(self, counts),
        )

    @property
    def adapts_all_attention(self) -> bool:
        """Whether attention is adapted in every layer, for every pair."""
        return self.attention_modules is not None and self.attention_layers == "all"

    def attention_layout(self, ffn: FFN) -> BlockLayout:
        """Lay out the adapter's blocks at the attention beside an FFN."""
        layout = self.block_layout(ffn.name, ffn.neurons, ffn.width)
        return (
            replace(layout, language_pairs=tuple(self.language_pairs or ())) if self.adapts_all_attention else layout
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all fields but those that are not part of a saved adapter, or that only one that has grown needs."""
        values = super().to_dict()
        return {name: value for name, value in values.items() if value is not None or name not in GROWN}

    def _check_options(self) -> None:
        for name in ("general_rank", "specific_rank", "attention_rank"):
            rank = getattr(self, name)
            if rank is not None and rank < 1:
                rows = "" if name == "attention_rank" else ", or None for whole rows"
                raise ConfigError(name, rank, f"must be a positive integer{rows}.")
        if self.attention_modules == AUTO:
            self.attention_modules = None if self.tune == "specific" else AUTO
        elif self.attention_modules is not None:
            if not self.attention_modules:
                raise ConfigError("attention_modules", self.attention_modules, "names nothing; None means none.")
            self.attention_modules = [role for role in get_args(Role) if role in self.attention_modules]
            if self.tune == "specific":
                raise ConfigError("tune", self.tune, "leaves out what pairs share, as attention_modules are.")
        if self.target_modules == "all-linear":
            raise ConfigError(
                "target_modules", self.target_modules, "LANDER adapts whole FFN modules; name them, or leave this out."
            )
        with_map = self.neuron_map is not None or self.neuron_counts is not None
        if with_map and self.layers_to_transform is not None:
            raise ConfigError("layers_to_transform", self.layers_to_transform, "the neuron map chooses the layers.")
        if not with_map and self.car in NEEDS_MAP:
            raise ConfigError("car", self.car, "needs a neuron_map, which holds the awareness that it is made of.")
        if not with_map and self.tune == "specific":
            raise ConfigError("tune", self.tune, "needs a neuron_map, which tells the specific neurons.")
        if self.tune == "layers" and (self.car in NEEDS_MAP or self.inactive_neurons == "drop"):
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
                self.neuron_counts[entry.name] = Counts.of_map(neuron_map, layer, here, self.tune).to_dict()
