"""An ability, a criterion, a divergence and a metric of my own. my-study.toml reads this file; docs/extending.md explains it."""

from __future__ import annotations

import dataclasses

import numpy as np

from labkit import extension
from labkit.abilities import Ability, Draws, Rows
from labkit.abilities import vocabulary as V
from labkit.abilities.base import queries
from labkit.records import IGNORE


@extension.ability
@dataclasses.dataclass(frozen=True)
class Last(Ability):
    """Three letters, then the question, as often as there is room: which letter came last?

    >>> from labkit.abilities import draw
    >>> print(draw(Last(), length=6))
    [user] z p h | |
    _ _ _ _ h h
    """

    @property
    def name(self) -> str:
        return "last"

    def rows(self, draws: Draws, length: int, test: bool) -> Rows:
        letters = V.LETTERS.start + draws.distinct(len(V.LETTERS), 3)  # (rows, 3)
        context = np.concatenate([np.full((len(draws), 1), V.task("user")), letters], axis=1)
        times = max(length - context.shape[1], 1)
        question = np.full((len(draws), times, 1), V.SEPARATOR)
        return queries(context, question, np.repeat(letters[:, -1:], times, axis=1), options=3, length=length)


@extension.criterion(calibrated=True)
def squared_wanda(weight, norms, generator):
    """|W_ij|² · ‖X_j‖₂: weights count for more than inputs do. (outputs, inputs), (inputs,) -> (outputs, inputs)."""
    return weight.float().square() * norms


@extension.divergence
def total_variation(student, teacher, labels=None, *, temperature=1.0):
    """½ Σ_v |t − s|, in 0..1, times temperature². (…, vocab) twice -> (places,)."""
    if labels is not None:
        student, teacher = student[labels != IGNORE], teacher[labels != IGNORE]
    s, t = ((logits.float() / temperature).softmax(-1) for logits in (student, teacher))
    return temperature**2 * (s - t).abs().sum(-1).flatten() / 2


@extension.metric
def rank_of_answer(logits, labels):
    """Mean rank of the answer tokens among all, 1 being the likeliest. (items, time, vocab), (items, time) -> (items,)."""
    asked = labels != IGNORE
    of_answer = logits.gather(-1, labels.clamp(min=0)[..., None])
    ranks = 1 + (logits > of_answer).sum(-1)
    return (ranks * asked).sum(-1) / asked.sum(-1)
