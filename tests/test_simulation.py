"""The judge, on experiments whose truth is known. Every law leaves room for the Monte Carlo error of its repeats."""

from __future__ import annotations

import numpy as np
import pytest

from labkit.errors import LabkitError
from labkit.records import columns
from labkit.simulation import CalibrationRow, Scene, calibrate

REPEATS = 400


@pytest.fixture(scope="module")
def normal():
    return calibrate(seeds=(3, 5, 8), items=(300,), retentions=(0.20, 0.60, 0.95), between=(0.0, 0.03), repeats=REPEATS)


def error(share):
    """Three standard errors of a share over the repeats."""
    return 3 * np.sqrt(share * (1 - share) / REPEATS)


def test_intervals_hold_the_truth_in_95_and_90_of_a_hundred_cases(normal):
    assert tuple(normal.columns) == columns(CalibrationRow)
    assert normal["coverage"].between(0.93 - error(0.93), 0.98 + error(0.98)).all()
    assert abs(normal["coverage"].mean() - 0.95) < 0.015  # 18 combinations: the mean is known to .003
    assert normal["coverage90"].between(0.88 - error(0.88), 0.95 + error(0.95)).all()


def test_what_is_not_so_is_called_kept_or_lost_no_more_often_than_stated(normal):
    assert (normal.query("retention == 0.95")["kept"] < 0.05 + error(0.05)).all()
    assert (normal.query("retention == 0.20")["lost"] < 0.025 + error(0.025)).all()
    assert (normal.query("retention == 0.60")[["kept", "lost"]] < 0.01).all(axis=None)


def test_more_seeds_and_more_items_show_more():
    frame = calibrate(seeds=(3, 6, 12), items=(100, 400), retentions=(1.0,), between=(0.03,), repeats=200)
    power = frame.pivot(index="seeds", columns="items", values="kept")
    assert (np.diff(power, axis=0) > 0).all() and (np.diff(power, axis=1) >= -0.05).all()


def test_the_percentile_bootstrap_is_too_narrow():
    options = dict(seeds=(3,), items=(300,), retentions=(0.6,), between=(0.1,), repeats=200)
    ours, bootstrap = (calibrate(method=method, **options).iloc[0] for method in ("interval", "bootstrap"))
    assert bootstrap["coverage"] < 0.82 < 0.90 < ours["coverage"]


def test_a_failure_that_seeds_do_not_show_is_seen_by_no_interval():
    """One seed in ten falls: eight seeds show none of it in .9 ** 8 = .43 of cases, and are believed."""
    frame = calibrate((8,), (300,), (0.95,), (0.10,), REPEATS, scene=Scene(shape="skewed"))
    assert abs(frame["kept"][0] - 0.9**8) < error(0.43) + 0.02


def test_the_same_seed_gives_the_same_frame():
    one, same, other = (calibrate((3,), (50,), (0.6,), (0.1,), 50, seed=seed) for seed in (1, 1, 2))
    assert one.equals(same) and not one.equals(other)


@pytest.mark.parametrize("shape", ["normal", "two-point", "skewed"])
def test_scenes_have_the_moments_they_say(shape):
    """Retention over many seeds: its mean and deviation between seeds, item noise taken away."""
    scene = Scene(dense=0.8, dense_between=0.0, shape=shape, shared=0.0)
    gains = scene.draw(np.random.default_rng(0), (1, 4000, 400), 0.7, 0.08)[0].mean(axis=-1) / 0.7
    assert gains[1].mean() == pytest.approx(1, abs=0.003) and gains[0].mean() == pytest.approx(0.7, abs=0.006)
    score = 0.1 + 0.7 * 0.7
    noise = score * (1 - score) / 400 / 0.7**2
    assert np.sqrt(gains[0].var() - noise) == pytest.approx(0.08, abs=0.006)


def test_what_no_scores_can_have_is_left_out():
    frame = calibrate((3,), (20,), (1.0,), (0.0, 0.1), 10, scene=Scene(dense=1.0, dense_between=0.0))
    assert list(frame["between"]) == [0.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": (1, 5)}, "two seeds and two items or more; got 1. Give more."),
        ({"between": (-0.1,)}, "seeds differ by 0 or more, and repeats are 1 or more; got 'between -0.1"),
        ({"method": "boot"}, "a known method is needed; got 'boot'. Nearest: bootstrap"),
    ],
)
def test_bad_questions_are_refused(options, message):
    with pytest.raises(LabkitError) as error:
        calibrate(**options)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": "round"}, "a known shape is needed; got 'round'"),
        ({"dense": 0.05}, "0 <= chance < dense <= 1; got 'chance 0.1, dense 0.05'"),
        ({"shared": 1.5}, "shared lies in [0, 1]; got 1.5"),
    ],
)
def test_bad_scenes_are_refused(options, message):
    with pytest.raises(LabkitError) as error:
        Scene(**options)
    assert message in str(error.value)
