"""What equal averages hide: H4 and H8."""

from __future__ import annotations

import numpy as np
import pandas as pd

from labkit.hypotheses.base import LEAST, LEVEL, Evidence, Finding, Hypothesis, about, damage
from labkit.records import DENSE, EXACT_MATCH, NLL_NATS
from labkit.scores import primary

NATS = 0.02
"""Mean nats per token within which two kinds of model count as equally good language models (H4)."""


def _profiles(evidence: Evidence, kept: pd.DataFrame) -> Finding:
    """The closest pair of a compressed and a dense condition in mean nats; labels of their models are permuted.

    Two conditions are compared over the abilities that all their models were asked.
    """
    nats, gains = _by_model(kept[kept["metric"] == NLL_NATS], "value"), _by_model(primary(kept), "gain")
    pairs = []
    known = [key for key in nats if key in gains]
    for c in (c for c in known if damage(c[1]) and "random" not in c[1]):
        for d in (d for d in known if d[1] == DENSE and d[0] != c[0]):
            shared = nats[c].columns.intersection(nats[d].columns)
            both = gains[c].columns.intersection(gains[d].columns)
            if min(len(nats[c]), len(nats[d])) >= 3 and len(shared) and len(both):
                apart = abs(nats[c][shared].to_numpy().mean() - nats[d][shared].to_numpy().mean())
                pairs.append((apart, c, d))
    apart, compressed, dense = min(pairs, default=(np.inf, None, None))
    if apart > NATS:
        near = "" if compressed is None else f"; the closest are {apart:.2f} apart"
        need = f"needs a compressed and a from-scratch condition within {NATS} mean nats, 3 seeds each{near}"
        return Finding(reason=need)
    shared = gains[compressed].columns.intersection(gains[dense].columns)
    a, b = (gains[key][shared].to_numpy() for key in (compressed, dense))
    pooled, n, generator = np.vstack([a, b]), len(a), np.random.default_rng(0)
    orders = [np.arange(len(pooled)), *(generator.permutation(len(pooled)) for _ in range(5000))]
    distance = np.array([np.abs(pooled[o[:n]].mean(axis=0) - pooled[o[n:]].mean(axis=0)).mean() for o in orders])
    p = float((distance >= distance[0] - 1e-12).mean())
    told = f"mean |difference in gain| between {' '.join(map(str, compressed))} and dense {dense[0]}; permutation"
    enough = min(n, len(b)) >= LEAST
    reason = told if enough else f"{told}; {min(n, len(b))} of the {LEAST} seeds the rule asks for"
    outcome = "supported" if p < LEVEL and enough else "undecided"
    return Finding(tuple(distance[:1]) * len(pooled), outcome, float(distance[0]), p=p, reason=reason)


def _by_model(rows: pd.DataFrame, value: str) -> dict[tuple, pd.DataFrame]:
    """(rung, compression, sparsity) -> (seeds, abilities), of those abilities that all its models were asked."""
    keys = ["rung", "compression", "sparsity"]
    wide = rows.pivot_table(index=[*keys, "seed"], columns="ability", values=value)
    return {key: group.dropna(axis=1) for key, group in wide.groupby(level=keys)}


def _flips(evidence: Evidence, kept: pd.DataFrame) -> Finding:
    if evidence.verdicts is None or not (evidence.verdicts["verdict"] == "kept").any():
        return Finding(reason="needs verdicts, with an ability judged kept")
    where, keys = ["rung", "compression", "sparsity", "ability"], ["rung", "seed", "ability", "item"]
    judged = evidence.verdicts.loc[evidence.verdicts["verdict"] == "kept", where]
    judged = pd.MultiIndex.from_frame(judged[[bool(damage(str(name))) for name in judged["compression"]]])
    rows = evidence.rows[evidence.rows["metric"] == EXACT_MATCH]
    dense = rows[rows["compression"] == DENSE].set_index(keys)["value"].rename("dense")
    rows = rows[rows["compression"] != DENSE]
    rows = rows[pd.MultiIndex.from_frame(rows[where]).isin(judged)].join(dense, on=keys)
    had = kept.loc[kept["kept"].notna() & (kept["metric"] == EXACT_MATCH), [*where, "seed"]]  # as in the verdict
    rows = rows[pd.MultiIndex.from_frame(rows[[*where, "seed"]]).isin(pd.MultiIndex.from_frame(had))]
    if rows.empty:
        return Finding(reason="needs rows of exact match where an ability is judged kept")
    rate = (rows["value"] != rows["dense"]).groupby([rows["rung"], rows["seed"]]).mean()
    return about(rate, ">", 0.0, "share of items that flip; a repeated evaluation of one model flips none")


H4 = Hypothesis(
    "H4", "at equal mean nats a compressed and a from-scratch model have different abilities",
    "within ± 0.02 mean nats, a permutation test of the mean |difference in gain| has p < 0.05; it cannot be refuted, for "
    "the test does not show that two profiles are the same",
    "perplexity does not show what pruning costs in abilities",
    "LLM-KICK (Jaiswal et al. 2023), arXiv 2310.01382", _profiles,
)  # fmt: skip
H8 = Hypothesis(
    "H8", "models judged kept still flip more answers than a repeated evaluation",
    "the share of items that flip has a lower 95 % bound above 0, what a repeated evaluation flips",
    "answers flip while accuracy holds", "Dutta et al. 2024, arXiv 2407.09141", _flips,
)  # fmt: skip
