"""Pruning: `criteria` and `importance` say what matters, `masks` which patterns are legal, `surgery` shrinks tensors.

Both functions here return a new model and leave the one they are given untouched.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from labkit.errors import LabkitError, unknown
from labkit.pruning import blocks, masks, surgery
from labkit.pruning.blocks import sparsity
from labkit.pruning.criteria import CALIBRATED, CRITERIA
from labkit.pruning.importance import IMPORTANCES

__all__ = ["CRITERIA", "IMPORTANCES", "check_prune", "drop_layers", "prune", "sparsity"]


@torch.no_grad()
def prune(
    model: PreTrainedModel,
    criterion: str = "wanda",
    sparsity: float | None = None,
    pattern: str | None = None,
    calibration: Tensor | None = None,
    group: str | None = None,
    seed: int = 0,
) -> PreTrainedModel:
    """A copy of the model with the weights that matter least set to zero. Embeddings and output head stay dense.

    Parameters
    ----------
    criterion
        Name of a function in `CRITERIA`: ``"random"``, ``"magnitude"`` or ``"wanda"``.
    sparsity
        Fraction of weights to drop, [0, 1). With a ``pattern`` it may be left out, or must be the pattern's 1 − N/M.
    pattern
        None (unstructured), ``"2:4"``, or any ``"N:M"``: of every M consecutive inputs the N best are kept.
    calibration
        int64 tokens (sequences, time), never padded; needed by ``"wanda"``, not looked at by the others. Blocks are
        pruned in order, and each is calibrated on what the pruned blocks before it give.
    group
        Within what unstructured weights compete: ``"layer"`` (a whole matrix; the default of random and magnitude)
        or ``"row"`` (the inputs of one output; the default of Wanda).
    seed
        For ``"random"``.

    Raises
    ------
    LabkitError
        Unknown criterion, pattern or group; sparsity outside [0, 1) or not the pattern's; a matrix whose width M does
        not divide; missing or unfit calibration tokens; activations that are not finite; an unsupported module.
    """
    score = _named("criterion", criterion, CRITERIA)
    keep = _masker(sparsity, pattern, group or ("row" if score in CALIBRATED else "layer"))
    if pattern is not None:
        if group is not None:
            raise LabkitError("a pattern has groups of its own", f"group={group!r}", "Leave group out.")
        for name, linear in blocks.matrices(model).items():
            masks.check_divisible(name, linear.in_features, masks.parse_pattern(pattern)[1])
    if score in CALIBRATED:
        calibration = blocks.check_calibration(model, calibration, f"criterion {criterion!r}")

    pruned = copy.deepcopy(model).eval()
    generator = torch.Generator().manual_seed(seed)
    linears = blocks.matrices(pruned)
    steps: Iterator[dict[str, Tensor | None]] = (
        blocks.walk(pruned, calibration) if score in CALIBRATED else iter([dict.fromkeys(linears)])
    )
    for norms_of in steps:
        for name, norms in norms_of.items():
            weight = linears[name].weight
            weight.masked_fill_(~keep(score(weight, norms, generator)), 0)
    return pruned.train(model.training)


def drop_layers(
    model: PreTrainedModel,
    keep: int,
    importance: str = "block-influence",
    calibration: Tensor | None = None,
    seed: int = 0,
) -> PreTrainedModel:
    """A copy of the model with only its ``keep`` most important decoder blocks, in their old order.

    Parameters
    ----------
    keep
        Blocks to keep, 1 up to as many as there are.
    importance
        ``"block-influence"`` (how far a block turns its tokens, on ``calibration``) or ``"random"`` (by ``seed``).
    calibration
        int64 tokens (sequences, time), never padded; needed by block influence.

    Raises
    ------
    LabkitError
        ``keep`` out of range; unknown importance; missing or unfit calibration tokens; activations not finite.
    """
    surgery.check_keep(model, keep)
    measure = _named("importance", importance, IMPORTANCES)
    short = copy.deepcopy(model).eval()
    scores = measure(short, calibration, torch.Generator().manual_seed(seed))
    dropped = scores.argsort(stable=True)[: len(scores) - keep].tolist()
    surgery.keep_layers(short, [i for i in range(len(scores)) if i not in dropped])
    return short.train(model.training)


def check_prune(criterion: str, sparsity: float | None, pattern: str | None) -> None:
    """Raise the LabkitError that `prune` would raise for these, before any model is loaded."""
    _masker(sparsity, pattern, "row")
    _named("criterion", criterion, CRITERIA)


def _named(kind: str, name: str, functions: Sequence[Callable]) -> Callable:
    """The function of that name, written with dashes: ``"block-influence"`` is `block_influence`."""
    known = {function.__name__.replace("_", "-"): function for function in functions}
    if name not in known:
        raise unknown(kind, name, known)
    return known[name]


def _masker(sparsity: float | None, pattern: str | None, group: str) -> Callable[[Tensor], Tensor]:
    """Scores -> mask, as asked for. Raises LabkitError if what is asked for is not legal."""
    if sparsity is not None:
        masks.check_sparsity(sparsity)
    if pattern is not None:
        n, m = masks.parse_pattern(pattern)
        if sparsity is not None and abs(sparsity - (1 - n / m)) > 1e-9:
            rule = f"pattern {pattern} has sparsity {1 - n / m:g}"
            raise LabkitError(rule, f"sparsity={sparsity}", "Leave sparsity out, or the pattern.")
        return lambda scores: masks.keep_n_of_m(scores, n, m)
    if sparsity is None:
        raise LabkitError("a sparsity or a pattern is needed", None, "Give e.g. sparsity=0.5 or pattern='2:4'.")
    if group not in masks.GROUPS:
        raise unknown("group", group, masks.GROUPS)
    return lambda scores: masks.keep_highest(scores, sparsity, group)
