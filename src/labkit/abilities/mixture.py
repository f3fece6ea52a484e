"""The training stream: a weighted mixture of abilities, addressed by step, so that it resumes without a state."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from labkit.abilities.base import Ability, Draws
from labkit.abilities.vocabulary import PAD, SEPARATOR
from labkit.errors import LabkitError


@dataclasses.dataclass(frozen=True)
class Corpus:
    """An endless stream of rows; which ability a row comes from is drawn by its number.

    Attributes
    ----------
    abilities: what is mixed, each by its own `weight`.
    seed: 0 ≤ seed; streams of different seeds share no row.
    length: tokens a row.
    """

    abilities: tuple[Ability, ...]
    seed: int = 0
    length: int = 48

    def __post_init__(self) -> None:
        if not self.abilities:
            raise LabkitError("a mixture needs at least one ability", self.abilities, "Give e.g. labkit.abilities().")

    def rows(self, index: np.ndarray, progress: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and labels, (rows, length) int64 each, of the rows with these numbers.

        `progress` (0..1) is how far training has come: an ability whose `late` lies above it is left out.
        """
        weights = np.array([a.weight * (progress >= a.late) for a in self.abilities])
        uniform = Draws(f"mixture/{self.seed}", index).uniform(1)[:, 0]
        which = np.searchsorted(np.cumsum(weights / weights.sum())[:-1], uniform, side="right")
        tokens = np.empty((len(index), self.length), dtype=np.int64)
        labels = np.empty_like(tokens)
        for k, ability in enumerate(self.abilities):
            mine = np.flatnonzero(which == k)
            if len(mine):
                made = ability.train(index[mine], self.seed, self.length)
                tokens[mine], labels[mine] = made.tokens, made.labels
        return tokens, labels

    def calibration(self, sequences: int = 128) -> np.ndarray:
        """(sequences, length) int64 rows of a stream that no training sees, without padding.

        Where a row ends early, the beginning of another one follows it.
        """
        apart = dataclasses.replace(self, seed=self.seed + 1_000_000)
        tokens, _ = apart.rows(np.arange(2 * sequences))
        rows, others = tokens[:sequences], tokens[sequences:]
        ends = (rows != PAD).sum(axis=1, keepdims=True)
        place = np.arange(self.length)
        filler = np.take_along_axis(others, np.maximum(place - ends, 0), axis=1)
        filler = np.where(filler == PAD, SEPARATOR, filler)
        return np.where(place < ends, rows, filler)

    def batches(self, batch: int, steps: int, first: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Batches number ``first … steps − 1`` of a training of `steps` steps; (batch, length) tokens and labels each."""
        chunk = max(1, 2048 // batch)  # rows are made for many steps at once: the cost is in the calls, not in the rows
        for begin in range(first - first % chunk, steps, chunk):
            count = min(chunk, steps - begin)
            tokens, labels = self.rows(np.arange(begin * batch, (begin + count) * batch), begin / steps)
            for k in range(max(first - begin, 0), count):
                yield tokens[k * batch : (k + 1) * batch], labels[k * batch : (k + 1) * batch]
