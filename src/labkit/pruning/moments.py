"""What criteria know of the inputs of a matrix: added up over calibration tokens, never kept."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

PANELS = 4
"""Horizontal strips in which the lower half of a Hessian is added up: 5/8 of the work, in products that stay large."""


class Statistic(Protocol):
    """Something added up over the inputs of a matrix. ``rows`` counts the tokens seen."""

    rows: int

    def add(self, inputs: Tensor) -> None:
        """Take in (tokens, inputs), all of them or, if memory runs out, none."""

    def value(self) -> Tensor:
        """fp32, what a criterion is given."""

    def finite(self) -> bool:
        """Whether all inputs were finite."""


class Norms:
    """‖X_j‖₂ of every input over all tokens: (inputs,) fp32."""

    def __init__(self) -> None:
        self.rows, self.squares = 0, torch.zeros(())

    def add(self, inputs: Tensor) -> None:
        if inputs.device.type == "cpu":
            total = sum(part.float().square().sum(0) for part in inputs.split(1024))  # parts that stay in its cache
        else:
            total = torch.linalg.vector_norm(inputs, dim=0, dtype=torch.float32).square()  # one kernel, no copy
        self.squares, self.rows = self.squares.to(total) + total, self.rows + len(inputs)

    def value(self) -> Tensor:
        return self.squares.sqrt()

    def finite(self) -> bool:
        return bool(torch.isfinite(self.squares).all())


class Hessian:
    """Mean over tokens of 2·x·xᵀ, of the squared error of a matrix's outputs: (inputs, inputs) fp32."""

    factor: Tensor | None = None  # what SparseGPT makes of it, once for all matrices of one input
    dead: Tensor | None = None  # (inputs,) bool: always 0

    def __init__(self) -> None:
        self.rows, self.products = 0, torch.zeros(())

    def add(self, inputs: Tensor) -> None:
        inputs = inputs.float()
        if not self.rows:
            self.products = inputs.new_zeros(inputs.shape[1], inputs.shape[1])
        for start, end in self._panels():  # x·xᵀ is symmetric: what lies right of a panel's square is not computed
            self.products[start:end, :end].addmm_(inputs[:, start:end].T, inputs[:, :end])
        self.rows += len(inputs)

    def value(self) -> Tensor:
        return self._whole(self.products.clone())

    def take(self) -> Tensor:
        """`value`, in the memory of the sums, which are gone."""
        taken, self.products = self._whole(self.products), self.products.new_zeros(())
        return taken

    def _whole(self, products: Tensor) -> Tensor:
        """The mean, both halves of it, in the memory of the sums of one half."""
        for start, end in self._panels():
            products[:start, start:end] = products[start:end, :start].T
        return products.mul_(2 / self.rows)

    def _panels(self) -> list[tuple[int, int]]:
        """First and last row, excluded, of each."""
        size = len(self.products)
        step = -(-size // PANELS)
        return [(start, min(start + step, size)) for start in range(0, size, step)]

    def finite(self) -> bool:
        return bool(torch.isfinite(self.products.diagonal()).all())
