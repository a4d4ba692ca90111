"""What training with a learned index has found."""

from __future__ import annotations

from peft import PeftModel

from ..errors import AdapterError
from .index import Index, mean_weights
from .layer import lslo_layers


def learned_weights(model: PeftModel, adapter_name: str = "default") -> dict[str, list[tuple[float, float]]]:
    """Tell how much of the source and of the target language every layer takes, after training with
    `index="learned"`.

    Args:
        model: A model with an LSLo adapter.
        adapter_name: The adapter.

    Returns:
        For each stack, the weights (source, target) of every layer: the mean of the softmax over its modules.

    Raises:
        AdapterError: There is no such adapter, or its index is not learned in every layer.
    """
    two_stacks = isinstance(getattr(model.peft_config.get(adapter_name), "index", None), dict)
    logits = []
    for name, layer in lslo_layers(model, adapter_name).items():
        if (blocks := layer.blocks(adapter_name)).word == "learned":
            logits.append((name, blocks.index_logits.detach()))
    if not logits:
        raise AdapterError("adapter_name", adapter_name, 'its index was not learned; train one with index="learned".')
    return mean_weights(logits, two_stacks)


def learned_index(model: PeftModel, adapter_name: str = "default") -> Index:
    """Tell which index training with `index="learned"` has found, to be given to the `index` of a new adapter.

    A layer is indexed by the language that has the larger weight in it, on average over its modules; by the target
    where both are equal. The paper takes the found index and trains anew.

    Args:
        model: A model with an LSLo adapter.
        adapter_name: The adapter.

    Returns:
        A word for each adapted layer: a list, or a list for each stack of an encoder-decoder.

    Raises:
        AdapterError: There is no such adapter, or its index is not learned.
    """
    words = {
        stack: ["source" if source > target else "target" for source, target in layers]
        for stack, layers in learned_weights(model, adapter_name).items()
    }
    return words if isinstance(model.peft_config[adapter_name].index, dict) else words["decoder"]
