"""A neuron map at a glance: as five lines, as a page's part, and as a picture of layers by neurons."""

from __future__ import annotations

import base64
import html
import importlib.util
import io
from typing import TYPE_CHECKING, Any

import torch

from .errors import ConfigError
from .escaping import printable

if TYPE_CHECKING:
    from .neuron_map import NeuronMap

_WIDTH = 96
"""Characters of a line."""
_GENERAL = "#e6e9ed"


def summary(neuron_map: NeuronMap) -> str:
    """Tell in five lines what a map holds."""
    languages = neuron_map.languages
    owners = torch.cat([entry.owner for entry in neuron_map.neurons])
    shares = [f"{language} {(owners == index).double().mean():.1%}" for index, language in enumerate(languages)]
    pairs = [f"{pair}: {', '.join(map(str, layers))}" for pair, layers in neuron_map.pair_layers.items()]
    lines = [
        f"NeuronMap of {neuron_map.num_layers} FFN layers, {len(owners):,} neurons",
        f"  languages: {', '.join(languages)}",
        f"  general {(owners < 0).double().mean():.1%}, specific: {', '.join(shares)}",
        f"  relevant layers: {'; '.join(pairs)}",
        f"  {neuron_map.signature}",
    ]
    shown = map(printable, lines)
    return "\n".join(line if len(line) <= _WIDTH else f"{line[: _WIDTH - 3]}..." for line in shown)


def page_part(neuron_map: NeuronMap) -> str:
    """Make HTML for notebooks: the summary, and the picture where matplotlib is installed."""
    part = f"<pre>{html.escape(summary(neuron_map))}</pre>"
    if importlib.util.find_spec("matplotlib") is None:
        return part
    image = io.BytesIO()
    plot(neuron_map).figure.savefig(image, format="png", dpi=110)
    data = base64.b64encode(image.getvalue()).decode()
    return f'{part}<img src="data:image/png;base64,{data}" alt="Owners of the neurons of every layer">'


def plot(neuron_map: NeuronMap, axes: Any = None) -> Any:
    """Draw the owners of all neurons: a line for each layer, a colour for each language, general neurons grey.

    Within a layer, neurons stand by their owners. Arrows mark the layers that are relevant to a pair.

    Args:
        neuron_map: The map.
        axes: matplotlib's axes to draw into; those of a new figure by default.

    Returns:
        The axes.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("plot", "matplotlib", "is not installed; run pip install 'peft_landermt[report]'.")
    from matplotlib import colormaps
    from matplotlib.colors import to_rgba
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    count, layers = len(neuron_map.languages), neuron_map.num_layers
    if axes is None:
        axes = Figure(figsize=(7.2, 1.6 + 0.16 * layers), layout="constrained").subplots()
    hues = colormaps["tab10" if count <= 10 else "turbo"]
    colours = [hues(index if count <= 10 else index / (count - 1)) for index in range(count)]
    widest = max(len(entry.owner) for entry in neuron_map.neurons)
    palette = torch.tensor([*colours, to_rgba(_GENERAL)])  # the last for GENERAL, which is -1
    picture = torch.ones(layers, widest, 4)
    for place, entry in enumerate(neuron_map.neurons):
        picture[place, : len(entry.owner)] = palette[entry.owner.sort(descending=True).values]
    axes.imshow(picture.numpy(), aspect="auto", interpolation="nearest", origin="lower")
    relevant = sorted({layer for layers in neuron_map.pair_layers.values() for layer in layers})
    axes.plot([widest * 1.005] * len(relevant), relevant, "<", color="black", clip_on=False, markersize=4)
    axes.set(xlabel="neurons, by owner", ylabel="layer")
    handles = [Patch(color=colour, label=name) for colour, name in zip(colours, neuron_map.languages, strict=True)]
    handles.append(Patch(color=_GENERAL, label="general"))
    axes.figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 8), fontsize="small")
    return axes
