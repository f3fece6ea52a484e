"""Inside a decoder: where its heads look, what each part does for an ability, and which part a compression broke.

A part is taken out (`ablate`), or its activations are put into another model (`patch`): both give item-level rows of
`labkit.evaluation.evaluate`, and `effects` estimates with intervals. `head_scores` says where heads look.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from labkit.abilities import Ability
from labkit.errors import LabkitError, unknown
from labkit.evaluation import evaluate
from labkit.inside import sites
from labkit.inside.estimates import DONOR, INTACT, earliest, effects, looks, ranking
from labkit.inside.heads import SCORES, attention, head_scores
from labkit.inside.roles import OTHERS, by_role, roles
from labkit.inside.sites import KINDS, Part, Parts, Site, parts, seen
from labkit.pruning import anatomy, blocks, memory
from labkit.pruning.blocks import evaluating

__all__ = [
    "DONOR", "INTACT", "KINDS", "OTHERS", "SCORES", "Part", "ablate", "attention", "by_role", "earliest", "effects",
    "head_scores", "looks", "parts", "patch", "ranking", "roles",
]  # fmt: skip

HOW = ("mean", "zero")
"""What a part is replaced by when it is taken out."""


def ablate(
    model: PreTrainedModel,
    suite: Sequence[Ability],
    reference: Tensor | None = None,
    parts: Parts | None = None,
    how: str = "mean",
    n: int = 256,
    seed: int = 0,
) -> pd.DataFrame:
    """Score the model with each part replaced by a constant, and with none replaced.

    Replaced is what the part writes: for a head its slice of the input of the output projection; for the attention or
    the feed-forward network of a layer its whole output; for a layer both outputs. ``how="zero"`` then skips it, as
    `labkit.drop_layers` does. The model itself is left as it is.

    Parameters
    ----------
    reference
        int64 tokens (sequences, time), never padded, over all of whose places the mean is taken, e.g. of
        ``Corpus.calibration``: the part still writes what it writes on average, and nothing about the text at hand.
    parts
        Default: all parts of the model.
    how
        ``"mean"``, or ``"zero"``, which also takes away what a part writes whatever the text, and needs no reference.
    n, seed
        As for `labkit.evaluation.evaluate`.

    Returns
    -------
    Rows of `evaluate` behind three more columns: ``part``, `INTACT` for the model as it is; ``layer`` and ``head``,
    missing where there is none or parts that are replaced together differ in it.

    Raises
    ------
    LabkitError
        Another ``how``; a part that the model lacks; missing or unfit reference tokens; what `evaluate` raises.

    Source: mean ablation as in Wang et al. 2022, arXiv 2211.00593, but with one mean for all places.
    """
    if how not in HOW:
        raise unknown("way of taking out", how, HOW)
    groups = sites.chosen(model, parts)
    places = {name: sites.sites(model, group) for name, group in groups.items()}
    means = {}
    if how == "mean":
        reference = blocks.check_calibration(model, reference, "mean ablation")
        means = _means(model, {site for some in places.values() for site in some}, reference)

    def constant(site: Site, written: Tensor) -> Tensor:
        return means[site] if how == "mean" else torch.zeros_like(written)

    score = partial(evaluate, model, suite, n=n, seed=seed, progress=False)
    frames = [_labelled(INTACT, (), score())]
    for name, group in groups.items():
        with seen(model, places[name], constant):
            frames.append(_labelled(name, group, score()))
    return pd.concat(frames, ignore_index=True)


def patch(
    model: PreTrainedModel,
    donor: PreTrainedModel,
    suite: Sequence[Ability],
    parts: Parts | None = None,
    n: int = 256,
    seed: int = 0,
) -> pd.DataFrame:
    """Score the model with what each part writes replaced by what the donor's writes on the same tokens.

    With a pruned model and the dense one as its donor: an ability that comes back was broken in this part *or before
    it*, for the donor's part has read what the donor's earlier parts wrote. A head is put in before the output
    projection, which stays the model's own. Both models are left as they are.

    Parameters
    ----------
    donor
        Another model of the same architecture, with the same layers, heads, head size and width, on the same device.
    parts, n, seed
        As for `ablate`.

    Returns
    -------
    The rows of `ablate`, and those of the donor itself as part `DONOR`.

    Raises
    ------
    LabkitError
        A donor of another architecture, shape or device, or the model itself; a part that the model lacks; what
        `evaluate` raises.

    Source: Zhang & Nanda 2023, arXiv 2309.16042 (there: denoising).
    """
    if (wanted := _shape(model)) != (received := _shape(donor)):
        rule = f"model and donor have the same architecture, layers, heads, head size, width and device, here {wanted}"
        raise LabkitError(rule, received, "Patch between a model and a pruned copy of it.")
    if donor is model:
        raise LabkitError("a donor is another model", "the model itself", "Give a copy of it, e.g. the unpruned one.")
    groups, here = sites.chosen(model, parts), threading.local()  # `evaluate` scores batches in threads side by side

    def take(site: Site, written: Tensor) -> None:
        here.written[site] = written

    def give(site: Site, written: Tensor) -> Tensor:
        return here.written[site]

    def ask(module: nn.Module, args: tuple, kwargs: dict) -> None:
        here.written = {}
        donor(*args, **kwargs)

    score = partial(evaluate, suite=suite, n=n, seed=seed, progress=False)
    frames = [_labelled(INTACT, (), score(model)), _labelled(DONOR, (), score(donor))]
    handle = model.register_forward_pre_hook(ask, with_kwargs=True)
    try:
        for name, group in groups.items():
            places = sites.sites(model, group)
            with evaluating(donor), seen(donor, places, take), seen(model, places, give):
                frames.append(_labelled(name, group, score(model)))
    finally:
        handle.remove()
    return pd.concat(frames, ignore_index=True)


@torch.no_grad()
def _means(model: PreTrainedModel, places: set[Site], tokens: Tensor) -> dict[Site, Tensor]:
    """What is written at each site on average, (columns,) fp64."""
    totals: dict[Site, Tensor] = {}

    def add(site: Site, written: Tensor) -> None:
        totals[site] = totals.get(site, 0) + written.double().flatten(0, -2).sum(0)

    with evaluating(model), seen(model, places, add):
        for batch in memory.micro_batches(tokens):
            model(input_ids=batch, use_cache=False)
    return {site: total / tokens.numel() for site, total in totals.items()}


def _labelled(name: str, group: Sequence[Part], rows: pd.DataFrame) -> pd.DataFrame:
    found = {part.layer for part in group}, {part.head for part in group}
    layer, head = (pd.array(list(x) if len(x) == 1 else [None], dtype="Int64").repeat(len(rows)) for x in found)
    for place, (column, value) in enumerate({"part": name, "layer": layer, "head": head}.items()):
        rows.insert(place, column, value)
    return rows


def _shape(model: PreTrainedModel) -> tuple[str, int, int, int, int, str]:
    sizes = anatomy.sizes_of(model)
    return model.config.model_type, sizes.layers, sizes.heads, sizes.head_size, sizes.width, str(model.device)
