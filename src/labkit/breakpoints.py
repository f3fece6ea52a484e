"""Break-points: how sparse a model can be made before an ability falls below a retention."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from labkit.errors import LabkitError
from labkit.pairing import UNCOMPRESSED, UNIT, Group, Tables, gains, having, paired, primary, tables
from labkit.records import columns
from labkit.statistics import Spread, ratio_interval

_STEPS = 64  # places looked at between two sparsities


@dataclasses.dataclass(frozen=True)
class BreakPointRow:
    """Where one ability of one rung breaks along the sparsities of one compression."""

    rung: str
    compression: str
    ability: str
    metric: str  # the primary one, as in a verdict
    break_point: float  # sparsity at which retention first falls below the level; NaN where it does not
    low: float  # 95 % interval of it; NaN at an end that lies beyond the sparsities measured
    high: float
    n_seeds: int  # seeds used: those whose dense model has the ability, measured at every sparsity
    n_items: int  # items per seed
    n_sparsities: int  # measured, without the dense models
    reason: str  # what limits the estimate, in words; empty where nothing does


def break_point(rows: pd.DataFrame, retention: float = 0.5, gate: float = 0.20) -> pd.DataFrame:
    """The sparsity at which each ability falls below a retention, for every compression that was measured at several.

    Retention is drawn as straight lines between sparsities, from the dense models (1 at sparsity 0) on. The break-point
    is where they first fall below the level. Its interval holds every sparsity at which the 95 % interval of
    retention (`labkit.statistics.ratio_interval`) holds the level: from where the lower bound first falls below it,
    to where the upper bound last is above it. It is as wide as retention is uncertain there, and the curve flat; that
    retention is straight between the sparsities measured is assumed, not shown; `reason` says where the break-point
    rests on nothing but the line from 1 to the first of them.

    Parameters
    ----------
    rows : frame with the columns of `labkit.records.ItemRow`. Compressions whose sparsity is not a dial (such as
        dropped layers) are left out.
    retention : the level, in (0, 1). gate : as in `labkit.verdict.Rule`.

    Returns
    -------
    Frame with the columns of `BreakPointRow`.

    Raises
    ------
    LabkitError
        The level or the gate is not in (0, 1), or rows that `labkit.judge` would refuse.
    """
    for name, value in (("retention", retention), ("gate", gate)):
        if not 0 < value < 1:
            raise LabkitError(f"{name} lies in (0, 1)", value, "Give a fraction, e.g. 0.5.")
    told = []
    for (rung, ability), metrics in sorted(tables(rows).items()):
        metric = primary(metrics)
        doses: dict[str, list[float]] = {}
        for compression, sparsity in sorted(key for key in metrics[metric] if key != UNCOMPRESSED and key[1] > 0):
            doses.setdefault(compression, []).append(sparsity)
        for compression, sparsities in doses.items():
            group = Group(rung, compression, 0.0, ability, metric)
            told.append(_row(metrics, group, np.array(sparsities), retention, gate))
    return pd.DataFrame([dataclasses.asdict(row) for row in told], columns=columns(BreakPointRow))


def _row(metrics: Tables, group: Group, sparsities: np.ndarray, level: float, gate: float) -> BreakPointRow:
    pairs = [paired(metrics, group._replace(sparsity=float(sparsity))) for sparsity in sparsities]
    dense = metrics[group.metric][UNCOMPRESSED]
    used, _ = having(dense, group.metric, gate)
    for compressed, _ in pairs:
        used = np.intersect1d(used, compressed.seeds)
    counts = (len(used), len(dense.items), len(sparsities))
    ends, reason = (np.nan,) * 3, ""
    if len(used) < 2:
        reason = f"{len(used)} seeds with the ability at every sparsity give no interval"
    elif len(sparsities) < 2:
        reason = "one sparsity shows no curve"
    else:
        values = gains(group.metric, used, *(compressed for compressed, _ in pairs), dense)
        ends, reason = _crossing(np.r_[0.0, sparsities], np.roll(values, 1, axis=0), level, UNIT[group.metric])
    return BreakPointRow(group.rung, group.compression, group.ability, group.metric, *ends, *counts, reason)


def _crossing(doses: np.ndarray, values: np.ndarray, level: float, unit: float) -> tuple[tuple[float, ...], str]:
    """Break-point and bounds from (doses, seeds, items) gains, the dense ones first."""
    spread = Spread.of(values)
    place = np.linspace(0, len(doses) - 1, _STEPS * (len(doses) - 1) + 1)
    # Hat functions: between two doses the gain is a weighted sum of theirs, so that one interval serves everywhere.
    over = np.maximum(0, 1 - abs(place[:, None] - np.arange(len(doses))))
    low, high = ratio_interval(spread, over, np.eye(len(doses))[0], unit=unit)
    if np.isnan(low).any():
        return (np.nan,) * 3, "the dense models cannot be told from chance"
    sparsity, ratio = np.interp(place, np.arange(len(doses)), doses), over @ spread.mean / spread.mean[0]
    ends = (_first(sparsity, ratio, level), _first(sparsity, low, level), _first(sparsity, high, level, last=True))
    if np.isnan(ends[0]):
        return ends, f"retention stays above {level:g} up to sparsity {doses[-1]:g}"
    limits = []
    if ends[0] < doses[1]:
        limits.append(f"below the least sparsity measured, {doses[1]:g}: rests on a straight line from 1 at 0")
    if np.isnan(ends[2]):
        limits.append(f"the upper bound is still above {level:g} at sparsity {doses[-1]:g}")
    return ends, "; ".join(limits)


def _first(sparsity: np.ndarray, curve: np.ndarray, level: float, last: bool = False) -> float:
    """Where a curve first (or finally) falls below the level; NaN where it does not."""
    below = curve < level
    if not below.any() or (last and not below[-1]):
        return np.nan
    after = int(np.flatnonzero(~below)[-1]) + 1 if last else int(below.argmax())
    if after == 0:
        return float(sparsity[0])
    part = (curve[after - 1] - level) / (curve[after - 1] - curve[after])
    return float(sparsity[after - 1] + part * (sparsity[after] - sparsity[after - 1]))
