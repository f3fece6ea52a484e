"""Width pruning: fewer heads, FFN neurons and hidden dimensions in every layer, as a plain, smaller model."""

from __future__ import annotations

from numbers import Integral

import torch
from torch import Tensor
from transformers import PreTrainedModel

from labkit.errors import LabkitError, unknown
from labkit.lineage import record
from labkit.pruning import anatomy, blocks, engine, ledger, memory, surgery
from labkit.pruning.anatomy import Kept, Sizes
from labkit.pruning.units import UNIT_IMPORTANCES, Scores

FUSED_BYTES = 16
"""What a row of a matrix is a multiple of where all experts are multiplied at once (PyTorch's grouped_mm)."""


@torch.no_grad()
def shrink(
    model: PreTrainedModel,
    heads: int | None = None,
    ffn: int | None = None,
    width: int | None = None,
    importance: str = "activation",
    calibration: Tensor | None = None,
    seed: int = 0,
) -> PreTrainedModel:
    """A new model with only its most important heads, FFN neurons and hidden dimensions, in their old order.

    Every layer keeps as many as every other, since a config of transformers states one number, but each layer chooses
    its own heads and neurons, each expert its own neurons; hidden dimensions are the same everywhere. What is left is
    not rescaled: norms are taken over fewer dimensions. Only Gemma's factor √width on the embeddings is made up for.

    Parameters
    ----------
    heads
        Query heads to keep in each layer; None keeps all. With H heads in G key-value groups it is a multiple of G,
        and every group keeps its heads/G best; or, below G, a multiple of H/G: only the best groups stay, whole,
        ranked by the sum over their heads. OLMo 2 normalises all heads together: the norm is then over fewer.
    ffn
        Neurons to keep in each feed-forward network, in each expert alike; None keeps all. Of fused experts a multiple
        of 4 in float32, of 8 in half precision, as the width.
    width
        Hidden dimensions to keep; None keeps all. GPT-2, GPT-NeoX, OPT and Falcon state no head size: there ``width``
        must be ``heads`` times the head size.
    importance
        Name of a function in `UNIT_IMPORTANCES`: ``"activation"``, ``"magnitude"`` or ``"random"`` (by ``seed``).
    calibration
        int64 tokens (sequences, time), never padded; needed by ``"activation"``. Memory of a GPU that runs out
        halves the micro-batch, which is warned of.

    A sparse model stays sparse where weights stay, and its ledger of masks is written anew; a pattern N:M is broken
    as soon as inputs go.

    Raises
    ------
    LabkitError
        Nothing to shrink; a number out of range, not whole or that key-value groups do not allow; a config that
        cannot state the sizes; an unknown architecture or importance; a seed that is no whole number; missing or unfit
        calibration tokens, or ones that reach no neuron of an expert; activations that are not finite; a model that is
        quantised, compiled or offloaded, adapters that are not merged, zeros that are not those recorded; a model and
        its smaller copy, or one sequence, that do not fit into the device's memory.
    """
    engine.check_plain(model, "shrunk")
    sizes = anatomy.sizes_of(model)
    asked = {"heads": heads, "ffn": ffn, "width": width, "importance": importance, "seed": seed}
    heads, ffn, width = check_sizes(model, heads, ffn, width)
    known = {function.__name__: function for function in UNIT_IMPORTANCES}
    if importance not in list(known):  # a list of names may be asked for too
        raise unknown("importance", importance, known)
    generator = blocks.seeded(seed)

    fits = memory.must_fit("a model, its smaller copy, and what ranks its units", type(model).__name__)
    with fits, blocks.evaluating(model):
        scores = known[importance](model, calibration, generator)
    if ffn < sizes.neurons and scores.neurons.isnan().any():
        layer, expert = scores.neurons.isnan().any(dim=2).nonzero()[0].tolist()
        rule = "the calibration tokens reach every expert"
        raise LabkitError(rule, f"none for expert {expert} of layer {layer}", "Give more calibration sequences.")
    kept = [_kept(scores, i, sizes, (heads, ffn, width)) for i in range(sizes.layers)]
    with fits:
        small = surgery.keep_units(model, kept)
        if hasattr(model.config, ledger.FIELD):
            ledger.record_masks(small)
    record(small, "shrink", **asked)
    return small


def check_sizes(
    model: PreTrainedModel, heads: int | None, ffn: int | None, width: int | None
) -> tuple[int, int, int]:
    """What `shrink` would keep of each. Raises the LabkitError that it would raise for these; needs no weights."""
    sizes = anatomy.sizes_of(model)
    if heads is None and ffn is None and width is None:
        raise LabkitError("shrink needs a number of heads, ffn or width", None, "Give at least one, e.g. ffn=512.")
    heads = _checked("heads", heads, sizes.heads)
    ffn = _checked("ffn", ffn, sizes.neurons)
    width = _checked("width", width, sizes.width)
    check_heads(heads, sizes)
    numbers = FUSED_BYTES // model.dtype.itemsize
    for name, before, now in (("ffn", sizes.neurons, ffn), ("width", sizes.width, width)):
        if before != now and now % numbers and any(map(blocks.is_fused, model.modules())):
            rule = f"rows of fused experts take a multiple of {FUSED_BYTES} bytes, {numbers} numbers in {model.dtype}"
            raise LabkitError(rule, f"{name}={now}", f"Give {name} as a multiple of {numbers}.")
    kept = Kept(torch.arange(heads), torch.arange(ffn).expand(sizes.experts, -1), torch.arange(width))
    surgery.check_units(model, kept)  # the config's own demands
    return heads, ffn, width


def check_heads(heads: int, sizes: Sizes) -> None:
    """Raise LabkitError unless key-value groups stay alike: see ``heads`` of `shrink`."""
    each = sizes.heads // sizes.groups
    if heads % sizes.groups if heads >= sizes.groups else heads % each:
        raise LabkitError(
            f"{sizes.heads} heads in {sizes.groups} key-value groups keep a multiple of {sizes.groups},"
            f" or, to drop groups, a multiple of {each} below that",
            heads,
            f"Give e.g. heads={max(sizes.groups, heads // sizes.groups * sizes.groups)}.",
        )


def keep_heads(scores: Tensor, heads: int, groups: int) -> Tensor:
    """Numbers (heads,) of the heads that stay, of scores (all heads,) in ``groups`` groups that follow each other."""
    each = len(scores) // groups
    by_group = scores.view(groups, each)
    numbers = torch.arange(len(scores)).view(groups, each)
    if heads >= groups:
        best = keep_best(by_group, heads // groups)
        return numbers.gather(1, best).flatten()
    return numbers[keep_best(by_group.sum(1), heads // each)].flatten()


def keep_best(scores: Tensor, count: int) -> Tensor:
    """(…, units) -> sorted numbers (…, count) of the highest scores; of equals the first is removed first."""
    order = scores.argsort(dim=-1, stable=True)
    return order[..., scores.shape[-1] - count :].sort(dim=-1).values


def _kept(scores: Scores, layer: int, sizes: Sizes, numbers: tuple[int, int, int]) -> Kept:
    heads, ffn, width = numbers
    # NaN, where all stay anyway, must not come into the order
    neurons = keep_best(scores.neurons[layer].nan_to_num(), ffn)
    return Kept(keep_heads(scores.heads[layer], heads, sizes.groups), neurons, keep_best(scores.width, width))


def _checked(name: str, number: int | None, all_of_them: int) -> int:
    """The number to keep, None meaning all. Raises LabkitError unless it is whole and in range."""
    if number is None:
        return all_of_them
    if isinstance(number, bool) or not isinstance(number, Integral) or not 1 <= number <= all_of_them:
        rule = f"{name} to keep lies in 1..{all_of_them}"
        raise LabkitError(rule, number, f"Give a whole number of at most {all_of_them}.")
    return int(number)
