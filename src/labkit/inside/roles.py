"""Heads by what they do rather than by number, so that models trained from other seeds can be averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from labkit.errors import LabkitError, unknown
from labkit.inside.sites import Part

OTHERS = "other heads"
"""The control: heads without a role, as many as the most frequent role has."""


def roles(
    rows: pd.DataFrame, scores: Sequence[str] = ("previous token", "induction"), least: float = 0.5, seed: int = 0
) -> dict[str, tuple[Part, ...]]:
    """Heads of one model by where they look, beside as many drawn from the rest.

    Parameters
    ----------
    rows
        Of `labkit.inside.head_scores` of one model.
    scores
        Which of its scores are roles. A head may have several.
    least
        Mean share of the attention from which a head has a role, in (0, 1].
    seed
        Of the draw of the others.

    Returns
    -------
    "previous token heads", "induction heads" and `OTHERS` -> heads, in the order of the model: what
    `labkit.inside.ablate` and `patch` take as ``parts``. There are fewer others where fewer are left.

    Raises
    ------
    LabkitError
        A score that the rows lack; no head with a role, or none without one; ``least`` out of range.
    """
    if not 0 < least <= 1:
        raise LabkitError("least is a share of the attention, in (0, 1]", least, "Give e.g. 0.5.")
    means = rows.groupby(["score", "layer", "head"])["value"].mean()
    found: dict[str, tuple[Part, ...]] = {}
    for score in scores:
        if score not in means:
            raise unknown("score of heads", score, rows["score"].unique())
        looking = means[score][means[score] >= least].index
        if looking.empty:
            received = f"at most {means[score].max():.2f} of the attention"
            raise LabkitError(f"a role is that of a head with {score} of at least {least:g}", received, "Lower least.")
        found[f"{score} heads"] = tuple(Part("head", int(layer), int(head)) for layer, head in looking)
    taken = {part for group in found.values() for part in group}
    every = [Part("head", int(layer), int(head)) for layer, head in means[scores[0]].index]
    rest = [part for part in every if part not in taken]
    if not rest:
        received = f"all {len(taken)} heads have one"
        raise LabkitError("beside heads with a role there are heads without", received, "Raise least.")
    count = min(len(rest), max(map(len, found.values())))
    drawn = np.random.default_rng(seed).choice(len(rest), count, replace=False)
    return {**found, OTHERS: tuple(rest[i] for i in sorted(drawn))}


def by_role(rows: pd.DataFrame, roles: Mapping[str, Sequence[Part]]) -> pd.DataFrame:
    """The rows of `head_scores` with ``part`` the role: the mean over its heads, of every score and sequence.

    Raises LabkitError for a head that the rows lack.
    """
    frames = []
    for role, group in roles.items():
        names = [part.name for part in group]
        of_role = rows[rows["part"].isin(names)]
        for missing in set(names) - set(of_role["part"]):
            raise unknown("head of these rows", missing, rows["part"].unique())
        means = of_role.groupby(["score", "item"], sort=False)[["value", "even"]].mean().reset_index()
        frames.append(means.assign(part=role))
    return pd.concat(frames, ignore_index=True)[["part", "score", "item", "value", "even"]]
