"""What training after the damage brings back: H3 and H10."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from labkit import curves
from labkit.hypotheses.base import CONTROL, LEAST, Evidence, Finding, Hypothesis, damage, few, healing
from labkit.records import DENSE, NLL_NATS
from labkit.scores import primary

EVIDENCE, SCATTER, DOSES = 6.0, 0.05, 5
"""Of H3: the difference in BIC that decides, the least scatter of retention over models that a curve assumes (both as
in `labkit.emergence.Rule`), and the doses, other than none, without which there is no curve."""

BACK, AMOUNTS = 0.95, 3
"""Of H10: the retention from which an ability is back (where "kept" begins in a verdict), and the amounts of healing,
other than none, without which there is no time."""

_DRAWS, _SEED = 400, 0


def _breaks_in_accuracy_only(evidence: Evidence, kept: pd.DataFrame) -> Finding:
    """A break against a line through what is lost, 1 − R, over the sparsity before the same healing.

    R is averaged over the abilities that a dense model has and that were measured at every dose: once in their primary
    metrics (accuracy), once in nats. One point per dense model and dose; dose 0 is the undamaged model trained on as
    long, if there is one. For each of the two, the evidence is the BIC of the line less that of the break. Dense models
    are resampled: the interval is of the difference, accuracy's evidence less that of nats, and p is the share of draws
    in which it is not above 0.
    """
    rows = kept[(kept["compression"] != DENSE) & kept["kept"].notna()]
    names = {name: (damage(name), healing(name)) for name in rows["compression"].unique()}
    doses = rows[[all(names[name]) and "random" not in name for name in rows["compression"]]]
    doses = doses.groupby("compression")["sparsity"].nunique().sort_index()
    if doses.empty or doses.max() < DOSES:
        return Finding(reason=f"needs one compression with recovery at {DOSES} or more doses, of the same dense models")
    name = doses.idxmax()
    undamaged = [other for other, (taken, trained) in names.items() if not taken and trained == names[name][1]]
    rows = rows[rows["compression"].isin([name, *undamaged])]
    lost = [_mean_loss(part, rows["sparsity"].nunique()) for part in (primary(rows), rows[rows["metric"] == NLL_NATS])]
    shared = lost[0].index.intersection(lost[1].index)  # (rung, seed) x sparsity
    if shared.empty:
        return Finding(reason=f"needs nats and accuracy of the same dense models at every dose of {name}")
    lost = [part.loc[shared] for part in lost]
    x = lost[0].columns.to_numpy(float)
    accuracy, nats = (_break(x, part.to_numpy()) for part in lost)
    reason = (
        f"{name} at {', '.join(f'{dose:g}' for dose in x)}: BIC favours a break by {accuracy:+.1f} in accuracy, "
        f"{nats:+.1f} in nats; the estimate is their difference, p and interval from resampled dense models"
    )
    values, models = tuple(map(float, lost[0].mean(axis=1))), len(shared)
    if models < 2:
        return Finding(values, "undecided", accuracy - nats, reason=f"{reason}; {few(models)}")
    generator = np.random.default_rng(_SEED)
    draws = generator.integers(models, size=(_DRAWS, models))
    drawn = np.array([np.subtract(*(_break(x, part.to_numpy()[d]) for part in lost)) for d in draws])
    low, high = np.quantile(drawn, [0.025, 0.975])
    p = (1 + (drawn <= 0).sum()) / (1 + _DRAWS)
    if models < LEAST:
        outcome, reason = "undecided", f"{reason}; {few(models)}"
    elif accuracy >= EVIDENCE and nats <= 0:
        outcome = "supported"
    else:
        outcome = "refuted" if accuracy <= 0 or min(accuracy, nats) >= EVIDENCE else "undecided"
    return Finding(values, outcome, accuracy - nats, float(low), float(high), float(p), reason)


def _mean_loss(rows: pd.DataFrame, doses: int) -> pd.DataFrame:
    """1 − mean retention: (rung, seed) × sparsity, over abilities measured at all the doses."""
    wide = rows.pivot_table(index=["rung", "seed", "ability"], columns="sparsity", values="kept")
    whole = wide.reindex(columns=sorted(rows["sparsity"].unique())).dropna()
    whole = whole if whole.shape[1] == doses else whole[:0]
    return 1 - whole.groupby(level=["rung", "seed"]).mean()


def _break(x: np.ndarray, y: np.ndarray) -> float:
    """BIC of a line less that of a break, through (models, doses)."""
    x, y = np.tile(x, len(y)), y.ravel()
    return curves.fit("line", x, y, SCATTER).bic - curves.fit("break", x, y, SCATTER).bic


def _order_of_return(evidence: Evidence, kept: pd.DataFrame) -> Finding:
    """Tokens of training until retention is `BACK`: the control's, the facts', and the median emergent ability's.

    Between two amounts retention is a straight line, the first from the damaged model at 0 tokens. An ability that is
    not back after the most tokens comes after all that are. One that the damage did not take below `BACK` has no time,
    and a dense model without all three times is left out. Dense models are resampled: p is the share of draws in which
    the medians over them are not in the claimed order, all apart.
    """
    found = primary(kept)
    found = found[(found["compression"] != DENSE) & found["kept"].notna()]
    names = {name: (damage(name), *_amount(healing(name))) for name in found["compression"].unique()}
    parts = pd.DataFrame([names[name] for name in found["compression"]], found.index, ["damage", "how", "tokens"])
    told = found.join(parts)
    told = told[(told["damage"] != "") & ~told["damage"].str.contains("random")]
    keys = ["damage", "sparsity", "how"]
    amounts = told[told["tokens"] > 0].groupby(keys)["tokens"].nunique().sort_index()
    emergent = [ability for ability in evidence.of("emergent") if ability not in (CONTROL, "facts")]
    if amounts.empty or amounts.max() < AMOUNTS:
        return Finding(reason=f"needs rows at {AMOUNTS} or more points of one recovery, for {LEAST} dense models")
    taken, sparsity, how = amounts.idxmax()
    told = told[(told["damage"] == taken) & (told["sparsity"] == sparsity) & told["how"].isin([how, ""])]
    wide = told.pivot_table(index=["rung", "seed", "ability"], columns="tokens", values="kept")
    wide = wide.reindex(columns=sorted({0, *wide})).dropna()
    wide = wide[wide[0] < BACK]
    if wide.empty:
        return Finding(reason=f"needs abilities that {taken} damages, before and after {how}")
    times = wide.apply(_time, axis=1).unstack("ability")
    classes = {CONTROL: [CONTROL], "facts": ["facts"], "emergent": emergent}
    each = pd.DataFrame({name: times.reindex(columns=own).median(axis=1) for name, own in classes.items()}).dropna()
    models = len(each)
    reason = f"tokens of {how} after {taken} {sparsity:g} until {BACK:g} of the dense ability is back"
    if models < 2:
        missing = [name for name, own in classes.items() if times.reindex(columns=own).isna().all(axis=None)]
        ending = f"; none of {', '.join(missing)}" if missing else ""
        return Finding(outcome="undecided", reason=f"{reason}: {few(models)}{ending}")
    draws = np.random.default_rng(_SEED).integers(models, size=(_DRAWS, models))
    first, then, last = np.median(each.to_numpy()[draws], axis=1).T
    ordered, reversed_ = (first < then) & (then < last), (first > then) | (then > last)
    medians = ", ".join(f"{name} {_count(value, wide.columns.max())}" for name, value in each.median().items())
    reason += f", medians: {medians}; the estimate is the share of resamples of the dense models in this order"
    outcome = "supported" if ordered.mean() >= 0.95 else "refuted" if reversed_.mean() >= 0.95 else "undecided"
    if models < LEAST:
        outcome, reason = "undecided", f"{reason}; {few(models)}"
    p = (1 + np.count_nonzero(~ordered)) / (1 + _DRAWS)
    return Finding(tuple(each["emergent"]), outcome, float(ordered.mean()), p=float(p), reason=reason)


def _amount(trained: str) -> tuple[str, int]:
    """"full 200k" -> ("full", 200000); nothing is ("", 0)."""
    named = re.fullmatch(r"(.+) ([\d.]+)([kM])", trained)
    return (named[1], round(float(named[2]) * {"k": 1_000, "M": 1_000_000}[named[3]])) if named else ("", 0)


def _time(kept: pd.Series) -> float:
    """Where straight lines through (tokens, retention) first reach `BACK`; infinite where they do not."""
    tokens, kept = kept.index.to_numpy(float), kept.to_numpy()
    there = np.flatnonzero(kept >= BACK)
    if not there.size:
        return np.inf
    k = there[0]
    return float(np.interp(BACK, kept[k - 1 : k + 1], tokens[k - 1 : k + 1]))


def _count(tokens: float, most: float) -> str:
    return f"{tokens / 1000:,.0f} k" if np.isfinite(tokens) else f"more than {most / 1000:,.0f} k"


H3 = Hypothesis(
    "H3", "after healing, accuracy breaks with dose while nats do not",
    "a break is better than a line by BIC ≥ 6 for accuracy, and not better at all for nats; refuted if it is no better "
    "for accuracy, or better by 6 for both",
    "Llama-2-70B without 40–50 % of its layers: accuracy falls suddenly, the healed loss grows slowly",
    "Gromov et al. 2024, arXiv 2403.17887",
    _breaks_in_accuracy_only,
)  # fmt: skip
H10 = Hypothesis(
    "H10", "recovery brings back controls, then facts, then emergent abilities",
    "the order of median recovery times is this one in at least 95 % of bootstrap draws over seeds; refuted if two "
    "neighbours are the other way round in as many",
    "without some layers: reasoning, even arithmetic, is not back after about 400 B tokens, classification up to 90 %",
    "Shrestha et al. 2026, arXiv 2602.01997", _order_of_return,
)  # fmt: skip
