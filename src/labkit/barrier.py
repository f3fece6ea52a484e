"""The barrier to entry: how much asking, training and computing buys an ability, by what is seen of the teacher."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from labkit.errors import LabkitError
from labkit.pairing import UNCOMPRESSED, UNIT, Group, Tables, gains, having, paired, primary, tables
from labkit.records import METRICS, ItemRow, columns
from labkit.scores import need
from labkit.statistics import Spread, jeffreys_interval, ratio_interval
from labkit.students import NEAR, UNASKED, students

PRICES = ("cheaper", "as dear", "dearer", "only taught", "only alone", "neither", "undecided")
"""Every value of the column ``price``."""


@dataclasses.dataclass(frozen=True)
class BarrierRow:
    """What one ability costs in one way. Where no dose of the sweep is enough, the largest one is described."""

    rung: str  # the teacher's
    start: str
    size: str
    way: str
    seen: str  # of the teacher
    ability: str
    metric: str
    level: float  # of retention, that is enough
    enough: float  # the smallest dose, in tokens, at which mean retention reaches the level; NaN if none does
    sure: float  # the smallest one at which its lower 95 % bound does
    tokens: int  # the dose described from here on
    retention: float  # with its 95 % interval
    low: float
    high: float
    reached: int  # seeds whose own student reaches the level ...
    n_seeds: int  # ... of those whose teacher has the ability
    share_low: float  # Jeffreys' 95 % interval of reached / n_seeds
    share_high: float
    rows_asked: float  # rows of text that the teacher was asked
    answers_seen: float  # its answers, of a token each, that came back
    flops: float  # of making the student, teacher included
    told: str  # "3M", or "not within 6M"


def barrier(
    rows: pd.DataFrame,
    provenance: pd.DataFrame,
    level: float = 0.9,
    row_tokens: int = 48,
    row_answers: float = np.nan,
    gate: float = 0.20,
) -> pd.DataFrame:
    """How much it takes to have `level` of the teacher's ability, for every ability, start, size and way.

    A way's doses are the tokens it was trained on: separate trainings, each with its own schedule. The smallest dose
    is taken at which mean retention (over seeds whose teacher has the ability, and items) reaches the level, and said
    beside it how many seeds do; `sure` asks the same of the lower 95 % bound (`labkit.statistics.ratio_interval`).
    What lies between doses is not estimated. Of a way at one dose it can only be said whether that was enough.

    Parameters
    ----------
    rows, provenance : as in `labkit.inheritance.inheritance`.
    level : of retention, in (0, 1).
    row_tokens : tokens in a row that the teacher is asked; row_answers : answers in it, on average.
    gate : as in `labkit.verdict.Rule`.

    Returns
    -------
    Frame with the columns of `BarrierRow`; abilities that no teacher has are left out. Who asks no teacher asks 0 rows.

    Raises
    ------
    LabkitError
        A level or gate outside (0, 1); else as `labkit.pairing.tables` and `labkit.students.students`.
    """
    for name, value in (("level", level), ("gate", gate)):
        if not 0 < value < 1:
            raise LabkitError(f"{name} lies in (0, 1)", value, "Give a fraction, e.g. 0.9.")
    need(rows, columns(ItemRow))
    rows = rows[rows["metric"].isin(METRICS)]
    made = students(rows, provenance)
    rows = rows[rows["compression"].isin(["dense", *made["compression"]])]
    scored, told = tables(rows), []
    for _, doses in made.groupby(["rung", "start", "size", "way"], sort=False):
        doses = doses.sort_values("tokens")
        for (rung, ability), metrics in sorted(scored.items()):
            if rung == doses["rung"].iloc[0]:
                found = [_dose(metrics, dose, ability, level, gate) for dose in doses.itertuples(index=False)]
                told += _row(found, level, row_tokens, row_answers)
    return pd.DataFrame([dataclasses.asdict(row) for row in told], columns=columns(BarrierRow))


@dataclasses.dataclass(frozen=True)
class _Dose:
    student: tuple  # a row of `students`
    ability: str
    metric: str
    bounds: tuple[float, float, float]  # retention, low, high
    reached: int
    n_seeds: int


def _dose(metrics: Tables, student: tuple, ability: str, level: float, gate: float) -> _Dose | None:
    metric = primary(metrics)
    if (student.compression, student.sparsity) not in metrics[metric]:
        return None
    own, teacher = paired(metrics, Group(student.rung, student.compression, student.sparsity, ability, metric))
    have, _ = having(metrics[metric][UNCOMPRESSED], metric, gate)
    used = np.intersect1d(have, own.seeds)
    if not used.size:
        return None
    values = gains(metric, used, own, teacher)
    spread = Spread.of(values)
    bounds = ratio_interval(spread, (1, 0), (0, 1), unit=UNIT[metric])
    each = values.mean(axis=-1)
    retention = float(spread.mean[0] / spread.mean[1])
    return _Dose(student, ability, metric, (retention, *map(float, bounds)), int((each[0] >= level * each[1]).sum()), len(used))


def _row(found: list[_Dose | None], level: float, row_tokens: int, row_answers: float) -> list[BarrierRow]:
    doses = [dose for dose in found if dose is not None]
    if not doses:
        return []
    enough = [dose for dose in doses if dose.bounds[0] >= level]
    sure = [dose.student.tokens for dose in doses if dose.bounds[1] >= level]
    shown = (enough or doses[-1:])[0]
    made = shown.student
    asked = made.trained / row_tokens if made.seen not in UNASKED else 0.0
    told = f"{made.tokens / 1e6:.3g}M" if enough else f"not within {made.tokens / 1e6:.3g}M"
    return [
        BarrierRow(
            made.rung, made.start, made.size, made.way, made.seen, shown.ability, shown.metric, level,
            enough[0].student.tokens if enough else np.nan, min(sure, default=np.nan), made.tokens, *shown.bounds,
            shown.reached, shown.n_seeds, *jeffreys_interval(shown.reached, shown.n_seeds), asked,
            asked * row_answers if asked else 0.0, made.flops, told,
        )  # fmt: skip
    ]


@dataclasses.dataclass(frozen=True)
class PriceRow:
    """What one ability costs from one thing seen of the teacher, beside what it costs without one."""

    rung: str  # the teacher's
    size: str
    ability: str
    seen: str  # of the teacher
    level: float  # of retention, that is bought
    flops: float  # of the cheapest way, teacher included, by which mean retention reaches the level; NaN if none does
    alone: float  # of the cheapest training from scratch by which it does
    price: str  # one of PRICES


def prices(bought: pd.DataFrame, min_seeds: int = 5) -> pd.DataFrame:
    """Is an ability cheaper to copy than to learn? For every ability, size of student and thing seen of the teacher.

    - **undecided**: fewer than `min_seeds` seeds from scratch, or in every way of seeing it; FLOPs that nobody counted;
      or a side that does not reach the level on average, but whose 95 % interval at its last dose holds it;
    - **neither**, **only alone**, **only taught**: within the doses measured no student reaches the level, only those
      from scratch do, only those with a teacher do, and the others' intervals lie below it;
    - **as dear**: FLOPs, the teacher's included, within a factor of `labkit.students.NEAR`; **cheaper**, **dearer**: not.

    Doses are few, so a price is that of the smallest one measured that is enough, not the least possible. What the
    teacher's own training cost is in no price.

    Parameters
    ----------
    bought : what `barrier` returns.

    Returns
    -------
    Frame with the columns of `PriceRow`.
    """
    told = []
    for (rung, size, ability), group in bought.groupby(["rung", "size", "ability"], sort=False):
        alone, taught = (group[(group["seen"] == "nothing") == own] for own in (True, False))
        for seen, ways in taught.groupby("seen", sort=False):
            sides = [side[side["n_seeds"] >= min_seeds] for side in (ways, alone)]
            reached = [side[side["enough"].notna()] for side in sides]
            least = [side["flops"].min() for side in reached]
            unknown = any(side["flops"].isna().any() for side in reached)
            # Short of the level on average is not yet below it.
            pairs = zip(sides, reached, strict=True)
            open_ = any(there.empty and not (side["high"] < side["level"]).all() for side, there in pairs)
            price = "undecided" if unknown or open_ or any(side.empty for side in sides) else _price(*least)
            told.append(PriceRow(rung, size, ability, seen, float(ways["level"].iloc[0]), *map(float, least), price))
    return pd.DataFrame([dataclasses.asdict(row) for row in told], columns=columns(PriceRow))


def _price(taught: float, alone: float) -> str:
    if np.isnan(taught):
        return "neither" if np.isnan(alone) else "only alone"
    if np.isnan(alone):
        return "only taught"
    return "cheaper" if taught * NEAR < alone else "dearer" if taught > alone * NEAR else "as dear"


def answer(priced: pd.DataFrame) -> str:
    """Can near-top ability be copied cheaply? In a sentence, of what `prices` returns for one teacher and one size.

    Cheap is what is cheaper than from scratch, or was had with a teacher only.
    """
    told = []
    for seen, group in priced.groupby("seen", sort=False):
        counts = group["price"].value_counts().reindex(PRICES).dropna().astype(int)
        cheap = group.loc[group["price"].isin(["cheaper", "only taught"]), "ability"]
        known = len(group) - counts.get("undecided", 0)
        if len(cheap):
            verdict = "yes" if len(cheap) == len(group) else "in part"
        else:
            verdict = "no" if known == len(group) else "not shown" if known else "nobody can say yet"
        named = f": {', '.join(cheap)}" if verdict == "in part" else ""
        told.append(f"from {seen}, {verdict}{named} ({', '.join(f'{n} {price}' for price, n in counts.items())})")
    return f"To have {priced['level'].iloc[0]:g} of the teacher's ability for fewer FLOPs than from scratch: {'; '.join(told)}."
