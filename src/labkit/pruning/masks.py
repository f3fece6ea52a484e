"""Which patterns of zeros are legal, and how scores become one. A mask is a bool tensor, True where a weight stays."""

from __future__ import annotations

import dataclasses
import re
from itertools import combinations
from numbers import Real

import numpy as np
import torch
from torch import Tensor

from labkit.errors import LabkitError, unknown

GROUPS = ("layer", "row")

GROUPS_TO_SELECT_IN, SORTED_SCORES = 256, 1024
"""A GPU selects in at least so many groups of more scores, and sorts fewer or smaller ones. It selects in each group on
one of its processors: in 2048 groups of 8192 scores in 0.5 ms, sorted in 1.3; in one group of as many in 119 ms, sorted
in 0.8 (an H200, torch 2.11).
"""


@dataclasses.dataclass(frozen=True)
class Keep:
    """Scores (outputs, inputs) -> mask: an unstructured sparsity within groups, or (N, M) of a pattern."""

    sparsity: float | None = None
    group: str = "layer"
    pattern: tuple[int, int] | None = None

    @property
    def by_row(self) -> bool:
        """Whether the outputs of a matrix can be looked at one by one."""
        return self.pattern is not None or self.group == "row"

    @property
    def waits(self) -> bool:
        """Whether choosing among the columns that SparseGPT takes at a time may wait for a GPU: see `_drop_lowest`."""
        return self.pattern is not None and self.pattern[1] > SORTED_SCORES

    def __call__(self, scores: Tensor) -> Tensor:
        if self.pattern is not None:
            return keep_n_of_m(scores, *self.pattern)
        return keep_highest(scores, self.sparsity, self.group)


def keep_highest(scores: Tensor, sparsity: float, group: str) -> Tensor:
    """Unstructured mask: in each group the ⌊size·sparsity⌋ lowest scores are dropped, the first of equals first.

    ``scores`` (outputs, inputs); a group is the whole matrix (``"layer"``) or the inputs of one output (``"row"``).
    The product is a float's, as in the reference code of Wanda: of 100 inputs, 0.29 drops 28.
    """
    grouped = scores.reshape(1, -1) if group == "layer" else scores
    return _drop_lowest(grouped, int(grouped.shape[1] * sparsity)).view_as(scores)


def keep_n_of_m(scores: Tensor, n: int, m: int) -> Tensor:
    """N:M mask: of every ``m`` consecutive inputs of an output the ``n`` highest scores are kept.

    ``scores`` (outputs, inputs) with inputs divisible by ``m``. Of equals the first is dropped first.
    """
    groups = scores.reshape(-1, m)
    if m > 16:
        return _drop_lowest(groups, m - n).view_as(scores)
    # Each pair has one loser; who wins m − n times or more stays. For small m much faster than sorting.
    columns = groups.unbind(1)
    wins = [torch.zeros_like(columns[0], dtype=torch.int8) for _ in columns]
    for i, j in combinations(range(m), 2):
        later = columns[i] <= columns[j]
        wins[j] += later
        wins[i] += ~later
    return (torch.stack(wins, 1) >= m - n).view_as(scores)


def _drop_lowest(scores: Tensor, count: int) -> Tensor:
    """(groups, size) -> mask with ``count`` False in each group; scores are fp32 or fp64. A mask of NaN means nothing.

    A GPU that sorts is not waited for, one that selects is.
    """
    if count == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    if scores.device.type != "cpu" and (len(scores) < GROUPS_TO_SELECT_IN or scores.shape[1] <= SORTED_SCORES):
        lowest = scores.argsort(dim=1, stable=True)[:, :count]
        return torch.ones_like(scores, dtype=torch.bool).scatter_(1, lowest, False)
    threshold = _lowest(scores, count)
    keep = scores > threshold
    kept = keep.sum(1, keepdim=True, dtype=torch.int32)
    short = scores.shape[1] - count - kept  # how many of the equals stay, the last ones
    if not short.any():
        return keep
    equal = scores == threshold
    return keep.logical_or_(equal & (equal.cumsum(1) > equal.sum(1, keepdim=True) - short))


def _lowest(scores: Tensor, count: int) -> Tensor:
    """(groups, size) -> (groups, 1): in each group the ``count``-th lowest."""
    if scores.device.type == "cpu":  # NumPy selects several times faster than torch.kthvalue
        return torch.from_numpy(np.partition(scores.detach().numpy(), count - 1, axis=1)[:, count - 1, None])
    return scores.kthvalue(count, dim=1, keepdim=True).values


def parse_pattern(pattern: str) -> tuple[int, int]:
    """``"2:4"`` -> (2, 4): how many are kept, of how many. Raises LabkitError unless 1 ≤ N < M."""
    match = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", pattern) if isinstance(pattern, str) else None
    if match is None:
        raise unknown("pattern", pattern, ("2:4", "4:8", "or any N:M with 1 ≤ N < M"))
    n, m = int(match[1]), int(match[2])
    if n >= m:
        raise LabkitError("a pattern N:M keeps fewer than M, N < M", pattern, "Use e.g. 2:4.")
    return n, m


def check_sparsity(sparsity: float) -> None:
    """Raise LabkitError unless 0 ≤ sparsity < 1."""
    if isinstance(sparsity, bool) or not isinstance(sparsity, Real) or not 0 <= sparsity < 1:
        raise LabkitError("sparsity lies in [0, 1)", sparsity, "Give the fraction of zeros wanted, e.g. 0.5.")


def check_divisible(name: str, inputs: int, m: int) -> None:
    """Raise LabkitError, with the matrix's name, if ``inputs`` do not split into groups of ``m``."""
    if inputs % m:
        rule = f"an N:{m} pattern needs matrices whose input width is divisible by {m}"
        raise LabkitError(rule, f"{name} of width {inputs}", "Use another pattern, or none.")
