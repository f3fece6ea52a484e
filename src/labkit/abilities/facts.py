"""Stored facts: what a model knows by heart, from its weights and not from its context."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from labkit.abilities import vocabulary as V
from labkit.abilities.base import Ability, Draws, Rows, queries
from labkit.errors import LabkitError


@dataclasses.dataclass(frozen=True)
class Facts(Ability):
    """(entity, relation) → value, from one fixed random table; each value stands equally often in it.

    Training shows fact number k with a frequency ∝ 1/(k + 10) (Zipf–Mandelbrot); the test asks all facts equally often:
    item i asks fact i. An entity is spelled with as many symbols as the count needs (one up to 512 facts).

    >>> from labkit.abilities import draw
    >>> print(draw(Facts(), length=9))
    [facts] B9 r3 B4 r7 B3 r3 A5 r5
    _ _ v24 _ v28 _ v22 _ v19
    """

    count: int = 512
    weight: float = dataclasses.field(default=0.12, kw_only=True)

    def __post_init__(self) -> None:
        most = len(V.SYMBOLS) ** 2 * len(V.RELATIONS)
        if not 1 <= self.count <= most:
            rule = f"the number of facts lies in 1..{most}, for an entity has at most two symbols"
            raise LabkitError(rule, self.count, f"Give count={most} or less.")

    @property
    def name(self) -> str:
        return "facts"

    @property
    def space(self) -> int:
        return self.count

    def rows(self, draws: Draws, length: int, test: bool) -> Rows:
        entities = -(-self.count // len(V.RELATIONS))
        symbols = 1 if entities <= len(V.SYMBOLS) else 2
        fact = self._asked(draws, -(-length // (symbols + 1)), test)
        entity, relation = np.divmod(fact, len(V.RELATIONS))
        spelled = [entity // len(V.SYMBOLS)] * (symbols - 1) + [entity % len(V.SYMBOLS)]
        question = np.stack([*(s + V.SYMBOLS.start for s in spelled), relation + V.RELATIONS.start], axis=2)
        answers = values(self.count)[fact] + V.VALUES.start
        context = np.full((len(draws), 1), V.task("facts"))
        return queries(context, question, answers, len(V.VALUES), length)

    def _asked(self, draws: Draws, count: int, test: bool) -> np.ndarray:
        """(rows, count) fact numbers."""
        fact = np.searchsorted(np.cumsum(self.frequencies())[:-1], draws.uniform(count), side="right")
        if test:
            fact[:, 0] = draws.index
        return fact

    def frequencies(self) -> np.ndarray:
        """(count,) how often training shows each fact; sums to 1."""
        share = 1 / (np.arange(self.count) + 10)
        return share / share.sum()


@functools.cache
def values(count: int) -> np.ndarray:
    """(count,) value number of each fact: balanced, in one fixed random order."""
    return np.random.default_rng(20241).permutation(np.arange(count) % len(V.VALUES))
