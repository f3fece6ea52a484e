"""Next token of a fixed random chain: the control that stands for plain language modelling."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from labkit.abilities import vocabulary as V
from labkit.abilities.base import Ability, Draws, Items, Rows
from labkit.records import BRIER, NLL_NATS, TOKEN_ACCURACY

STATES, GRAIN = len(V.LETTERS), 4096  # transition probabilities are multiples of 1/GRAIN


@functools.cache
def chain() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The fixed chain: look-up table (states, GRAIN), transition matrix (states, states), stationary law (states,)."""
    rng = np.random.default_rng(20240)
    counts = np.stack([rng.multinomial(GRAIN, rng.dirichlet(np.full(STATES, 0.15))) for _ in range(STATES)])
    table = np.stack([np.repeat(np.arange(STATES), row) for row in counts])
    matrix = counts / GRAIN
    law = np.full(STATES, 1 / STATES)
    for _ in range(4096):
        law = law @ matrix
    return table, matrix, law


@dataclasses.dataclass(frozen=True)
class Markov(Ability):
    """Predict each next letter of a walk on a fixed 32-state chain, which starts from its stationary law.

    >>> from labkit.abilities import draw
    >>> print(draw(Markov(), length=12))
    [markov] z o n b g k h w ã u m
    z o n b g k h w ã u m d
    """

    weight: float = dataclasses.field(default=0.05, kw_only=True)
    metrics = (TOKEN_ACCURACY, NLL_NATS, BRIER)  # a whole walk guessed right says nothing: the next letter is random

    @property
    def name(self) -> str:
        return "markov"

    def rows(self, draws: Draws, length: int, test: bool) -> Rows:
        table, _, law = chain()
        n = len(draws)
        state = np.searchsorted(np.cumsum(law)[:-1], draws.uniform(1)[:, 0], side="right")
        steps = draws.integers(GRAIN, length)
        walk = np.empty((n, length + 1), dtype=np.int64)
        for t in range(length):
            walk[:, t] = state
            state = table[state, steps[:, t]]
        walk += V.LETTERS.start
        tokens = np.concatenate([np.full((n, 1), V.task("markov")), walk[:, : length - 1]], axis=1)
        labels = walk[:, :length]
        return Rows(tokens, labels, np.full(n, 1), np.full(n, max(length, 2)), np.ones(n))

    def chance(self, metric: str, items: Items) -> np.ndarray:
        """Score of a guesser who knows how frequent each letter is but not what follows what."""
        law = chain()[2]
        value = {TOKEN_ACCURACY: law.max(), NLL_NATS: -law @ np.log(law), BRIER: 1 - law @ law}[metric]
        return np.full(len(items), value)

    @staticmethod
    def best() -> dict[str, float]:
        """Score of someone who knows the chain: no model can do better in expectation. `nll_nats` is its entropy rate."""
        _, matrix, law = chain()
        logs = np.log(matrix, where=matrix > 0, out=np.zeros_like(matrix))
        return {
            TOKEN_ACCURACY: float(law @ matrix.max(1)),
            NLL_NATS: float(-law @ (matrix * logs).sum(1)),
            BRIER: float(1 - law @ (matrix**2).sum(1)),
        }
