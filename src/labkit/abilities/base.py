"""What an ability is: a generator of rows of tokens, addressed by number, and the score of a guesser without the ability."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import NamedTuple

import numpy as np

from labkit.errors import LabkitError
from labkit.records import BRIER, EXACT_MATCH, IGNORE, METRICS, NLL_NATS, TOKEN_ACCURACY

_GOLDEN, _MIX1, _MIX2 = (np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _scramble(x: np.ndarray) -> np.ndarray:
    """SplitMix64's output function (Steele, Lea & Flood 2014): a bijection that turns a counter into random bits."""
    x = (x ^ (x >> np.uint64(30))) * _MIX1
    x = (x ^ (x >> np.uint64(27))) * _MIX2
    return x ^ (x >> np.uint64(31))


class Draws:
    """Random numbers addressed by (stream, row): row 17 is the same whether drawn alone or among a million.

    Each call takes the next numbers of every row's own SplitMix64 sequence.
    """

    def __init__(self, stream: str, index: np.ndarray) -> None:
        key = np.frombuffer(hashlib.blake2b(stream.encode(), digest_size=8).digest(), dtype=np.uint64)
        self.index = np.asarray(index, dtype=np.int64)
        self._rows = _scramble(key ^ _scramble((self.index.astype(np.uint64) + np.uint64(1)) * _GOLDEN))[:, None]
        self._taken = 0

    def __len__(self) -> int:
        return len(self._rows)

    def bits(self, count: int) -> np.ndarray:
        """(rows, count) uint64, uniform."""
        steps = np.arange(self._taken + 1, self._taken + count + 1, dtype=np.uint64) * _GOLDEN
        self._taken += count
        return _scramble(self._rows + steps)

    def integers(self, high: int | np.ndarray, count: int) -> np.ndarray:
        """(rows, count) int64, uniform over [0, high) up to a bias of 2⁻³²·high; `high` broadcasts against the result."""
        return ((self.bits(count) >> np.uint64(32)) * np.asarray(high, dtype=np.uint64) >> np.uint64(32)).astype(np.int64)

    def uniform(self, count: int) -> np.ndarray:
        """(rows, count) float64 in [0, 1)."""
        return (self.bits(count) >> np.uint64(11)) * 2.0**-53

    def distinct(self, high: int, count: int) -> np.ndarray:
        """(rows, count) int64: different numbers below `high`, in random order."""
        # The low bits carry the number itself, so that one sort of plain integers gives the permutation.
        keys = (self.bits(high) & ~np.uint64(0xFF)) | np.arange(high, dtype=np.uint64)
        keys.sort(axis=1)
        return (keys[:, :count] & np.uint64(0xFF)).astype(np.int64)


class Rows(NamedTuple):
    """Rows of training tokens, and where the first whole answer of each stands."""

    tokens: np.ndarray  # (rows, length) int64
    labels: np.ndarray  # (rows, length) int64: the token asked AT this place, or IGNORE
    start: np.ndarray  # (rows,) first place of the answer a test item is scored on
    stop: np.ndarray  # (rows,) one past its last place
    options: np.ndarray  # (rows,) float: equally likely answers per token for a guesser who reads the context


@dataclasses.dataclass(frozen=True)
class Items:
    """Test items of one ability: one question with one answer of one or more tokens each."""

    ability: str
    tokens: np.ndarray  # (items, longest) int64, padded on the right
    labels: np.ndarray  # (items, longest) int64, IGNORE where nothing is asked
    lengths: np.ndarray  # (items,) int64; the last label of a row stands at lengths − 1
    index: np.ndarray  # (items,) int64: (ability, seed, index) reproduces the item
    options: np.ndarray  # (items,) float64

    def __len__(self) -> int:
        return len(self.tokens)


@dataclasses.dataclass(frozen=True)
class Ability:
    """One ability. A subclass names itself and makes rows; all else follows.

    Attributes
    ----------
    weight: share of the training mixture (relative).
    late: fraction of training during which the ability is not shown yet, 0..1.
    metrics: names of the metrics that make sense for it.
    """

    weight: float = dataclasses.field(default=0.1, kw_only=True)
    late: float = dataclasses.field(default=0.0, kw_only=True)

    metrics = METRICS  # not a field: a fact about the class

    @property
    def space(self) -> int | None:
        """How many different test items there are, where that is few; item i is then number i of a fixed list."""
        return None

    @property
    def name(self) -> str:
        raise NotImplementedError

    def rows(self, draws: Draws, length: int, test: bool) -> Rows:
        """Rows for the random numbers given; `test` picks the held-out side where the space is small."""
        raise NotImplementedError

    def train(self, index: np.ndarray, seed: int, length: int) -> Rows:
        """Training rows by number, each (length,) tokens with as many answers as fit."""
        return self.rows(Draws(f"{self.name}/train/{seed}", index), length, test=False)

    def sample(self, n: int, seed: int, length: int = 48, first: int = 0) -> Items:
        """Test items ``first … first + n − 1``, from a generator that training never uses.

        Each is a training-shaped row cut off after its first answer, so that an item is one question. Where there are
        fewer than `first + n` different items, only those there are come back: an item asked twice is no evidence.
        Raises LabkitError if n < 1 or a row of `length` tokens is too short for an answer.
        """
        if n < 1:
            raise LabkitError("at least one item is needed", n, "Give n ≥ 1, e.g. n=512.")
        index = np.arange(first, first + n if self.space is None else min(first + n, self.space))
        tokens, labels, start, stop, options = self.rows(Draws(f"{self.name}/test/{seed}", index), length, test=True)
        if stop.max(initial=0) > length:
            raise LabkitError(f"a row of {self.name} holds {stop.max()} tokens or more", length, "Give a larger length.")
        place = np.arange(length)
        asked = (place >= start[:, None]) & (place < stop[:, None])
        width = int(stop.max(initial=0))
        tokens = np.where(place < stop[:, None], tokens, 0)[:, :width]
        labels = np.where(asked, labels, IGNORE)[:, :width]
        return Items(self.name, tokens, labels, stop, index, options)

    def chance(self, metric: str, items: Items) -> np.ndarray:
        """(items,) value of a metric for a guess spread evenly over the options of each item."""
        answers = (items.labels != IGNORE).sum(axis=1)
        return {
            EXACT_MATCH: items.options**-answers,
            TOKEN_ACCURACY: 1 / items.options,
            NLL_NATS: np.log(items.options),
            BRIER: 1 - 1 / items.options,
        }[metric]


def queries(context: np.ndarray, questions: np.ndarray, answers: np.ndarray, options: int, length: int) -> Rows:
    """Lay out a row: context, then questions whose last token carries the answer as its label (never fed back).

    Shapes: context (rows, c); questions (rows, q, k) of k tokens each; answers (rows, q). Cut to `length`.
    Feeding the answers back would let later questions be solved by looking at earlier ones.
    """
    n, q, k = questions.shape
    tokens = np.concatenate([context, questions.reshape(n, q * k)], axis=1)[:, :length]
    labels = np.full((n, context.shape[1] + q * k), IGNORE, dtype=np.int64)
    labels[:, context.shape[1] + k - 1 :: k] = answers
    start = np.full(n, context.shape[1] + k - 1)
    return Rows(tokens, labels[:, :length], start, start + 1, np.full(n, float(options)))


def pairs(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Interleave (rows, k) and (rows, k) into (rows, 2k): left₀ right₀ left₁ right₁ …"""
    return np.stack([left, right], axis=2).reshape(len(left), -1)


def shuffled(draws: Draws, values: np.ndarray) -> np.ndarray:
    """The same order of columns for all of `values` (rows, k, …), drawn anew for each row."""
    order = draws.distinct(values.shape[1], values.shape[1])
    return np.take_along_axis(values, order.reshape(order.shape + (1,) * (values.ndim - 2)), axis=1)
