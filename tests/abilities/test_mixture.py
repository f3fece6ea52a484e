"""The stream: abilities by their weights, late ones late, every batch addressed by its number."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.stats

from labkit.abilities import Corpus, Guard, Recall, Repeat, Shift, abilities, corpus
from labkit.abilities import vocabulary as V
from labkit.errors import LabkitError
from labkit.records import IGNORE


def families(tokens: np.ndarray) -> np.ndarray:
    """Number of rows of each task."""
    return np.bincount(tokens[:, 0] - V.TASKS.start, minlength=len(V.TASKS))


def test_abilities_come_by_their_weights():
    stream = corpus()
    seen = families(stream.rows(np.arange(20_000))[0])
    expected = np.zeros(len(V.TASKS))
    for ability in stream.abilities:
        family = next(k for k, name in enumerate(V.TASK_NAMES) if ability.name.startswith(name))
        expected[family] += ability.weight
    present = expected > 0
    assert (seen[~present] == 0).all()
    wanted = expected[present] / expected.sum() * seen.sum()
    assert scipy.stats.chisquare(seen[present], wanted).pvalue > 1e-4


def test_a_late_ability_is_absent_early_and_there_late():
    stream = Corpus((Recall(weight=0.5), Guard(weight=0.5, late=0.5)))
    index = np.arange(1000)
    guard = V.task("guard")
    assert (stream.rows(index, progress=0.49)[0][:, 0] != guard).all()
    assert (stream.rows(index, progress=0.5)[0][:, 0] == guard).mean() == pytest.approx(0.5, abs=0.07)
    batches = [tokens for tokens, _ in stream.batches(batch=64, steps=128)]
    assert not any((tokens[:, 0] == guard).any() for tokens in batches[:64])
    assert all((tokens[:, 0] == guard).any() for tokens in batches[64:])


@pytest.mark.parametrize("first", [0, 1, 31, 32, 33, 69])
def test_a_stream_taken_up_later_is_the_tail_of_the_whole(first):
    stream = corpus(seed=2, length=24)
    whole, tail = list(stream.batches(64, 70)), list(stream.batches(64, 70, first))
    assert len(whole) == 70 and len(tail) == 70 - first
    for (tokens, labels), (again, asked) in zip(whole[first:], tail, strict=True):
        np.testing.assert_array_equal(tokens, again)
        np.testing.assert_array_equal(labels, asked)


@pytest.mark.parametrize("batch", [1, 48, 4096])
def test_batches_have_their_shape(batch):
    batches = list(corpus(length=24).batches(batch, 3))
    assert [t.shape for t, _ in batches] == [lab.shape for _, lab in batches] == [(batch, 24)] * 3


def test_a_row_is_the_same_alone_and_in_a_batch_and_belongs_to_its_ability():
    stream = Corpus((Repeat(weight=1.0), Shift(weight=1.0)), seed=4)
    tokens, labels = stream.rows(np.arange(100))
    alone, asked = stream.rows(np.array([17]))
    np.testing.assert_array_equal(tokens[17:18], alone)
    np.testing.assert_array_equal(labels[17:18], asked)
    ability = stream.abilities[int(tokens[17, 0] == V.task("shift"))]
    np.testing.assert_array_equal(ability.train([17], 4, 48).tokens, alone)


def test_seeds_share_no_row():
    a, b = (corpus(seed).rows(np.arange(3000))[0] for seed in (0, 1))
    assert not {r.tobytes() for r in a} & {r.tobytes() for r in b}


def test_every_row_asks_something():
    assert (corpus().rows(np.arange(3000))[1] != IGNORE).any(axis=1).all()


def test_a_mixture_of_nothing():
    with pytest.raises(LabkitError, match=r"a mixture needs at least one ability; got \(\)\. Give e\.g\. labkit"):
        Corpus(())


def test_calibration_is_unpadded_and_apart_from_training():
    stream = dataclasses.replace(corpus(), abilities=abilities("reverse", "recall"))
    rows = stream.calibration(64)
    assert rows.shape == (64, 48) and (rows != V.PAD).all()
    trained = {r.tobytes() for r in stream.rows(np.arange(5000))[0]}
    assert not trained & {r.tobytes() for r in rows}
