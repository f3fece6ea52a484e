"""How much sparsity goes where, and when: budgets for each matrix, and steps towards a final sparsity."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real

import torch
from torch import Tensor
from transformers import PreTrainedModel

from labkit.errors import LabkitError
from labkit.pruning import blocks, engine, masks, streaming
from labkit.pruning.criteria import wanda


@torch.no_grad()
def outlier_weighed(
    model: PreTrainedModel,
    sparsity: float,
    calibration: Tensor,
    m: float = 5.0,
    width: float = 0.08,
    device: torch.device | str | None = None,
) -> dict[str, float]:
    """Budgets by which blocks with more outliers are pruned less: matrix name -> sparsity, for `prune`.

    A weight is an outlier if its |W_ij|·‖X_j‖₂ is more than ``m`` times the mean over its block, X as the dense model
    has it. The shares of outliers, D, are stretched to a range of 2·``width`` and moved so that the mean over all
    weights is the sparsity asked for: S_block = sparsity + 2·width·(mean(D) − D) / (max(D) − min(D)).
    All matrices of a block get the same; if no block has more outliers than another, all blocks do.

    Raises LabkitError for a sparsity outside [0, 1), an ``m`` that is not above 0, a ``width`` below 0, missing or unfit
    calibration tokens, a device that is not there, a model that `prune` would not take, and budgets outside [0, 1).
    Source: Yin et al. 2023, *Outlier weighed layerwise sparsity* (arXiv 2310.05175), section 3; its M = 5, λ = 0.08.
    """
    masks.check_sparsity(sparsity)
    if not (isinstance(m, Real) and m > 0 and isinstance(width, Real) and width >= 0):
        raise LabkitError("m is above 0, and width is 0 or above", f"m={m!r}, width={width!r}", "The paper's: 5 and 0.08.")
    blocks.check_device(device)
    engine.check_plain(model)
    tokens = blocks.check_calibration(model, calibration, "outlier-weighed sparsity")
    found = blocks.matrices(model)
    names, shares, sizes = [], [], []
    with blocks.evaluating(model):
        for statistics in streaming.walk(model, tokens, device=device, changes=False):
            scored = [(found[name].weight, s.value()) for name, s in statistics.items()]
            sizes.append(sum(weight.numel() for weight, _ in scored))
            shares.append(_outliers(scored, m) / sizes[-1])
            names.append(list(statistics))
    spread = max(shares) - min(shares)
    mean = sum(d * size for d, size in zip(shares, sizes, strict=True)) / sum(sizes)
    budgets = [sparsity + (2 * width * (mean - d) / spread if spread else 0.0) for d in shares]
    if min(budgets) < 0 or max(budgets) >= 1:
        received = f"{min(budgets):.3f}..{max(budgets):.3f} around {sparsity}"
        raise LabkitError("every block's sparsity lies in [0, 1)", received, "Ask for a smaller width.")
    return {name: budget for inside, budget in zip(names, budgets, strict=True) for name in inside}


def _outliers(scored: Sequence[tuple[Tensor, Tensor]], m: float) -> int:
    """How many scores of a block are more than ``m`` times their mean, of (weight, norms of its inputs) each."""
    scores = [wanda(weight, norms, torch.Generator()) for weight, norms in scored]
    limit = m * sum(s.sum(dtype=torch.float64) for s in scores) / sum(s.numel() for s in scores)
    return int(sum((s > limit).sum() for s in scores))


def schedule(sparsity: float, steps: int) -> tuple[float, ...]:
    """Sparsities of ``steps`` steps that rise fast at first, when much is redundant: s·(1 − (1 − t/steps)³), t = 1, ….

    Raises LabkitError for a sparsity outside [0, 1) and fewer than one step.
    Source: Zhu & Gupta 2017, *To prune, or not to prune* (arXiv 1710.01878), equation 1, from 0.

    >>> schedule(0.8, steps=2)
    (0.7, 0.8)
    """
    masks.check_sparsity(sparsity)
    if isinstance(steps, bool) or not isinstance(steps, Integral) or steps < 1:
        raise LabkitError("the number of steps is a whole number ≥ 1", steps, "Give e.g. steps=4.")
    sparsity, steps = float(sparsity), int(steps)
    return (*(sparsity * (1 - (1 - t / steps) ** 3) for t in range(1, steps)), sparsity)
