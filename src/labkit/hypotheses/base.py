"""What every hypothesis is made of: the evidence, one number per dense model, and the t-test that decides most."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd
from scipy import stats

from labkit.records import DENSE
from labkit.scores import need, primary, same_items, scores

GATE, MARGIN, LEVEL, LEAST = 0.20, 0.10, 0.05, 5
"""Fixed before the rows were read: the gain from which a dense model has an ability; the difference in retention that
matters; the level of Holm's correction; and the dense models (rung, seed) without which nothing is decided."""

CONTROL = "markov"
"""The ability that stands for plain language modelling."""

_TRAINED = re.compile(r"(full|lora|train|distil|\S+ scratch|\S+ distil)\b.* [\d.]+[kM]")


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What hypotheses are put to.

    Attributes
    ----------
    rows : frame with the columns of `labkit.records.ItemRow`, of several studies through `labkit.pairing.pooled`; with
        ``frequency`` (how often a fact was trained on) if H7 is to be decided.
    outcomes : ability and outcome, as `labkit.emergence.emergence` returns.
    verdicts : rung, compression, sparsity, ability and verdict, as `labkit.verdict.judge` returns; for H8.
    """

    rows: pd.DataFrame
    outcomes: pd.DataFrame
    verdicts: pd.DataFrame | None = None

    def of(self, outcome: str) -> list[str]:
        """The abilities with this outcome."""
        return list(self.outcomes.loc[self.outcomes["outcome"] == outcome, "ability"])


@dataclasses.dataclass(frozen=True)
class Finding:
    """One number per dense model (rung, seed) that the hypothesis is about, and what follows from them."""

    values: tuple[float, ...] = ()
    outcome: str = "no rows"  # before Holm's correction
    estimate: float = np.nan  # with its 95 % t-interval over dense models, unless `reason` says otherwise
    low: float = np.nan
    high: float = np.nan
    p: float = np.nan
    reason: str = ""  # what was compared, or what would be needed


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """A claim with the rule that decides it."""

    name: str
    statement: str
    rule: str
    published: str
    source: str
    test: Callable[[Evidence, pd.DataFrame], Finding]  # (evidence, mean gains and retention per model) -> finding


def retained(rows: pd.DataFrame) -> pd.DataFrame:
    """What `labkit.scores.scores` returns of every metric, with ``dense`` (the gain of the dense parent) and ``kept``:
    gain / dense, NaN where the parent's primary gain is below `GATE`. Raises LabkitError as `scores`, and for compressed
    models that scored other items than their parents."""
    need(rows, ["compression", "sparsity"])
    means = scores(rows.assign(sparsity=rows["sparsity"].where(rows["compression"] != DENSE, 0.0)))
    same_items(means)
    keys = ["rung", "seed", "ability", "metric"]
    dense = means[means["compression"] == DENSE].set_index(keys)["gain"].rename("dense")
    means = means.join(dense, on=keys)
    first = primary(means[means["compression"] == DENSE]).set_index(["rung", "seed", "ability"])["gain"].rename("had")
    means = means.join(first, on=["rung", "seed", "ability"])
    has = (means["had"] >= GATE) & (means["dense"] > 0)
    return means.assign(kept=np.where(has, means["gain"] / means["dense"].where(has), np.nan)).drop(columns="had")


def about(values: Iterable[float], claim: str, bound: float, reason: str) -> Finding:
    """t-test of one number per dense model. `claim`: "<" or ">" `bound`, or "!=": equal is within ± MARGIN of it."""
    v = np.array([value for value in values if not np.isnan(value)])
    if len(v) < 2:
        return Finding(tuple(v), "undecided" if len(v) else "no rows", reason=f"{reason}: {len(v)} dense models")
    half = stats.t.ppf(0.975, len(v) - 1) * stats.sem(v)
    estimate, low, high = float(v.mean()), float(v.mean() - half), float(v.mean() + half)
    if np.ptp(v) < 1e-9:  # agreement to the last digit is not certainty: the p of the signs alone
        apart = {"<": estimate < bound, ">": estimate > bound, "!=": estimate != bound}[claim]
        p = (2 if claim == "!=" else 1) * 0.5 ** len(v) if apart else 1.0
        reason = f"{reason}; all are equal, p is of a sign test"
    else:
        p = float(
            stats.ttest_1samp(v, bound, alternative={"<": "less", ">": "greater", "!=": "two-sided"}[claim]).pvalue
        )
    if len(v) < LEAST:
        outcome, reason = "undecided", f"{reason}; {few(len(v))}"
    elif {"<": high < bound, ">": low > bound, "!=": not low <= bound <= high}[claim]:
        outcome = "supported"
    elif {"<": low >= bound, ">": high <= bound, "!=": max(abs(low - bound), abs(high - bound)) <= MARGIN}[claim]:
        outcome = "refuted"
    else:
        outcome = "undecided"
    return Finding(tuple(map(float, v)), outcome, estimate, low, high, p, reason)


def few(models: int) -> str:
    """What is said where there are fewer than `LEAST`."""
    return f"{models} of the {LEAST} dense models the rule asks for"


def table(kept: pd.DataFrame) -> pd.DataFrame:
    """Retention in the primary metric, a row per compressed model, a column per ability."""
    rows = primary(kept)
    rows = rows[rows["compression"] != DENSE]
    return rows.pivot_table(index=["rung", "seed", "compression", "sparsity"], columns="ability", values="kept")


def per_parent(values: pd.Series) -> pd.Series:
    """Mean over the compressions of each dense model: models of one parent are not independent."""
    return values.dropna().groupby(level=["rung", "seed"]).mean()


def damage(compression: str) -> str:
    """What was taken from the dense model, "" where training is all that was done: "wanda" of "wanda + full 1M"."""
    return " + ".join(step for step in compression.split(" + ") if not _TRAINED.fullmatch(step) and step != DENSE)


def healing(compression: str) -> str:
    """The training that followed, "" where there was none: "full 1M" of "wanda + full 1M"."""
    return " + ".join(step for step in compression.split(" + ") if _TRAINED.fullmatch(step))


def by_criterion(compression: str) -> bool:
    """Whether it is pruning alone, and not done at random."""
    return bool(damage(compression)) and not healing(compression) and not re.search(r"random|int\d", compression)
