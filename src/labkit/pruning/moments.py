"""What criteria know of the inputs of a matrix: added up over calibration tokens, never kept."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


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
        total = sum(part.float().square().sum(0) for part in inputs.split(1024))  # parts that stay in the CPU's cache
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
        self.products.addmm_(inputs.T, inputs)
        self.rows += len(inputs)

    def value(self) -> Tensor:
        return self.products * (2 / self.rows)

    def take(self) -> Tensor:
        """`value`, in the memory of the sums, which are gone."""
        taken, self.products = self.products.mul_(2 / self.rows), self.products.new_zeros(())
        return taken

    def finite(self) -> bool:
        return bool(torch.isfinite(self.products.diagonal()).all())
