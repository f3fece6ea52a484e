"""SparseGPT: prune column by column, and let the weights still to come make up for the error.

Source: Frantar & Alistarh 2023, *SparseGPT* (arXiv 2301.00774), section 3 and algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from labkit.errors import LabkitError, warn

BLOCK = 128
"""Columns whose errors are pushed on together; without a pattern, also those among which weights compete."""

DAMPING = 0.01
"""Added to the diagonal of the Hessian, as a share of its mean."""

RAISES = 4
"""How many times the damping is raised tenfold before we give up."""


def inverse_factor(hessian: Tensor, name: str) -> Tensor:
    """Upper Cholesky factor U of the inverse of the damped Hessian, H⁻¹ = UᵀU: (inputs, inputs) fp32.

    U_jj² is the first entry of the inverse Hessian of the weights from column j on, and U_j,j: / U_jj its first row in
    units of that entry: all that pruning from left to right needs. Dead inputs, H_jj = 0, get H_jj = 1.

    From right to left H = R·Rᵀ with an upper R, so U = R⁻¹: one factorisation instead of two and an inverse. The
    Hessian is overwritten; beside it there is never more than one matrix of its size.

    If the factorisation fails the damping is raised tenfold, with a warning that names the matrix, at most `RAISES`
    times; then LabkitError is raised. Pruning never goes on with something else in the place of the Hessian.
    """
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    level = torch.where(dead, 1.0, diagonal).mean()
    for damping in (DAMPING * 10**i for i in range(RAISES + 1)):
        if damping > DAMPING:
            message = f"the Hessian of {name} is not positive definite: damping raised to {damping:g}"
            warn(f"{message} of its mean diagonal")
        flipped = hessian.flip(0, 1)
        flipped.diagonal().add_(dead.flip(0) + damping * level)
        try:
            torch.linalg.cholesky(flipped, out=flipped)
        except torch.linalg.LinAlgError:
            continue
        inverse = hessian.zero_().fill_diagonal_(1)
        torch.linalg.solve_triangular(flipped, inverse, upper=False, out=inverse)
        del flipped
        return inverse.flip(0, 1)
    raise LabkitError(
        "the damped Hessian of a matrix's inputs is positive definite",
        f"{name}, not even with damping {damping:g}",
        "Give more calibration tokens, and check that the activations are finite.",
    )


def sweep_columns(
    weight: Tensor, zero: Tensor, factor: Tensor, keep: Callable[[Tensor], Tensor], m: int | None
) -> tuple[Tensor, Tensor]:
    """Prune a block of columns, each updating those to its right: what they are then, and the error that each made.

    ``weight`` and ``zero``, where it is zero already, are (outputs, columns), ``factor`` (columns, columns); both results
    are (columns, outputs) fp32, the weights of a column side by side. Nothing that is given is changed.
    """
    part = weight.T.clone(memory_format=torch.contiguous_format)
    scale = factor.diagonal()
    errors, divisors = torch.empty_like(part), torch.empty_like(part)
    kept = torch.empty_like(part, dtype=torch.bool)
    group = m or len(part)
    for i, (column, divisor, error) in enumerate(zip(part, divisors, errors, strict=True)):
        if i % group == 0:
            now = slice(i, min(i + group, len(part)))
            scores = part[now].T.square().div_(scale[now].square()).masked_fill_(zero[:, now], -torch.inf)
            stays = keep(scores) & ~zero[:, now]
            kept[now] = stays.T
            divisors[now] = torch.where(stays, torch.inf, scale[now]).T  # what stays makes no error
        torch.div(column, divisor, out=error)
        part[i:].addr_(factor[i, i:], error, alpha=-1)
    part.mul_(kept).add_(0)  # rounding leaves 1e-9 where the update should have ended at 0; 0 · −1 is −0
    return part, errors


def prune_columns(
    weight: Tensor,
    factor: Tensor,
    dead: Tensor,
    keep: Callable[[Tensor], Tensor],
    m: int | None = None,
    sweep: Callable[..., tuple[Tensor, Tensor]] = sweep_columns,
) -> Tensor:
    """The weights (outputs, inputs) in fp32, pruned, those that stay updated to keep the outputs as they were.

    Parameters
    ----------
    weight
        (outputs, inputs). What is zero already stays zero, and is counted first.
    factor
        (inputs, inputs) of `inverse_factor`.
    dead
        (inputs,) bool: inputs that are always 0. Their weights are zeroed.
    keep
        Scores (outputs, columns) -> mask of these columns. The score is w²/U_jj², the error that losing w would cost.
    m
        With a pattern N:M, M: the mask is chosen every M columns, by the updated weights. Otherwise every `BLOCK`.
    sweep
        `sweep_columns`, or what does the same in another way.

    `keep` decides how many weights go, exactly; the authors' code, and others after it, compares with ``<=`` and drops
    one weight more per block than ⌊size·sparsity⌋.
    """
    weight = weight.float().clone()
    weight[:, dead] = 0
    zero = weight == 0
    inputs = weight.shape[1]
    block = BLOCK if m is None else max(1, BLOCK // m) * m
    for start in range(0, inputs, block):
        end = min(start + block, inputs)
        within = factor[start:end, start:end]
        part, errors = sweep(weight[:, start:end], zero[:, start:end], within, keep, m)
        weight[:, start:end] = part.T
        weight[:, end:].addmm_(errors.T, factor[start:end, end:], alpha=-1)
    return weight
