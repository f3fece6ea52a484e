"""Addition of numbers written digit by digit, lowest digit first."""

from __future__ import annotations

import dataclasses

import numpy as np

from labkit.abilities import vocabulary as V
from labkit.abilities.base import Ability, Draws, Items, Rows
from labkit.errors import LabkitError
from labkit.records import BRIER, EXACT_MATCH, IGNORE, NLL_NATS, TOKEN_ACCURACY

PRIME, FACTOR = 97, 37  # the pair (a, b) is held out when (FACTOR·a + b) mod PRIME is divisible by ten


@dataclasses.dataclass(frozen=True)
class Addition(Ability):
    """Sums of two numbers of `digits` digits, written lowest digit first; the sum has one digit more.

    A tenth of all pairs of summands is kept for the test and never trained on.

    >>> from labkit.abilities import draw
    >>> print(draw(Addition(digits=2), length=15))
    [addition] 6 8 + 6 6 = 2 5 3 2 + 7 2 =
    _ _ _ _ _ _ 2 5 1 _ _ _ _ _ 0
    """

    digits: int = 3
    weight: float = dataclasses.field(default=0.15, kw_only=True)

    def __post_init__(self) -> None:
        if self.digits < 2:  # with one, some summands have no partner on the test's side
            raise LabkitError("addition is of numbers with at least two digits", self.digits, "Give digits=2 or more.")

    @property
    def name(self) -> str:
        return "addition"

    def rows(self, draws: Draws, length: int, test: bool) -> Rows:
        n, d = len(draws), self.digits
        block = 3 * d + 2  # a + b = sum, of which the last digit is asked but never fed back
        count = -(-length // block)
        a, b = self._summands(draws, count, test)
        powers = 10 ** np.arange(d + 1)
        digits = lambda x, k: x[:, :, None] // powers[:k] % 10 + V.DIGITS.start  # noqa: E731  (rows, count, k)
        sign = lambda token: np.full((n, count, 1), token)  # noqa: E731
        total = digits(a + b, d + 1)
        tokens = np.concatenate(
            [digits(a, d), sign(V.PLUS), digits(b, d), sign(V.EQUALS), total[:, :, :d]], axis=2
        ).reshape(n, -1)
        labels = np.full((n, count, block), IGNORE, dtype=np.int64)
        labels[:, :, -(d + 1) :] = total
        tokens = np.concatenate([np.full((n, 1), V.task("addition")), tokens], axis=1)[:, :length]
        labels = np.concatenate([np.full((n, 1), IGNORE), labels.reshape(n, -1)], axis=1)[:, :length]
        stop = np.full(n, 1 + block)
        return Rows(tokens, labels, stop - (d + 1), stop, np.full(n, 10.0))

    def chance(self, metric: str, items: Items) -> np.ndarray:
        """Score of a guess spread over the ten digits and, for the last digit of a sum, over 0 and 1."""
        options = np.array([10.0] * self.digits + [2.0])
        value = {
            EXACT_MATCH: np.prod(1 / options),
            TOKEN_ACCURACY: np.mean(1 / options),
            NLL_NATS: np.mean(np.log(options)),
            BRIER: np.mean(1 - 1 / options),
        }[metric]
        return np.full(len(items), value)

    def _summands(self, draws: Draws, count: int, test: bool) -> tuple[np.ndarray, np.ndarray]:
        """(rows, count) each: a pair of summands from the side asked for."""
        size = 10**self.digits
        residues = np.flatnonzero((np.arange(PRIME) % 10 == 0) == test)
        a = draws.integers(size, count)
        b = (residues[draws.integers(len(residues), count)] - FACTOR * a) % PRIME
        return a, b + PRIME * draws.integers((size - b + PRIME - 1) // PRIME, count)


def held_out(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether a pair belongs to the test: about a tenth of all pairs, scattered without regard to their digits."""
    return (FACTOR * a + b) % PRIME % 10 == 0
