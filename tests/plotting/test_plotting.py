"""Figures hold the numbers of the frame they were given, and the sentences beside them say the same."""

from __future__ import annotations

import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from labkit import plotting
from labkit.errors import LabkitError
from labkit.records import EXACT_MATCH, NLL_NATS, TOKEN_ACCURACY, ItemRow
from labkit.verdict import VerdictRow

SIZES = {"16x1": 3_000, "64x2": 99_000, "96x3": 332_000}
CHANCE = {"recall": 0.0625, "facts": 0.03125, "addition": 0.0, "shift": 0.125, "markov": 0.25}


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    """Five abilities on three rungs; the largest rung has one seed, the others three. Markov has no exact match."""
    generator, told = np.random.default_rng(0), []
    for place, ability in enumerate(CHANCE):
        for size, (rung, params) in enumerate(SIZES.items()):
            for seed in range(1 if rung == "96x3" else 3):
                for metric in (EXACT_MATCH, TOKEN_ACCURACY, NLL_NATS)[ability == "markov" :]:
                    row = ItemRow("r", "m", rung, params, seed, "dense", 0.0, ability, metric, 0, 0.0, CHANCE[ability])
                    values = generator.random(6) * (size + 1) / (place + 3)
                    told += [dataclasses.replace(row, item=i, value=value) for i, value in enumerate(values)]
    told += [dataclasses.replace(row, compression="wanda", item=i, value=9.0) for i in range(6)]
    return pd.DataFrame(map(dataclasses.asdict, told)).sample(frac=1, random_state=0)


def verdict(rung="64x2", compression="wanda", ability="recall", verdict="kept", R=1.0, low=0.9, high=1.1, **others):
    kinds = {"str": "", "int": 5, "float": 0.5}
    row = VerdictRow(**{field.name: kinds[field.type] for field in dataclasses.fields(VerdictRow)})
    named = {"rung": rung, "compression": compression, "ability": ability, "verdict": verdict, "retention": R}
    return dataclasses.replace(row, **named, low=low, high=high, **others)


@pytest.fixture
def verdicts() -> pd.DataFrame:
    told = [
        verdict(),
        verdict(ability="facts", verdict="degraded", R=0.6, low=0.5, high=0.7),
        verdict(ability="guard", verdict="absent", R=np.nan, low=np.nan, high=np.nan),
        verdict(compression="random", verdict="undecided", R=-7.0, low=-9.0, high=0.5),
        verdict(rung="96x3", verdict="lost", R=0.1, low=0.0, high=0.15),
    ]
    return pd.DataFrame(map(dataclasses.asdict, told))


def panels(figure):
    return {axes.get_title("left"): axes for axes in figure.axes}


def line(axes, label):
    (found,) = [line for line in axes.lines if line.get_label() == label]
    return found


def test_emergence_draws_the_numbers_of_the_frame(rows):
    axes = panels(plotting.emergence(rows))
    assert set(axes) == set(CHANCE)
    for ability, drawn in axes.items():
        metric = TOKEN_ACCURACY if ability == "markov" else EXACT_MATCH
        mine = rows[(rows["ability"] == ability) & (rows["metric"] == metric)]
        mean = [mine[mine["rung"] == rung].groupby("seed")["value"].mean().mean() for rung in SIZES]
        np.testing.assert_allclose(line(drawn, "mean").get_xdata(), list(SIZES.values()))
        np.testing.assert_allclose(line(drawn, "mean").get_ydata(), mean)
        seeds = mine.groupby(["params", "seed"])["value"].mean()
        np.testing.assert_allclose(sorted(line(drawn, "seeds").get_ydata()), sorted(seeds))
        np.testing.assert_allclose(line(drawn, "chance").get_ydata(), CHANCE[ability])
        assert drawn.get_title("right") == metric.replace("_", " ")
        assert drawn.get_xscale() == "log"


def test_emergence_intervals_are_students(rows):
    (bars,) = panels(plotting.emergence(rows))["facts"].collections
    mine = rows[(rows["ability"] == "facts") & (rows["metric"] == EXACT_MATCH)]
    assert len(bars.get_segments()) == 2  # none for the rung with one seed
    for rung, segment in zip(SIZES, bars.get_segments(), strict=False):
        seeds = mine[mine["rung"] == rung].groupby("seed")["value"].mean()
        assert tuple(segment[:, 1]) == pytest.approx(stats.ttest_1samp(seeds, 0).confidence_interval(0.95))


def test_emergence_starts_with_what_is_furthest_from_chance(rows):
    rows = rows[rows["metric"] == EXACT_MATCH].assign(chance=0.25)
    for ability, value in {"addition": 1.0, "facts": 0.6, "shift": 0.3, "recall": 0.2}.items():
        rows.loc[rows["ability"] == ability, "value"] = value
    assert list(panels(plotting.emergence(rows))) == ["addition", "facts", "shift", "recall"]
    nats = rows.assign(metric=NLL_NATS, chance=4.0)  # less is better: the order turns round
    assert list(panels(plotting.emergence(nats))) == ["recall", "shift", "facts", "addition"]


def test_emergence_of_a_given_metric_leaves_out_abilities_without_it(rows):
    figure = plotting.emergence(rows, metric=EXACT_MATCH, columns=2)
    assert "markov" not in panels(figure) and len(figure.axes) == 4
    assert {axes.get_subplotspec().colspan.start for axes in figure.axes} == {0, 1}
    nats = panels(plotting.emergence(rows, metric=NLL_NATS))["markov"]
    assert nats.get_title("right") == "nats per token"


def test_emergence_has_axes_with_names_and_a_key(rows):
    figure = plotting.emergence(rows)
    assert figure.get_supxlabel() == "non-embedding parameters (log scale)"
    assert figure.get_supylabel() == "mean score (fraction correct)"
    assert plotting.emergence(rows, metric=NLL_NATS).get_supylabel() == "mean score"
    key = [text.get_text() for text in figure.legends[0].texts]
    assert key == ["one seed", "mean over seeds", "95 % t-interval", "chance"]


def test_emergence_refuses_what_it_cannot_draw(rows):
    with pytest.raises(LabkitError, match="a known metric is needed; got 'exact_matsh'. Nearest: exact_match"):
        plotting.emergence(rows, metric="exact_matsh")
    with pytest.raises(LabkitError, match="needs dense rows; got 'none of brier'. Evaluate the dense models."):
        plotting.emergence(rows, metric="brier")


def test_emergence_in_words(rows):
    alt = plotting.emergence_alt(rows)
    mine = rows[(rows["ability"] == "recall") & (rows["metric"] == EXACT_MATCH)].groupby("rung")["value"].mean()
    assert "5 abilities on 3 rungs, 16x1 to 96x3 (3,000 to 332,000 non-embedding parameters), 1 to 3 seeds each" in alt
    assert f"recall {mine['16x1']:.2f} to {mine['96x3']:.2f} (exact match, chance 0.06)" in alt


def test_retention_draws_the_numbers_of_the_frame(verdicts):
    axes = panels(plotting.retention(verdicts))
    assert list(axes) == ["rung 64x2", "rung 96x3"]
    drawn = axes["rung 64x2"]
    points = [line for line in drawn.lines if line.get_label() in ("wanda 50 %", "random 50 %")]
    bars = [line for line in drawn.lines if line.get_label().startswith("_child") and len(set(line.get_ydata())) == 1]
    limits = drawn.get_xlim()
    assert sorted(float(point.get_xdata()[0]) for point in points) == pytest.approx([limits[0], 0.6, 1.0])
    assert sorted(tuple(bar.get_xdata()) for bar in bars if bar.get_linewidth() == 1.4) == [
        (-9.0, 0.5),
        (0.5, 0.7),
        (0.9, 1.1),
    ]
    outside = min(points, key=lambda point: point.get_xdata()[0])
    assert outside.get_marker() == "<" and outside.get_markerfacecolor() == "white"  # off the frame; undecided
    assert [text.get_text() for text in drawn.texts] == ["absent in dense"]


def test_retention_tells_compressions_apart_without_colour(verdicts):
    key = plotting.retention(verdicts).legends[0]
    markers = {handle.get_marker() for handle in key.legend_handles[:2]}
    assert [text.get_text() for text in key.texts[:2]] == ["wanda 50 %", "random 50 %"]
    assert len(markers) == 2


@pytest.mark.parametrize(("margin", "lost"), [(0.05, 0.2), (0.1, 0.3)])
def test_retention_marks_the_rule(verdicts, margin, lost):
    drawn = plotting.retention(verdicts, margin, lost).axes[0]
    marks = {line.get_xdata()[0] for line in drawn.lines if list(line.get_ydata()) == [0, 1]}
    band = drawn.patches[0]
    assert marks == {0, 1, lost}
    assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx((1 - margin, 1 + margin))


def test_retention_refuses_an_empty_frame(verdicts):
    with pytest.raises(LabkitError, match="needs verdicts; got 'none'. Judge rows of a compressed model."):
        plotting.retention(verdicts[:0])


def test_retention_in_words(verdicts):
    alt = plotting.retention_alt(verdicts)
    assert alt.startswith("Retention with 95 % intervals of 3 abilities under 2 compressions on 2 rungs. ")
    assert "wanda 50 %: 1 kept, 1 degraded, 1 absent, 1 lost, mean retention 0.57;" in alt
    assert alt.endswith("random 50 %: 1 undecided, mean retention -7.00.")
    assert "1 absent, no retention to show" in plotting.retention_alt(verdicts[2:3])


@pytest.mark.parametrize(
    ("compression", "sparsity", "words"),
    [("wanda", 0.5, "wanda 50 %"), ("wanda 2:4", 0.5, "wanda 2:4"), ("drop-layers keep 1", 0.0, "drop-layers keep 1")],
)
def test_condition(compression, sparsity, words):
    assert plotting.condition(compression, sparsity) == words


def test_figures_do_not_pile_up_in_pyplot(rows, verdicts):
    before = plt.get_fignums()
    plotting.emergence(rows), plotting.retention(verdicts)
    assert plt.get_fignums() == before


def test_every_metric_that_judges_has_a_name_in_every_figure():
    from labkit.plotting import shapes, sizes
    from labkit.scores import BEST

    assert set(sizes._UNIT) == set(shapes._NAMED) == set(BEST)
