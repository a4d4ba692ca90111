"""The configuration of an LSLo adapter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from ..choices import WORDS
from ..errors import ConfigError, LanguagePairError
from ..language_pair import LanguagePair, check_language, languages_of, parse_pairs
from ..routed.config import RoutedConfig
from .index import SIDES, STACKS, Index, in_words, words_in

FORMAT_VERSION = 1
METHOD = ("rank", "index", "scaling", "dropout", "pruned")
"""Fields that say how an adapter was made."""


@dataclass
class LsloConfig(RoutedConfig):
    """Configuration of an [`LsloModel`]: language-specific LoRA (Cao et al., EMNLP 2024, arXiv 2409.05224).

    Every adapted linear layer has low-rank factors of each language, and a sample uses those of one language: of its
    source or of its target, as the layer is indexed.

    Args:
        language_pairs (`list[str]`):
            The directions of the adapter, such as `["en-de", "de-en"]`; its languages follow from them.
        rank (`int` or `dict[str, int]`):
            Rank of the factors: one for all languages, or one for each of them, such as `{"en": 2, "wo": 8}`.
        index (`str`, `list[str]` or `dict[str, list[str]]`, *optional*):
            Which language's factors a sample uses: `"source"`, `"target"`, or `"learned"`, a trained mean of both. A
            list has a word for each layer; for an encoder-decoder, `{"encoder": [...], "decoder": [...]}`. `None`: in
            an encoder-decoder the source in the lower three quarters of the encoder and the target elsewhere (the
            paper's finding); in a decoder-only model the target. Written out when the adapter is made.
        target_modules (`list[str]` or `str`, *optional*):
            Names of linear layers, or a regular expression for them. `None`, as `"all-linear"`: all in the layers of
            the language model, which leaves out its head.
        exclude_modules (`list[str]` or `str`, *optional*):
            Names of modules, or a regular expression for them, that are left alone.
        layers_to_transform (`list[int]` or `int`, *optional*):
            Indices of the layers to adapt.
        layers_pattern (`list[str]` or `str`, *optional*):
            Name of the module list that `layers_to_transform` counts in, where it is not a common one.
        modules_to_save (`list[str]`, *optional*):
            Other modules that are trained and saved whole; all languages share them.
        scaling (`float`):
            Factor of B A; what LoRA calls `lora_alpha / r`.
        dropout (`float`):
            Share of the inputs that the factors do not see in training.
        init_weights (`bool` or `str`):
            `True`: A within ±1/√in, as LoRA's. `"paper"`: A within ±1/√r, which is far larger. In both B is zero, so a
            fresh adapter changes nothing. `False`: both random, for tests.
        save_dtype (`str`, *optional*):
            Type of the factors in saved files: `"fp32"` or `"bf16"`; that of the base weights by default, float32
            where quantized weights have none.
        prompt (`str`, *optional*):
            Prompt template that the adapter is trained with; see [`LanderConfig`].
        verify_base (`bool`):
            Whether the adapter is refused on base weights other than those it was made on; weights that cannot be read
            (quantized, offloaded) are not compared.
        languages (`list[str]`, *optional*):
            Filled by `split_adapter(by="language")`: the languages whose factors the folder holds, where these are
            not all of `language_pairs`. Such a folder is to be joined with others.
        pruned (`float`):
            Filled by [`GradualPruning`]: share of the entries of B that are zero for good.
        base_fingerprint (`str`, *optional*):
            Filled when the adapter is made: identifies the base weights.
        embedding_layers (`list[str]`, *optional*):
            Filled when an adapter is saved: embedding layers that PEFT saved with it, because they were resized.
        format_version (`int`):
            Version of the adapter format.
        digest (`str`, *optional*):
            Filled when an adapter is saved: binds the config to its weights.

    Raises:
        ConfigError: An option is unknown or wrong, or options contradict each other.
        LanguagePairError: A pair is missing or malformed.
    """

    rank: int | dict[str, int] = field(default=8, metadata={"must be": "a positive integer, or one for each language"})
    index: Index | None = None
    scaling: float = 1.0
    dropout: float = 0.0
    init_weights: bool | Literal["paper"] = True
    languages: list[str] | None = None
    pruned: float = 0.0

    PEFT_TYPE: ClassVar[str] = "LSLO"
    METHOD_NAME: ClassVar[str] = "LSLo"
    METHOD_LINK: ClassVar[str] = "An [LSLo](https://arxiv.org/abs/2409.05224)"
    NEWEST_FORMAT: ClassVar[int] = FORMAT_VERSION
    FORM: ClassVar[tuple[str, ...]] = (*RoutedConfig.FORM, "index", "scaling")
    SIZES: ClassVar[tuple[str, ...]] = ("language_pairs", "rank", "languages")

    def __post_init__(self) -> None:
        if self.language_pairs is None:
            raise LanguagePairError(
                "language_pairs", None, "name the directions to train, such as ['en-de', 'de-en']."
            )
        super().__post_init__()
        if self.target_modules == "all-linear":
            self.target_modules = None
        if self.languages is not None:
            self.languages = sorted({check_language(language, "languages") for language in self.languages})
            strangers = set(self.languages) - set(languages_of(self.parsed_pairs))
            if strangers or not self.languages:
                raise ConfigError("languages", self.languages, f"must be some of those of {self.language_pairs}.")
        self._check_rank()
        self._check_index()
        if isinstance(self.rank, dict):  # in the order of a file
            self.rank = dict(sorted(self.rank.items()))
        if isinstance(self.index, dict):
            self.index = {stack: list(self.index[stack]) for stack in STACKS}
        if not self.scaling > 0:
            raise ConfigError("scaling", self.scaling, "must be positive; 1 adds B A as it is.")
        for name in ("dropout", "pruned"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(name, getattr(self, name), "must be from 0 to below 1.")

    @classmethod
    def paper(cls, **options: Any) -> LsloConfig:
        """Make a config with the paper's choices, as far as they are known.

        Known from the authors' code: factors on q, k and v of every attention, and on both layers of every FFN, but on
        no output projection; no scaling, no dropout; A within ±1/√r; the default index. Ranks go by how much data a
        language has: there 2 for high-resource, 2 for medium and 8 for low-resource languages (`rank={"en": 2,
        "wo": 8, ...}`). Adam with a learning rate of 3e-3, label smoothing 0.2, [`GradualPruning`] to 0.9.

        There the factors of an FFN cover only its first d of 4 d neurons, here all of them: for M2M-124 and twelve
        languages with these ranks 22.4 M parameters in place of 15.3 M. How the learned index was mixed is not told
        by the code.

        Args:
            options: The other arguments of the class; they may override these choices.
        """
        literal: dict[str, Any] = {"target_modules": ["q_proj", "k_proj", "v_proj", "fc1", "fc2"],
            "init_weights": "paper", "scaling": 1.0, "dropout": 0.0, "index": None}  # fmt: skip
        return cls(**{**literal, **options})

    @property
    def parsed_pairs(self) -> list[LanguagePair]:
        """The pairs, read."""
        return parse_pairs(self.language_pairs or [])

    @property
    def held_languages(self) -> list[str]:
        """Languages whose factors the adapter holds."""
        return self.languages or languages_of(self.parsed_pairs)

    def ranks_for(self, word: str) -> dict[str, int]:
        """Tell which languages a layer with an index of `word` has factors of, and their ranks."""
        sides = SIDES[word]
        here = sorted({pair[side] for pair in self.parsed_pairs for side in sides} & set(self.held_languages))
        return {each: self.rank[each] if isinstance(self.rank, dict) else self.rank for each in here}

    @property
    def unlisted_pairs(self) -> list[str]:
        """Pairs that were not trained, but whose languages have factors in all layers that take them."""
        words = words_in(self.index)
        sides = []
        for side in (0, 1):
            takes = [word for word in words if side in SIDES[word]]
            held = [set(self.ranks_for(word)) for word in takes] or [set(self.held_languages)]
            sides.append(set.intersection(*held))
        found = {str(LanguagePair(source, target)) for source in sides[0] for target in sides[1] if source != target}
        return sorted(found - set(self.language_pairs or ()))

    @property
    def method_options(self) -> dict[str, Any]:
        """The options of the method, by name, in few words."""
        return {name: in_words(self.index) if name == "index" else getattr(self, name) for name in METHOD}

    @property
    def origin(self) -> tuple[str, str]:
        """What the adapter's parts were chosen by, and which they are."""
        ranks = self.rank if isinstance(self.rank, dict) else dict.fromkeys(self.held_languages, self.rank)
        return "Languages", ", ".join(f"{language} (rank {rank})" for language, rank in ranks.items())

    def is_delta(self, key: str) -> bool:
        """Tell whether a key names a factor, not what an index was learned as."""
        return ".lslo_blocks." in key and not key.endswith(".index_logits")

    def check_is_whole(self) -> None:
        """Check that the adapter has all factors of its pairs.

        Raises:
            ConfigError: It holds a part of them, for some languages.
        """
        if self.languages is not None:
            remedy = f"only these of {self.language_pairs} have factors here; join_adapters them with the others'."
            raise ConfigError("languages", self.languages, remedy)

    def take_over(self, other: RoutedConfig) -> None:
        """Take from another adapter's config what describes its tensors, which are loaded now."""
        super().take_over(other)
        assert isinstance(other, LsloConfig)
        self.pruned = other.pruned

    def _check_rank(self) -> None:
        ranks = self.rank if isinstance(self.rank, dict) else {"": self.rank}
        if isinstance(self.rank, dict) and self.rank.keys() != set(self.held_languages):
            named = ", ".join(self.held_languages)
            raise ConfigError("rank", self.rank, f"give one rank for each of {named}, or one for all.")
        for rank in ranks.values():
            if rank < 1:
                raise ConfigError("rank", self.rank, "must be a positive integer, or one for each language.")

    def _check_index(self) -> None:
        for word in self._words():
            if word not in WORDS:
                raise ConfigError("index", word, f"expected {', '.join(WORDS)}, or one of them for each layer.")
        if isinstance(self.index, dict) and self.index.keys() != set(STACKS):
            raise ConfigError("index", self.index, "give one list for the encoder and one for the decoder.")

    def _words(self) -> Iterator[str]:
        lists = self.index.values() if isinstance(self.index, dict) else [self.index or []]
        for words in lists:
            yield from [words] if isinstance(words, str) else words
