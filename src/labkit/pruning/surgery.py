"""Making tensors physically smaller. Works in place on a copy that the caller has made."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from labkit.errors import LabkitError
from labkit.pruning import blocks


def check_keep(model: PreTrainedModel, keep: int) -> None:
    """Raise LabkitError unless ``keep`` is a whole number of layers from 1 to as many as the model has."""
    layers = len(blocks.decoder_blocks(model)[1])
    if isinstance(keep, bool) or not isinstance(keep, int) or not 1 <= keep <= layers:
        rule = f"the number of layers to keep lies in 1..{layers}"
        raise LabkitError(rule, keep, f"Give a whole number of at most {layers}.")


def keep_layers(model: PreTrainedModel, kept: Sequence[int]) -> None:
    """Keep the decoder blocks with these numbers, in their order in the model; the config is brought in line.

    ``layer_idx`` of what remains is renumbered: it is where a layer finds its keys and values in the cache.
    """
    kept = sorted(kept)
    config = model.config.get_text_config()
    name, old = blocks.decoder_blocks(model)
    new = nn.ModuleList(old[i] for i in kept)
    model.set_submodule(name, new)
    for number, block in enumerate(new):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = number
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = [config.layer_types[i] for i in kept]
    config.num_hidden_layers = len(kept)
