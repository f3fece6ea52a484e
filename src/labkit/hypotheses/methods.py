"""Whether it matters how a model is made small: H5, H6 and H9."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pandas as pd
from scipy import stats

from labkit.hypotheses.base import (
    GATE, LEAST, LEVEL, MARGIN, Evidence, Finding, Hypothesis, about, by_criterion, damage, few, healing,
)  # fmt: skip
from labkit.records import DENSE
from labkit.scores import primary
from labkit.statistics import mcnemar
from labkit.storage import quantized_bits, sparse_bits
from labkit.students import CONDITION, FRESH, SCRATCH, students

TAUGHT = "forward-kl"
"""The way of distillation that H5 is about, from fresh weights; the others are looked at, not tested."""

ALIKE = 0.05
"""Difference, as a share, up to which two ways leave the same size: in parameters (H6), in bytes (H9)."""

_DEPTH, _WIDTH = ("drop-layers", "keep-layers"), ("shrink",)


def _appears(evidence: Evidence, kept: pd.DataFrame) -> Finding:
    """Students with and without a teacher, of one size, seed and number of tokens; abilities that their teacher has."""
    made = students(evidence.rows)
    made = made[(made["start"] == FRESH) & made["way"].isin([TAUGHT, SCRATCH])]
    told = primary(kept).dropna(subset="kept").merge(made[[*CONDITION, "way", "tokens"]], on=CONDITION)
    gains = told.pivot_table(index=["rung", "seed", "params", "tokens", "ability"], columns="way", values="gain")
    there = (gains.reindex(columns=[TAUGHT, SCRATCH]).dropna() >= GATE).astype(float)
    if there.empty:
        return Finding(reason=f"needs students distilled ({TAUGHT}) and trained from scratch on equal tokens")
    pairs = there[TAUGHT] - there[SCRATCH]
    only = int((pairs > 0).sum()), int((pairs < 0).sum())
    reason = (
        f"of the teachers' abilities {there[TAUGHT].mean():.2f} appear with, {there[SCRATCH].mean():.2f} without them; "
        f"of {len(pairs)} pairs {only[0]} only with, {only[1]} only without (McNemar's p {float(mcnemar(*only)):.2g}, "
        "as if abilities of one student were independent); p: exact, over signs of the seeds"
    )
    found = about(pairs.groupby(level=["rung", "seed"]).mean(), ">", 0.0, reason)
    if len(found.values) < 2:
        return found
    # Exact up to 16 dense models; beyond, signs are drawn.
    signs = {"permutation_type": "samples", "alternative": "greater", "n_resamples": 2**16, "random_state": 0}
    return dataclasses.replace(found, p=float(stats.permutation_test((found.values,), np.mean, **signs).pvalue))


def _depth_and_width(evidence: Evidence, kept: pd.DataFrame) -> Finding:
    """Friedman's test: do the differences R_depth − R_width of the same dense models put abilities in one order?

    Below chance nothing more is lost, so retention counts as 0 there. A pair of conditions leaves the same parameters
    within `ALIKE` and was healed alike; of several the one with most dense models, then the closest, is tested. Only
    abilities that every one of these dense models has are compared. Ranks within a model assume no distribution; with
    no interaction every order of the abilities is as likely. W is Kendall's: 0 for no common order, 1 for the same.
    """
    rows = primary(kept)
    rows = rows[rows["compression"] != DENSE].assign(R=rows["kept"].clip(lower=0))
    conditions = {key: group for key, group in rows.groupby(["rung", "compression", "sparsity"])}
    depths, widths = ([k for k in conditions if damage(k[1]).startswith(kind)] for kind in (_DEPTH, _WIDTH))
    pairs = []
    for d, w in ((d, w) for d in depths for w in widths if d[0] == w[0] and healing(d[1]) == healing(w[1])):
        sizes = [conditions[key]["params"].mean() for key in (d, w)]
        shared = set(conditions[d]["seed"]) & set(conditions[w]["seed"])
        if abs(sizes[0] / sizes[1] - 1) <= ALIKE and len(shared) > 1 and "random" not in d[1] + w[1]:
            pairs.append((-len(shared), abs(sizes[0] / sizes[1] - 1), d, w))
    if not pairs:
        return Finding(reason="needs drop-layers and shrink with equal parameters left, from the same dense models")
    _, _, depth, width = min(pairs)
    both = [conditions[key].pivot_table(index="seed", columns="ability", values="R") for key in (depth, width)]
    difference = (both[0] - both[1]).dropna(axis=0, how="all").dropna(axis=1)
    told = f"R({depth[1]}) − R({width[1]}) of rung {depth[0]}"
    models, abilities = difference.shape
    if abilities < 3:
        return Finding(outcome="undecided", reason=f"{told}: {abilities} abilities that every dense model has")
    with np.errstate(invalid="ignore"):
        ranked = stats.friedmanchisquare(*difference.to_numpy().T)
    p = 1.0 if np.isnan(ranked.pvalue) else float(ranked.pvalue)  # NaN: all are equal
    agreement = 0.0 if np.isnan(ranked.statistic) else float(ranked.statistic / (models * (abilities - 1)))
    means = difference.mean().sort_values()
    reason = (
        f"{told}: from {means.iloc[0]:+.2f} ({means.index[0]}) to {means.iloc[-1]:+.2f} ({means.index[-1]}) over "
        f"{abilities} abilities; the estimate is Kendall's W, p Friedman's"
    )
    apart = difference.sub(difference.mean(axis=1), axis=0)
    half = stats.t.ppf(0.975, models - 1) * apart.sem()
    if models < LEAST:
        outcome, reason = "undecided", f"{reason}; {few(models)}"
    elif p < LEVEL:
        outcome = "supported"
    else:
        outcome = "refuted" if (apart.mean().abs() + half).max() <= MARGIN else "undecided"
    return Finding(tuple(difference.mean(axis=1)), outcome, agreement, p=p, reason=reason)


def _equal_bytes(evidence: Evidence, kept: pd.DataFrame) -> Finding:
    """R_quantised − R_pruned of the same dense models, over all pairs of conditions that take equal bytes.

    Below chance nothing more is lost, so retention counts as 0 there.
    """
    rows = primary(kept).dropna(subset="kept")
    rows = rows.assign(R=rows["kept"].clip(lower=0), bits=[_bits(*k) for k in rows[["compression", "sparsity"]].values])
    quantised, pruned = (
        rows[rows["bits"].notna() & (rows["compression"].str.startswith("int") == own)] for own in (True, False)
    )
    both = quantised.merge(pruned, on=["rung", "seed", "ability"], suffixes=("", "_pruned"))
    both = both[(both["bits"] / both["bits_pruned"] - 1).abs() <= ALIKE]
    if both.empty:
        return Finding(reason="needs quantised and pruned models of equal bytes, from the same dense models")
    both = both.assign(apart=both["R"] - both["R_pruned"])
    told = [f"{name} {apart:+.2f}" for name, apart in both.groupby("compression")["apart"].mean().items()]
    against = ", ".join(sorted(both["compression_pruned"].unique()))
    reason = f"R(quantised) − R({against}), mean over abilities: {', '.join(told)}"
    return about(both.groupby(["rung", "seed"])["apart"].mean(), ">", 0.0, reason)


def _bits(compression: str, sparsity: float) -> float:
    """Bits per weight; NaN for what is neither quantised nor pruned without a pattern, by a criterion, and left so."""
    if quantised := re.fullmatch(r"int(\d)", compression):
        return quantized_bits(int(quantised[1]))
    return sparse_bits(sparsity) if sparsity and by_criterion(compression) and ":" not in compression else np.nan


H5 = Hypothesis(
    "H5", "distillation raises the chance that an ability appears in a small student",
    "P(appears | distilled) − P(appears | trained alike without a teacher) has a lower 95 % bound above 0",
    "with a teacher at hand distillation gives less loss, up to a compute that grows with the student",
    "Busbridge et al. 2025, arXiv 2502.08606", _appears,
)  # fmt: skip
H6 = Hypothesis(
    "H6", "depth and width pruning at equal parameters lose different abilities",
    "the method × ability interaction of retention has p < 0.05, by Friedman's test over dense models; refuted if "
    "every ability's R_depth − R_width is within ± 0.1 of their mean, with its 95 % interval",
    "Llama 3.1 8B made 4B: GSM8K 16.8 by depth, 41.2 by width (MMLU 58.7, 60.5)",
    "Sreenivas et al. 2024 (Minitron), arXiv 2408.11796", _depth_and_width,
)  # fmt: skip
H9 = Hypothesis(
    "H9", "at equal bytes quantisation keeps more than pruning",
    "the paired difference in retention, mean over abilities, criteria and sizes that take equal bytes within 5 %, "
    "has a lower 95 % bound above 0",
    "quantisation keeps more than pruning (not compared at equal bytes)",
    "LLM-KICK (Jaiswal et al. 2023), arXiv 2310.01382", _equal_bytes,
)  # fmt: skip
