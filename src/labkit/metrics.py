"""Formulas from logits to one number per item. No batching, no averaging over items.

Every metric has the same form ``(logits, labels) -> values``:

- ``logits`` (items, time, vocab): the scores *at* each position of the token labelled there (no shift),
- ``labels`` (items, time) int64: the token asked for, `IGNORE` where nothing is asked; at least one per item,
- ``values`` (items,) float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.records import IGNORE


def exact_match(logits: Tensor, labels: Tensor) -> Tensor:
    """1 if every answer token is the most likely one, else 0."""
    return ((logits.argmax(-1) == labels) | (labels == IGNORE)).all(-1).float()


def token_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Fraction of the answer tokens that are the most likely one, 0..1."""
    return _mean_over_answer((logits.argmax(-1) == labels).float(), labels)


def nll_nats(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-likelihood of the answer tokens in nats, 0..∞; ln V for a uniform guess."""
    return _mean_over_answer(-_of_label(logits.float().log_softmax(-1), labels), labels)


def brier(logits: Tensor, labels: Tensor) -> Tensor:
    """Brier score: mean over the answer tokens of Σ_v (p_v − 1[v = y])², 0..2; 1 − 1/V for a uniform guess.

    Source: Brier 1950, in its first form: the sum over all classes, hence the range to 2.
    """
    p = logits.float().softmax(-1)
    # Σ_v (p_v − 1[v=y])² = Σ_v p_v² − 2·p_y + 1, without a one-hot tensor as large as the logits
    return _mean_over_answer(p.square().sum(-1) - 2 * _of_label(p, labels) + 1, labels)


def answer_given(logits: Tensor, labels: Tensor) -> Tensor:
    """A whole number, 0..2²⁴ − 4, that stands for the tokens found most likely: equal for equal answers to one item.

    It tells whether two models err alike. Different answers share a number once in 2²⁴, a prime just below it.
    """
    said = torch.where(labels == IGNORE, 0, logits.argmax(-1) + 1).double()
    number = torch.zeros(len(said), dtype=torch.float64, device=said.device)
    for token in said.unbind(-1):
        number = torch.where(token > 0, (number * 8191 + token) % 16_777_213, number)
    return number.float()


METRICS = (exact_match, token_accuracy, nll_nats, brier)
"""Those that an ability is scored by unless it says otherwise."""

MORE_METRICS = (answer_given,)
"""Those that are computed where they are asked for."""


def _of_label(scores: Tensor, labels: Tensor) -> Tensor:
    """(items, time, vocab) at the label of each position -> (items, time); anything where nothing is asked."""
    return scores.gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1)


def _mean_over_answer(values: Tensor, labels: Tensor) -> Tensor:
    """(items, time) -> (items,): the mean over labelled positions."""
    asked = labels != IGNORE
    # `where`, not a product: what stands at unlabelled positions must not matter, even if it is not finite
    return torch.where(asked, values, 0).sum(-1) / asked.sum(-1)
