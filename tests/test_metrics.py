"""Metrics against closed forms and loops in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import torch

from labkit import metrics, records

V = 7


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Five items of 1 to 4 answer tokens, at different places."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(5, 6, V, generator=generator)
    labels = torch.randint(V, (5, 6), generator=generator)
    for item, places in enumerate([[5], [0, 5], [3, 4, 5], [1, 2, 4, 5], [2]]):
        labels[item, [i for i in range(6) if i not in places]] = metrics.IGNORE
    return logits, labels


def by_loop(name: str, logits: np.ndarray, labels: np.ndarray) -> float:
    """One item, one token after the other."""
    each = []
    for scores, label in zip(logits, labels, strict=True):
        if label == metrics.IGNORE:
            continue
        p, truth = scipy.special.softmax(scores.astype(np.float64)), np.eye(V)[label]
        right = float(np.argmax(scores) == label)
        each.append({"nll_nats": -np.log(p[label]), "brier": ((p - truth) ** 2).sum()}.get(name, right))
    return min(each) if name == "exact_match" else float(np.mean(each))


def test_the_metrics_are_those_of_the_rows():
    assert tuple(metric.__name__ for metric in metrics.METRICS) == records.METRICS


@pytest.mark.parametrize("metric", metrics.METRICS, ids=lambda m: m.__name__)
def test_every_metric_agrees_with_a_loop(metric, batch):
    values = metric(*batch)
    assert values.dtype == torch.float32
    expected = [by_loop(metric.__name__, *item) for item in zip(*(t.numpy() for t in batch), strict=True)]
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("metric", metrics.METRICS, ids=lambda m: m.__name__)
def test_what_stands_where_nothing_is_asked_does_not_matter(metric, batch):
    logits, labels = batch
    spoiled = torch.where((labels == metrics.IGNORE).unsqueeze(-1), torch.nan, logits)
    assert torch.equal(metric(spoiled, labels), metric(logits, labels))


def test_a_uniform_guess_scores_ln_v_and_one_minus_one_over_v(batch):
    logits, labels = torch.zeros_like(batch[0]), batch[1]
    torch.testing.assert_close(metrics.nll_nats(logits, labels), torch.full((5,), np.log(V).item()))
    torch.testing.assert_close(metrics.brier(logits, labels), torch.full((5,), 1 - 1 / V))


@pytest.mark.parametrize(("sign", "expected"), [(1, (1, 1, 0, 0)), (-1, (0, 0, 200, 2))])
def test_certainty_gives_the_ends_of_each_range(sign, expected, batch):
    labels = batch[1]
    guess = (labels.clamp_min(0) + (sign < 0)) % V
    logits = 200.0 * torch.nn.functional.one_hot(guess, V)
    for metric, value in zip(metrics.METRICS, expected, strict=True):
        torch.testing.assert_close(metric(logits, labels), torch.full((5,), float(value)))


@pytest.mark.parametrize("metric", metrics.METRICS, ids=lambda m: m.__name__)
def test_half_precision_logits_are_scored_in_single(metric, batch):
    logits = batch[0].bfloat16()
    assert torch.equal(metric(logits, batch[1]), metric(logits.float(), batch[1]))


def test_the_answer_given_is_the_same_for_the_same_tokens_alone(batch):
    logits, labels = batch
    given = metrics.answer_given(logits, labels)
    assert torch.equal(given, metrics.answer_given(3 * logits, labels))
    said = [tuple(row[keep].tolist()) for row, keep in zip(logits.argmax(-1), labels != metrics.IGNORE, strict=True)]
    same = torch.tensor([[a == b for b in said] for a in said])
    assert torch.equal(given[:, None] == given, same)
    assert (given == given.round()).all() and (given >= 0).all() and (given < 2**24).all()


def test_answers_of_two_tokens_are_told_apart_by_their_order():
    logits = torch.nn.functional.one_hot(torch.tensor([[5, 9], [9, 5], [5, 5], [9, 9]]), 168).float()
    assert len(metrics.answer_given(logits, torch.zeros(4, 2, dtype=torch.long)).unique()) == 4
