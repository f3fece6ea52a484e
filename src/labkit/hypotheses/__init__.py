"""H1 to H10: what was claimed before the rows were read, and what our rows say. A refuted hypothesis stands."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import pandas as pd

from labkit.errors import LabkitError
from labkit.hypotheses.after import H3, H10
from labkit.hypotheses.base import LEVEL, Evidence, Finding, Hypothesis, retained
from labkit.hypotheses.kinds import H1, H2, H7
from labkit.hypotheses.methods import H5, H6, H9
from labkit.hypotheses.surface import H4, H8
from labkit.records import columns
from labkit.statistics import holm

__all__ = ["HYPOTHESES", "OUTCOMES", "Evidence", "Finding", "Hypothesis", "HypothesisRow", "examine", "retained"]

HYPOTHESES = (H1, H2, H3, H4, H5, H6, H7, H8, H9, H10)

OUTCOMES = ("supported", "refuted", "undecided", "no rows")
"""Every value of the column ``outcome``."""


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


def examine(evidence: Evidence, hypotheses: Iterable[Hypothesis] = HYPOTHESES) -> pd.DataFrame:
    """Put hypotheses to the evidence: a frame with the columns of `HypothesisRow`.

    "Supported" needs p < 0.05 after Holm's (1979) correction over those that could be tested; "refuted" needs an
    interval that leaves no room for the claim. Raises LabkitError as `retained`, for outcomes or verdicts without
    their columns, and for an ability with two outcomes.
    """
    missing = [name for name in ("ability", "outcome") if name not in evidence.outcomes]
    if missing:
        raise LabkitError("outcomes say which abilities are emergent", f"no {', '.join(missing)}", "Run emergence.")
    if evidence.verdicts is not None:
        columns_of = ("rung", "compression", "sparsity", "ability", "verdict")
        if missing := [name for name in columns_of if name not in evidence.verdicts]:
            raise LabkitError("verdicts are what labkit.judge returns", f"no {', '.join(missing)}", "Judge the rows.")
    twice = evidence.outcomes["ability"].duplicated()
    if twice.any():
        first = evidence.outcomes["ability"][twice].iloc[0]
        raise LabkitError("an ability has one outcome", f"two of {first}", "Drop one.")
    kept, asked = retained(evidence.rows), tuple(hypotheses)
    findings = [hypothesis.test(evidence, kept) for hypothesis in asked]
    told = []
    for hypothesis, found, p_holm in zip(asked, findings, holm([found.p for found in findings]), strict=True):
        outcome, reason = found.outcome, found.reason
        if outcome == "supported" and not p_holm < LEVEL:
            outcome, reason = "undecided", f"{reason}; not after Holm's correction"
        claim = hypothesis.name, hypothesis.statement, hypothesis.rule, outcome
        numbers = found.estimate, found.low, found.high, len(found.values), found.p, p_holm
        told.append(HypothesisRow(*claim, *numbers, hypothesis.published, hypothesis.source, reason))
    return pd.DataFrame([dataclasses.asdict(row) for row in told], columns=columns(HypothesisRow))
