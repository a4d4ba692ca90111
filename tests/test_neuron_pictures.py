"""A neuron map as five lines, in a notebook, and as a picture whose colours are the owners."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from html.parser import HTMLParser

import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from peft_landermt import NeuronMap
from peft_landermt.errors import ConfigError
from peft_landermt.neuron_map import GENERAL, LayerNeurons

from .test_escaping import HOSTILE


def make_map(languages: int = 2, signature: str = "base:toy|data:none", sizes: Sequence[int] = (20, 10)) -> NeuronMap:
    """Of every layer, one neuron for each language, the others general."""
    codes = ("de", "en", "es", "fr", "it", "nl", "pl", "pt", "ru", "sv", "tr", "zh")[:languages]
    neurons = []
    for index, size in enumerate(sizes):
        owner = torch.tensor([*range(languages), *[GENERAL] * (size - languages)])
        phi = torch.rand(languages, size, generator=torch.Generator().manual_seed(index))
        neurons.append(LayerNeurons(f"layers.{index}.mlp", owner.flip(0), phi, phi, phi))
    return NeuronMap(
        codes, {"de-en": (0, 1)}, {"de-en": (0.5,) * (len(sizes) - 1)}, tuple(neurons), 4, None, signature
    )


def test_five_lines() -> None:
    assert repr(make_map()).splitlines() == [
        "NeuronMap of 2 FFN layers, 30 neurons",
        "  languages: de, en",
        "  general 86.7%, specific: de 6.7%, en 6.7%",
        "  relevant layers: de-en: 0, 1",
        "  base:toy|data:none",
    ]


PRINTABLE = {name: text for name, text in HOSTILE.items() if text.isprintable()}
"""No map has another signature."""


@pytest.mark.parametrize("text", PRINTABLE.values(), ids=PRINTABLE)
def test_five_short_lines_whatever_the_names(text: str) -> None:
    shown = repr(make_map(12, text * 40, (60,) * 3)).split("\n")
    assert len(shown) == 5 and all(len(line) <= 96 and line.isprintable() for line in shown)


@pytest.mark.parametrize("text", ["base:<b>toy</b>", 'base:"&amp;', "base:</pre><script>"])
def test_notebooks_show_names_as_they_are(text: str) -> None:
    class Tags(HTMLParser):
        seen: list[str] = []

        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            self.seen = [*self.seen, tag]

    page = Tags()
    page.feed(make_map(signature=text)._repr_html_())
    assert page.seen == ["pre", "img"]


@pytest.mark.parametrize("languages", [2, 10, 12])
def test_colours_are_owners(languages: int) -> None:
    """As many cells of each colour as a layer has neurons of each owner; layers with fewer neurons end before."""
    found = make_map(languages, sizes=(40, 20))
    axes = found.plot()
    picture = torch.as_tensor(axes.images[0].get_array()).double()
    handles = {
        text.get_text(): patch.get_facecolor()
        for legend in axes.figure.legends
        for text, patch in zip(legend.get_texts(), legend.get_patches(), strict=True)
    }
    assert list(handles) == [*found.languages, "general"] and len(set(handles.values())) == languages + 1
    for layer, size in enumerate((40, 20)):
        cells = picture[layer]
        for language in found.languages:
            same = (cells - torch.tensor(handles[language]).double()).abs().amax(-1) < 1e-3
            assert int(same.sum()) == len(found.specific(layer, language)) == 1
        general = (cells - torch.tensor(handles["general"]).double()).abs().amax(-1) < 1e-3
        assert int(general.sum()) == len(found.general(layer))
        assert bool((cells[size:] == torch.tensor(to_rgba("white")).double()).all())


def test_axes_of_ones_own() -> None:
    axes = Figure().subplots()
    assert make_map().plot(axes) is axes and len(axes.images) == 1


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name))
    with pytest.raises(ConfigError, match=r"pip install 'peft_landermt\[report\]'"):
        make_map().plot()
    assert make_map()._repr_html_() == f"<pre>{make_map()!r}</pre>"
