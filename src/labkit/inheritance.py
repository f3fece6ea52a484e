"""The question of distillation: what did a student inherit, and is it more than practice alone would have given?"""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from labkit.comparison import ANSWERS
from labkit.pairing import UNCOMPRESSED, UNIT, Group, Tables, gains, having, paired, tables
from labkit.records import METRICS, ItemRow, columns
from labkit.scores import need
from labkit.statistics import Spread, ratio_interval
from labkit.students import CONDITION, NEAR, SCRATCH, students
from labkit.verdict import Rule, judge, within

OUTCOMES = ("inherited", "partially", "not inherited", "better", "undecided", "absent")
"""Every value of the column ``outcome``."""

COMPARED = (*ANSWERS, "no control")
"""What a student has, beside a control: the values of ``at_tokens`` and ``at_flops``."""

_OVER, _UNDER = np.array([1.0, -1.0, 0.0]), np.array([0.0, 0.0, 1.0])  # (student − control) / teacher


@dataclasses.dataclass(frozen=True)
class InheritanceRow:
    """One ability of one kind of student, beside its teachers and its controls. Intervals are 95 % unless named."""

    rung: str  # the teacher's
    start: str  # "fresh", or what was left of the teacher to start from
    size: str  # the student's rung
    way: str  # what it learned from, "scratch" for the controls themselves
    seen: str  # of the teacher, by the student
    tokens: int
    flops: float  # of making it, teacher included; NaN without a provenance
    ability: str
    metric: str
    teacher: float  # mean scores, over the seeds used
    student: float
    chance: float
    retention: float  # (student − chance) / (teacher − chance)
    low: float
    high: float
    n_seeds: int  # seeds used: those whose teacher has the ability
    seeds_with: int  # teachers that have the ability ...
    seeds_all: int  # ... of all
    outcome: str  # one of OUTCOMES
    practice: float  # retention of the control on equal tokens
    excess: float  # (student − this control) / (teacher − chance), paired by seed and item
    excess_low: float
    excess_high: float
    at_tokens: str  # one of COMPARED; "" for a control
    flops_ratio: float  # of the control on equal FLOPs: its FLOPs / the student's
    beyond: float  # (student − that control) / (teacher − chance)
    beyond_low: float
    beyond_high: float
    at_flops: str
    counts: bool  # inherited or better, and more than practice gives on equal tokens and on equal FLOPs
    reason: str


def inheritance(rows: pd.DataFrame, provenance: pd.DataFrame | None = None, rule: Rule = Rule()) -> pd.DataFrame:
    """For each ability and each kind of student: what it has of its teacher's ability, and what practice explains.

    The rule was written before any row of a student was looked at; gate, margin, lost and min_seeds are those of
    `labkit.verdict.Rule`. Retention R, its intervals and the seeds used are those of `labkit.judge`, with the teacher
    as the dense model. In this order:

    - **absent**: the teachers do not have the ability (`judge` says absent);
    - **undecided**: fewer than `min_seeds` teachers that have it were distilled;
    - **better**: the lower 95 % bound of R is above 1 + margin;
    - **inherited**: the 90 % interval of R lies within 1 ± margin, and so does that on nats (`judge` says kept);
    - **not inherited**: the upper 95 % bound is below `lost`;
    - **partially**: the upper 95 % bound is below 1 − margin and the lower is above 0;
    - **undecided**: everything else.

    A student may have learned this without its teacher. So it is compared with students of as many parameters, the same
    seed, first weights and stream of tokens, trained from scratch: D = (student − control)/(teacher − chance), paired
    by seed and item, its interval that of a ratio of means (`labkit.statistics.ratio_interval`):

    - **as much**: the 90 % interval of D lies within ± margin;
    - **more**: its lower 95 % bound is above 0; **less**: its upper one is below 0;
    - **undecided**: all else, and fewer than `min_seeds` seeds with a control.

    Once on equal tokens (as named), and once on equal FLOPs, the teacher's included: the control is the cheapest one of
    at least 1/`NEAR` of the student's FLOPs. Where it had more than `NEAR` times as many, only "more" is concluded.
    An ability **counts** as bought from the teacher if it is inherited or better, and more both times.

    Parameters
    ----------
    rows : frame with the columns of `labkit.records.ItemRow`: the teachers (dense), students and controls, named as in
        a study. Metrics that no ability is judged by are passed over.
    provenance : as ``Store.provenance()`` returns; without it there are no FLOPs, and no control on equal ones.
    rule : what is fixed beforehand.

    Returns
    -------
    Frame with the columns of `InheritanceRow`, in the order of `labkit.students.students`.

    Raises
    ------
    LabkitError
        As `labkit.judge` and `labkit.students.students`.
    """
    need(rows, columns(ItemRow))
    rows = rows[rows["metric"].isin(METRICS)]
    made = students(rows, provenance)
    rows = rows[rows["compression"].isin(["dense", *made["compression"]])]
    verdicts = judge(rows, rule=rule).set_index([*CONDITION, "ability"]).sort_index()
    scored, told = tables(rows), []
    for student in made.itertuples(index=False):
        alone = _controls(made, student)
        for ability, verdict in verdicts.loc[student[: len(CONDITION)]].iterrows():
            group = Group(*student[: len(CONDITION)], ability, verdict["metric"])
            told.append(_row(student, verdict, scored[student.rung, ability], group, alone, rule))
    return pd.DataFrame([dataclasses.asdict(row) for row in told], columns=columns(InheritanceRow))


def _controls(made: pd.DataFrame, student: tuple) -> tuple[pd.Series | None, pd.Series | None]:
    """The control on equal tokens and the one on equal FLOPs."""
    if student.way == SCRATCH:
        return None, None
    alike = made[(made["rung"] == student.rung) & (made["params"] == student.params) & (made["way"] == SCRATCH)]
    by_tokens = alike[alike["tokens"] == student.tokens]
    by_flops = alike[alike["flops"] >= student.flops / NEAR].sort_values("flops")
    return tuple(found.iloc[0] if len(found) else None for found in (by_tokens, by_flops))


def _row(
    student: tuple, verdict: pd.Series, metrics: Tables, group: Group, alone: tuple, rule: Rule
) -> InheritanceRow:
    outcome, reason = _outcome(verdict, rule)
    absent = outcome == "absent"
    by_tokens, by_flops = (
        _compared(metrics, group, None if absent else control, student, rule) for control in alone
    )
    practice, *excess, at_tokens, _ = by_tokens
    _, *beyond, at_flops, ratio = by_flops
    if student.way == SCRATCH or absent:
        at_tokens = at_flops = ""
    counts = outcome in ("inherited", "better") and at_tokens == at_flops == "more"
    return InheritanceRow(
        student.rung, student.start, student.size, student.way, student.seen, student.tokens, student.flops,
        group.ability, group.metric, verdict["dense"], verdict["compressed"], verdict["chance"], verdict["retention"],
        verdict["low"], verdict["high"], verdict["n_seeds"], verdict["seeds_with"], verdict["seeds_all"], outcome,
        practice, *excess, at_tokens, ratio, *beyond, at_flops, counts, reason,
    )  # fmt: skip


def _outcome(verdict: pd.Series, rule: Rule) -> tuple[str, str]:
    said, reason = verdict["verdict"], verdict["reason"]
    if verdict["n_seeds"] >= rule.min_seeds and verdict["low"] > 1 + rule.margin:
        return "better", f"lower 95 % bound {verdict['low']:.3f} is above {1 + rule.margin:g}"
    if said == "degraded" and not verdict["low"] > 0:
        return "undecided", f"{reason}, but the lower {verdict['low']:.3f} does not show that anything was inherited"
    return {"kept": "inherited", "lost": "not inherited", "degraded": "partially"}.get(said, said), reason


def _compared(
    metrics: Tables, group: Group, control: pd.Series | None, student: tuple, rule: Rule
) -> tuple[float, float, float, float, str, float]:
    """Retention of the control, D with its 95 % interval, one of COMPARED, and control FLOPs / student FLOPs."""
    where = None if control is None else (control["compression"], control["sparsity"])
    if where not in metrics[group.metric]:
        return (*(np.nan,) * 4, "no control", np.nan)
    own, teacher = paired(metrics, group)
    have, _ = having(metrics[group.metric][UNCOMPRESSED], group.metric, rule.gate)
    alone, _ = paired(metrics, group._replace(compression=where[0], sparsity=where[1]))
    used = np.intersect1d(np.intersect1d(have, own.seeds), alone.seeds)
    ratio = control["flops"] / student.flops
    if not used.size:
        return (*(np.nan,) * 4, "undecided", ratio)
    spread = Spread.of(gains(group.metric, used, own, alone, teacher))
    unit = UNIT[group.metric]
    outer, inner = (ratio_interval(spread, _OVER, _UNDER, level, unit) for level in (0.95, 0.90))
    practice, excess = spread.mean[1] / spread.mean[2], (spread.mean[0] - spread.mean[1]) / spread.mean[2]
    compared = _decided(outer, inner, rule) if len(used) >= rule.min_seeds else "undecided"
    if compared in ("as much", "less") and ratio > NEAR and control["tokens"] != student.tokens:
        compared = "undecided"
    return float(practice), float(excess), *map(float, outer), compared, float(ratio)


def _decided(outer: np.ndarray, inner: np.ndarray, rule: Rule) -> str:
    if within(1 + inner, rule.margin):
        return "as much"
    return "more" if outer[0] > 0 else "less" if outer[1] < 0 else "undecided"
