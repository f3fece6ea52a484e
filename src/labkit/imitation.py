"""Copy or learner? A student that gives its teacher's very mistakes has copied; one that learned makes its own."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from labkit.errors import LabkitError
from labkit.pairing import UNCOMPRESSED, Block, tables
from labkit.records import EXACT_MATCH, ItemRow, columns
from labkit.scores import need
from labkit.statistics import Spread, ratio_interval
from labkit.students import SCRATCH, students
from labkit.verdict import Rule

ANSWER_GIVEN = "answer_given"
"""The metric that tells answers apart (`labkit.metrics.answer_given`); a study asks for it with ``metrics``."""

ANSWERS = ("copy", "learner", "undecided", "no errors", "no control")
"""Every value of the column ``answer``."""

_OWN, _ALONE, _ERRED = np.eye(3)


@dataclasses.dataclass(frozen=True)
class ImitationRow:
    """One ability of one kind of student. Intervals are 95 %; the control is that of equal size, seed and tokens."""

    rung: str  # the teacher's
    start: str
    size: str
    way: str
    tokens: int
    ability: str
    errors: float  # share of items on which the teachers err
    same: float  # of those: how often the student gives the teacher's own wrong answer
    same_low: float
    same_high: float
    alone: float  # how often the control does, which never met the teacher
    excess: float  # same − alone, paired by seed and item
    excess_low: float
    excess_high: float
    kappa: float  # error consistency with the teacher, mean over seeds
    kappa_low: float
    kappa_high: float
    kappa_alone: float  # that of the control, same seeds
    kappa_excess: float
    kappa_excess_low: float
    kappa_excess_high: float
    n_seeds: int
    n_kappa: int  # seeds of which neither model is always right or always wrong, so that there is a kappa
    n_items: int
    answer: str  # one of ANSWERS
    reason: str


def imitation(rows: pd.DataFrame, rule: Rule = Rule()) -> pd.DataFrame:
    """For each ability and kind of student: does it err as its teacher does, more than practice alone explains?

    *Same* is the share of the teacher's errors on which the student gives the very same wrong answer. Some answers are
    natural mistakes: the control, trained from scratch on the same tokens, gives them too, and the *excess* over it is
    what came from the teacher. Rates and their difference are ratios of means over seeds and items, with Fieller's
    intervals (`labkit.statistics.ratio_interval`). The rule, written before any row of a student was looked at:

    - **no control**: no student of that size was trained from scratch on as many tokens;
    - **no errors**: the share of items on which the teachers err cannot be told from 0;
    - **undecided**: fewer than `min_seeds` seeds;
    - **learner**: the upper bound of the 90 % interval of the excess is below `margin`;
    - **copy**: the lower bound of its 95 % interval is above 0;
    - **undecided**: everything else.

    *Error consistency* is Cohen's κ of right and wrong (`kappa`), computed seed by seed; its intervals are t-intervals
    over seeds, for these items. It asks which items are hard for both, not what is answered, and decides nothing here.

    Parameters
    ----------
    rows : frame with the columns of `labkit.records.ItemRow`, with the metrics ``exact_match`` and ``answer_given``;
        abilities without them are left out, and so are students that were trained from scratch.
    rule : `margin` and `min_seeds` are used.

    Returns
    -------
    Frame with the columns of `ImitationRow`, in the order of `labkit.students.students`.

    Raises
    ------
    LabkitError
        No row says which answer was given; else as `labkit.pairing.tables`.
    """
    need(rows, columns(ItemRow))
    rows = rows[rows["metric"].isin([EXACT_MATCH, ANSWER_GIVEN])]
    if not (rows["metric"] == ANSWER_GIVEN).any():
        remedy = f'Measure with metrics = ["{ANSWER_GIVEN}"] in the study.'
        raise LabkitError("rows say which answer was given", f"no metric {ANSWER_GIVEN}", remedy)
    made = students(rows)
    marked = rows.loc[rows["metric"] == EXACT_MATCH, "ability"].unique()  # others have no right and wrong
    rows = rows[rows["compression"].isin(["dense", *made["compression"]]) & rows["ability"].isin(marked)]
    rows = rows.assign(chance=rows["chance"].where(rows["metric"] != ANSWER_GIVEN, 0.0))  # an answer has no chance
    told = []
    scored = {key: found for key, found in tables(rows).items() if {EXACT_MATCH, ANSWER_GIVEN} <= set(found)}
    for student in made[made["way"] != SCRATCH].itertuples(index=False):
        equal = (made["params"] == student.params) & (made["tokens"] == student.tokens) & (made["way"] == SCRATCH)
        control = [(c.compression, c.sparsity) for c in made[equal & (made["rung"] == student.rung)].itertuples()]
        for (rung, ability), metrics in sorted(scored.items()):
            keys = [(student.compression, student.sparsity), *control[:1]]
            both = [key for key in keys if all(key in metrics[metric] for metric in (EXACT_MATCH, ANSWER_GIVEN))]
            if rung == student.rung and both[:1] == keys[:1]:
                told.append(_row(student, ability, metrics, both, rule))
    return pd.DataFrame([dataclasses.asdict(row) for row in told], columns=columns(ImitationRow))


def kappa(one: ArrayLike, other: ArrayLike) -> np.ndarray:
    """Error consistency of two models: Cohen's κ of right (1) and wrong (0), over the last axis; NaN where there is none.

    κ = (c − e)/(1 − e), c being how often both are right or both wrong, and e = p·q + (1 − p)(1 − q) how often two
    models of these accuracies p and q would be if they erred independently. 0: independent; 1: the same items.
    Sources: Cohen (1960), Educ. Psychol. Meas. 20, 37; Geirhos, Meding & Wichmann (2020), arXiv 2006.16736.

    >>> round(float(kappa([1, 1, 1, 0, 0], [1, 1, 0, 0, 1])), 4)
    0.1667
    """
    one, other = np.asarray(one, bool), np.asarray(other, bool)
    p, q = one.mean(axis=-1), other.mean(axis=-1)
    expected = p * q + (1 - p) * (1 - q)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected < 1, ((one == other).mean(axis=-1) - expected) / (1 - expected), np.nan)


def _row(student: tuple, ability: str, metrics: dict, keys: list[tuple[str, float]], rule: Rule) -> ImitationRow:
    blocks = [[metrics[metric][key] for metric in (EXACT_MATCH, ANSWER_GIVEN)] for key in (*keys, UNCOMPRESSED)]
    seeds = blocks[0][0].seeds
    for block in (block for pair in blocks for block in pair):
        seeds = np.intersect1d(seeds, block.seeds)
        if not np.array_equal(block.items, blocks[0][0].items):
            received = f"rung {student.rung}, {student.compression}, {ability}"
            raise LabkitError("teacher, student and control answer the same items", received, "Score them again.")
    *ours, (right, given) = ([_at(block, seeds) for block in pair] for pair in blocks)
    erred = right < 1
    repeated = [erred & (answer == given) for _, answer in ours]
    alone = len(ours) > 1
    spread = Spread.of(np.stack([repeated[0], repeated[-1], erred]).astype(float)) if len(seeds) else None
    rate, other, excess, inner = _rates(spread, alone)
    kappas = np.array([kappa(score == 1, right == 1) for score, _ in ours])
    known = ~np.isnan(kappas).any(axis=0)
    of_control = kappas[1, known] if alone else np.full(known.sum(), np.nan)
    answer, reason = _answer(rate, excess, inner, len(seeds), alone, rule)
    return ImitationRow(
        student.rung, student.start, student.size, student.way, student.tokens, ability,
        float(erred.mean()) if erred.size else np.nan, *rate, other, *excess, *_over_seeds(kappas[0, known]),
        _over_seeds(of_control)[0], *_over_seeds(kappas[0, known] - of_control), len(seeds), int(known.sum()),
        right.shape[1], answer, reason,
    )  # fmt: skip


def _at(block: Block, seeds: np.ndarray) -> np.ndarray:
    return block.at(seeds).value


def _rates(spread: Spread | None, alone: bool) -> tuple[tuple, float, tuple, np.ndarray]:
    """Same, alone, excess with bounds, and the 90 % bounds of the excess."""
    unknown = (np.nan,) * 3
    if spread is None or spread.mean[2] == 0:
        return unknown, np.nan, unknown, np.full(2, np.nan)

    def ratio(weights: np.ndarray) -> tuple:
        return (spread.mean @ weights / spread.mean[2], *map(float, ratio_interval(spread, weights, _ERRED, unit=1.0)))

    if not alone:
        return ratio(_OWN), np.nan, unknown, np.full(2, np.nan)
    inner = ratio_interval(spread, _OWN - _ALONE, _ERRED, 0.90, unit=1.0)
    return ratio(_OWN), float(spread.mean[1] / spread.mean[2]), ratio(_OWN - _ALONE), inner


def _over_seeds(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and 95 % t-interval."""
    if len(values) < 2:
        return (float(values.mean()) if len(values) else np.nan, np.nan, np.nan)
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def _answer(
    rate: tuple, excess: tuple, inner: np.ndarray, n_seeds: int, alone: bool, rule: Rule
) -> tuple[str, str]:
    if not alone:
        return "no control", "nothing was trained from scratch on as many tokens"
    if n_seeds < rule.min_seeds:
        return "undecided", f"{n_seeds} of the {rule.min_seeds} seeds the rule asks for"
    if np.isnan(rate[1]):
        return "no errors", "the share of items on which the teachers err cannot be told from 0"
    span = f"95 % interval of the excess {excess[1]:.3f} to {excess[2]:.3f}"
    if inner[1] < rule.margin:
        return "learner", f"90 % interval of the excess, {inner[0]:.3f} to {inner[1]:.3f}, ends below {rule.margin:g}"
    return ("copy", f"{span} is above 0") if excess[1] > 0 else ("undecided", f"{span} neither lies above 0 nor ends below {rule.margin:g}")
