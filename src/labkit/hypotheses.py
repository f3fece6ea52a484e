"""H1 to H10: what was claimed before the rows were read, and what our rows say. A refuted hypothesis stands."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd
from scipy import stats

from labkit.errors import LabkitError
from labkit.records import DENSE, EXACT_MATCH, NLL_NATS, columns
from labkit.scores import primary, scores

OUTCOMES = ("supported", "refuted", "undecided", "no rows")
"""Every value of the column ``outcome``."""

GATE, MARGIN, LEVEL, LEAST = 0.20, 0.10, 0.05, 5
"""Fixed before the rows were read: the gain from which a dense model has an ability; the difference in retention that
matters; the level of Holm's correction; and the dense models (rung, seed) without which nothing is decided."""

NATS = 0.02
"""Mean nats per token within which two kinds of model count as equally good language models (H4)."""


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What hypotheses are put to.

    Attributes
    ----------
    rows : frame with the columns of `labkit.records.ItemRow`; with ``frequency`` (how often a fact was trained on) if
        H7 is to be decided.
    outcomes : ability and outcome, as `labkit.emergence.emergence` returns.
    verdicts : rung, compression, sparsity, ability and verdict, as `labkit.verdict.judge` returns; for H8.
    """

    rows: pd.DataFrame
    outcomes: pd.DataFrame
    verdicts: pd.DataFrame | None = None


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


@dataclasses.dataclass(frozen=True)
class HypothesisRow:
    """One hypothesis, tested."""

    name: str
    statement: str
    rule: str
    outcome: str  # one of OUTCOMES
    estimate: float
    low: float
    high: float
    n_models: int  # dense models (rung, seed) that the estimate averages
    p: float
    p_holm: float  # over all hypotheses that have a p-value
    published: str
    source: str
    reason: str


def examine(evidence: Evidence, hypotheses: Iterable[Hypothesis] | None = None) -> pd.DataFrame:
    """Put hypotheses, by default all of `HYPOTHESES`, to the evidence: a frame with the columns of `HypothesisRow`.

    "Supported" needs p < 0.05 after Holm's (1979) correction over those that could be tested; "refuted" needs an
    interval that leaves no room for the claim. Raises LabkitError as `labkit.scores.scores`, for outcomes without
    their columns, and for an ability with two outcomes.
    """
    missing = [name for name in ("ability", "outcome") if name not in evidence.outcomes]
    if missing:
        raise LabkitError("outcomes say which abilities are emergent", f"no {', '.join(missing)}", "Run emergence.")
    twice = evidence.outcomes["ability"].duplicated()
    if twice.any():
        first = evidence.outcomes["ability"][twice].iloc[0]
        raise LabkitError("an ability has one outcome", f"two of {first}", "Drop one.")
    kept = retained(evidence.rows)
    asked = tuple(HYPOTHESES if hypotheses is None else hypotheses)
    findings = [hypothesis.test(evidence, kept) for hypothesis in asked]
    corrected = holm([finding.p for finding in findings])
    told = []
    for hypothesis, found, p_holm in zip(asked, findings, corrected, strict=True):
        outcome, reason = found.outcome, found.reason
        if outcome == "supported" and not p_holm < LEVEL:
            outcome, reason = "undecided", f"{reason}; not after Holm's correction"
        claim = hypothesis.name, hypothesis.statement, hypothesis.rule, outcome
        numbers = found.estimate, found.low, found.high, len(found.values), found.p, p_holm
        told.append(HypothesisRow(*claim, *numbers, hypothesis.published, hypothesis.source, reason))
    return pd.DataFrame([dataclasses.asdict(row) for row in told], columns=columns(HypothesisRow))


def holm(p: Iterable[float]) -> np.ndarray:
    """Step-down adjusted p-values; NaN stays NaN, uncounted. Source: Holm (1979), Scand. J. Statist. 6:65–70."""
    p = np.asarray(list(p), float)
    adjusted, known = np.full(len(p), np.nan), np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return adjusted


def retained(rows: pd.DataFrame) -> pd.DataFrame:
    """What `labkit.scores.scores` returns of every metric, with ``dense`` (the gain of the dense parent) and ``kept``:
    gain / dense, NaN where the parent's primary gain is below `GATE`."""
    means = scores(rows.assign(sparsity=rows["sparsity"].where(rows["compression"] != DENSE, 0.0)))
    keys = ["rung", "seed", "ability", "metric"]
    dense = means[means["compression"] == DENSE].set_index(keys)["gain"].rename("dense")
    means = means.join(dense, on=keys)
    first = primary(means[means["compression"] == DENSE]).set_index(["rung", "seed", "ability"])["gain"].rename("had")
    means = means.join(first, on=["rung", "seed", "ability"])
    has = (means["had"] >= GATE) & (means["dense"] > 0)
    return means.assign(kept=np.where(has, means["gain"] / means["dense"].where(has), np.nan)).drop(columns="had")


def _about(values: Iterable[float], claim: str, bound: float, reason: str) -> Finding:
    """t-test of one number per dense model. `claim`: "<" or ">" `bound`, or "!=": equal is within ± MARGIN of it."""
    v = np.array([value for value in values if not np.isnan(value)])
    if len(v) < 2:
        return Finding(tuple(v), "undecided" if len(v) else "no rows", reason=f"{reason}: {len(v)} dense models")
    half = stats.t.ppf(0.975, len(v) - 1) * stats.sem(v)
    estimate, low, high = float(v.mean()), float(v.mean() - half), float(v.mean() + half)
    if stats.sem(v) == 0:
        p = float(not {"<": estimate < bound, ">": estimate > bound, "!=": estimate != bound}[claim])
    else:
        p = float(
            stats.ttest_1samp(v, bound, alternative={"<": "less", ">": "greater", "!=": "two-sided"}[claim]).pvalue
        )
    if len(v) < LEAST:
        outcome, reason = "undecided", f"{reason}; {len(v)} of the {LEAST} dense models the rule asks for"
    elif {"<": high < bound, ">": low > bound, "!=": not low <= bound <= high}[claim]:
        outcome = "supported"
    elif {"<": low >= bound, ">": high <= bound, "!=": max(abs(low - bound), abs(high - bound)) <= MARGIN}[claim]:
        outcome = "refuted"
    else:
        outcome = "undecided"
    return Finding(tuple(map(float, v)), outcome, estimate, low, high, p, reason)


def _table(kept: pd.DataFrame) -> pd.DataFrame:
    """Retention in the primary metric, a row per compressed model, a column per ability."""
    rows = primary(kept)
    rows = rows[rows["compression"] != DENSE]
    return rows.pivot_table(index=["rung", "seed", "compression", "sparsity"], columns="ability", values="kept")


def _per_parent(values: pd.Series) -> pd.Series:
    """Mean over the compressions of each dense model: models of one parent are not independent."""
    return values.dropna().groupby(level=["rung", "seed"]).mean()


def _unhealed(table: pd.DataFrame) -> pd.DataFrame:
    """Pruned by a criterion, neither at random nor trained afterwards."""
    name = table.index.get_level_values("compression")
    return table[~name.str.contains("random") & ~name.str.contains(" + ", regex=False)]


def _recall_and_facts(evidence: Evidence, kept: pd.DataFrame) -> Finding:
    table = _unhealed(_table(kept))
    table = table[np.isclose(table.index.get_level_values("sparsity"), 0.5)]
    if not {"recall", "facts"} <= set(table) or table.empty:
        return Finding(reason="needs rows of recall and facts at 50 % sparsity")
    used = ", ".join(sorted(set(table.index.get_level_values("compression"))))
    return _about(_per_parent(table["recall"] - table["facts"]), "!=", 0.0, f"R_recall − R_facts under {used}")


def _emergent_and_always(evidence: Evidence, kept: pd.DataFrame) -> Finding:
    kind, table = evidence.outcomes.set_index("ability")["outcome"], _unhealed(_table(kept))
    emergent, always = ([a for a in table if kind.get(a) == name] for name in ("emergent", "always there"))
    if "facts" not in table or not emergent or not always:
        return Finding(reason="needs rows of facts, an emergent and an always-there ability after compression")
    table = table[table["facts"] >= 0.8].clip(lower=0)
    difference = _per_parent(table[emergent].mean(axis=1) - table[always].mean(axis=1))
    return _about(difference, "<", -MARGIN, f"R({', '.join(emergent)}) − R({', '.join(always)}) where facts keep 0.8")


def _profiles(evidence: Evidence, kept: pd.DataFrame) -> Finding:
    """The closest pair of a compressed and a dense condition in mean nats; labels of their models are permuted."""
    nats = kept[kept["metric"] == NLL_NATS].groupby(["rung", "compression", "sparsity", "seed"])["value"].mean()
    means = nats.groupby(level=["rung", "compression", "sparsity"]).mean()
    counts = nats.groupby(level=["rung", "compression", "sparsity"]).size()
    pairs = [
        (abs(means[c] - means[d]), c, d)
        for c in means.index
        for d in means.index
        if c[1] not in (DENSE, "random") and d[1] == DENSE and c[0] != d[0] and min(counts[c], counts[d]) >= 3
    ]
    apart, compressed, dense = min(pairs, default=(np.inf, None, None), key=lambda pair: (pair[0], pair[1]))
    if apart > NATS:
        near = "" if compressed is None else f"; the closest are {apart:.2f} apart"
        need = f"needs a compressed and a from-scratch condition within {NATS} mean nats, 3 seeds each{near}"
        return Finding(reason=need)
    gains = primary(kept).pivot_table(
        index=["rung", "compression", "sparsity", "seed"], columns="ability", values="gain"
    )
    a, b = (gains.loc[key].to_numpy() for key in (compressed, dense))
    pooled, n, generator = np.nan_to_num(np.vstack([a, b])), len(a), np.random.default_rng(0)
    orders = [np.arange(len(pooled)), *(generator.permutation(len(pooled)) for _ in range(5000))]
    distance = np.array([np.abs(pooled[o[:n]].mean(axis=0) - pooled[o[n:]].mean(axis=0)).mean() for o in orders])
    p = float((distance >= distance[0] - 1e-12).mean())
    told = f"mean |difference in gain| between {' '.join(map(str, compressed))} and dense {dense[0]}; permutation"
    enough = min(n, len(b)) >= LEAST
    reason = told if enough else f"{told}; {min(n, len(b))} of the {LEAST} seeds the rule asks for"
    outcome = "supported" if p < LEVEL and enough else "undecided"
    return Finding(tuple(distance[:1]) * len(pooled), outcome, float(distance[0]), p=p, reason=reason)


def _rare_first(evidence: Evidence, kept: pd.DataFrame) -> Finding:
    rows, keys = evidence.rows, ["rung", "seed", "item"]
    if "frequency" not in rows:
        return Finding(reason="needs a column frequency: how often each fact was trained on")
    rows = rows[(rows["ability"] == "facts") & (rows["metric"] == NLL_NATS)]
    dense = rows[rows["compression"] == DENSE].set_index(keys)["value"].rename("dense")
    others = rows[(rows["compression"] != DENSE) & ~rows["compression"].str.contains("random")].join(dense, on=keys)
    if others.empty:
        return Finding(reason="needs rows of facts after compression")
    keep = others.assign(keep=others["dense"] - others["value"])  # nats are lost: kept is the less negative
    groups = keep.groupby(["rung", "seed", "compression", "sparsity"])
    rho = groups.apply(lambda g: stats.spearmanr(np.log(g["frequency"]), g["keep"]).statistic)
    return _about(_per_parent(rho), ">", 0.0, "Spearman's ρ of log frequency and nats kept, over facts")


def _flips(evidence: Evidence, kept: pd.DataFrame) -> Finding:
    if evidence.verdicts is None or not (evidence.verdicts["verdict"] == "kept").any():
        return Finding(reason="needs verdicts, with an ability judged kept")
    where, keys = ["rung", "compression", "sparsity", "ability"], ["rung", "seed", "ability", "item"]
    judged = pd.MultiIndex.from_frame(evidence.verdicts.loc[evidence.verdicts["verdict"] == "kept", where])
    rows = evidence.rows[evidence.rows["metric"] == EXACT_MATCH]
    dense = rows[rows["compression"] == DENSE].set_index(keys)["value"].rename("dense")
    rows = rows[rows["compression"] != DENSE]
    rows = rows[pd.MultiIndex.from_frame(rows[where]).isin(judged)].join(dense, on=keys)
    if rows.empty:
        return Finding(reason="needs rows of exact match where an ability is judged kept")
    rate = (rows["value"] != rows["dense"]).groupby([rows["rung"], rows["seed"]]).mean()
    return _about(rate, ">", 0.0, "share of items that flip; a repeated evaluation of one model flips none")


def _needs(what: str) -> Callable[[Evidence, pd.DataFrame], Finding]:
    """For claims about models that no study has measured yet."""
    return lambda evidence, kept: Finding(reason=f"needs {what}")


HYPOTHESES = (
    Hypothesis(
        "H1", "in-context recall and stored facts are not equally hurt at 50 % sparsity",
        "the 95 % interval of R_recall − R_facts excludes 0; refuted if it lies within ± 0.1",
        "fact recall falls past 30 % sparsity, in-context learning survives 60–70 %", "Jin et al. 2023; LLM-KICK",
        _recall_and_facts,
    ),
    Hypothesis(
        "H2", "emergent abilities lose more than always-there ones at equal facts retention",
        "where facts keep at least 0.8, the upper 95 % bound of R(emergent) − R(always) is below −0.1; refuted if the "
        "lower bound is at or above it",
        "no published value: the seed question", "this study", _emergent_and_always,
    ),
    Hypothesis(
        "H3", "after healing, accuracy breaks with dose while nats do not",
        "a break is better than a line by BIC ≥ 6 for accuracy, and not for nats",
        "accuracy falls suddenly at 40–50 % of layers while loss stays smooth", "Gromov et al. 2024, arXiv 2403.17887",
        _needs("one compression with recovery at five or more doses, three or more seeds each"),
    ),
    Hypothesis(
        "H4", "at equal mean nats a compressed and a from-scratch model have different abilities",
        "within ± 0.02 mean nats, a permutation test of the mean |difference in gain| has p < 0.05",
        "perplexity kept, ability lost", "LLM-KICK (Jaiswal et al. 2023), arXiv 2310.01382", _profiles,
    ),
    Hypothesis(
        "H5", "distillation raises the chance that an ability appears in a small student",
        "P(appears | distilled) − P(appears | trained alike without a teacher) has a lower 95 % bound above 0",
        "distil when a teacher exists, up to a compute threshold", "Busbridge et al. 2025, arXiv 2502.08606",
        _needs("students distilled and trained from scratch on equal tokens, eight or more seeds each"),
    ),
    Hypothesis(
        "H6", "depth and width pruning at equal parameters lose different abilities",
        "the method × ability interaction of retention has p < 0.05",
        "GSM8K 16.8 after depth, 41.2 after width pruning", "Minitron, arXiv 2408.11796",
        _needs("drop-layers and shrink with equal parameters left, from the same dense models"),
    ),
    Hypothesis(
        "H7", "rarer facts are lost first",
        "Spearman's ρ of log frequency and nats kept has a lower 95 % bound above 0; refuted if the upper is at most 0",
        "pruning hurts the long tail most", "Hooker et al. 2019, arXiv 1911.05248", _rare_first,
    ),
    Hypothesis(
        "H8", "models judged kept still flip more answers than a repeated evaluation",
        "the share of items that flip has a lower 95 % bound above 0, what a repeated evaluation flips",
        "flips while accuracy holds", "Dutta et al. 2024, arXiv 2407.09141", _flips,
    ),
    Hypothesis(
        "H9", "at equal bytes quantisation keeps more than pruning",
        "the paired difference in retention has a lower 95 % bound above 0",
        "quantisation keeps more than pruning", "LLM-KICK (Jaiswal et al. 2023), arXiv 2310.01382",
        _needs("quantised and pruned models of equal bytes, from the same dense models"),
    ),
    Hypothesis(
        "H10", "recovery brings back controls, then facts, then emergent abilities",
        "the order of median recovery times is this one in at least 95 % of bootstrap draws over seeds",
        "arithmetic and brackets do not recover after 400 B tokens; classification ≤ 90 %", "arXiv 2602.01997",
        _needs("rows at several points of one recovery, for five or more dense models"),
    ),
)  # fmt: skip
