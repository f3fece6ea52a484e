"""Which kind of ability goes first: H1, H2 and H7."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from labkit.hypotheses.base import MARGIN, Evidence, Finding, Hypothesis, about, by_criterion, per_parent, table
from labkit.records import DENSE, NLL_NATS


def _unhealed(kept: pd.DataFrame) -> pd.DataFrame:
    """The `table` of models pruned by a criterion and not trained afterwards."""
    found = table(kept)
    return found[found.index.get_level_values("compression").map(by_criterion).astype(bool)]


def _recall_and_facts(evidence: Evidence, kept: pd.DataFrame) -> Finding:
    found = _unhealed(kept)
    found = found[np.isclose(found.index.get_level_values("sparsity"), 0.5)]
    if not {"recall", "facts"} <= set(found) or found.empty:
        return Finding(reason="needs rows of recall and facts at 50 % sparsity")
    used = ", ".join(sorted(set(found.index.get_level_values("compression"))))
    return about(per_parent(found["recall"] - found["facts"]), "!=", 0.0, f"R_recall − R_facts under {used}")


def _emergent_and_always(evidence: Evidence, kept: pd.DataFrame) -> Finding:
    found = _unhealed(kept)
    emergent, always = ([a for a in found if a in evidence.of(kind)] for kind in ("emergent", "always there"))
    if "facts" not in found or not emergent or not always:
        return Finding(reason="needs rows of facts, an emergent and an always-there ability after compression")
    # By condition, not by model: models picked for their own facts would keep more facts than emergent abilities by luck.
    facts = found["facts"].groupby(level=["rung", "compression", "sparsity"]).transform("mean")
    found = found[facts >= 0.8].clip(lower=0)
    difference = per_parent(found[emergent].mean(axis=1) - found[always].mean(axis=1))
    return about(difference, "<", -MARGIN, f"R({', '.join(emergent)}) − R({', '.join(always)}) where facts keep 0.8")


def _rare_first(evidence: Evidence, kept: pd.DataFrame) -> Finding:
    rows, keys = evidence.rows, ["rung", "seed", "item"]
    if "frequency" not in rows:
        return Finding(reason="needs a column frequency: how often each fact was trained on")
    rows = rows[(rows["ability"] == "facts") & (rows["metric"] == NLL_NATS)]
    dense = rows[rows["compression"] == DENSE].set_index(keys)["value"].rename("dense")
    others = rows[[by_criterion(str(name)) for name in rows["compression"]]].join(dense, on=keys)
    if others.empty:
        return Finding(reason="needs rows of facts after compression")
    keep = others.assign(keep=others["dense"] - others["value"])  # nats are lost: kept is the less negative
    groups = keep.groupby(["rung", "seed", "compression", "sparsity"])
    rho = groups.apply(lambda g: stats.spearmanr(np.log(g["frequency"]), g["keep"]).statistic)
    return about(per_parent(rho), ">", 0.0, "Spearman's ρ of log frequency and nats kept, over facts")


H1 = Hypothesis(
    "H1", "in-context recall and stored facts are not equally hurt at 50 % sparsity",
    "the 95 % interval of R_recall − R_facts excludes 0; refuted if it lies within ± 0.1",
    "fact recall falls from 30 % fewer weights on, most in-context processing is left with 60–70 % fewer",
    "Jin et al. 2023, arXiv 2310.04680", _recall_and_facts,
)  # fmt: skip
H2 = Hypothesis(
    "H2", "emergent abilities lose more than always-there ones at equal facts retention",
    "under compressions that leave facts at least 0.8 on average over dense models, the upper 95 % bound of "
    "R(emergent) − R(always) is below −0.1; refuted if the lower bound is at or above it",
    "no published value: the seed question", "this study", _emergent_and_always,
)  # fmt: skip
H7 = Hypothesis(
    "H7", "rarer facts are lost first",
    "Spearman's ρ of log frequency and nats kept has a lower 95 % bound above 0; refuted if the upper is at most 0",
    "pruning hurts rare and atypical images most", "Hooker et al. 2019, arXiv 1911.05248", _rare_first,
)  # fmt: skip
