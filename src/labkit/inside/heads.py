"""Where heads look: attention patterns, and how much of the attention goes where copying needs it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

from labkit.errors import LabkitError
from labkit.inside.sites import Part
from labkit.pruning import memory
from labkit.pruning.blocks import evaluating

OFFSETS = {"induction": 1, "duplicate token": 0, "backward": -1}
"""Score -> where its target stands, counted from the last place that held the same token."""

SCORES = ("previous token", *OFFSETS)
"""Where a head may look from a place: see `head_scores`."""


@torch.no_grad()
def attention(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """(layers, heads, sequences, time, time) float32 on the CPU: how much each place attends to each.

    Rows sum to 1, or to less where a head has a sink of its own, as in gpt-oss. ``tokens`` (sequences, time) int64.
    Meanwhile the model computes its attention in the plain way ("eager"), for faster kernels do not tell; afterwards it
    is as it was. Raises LabkitError for a model that cannot, or has layers without attention.
    """
    if not isinstance(tokens, Tensor) or tokens.ndim != 2:
        received = f"{type(tokens).__name__} {tuple(getattr(tokens, 'shape', ()))}"
        raise LabkitError("tokens are a tensor (sequences, time)", received, "Give e.g. tokens[None].")
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        if model.config._attn_implementation != "eager":  # Falcon's other way leaves out the causal mask when asked
            rule = "attention is read from a model that computes it in the plain way"
            received = f"{type(model).__name__} with {model.config._attn_implementation!r}, which cannot be changed"
            raise LabkitError(rule, received, "Load it with attn_implementation='eager'.")
        with evaluating(model):
            given = model(input_ids=tokens.to(model.device), use_cache=False, output_attentions=True)
            found = getattr(given, "attentions", None)
    finally:
        model.set_attn_implementation(before)
    layers = model.config.get_text_config().num_hidden_layers  # of which some may be of another kind
    if not found or any(layer is None for layer in found) or len(found) != layers:
        remedy = "Use one of transformers' decoders with softmax attention in every layer."
        raise LabkitError("attention is read from a model that gives it", type(model).__name__, remedy)
    return torch.stack([layer.float().cpu() for layer in found]).swapaxes(1, 2)  # theirs: sequences, then heads


def head_scores(
    model: PreTrainedModel, tokens: np.ndarray | Tensor, places: np.ndarray | Tensor | None = None
) -> pd.DataFrame:
    """How much of its attention each head spends, from the places asked, on places of a certain kind.

    For place t, with p < t the last place before it that holds the same token:

    - *previous token*: attention to t − 1,
    - *induction*: to p + 1, what followed the same token last time,
    - *duplicate token*: to p itself,
    - *backward*: to p − 1, what stood before it, as writing a string backwards needs.

    Only places whose target lies before them count. Attention says where a head looks, not what it does with it.

    Parameters
    ----------
    tokens
        (sequences, time) int64, e.g. of ``Ability.sample``. Padding on the right does no harm where ``places`` leaves
        it out.
    places
        (sequences, time) bool: the places asked, e.g. ``items.labels != IGNORE``; default: all.

    Returns
    -------
    Rows ``part, layer, head, score, item, value, even``: the mean over the places of each sequence that has any, and
    ``even``, what a head that looks at all places alike would have. `looks` averages them.

    Source: induction is the prefix matching of Olsson et al. 2022, arXiv 2209.11895, with the last repetition as
    target; duplicate token heads: Wang et al. 2022, arXiv 2211.00593.
    """
    tokens = torch.as_tensor(tokens).cpu()
    places = torch.ones_like(tokens, dtype=torch.bool) if places is None else torch.as_tensor(places).cpu()
    if tokens.dtype != torch.int64 or tokens.ndim != 2 or places.shape != tokens.shape or not tokens.numel():
        received = f"{tokens.dtype} {tuple(tokens.shape)}, places {tuple(places.shape)}"
        raise LabkitError(
            "tokens are int64 (sequences, time), and places of the same shape", received, "Give items.tokens."
        )
    frames, first = [], 0
    for batch, asked in zip(memory.micro_batches(tokens), memory.micro_batches(places), strict=True):
        pattern = attention(model, batch).double()
        even = 1 / torch.arange(1.0, batch.shape[1] + 1, dtype=torch.float64)
        for score in SCORES:
            target, exists = targets(batch, score)
            counted = (asked & exists).double()
            hit = pattern.gather(-1, target[..., None].expand(*pattern.shape[:-1], 1))[..., 0]
            values, evens = ((x * counted).sum(-1) / counted.sum(-1) for x in (hit, even))
            has = counted.any(-1).numpy()
            items, evens = np.flatnonzero(has) + first, evens.numpy()[has]
            for layer, head in np.ndindex(*pattern.shape[:2]):
                frame = pd.DataFrame({"item": items, "value": values[layer, head].numpy()[has], "even": evens})
                of_head = {"part": Part("head", layer, head).name, "layer": layer, "head": head, "score": score}
                frames.append(frame.assign(**of_head))
        first += len(batch)
    if all(frame.empty for frame in frames):
        raise LabkitError("places asked have something before them to look at", "none that has", "Give longer texts.")
    return pd.concat(frames, ignore_index=True)[["part", "layer", "head", "score", "item", "value", "even"]]


def targets(tokens: Tensor, score: str) -> tuple[Tensor, Tensor]:
    """Where a score looks from every place, and whether there is such a place before it; both (sequences, time)."""
    place = torch.arange(tokens.shape[1])
    if score == "previous token":
        target = (place - 1).expand_as(tokens)
    else:
        same = (tokens[:, :, None] == tokens[:, None, :]) & (place[:, None] > place)
        last = torch.where(same, place, -1).amax(-1)  # -1: never before
        target = torch.where(last >= 0, last + OFFSETS[score], -1)
    exists = (target >= 0) & (target < place)
    return torch.where(exists, target, 0), exists
