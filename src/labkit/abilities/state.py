"""State tracking: the running product of elements of a finite group."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import numpy as np

from labkit.abilities import vocabulary as V
from labkit.abilities.base import Ability, Draws, Rows
from labkit.errors import unknown
from labkit.records import IGNORE

PREFIX = 4  # the test side is told by a row's first elements


@dataclasses.dataclass(frozen=True)
class State(Ability):
    """A word of group elements; at every place the product so far is asked. A test item asks it after `steps` elements.

    Groups: "s3" (6 elements, solvable) and "a5" (60, not solvable; Liu et al. 2022, arXiv 2210.10749). A quarter of all
    beginnings of four elements is kept for the test.

    >>> from labkit.abilities import draw
    >>> print(draw(State(steps=4), length=7))
    [state] A5 A4 A2 A5 A1 A1
    _ A5 A2 A0 A5 A3 A5
    """

    steps: int = 4
    group: str = "s3"
    weight: float = dataclasses.field(default=0.05, kw_only=True)

    @property
    def name(self) -> str:
        return f"state-{self.steps}" if self.group == "s3" else f"state-{self.group}-{self.steps}"

    @property
    def space(self) -> int | None:
        return len(beginnings(self.group, test=True)) if self.steps <= PREFIX else None

    def rows(self, draws: Draws, length: int, test: bool) -> Rows:
        n, product = len(draws), table(self.group)
        word = draws.integers(len(product), length - 1)
        side = beginnings(self.group, test)
        begin = side[draws.index % len(side) if test else draws.integers(len(side), 1)[:, 0]]
        word[:, :PREFIX] = begin[:, : length - 1]
        so_far = word.copy()
        for t in range(1, length - 1):
            so_far[:, t] = product[so_far[:, t - 1], word[:, t]]
        tokens = np.concatenate([np.full((n, 1), V.task("state")), word + V.SYMBOLS.start], axis=1)
        labels = np.concatenate([np.full((n, 1), IGNORE), so_far + V.SYMBOLS.start], axis=1)
        start = np.full(n, self.steps)
        return Rows(tokens, labels, start, start + 1, np.full(n, float(len(product))))


@functools.cache
def table(group: str) -> np.ndarray:
    """(order, order) multiplication table: entry (g, h) is "first g, then h"."""
    degree = {"s3": 3, "a5": 5}.get(group)
    if degree is None:
        raise unknown("group", group, ("s3", "a5"))
    elements = list(itertools.permutations(range(degree)))
    if group == "a5":
        elements = [p for p in elements if np.linalg.det(np.eye(5)[list(p)]) > 0]
    number = {p: k for k, p in enumerate(elements)}
    return np.array([[number[tuple(h[i] for i in g)] for h in elements] for g in elements])


@functools.cache
def beginnings(group: str, test: bool) -> np.ndarray:
    """(k, PREFIX) all beginnings of the training or of the test side, in one fixed random order."""
    order = len(table(group))
    count = min(order**PREFIX, 200_000)  # of a5's 13 million beginnings a fixed sample is enough for either side
    number = np.random.default_rng(20242).choice(order**PREFIX, size=count, replace=False)
    side = number[number % 4 == 0] if test else number[number % 4 != 0]
    return side[:, None] // order ** np.arange(PREFIX) % order
