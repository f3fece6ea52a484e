"""Pruning: `criteria` and `importance` say what matters, `masks` which patterns are legal, `surgery` shrinks tensors.

Every function here returns a new model and leaves the one it is given untouched.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from labkit.errors import LabkitError, unknown
from labkit.lineage import plain, record
from labkit.pruning import blocks, engine, ledger, masks, memory, surgery
from labkit.pruning.allocation import outlier_weighed, schedule
from labkit.pruning.blocks import sparsity
from labkit.pruning.engine import Options
from labkit.pruning.importance import IMPORTANCES
from labkit.pruning.moments import Hessian
from labkit.pruning.shrinking import shrink

CRITERIA = tuple(engine.methods())
"""The criteria of labkit itself; `prune` knows those added by `labkit.extension` too."""

__all__ = [
    "CRITERIA",
    "IMPORTANCES",
    "Options",
    "check_prune",
    "drop_layers",
    "outlier_weighed",
    "prune",
    "prune_gradually",
    "schedule",
    "shrink",
    "sparsity",
]


def prune(
    model: PreTrainedModel,
    criterion: str = "wanda",
    sparsity: float | Mapping[str, float] | None = None,
    pattern: str | None = None,
    calibration: Tensor | None = None,
    group: str | None = None,
    seed: int = 0,
    options: Options = Options(),
) -> PreTrainedModel:
    """A copy of the model with the weights that matter least set to zero.

    Embeddings, output head and the router of a mixture of experts stay dense. What is zero already goes first, whatever
    the criterion, and stays zero: a sparse model that is pruned again has the sparsity asked for, or its own if that is
    higher.

    Parameters
    ----------
    criterion
        One of `CRITERIA`: ``"random"``, ``"magnitude"``, ``"wanda"``, or ``"sparsegpt"``, which also updates the
        weights that stay; or one added by `labkit.extension`.
    sparsity
        Fraction of weights to drop, [0, 1); or name of a matrix -> fraction, where a matrix that is not named stays as
        it is. With a ``pattern`` it may be left out, or must be the pattern's 1 − N/M.
    pattern
        None (unstructured), ``"2:4"``, or any ``"N:M"``: of every M consecutive inputs the N best are kept.
    calibration
        int64 tokens (sequences, time), never padded; needed by ``"wanda"`` and ``"sparsegpt"``, not looked at by the
        others. Blocks are pruned in order, and each is calibrated on what the pruned blocks before it give, or the
        dense ones (`Options.propagate`). SparseGPT wants more tokens than the widest matrix has inputs, and warns of
        fewer.
    group
        Within what unstructured weights compete: ``"row"`` (the inputs of one output; the default of Wanda) or
        ``"layer"`` (a whole matrix, of SparseGPT 128 columns of it; the default of the others). Within a layer an
        output may lose all its weights: that is warned of.
    seed
        For ``"random"``.
    options
        How the blocks are gone through: on which device, in a job that can be resumed, in one pass. Memory of a GPU
        that runs out halves the micro-batch, which is warned of.

    Raises
    ------
    LabkitError
        What is no model; unknown criterion, pattern, group, matrix or device; a seed that is no whole number; sparsity
        outside [0, 1) or not the pattern's; a matrix whose width M does not divide; missing or unfit calibration
        tokens; activations or weights that are not finite; a Hessian that is not positive definite; a model that is
        quantised, compiled or offloaded, zeros that are not those recorded; adapters that are not merged, an unsupported
        module; a folder of another job, or with a damaged file; a block, or one sequence, that does not fit into the
        device's memory.

    Warns of few calibration tokens, of outputs that lose all their weights, and, for SparseGPT, of a model of
    `labkit.quantize`, whose grid the weights that stay leave.
    """
    method, generator = _method(criterion), blocks.seeded(seed)
    if not isinstance(options, Options):
        raise LabkitError("options are labkit.pruning.Options", options, "Give e.g. Options(device='cuda').")
    engine.check_plain(model)
    if method.statistic is Hessian:
        engine.warn_of_grid(model, criterion)
    blocks.check_device(options.device)
    found = blocks.matrices(model)
    if pattern is not None and group is not None:
        raise LabkitError("a pattern has groups of its own", f"group={group!r}", "Leave group out.")
    if isinstance(sparsity, Mapping):
        for name in sparsity:
            if name not in found:
                raise unknown("matrix", name, found)
    budgets = sparsity if isinstance(sparsity, Mapping) else dict.fromkeys(found, sparsity)
    keeps = {name: _masker(budget, pattern, group or method.group) for name, budget in budgets.items()}
    for name, keep in keeps.items():
        if keep.pattern is not None:
            masks.check_divisible(name, found[name].weight.shape[1], keep.pattern[1])
    if method.statistic is not None:
        calibration = blocks.check_calibration(model, calibration, f"criterion {criterion!r}")

    asked = plain(
        "prune",
        criterion=criterion,
        sparsity=dict(sparsity) if isinstance(sparsity, Mapping) else sparsity,
        pattern=pattern,
        group=group,
        seed=seed,
        propagate=options.propagate,
    )
    progress = None
    if options.folder is not None:
        tokens = {} if method.statistic is None else {"calibration": calibration}
        hashes = {"weights": engine.fingerprint(model.state_dict()), "calibration": engine.fingerprint(tokens)}
        progress = engine.Progress(options.folder, {**asked, **hashes})
    with memory.must_fit("a model, its copy, and a few tokens", type(model).__name__):
        pruned = copy.deepcopy(model)
        with blocks.evaluating(pruned):
            engine.prune_blocks(
                pruned, method, keeps,
                calibration=calibration, generator=generator, options=options, progress=progress,
            )  # fmt: skip
        ledger.record_masks(pruned)
    record(pruned, "prune", **asked)
    return pruned


def prune_gradually(
    model: PreTrainedModel,
    criterion: str,
    sparsities: Sequence[float],
    between: Callable[[PreTrainedModel], PreTrainedModel],
    **how: object,
) -> PreTrainedModel:
    """Prune to one sparsity after another, with something done to the model in between; zeros only ever grow.

    Parameters
    ----------
    sparsities
        Rising, each in [0, 1), e.g. of `schedule`.
    between
        Given the pruned model after every step but the last, returns the model to go on with: usually trained some
        more, `labkit.training.train` keeps zeros at zero by itself.
    how
        Further arguments of `prune`. Each step has a folder of its own in that of ``options``, and a job that is taken
        up again goes on from its last block if ``between`` gives the same model again.

    Raises
    ------
    LabkitError
        Sparsities that do not rise; a ``between`` that cannot be called; zeros that ``between`` has filled, or a model
        that it gives back without their ledger; and what `prune` raises.
    """
    steps = tuple(sparsities) if isinstance(sparsities, Iterable) else ()
    for step in steps:
        masks.check_sparsity(step)
    if not steps or any(a >= b for a, b in pairwise(steps)):
        raise LabkitError("sparsities of pruning in steps rise", sparsities, "Use e.g. schedule(0.8, steps=4).")
    if not callable(between):
        raise LabkitError("between is a function of a model", between, "Give e.g. lambda model: model.")
    if "sparsity" in how:
        raise LabkitError("sparsities of pruning in steps stand in one list", f"sparsity={how['sparsity']!r}", "Leave it out.")
    options = how.pop("options", Options())
    folder = getattr(options, "folder", None)
    for number, target in enumerate(steps):
        if number:
            recorded = hasattr(model.config, ledger.FIELD)
            model = between(model)
            if recorded and not hasattr(getattr(model, "config", None), ledger.FIELD):
                remedy = "Return the model that between is given, trained or not, with its config."
                raise LabkitError("between gives back a pruned model", "one without its ledger of masks", remedy)
        if folder is not None:
            options = dataclasses.replace(options, folder=Path(folder, f"step-{number}"))
        model = prune(model, criterion, target, options=options, **how)
    return model


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
        ``"block-influence"`` (how far a block turns its tokens), ``"loss"`` (how much worse the next token is foretold
        without the block), both on ``calibration``, or ``"random"`` (by ``seed``).
    calibration
        int64 tokens (sequences, time), never padded; for the loss two or more to a sequence. Memory of a GPU that runs
        out halves the micro-batch, which is warned of.

    Raises
    ------
    LabkitError
        ``keep`` out of range; unknown importance; a seed that is no whole number; missing or unfit calibration tokens;
        activations not finite; a config that cannot state which layers are kept; a model that is compiled or offloaded;
        zeros that are not those recorded; a model and its copy, or one sequence, that do not fit into the device's
        memory.
    """
    surgery.check_keep(model, keep)
    measure = _named("importance", importance, IMPORTANCES)
    generator = blocks.seeded(seed)
    blocks.check_itself(model)
    ledger.check_masks(model)
    with memory.must_fit("a model, its copy, and what ranks its blocks", type(model).__name__):
        short = copy.deepcopy(model)
        with blocks.evaluating(short):
            scores = measure(short, calibration, generator)
        dropped = scores.argsort(stable=True)[: len(scores) - keep].tolist()
        surgery.keep_layers(short, [i for i in range(len(scores)) if i not in dropped])
        if hasattr(model.config, ledger.FIELD):
            ledger.record_masks(short)  # the numbers in the names of the blocks have moved
    record(short, "drop_layers", keep=keep, importance=importance, seed=seed)
    return short


def check_prune(criterion: str, sparsity: float | None, pattern: str | None) -> None:
    """Raise the LabkitError that `prune` would raise for these, before any model is loaded."""
    _masker(sparsity, pattern, "row")
    _method(criterion)


def _method(criterion: str) -> engine.Method:
    known = engine.methods()
    if criterion not in list(known):  # a list of names may be asked for too
        raise unknown("criterion", criterion, known)
    return known[criterion]


def _named(kind: str, name: str, functions: Sequence[Callable]) -> Callable:
    """The function of that name, written with dashes: ``"block-influence"`` is `block_influence`."""
    known = {function.__name__.replace("_", "-"): function for function in functions}
    if name not in list(known):  # a list of names may be asked for too
        raise unknown(kind, name, known)
    return known[name]


def _masker(sparsity: float | None, pattern: str | None, group: str) -> masks.Keep:
    """What is asked for. Raises LabkitError if that is not legal."""
    if sparsity is not None:
        masks.check_sparsity(sparsity)
    if pattern is not None:
        n, m = masks.parse_pattern(pattern)
        if sparsity is not None and abs(sparsity - (1 - n / m)) > 1e-9:
            rule = f"pattern {pattern} has sparsity {1 - n / m:g}"
            raise LabkitError(rule, f"sparsity={sparsity}", "Leave sparsity out, or the pattern.")
        return masks.Keep(pattern=(n, m))
    if sparsity is None:
        raise LabkitError("a sparsity or a pattern is needed", None, "Give e.g. sparsity=0.5 or pattern='2:4'.")
    if group not in masks.GROUPS:
        raise unknown("group", group, masks.GROUPS)
    return masks.Keep(sparsity, group)
