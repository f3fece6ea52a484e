"""How much a score depends on the way a question is put."""

from __future__ import annotations

import pandas as pd

from labkit.errors import LabkitError
from labkit.pairing import UNIT
from labkit.records import NLL_NATS
from labkit.statistics import Spread, mean_interval

LEVEL = 0.95
COLUMNS = (
    "ability", "metric", "n_templates", "n_items", "chance", "mean", "lowest", "highest", "spread", "low", "high",
    "beyond_noise",
)  # fmt: skip


def sensitivity(rows: pd.DataFrame) -> pd.DataFrame:
    """The spread of the mean score over templates, one row per (ability, metric).

    Parameters
    ----------
    rows : as `labkit.prompts.ask` returns them, of one model.

    Returns
    -------
    Frame with the columns of `COLUMNS`: ``mean`` over templates; the templates with the ``lowest`` and ``highest``
    means; their difference, ``spread``, in the metric's unit, with its 95 % interval ``low`` to ``high`` for new items
    (never below 0); and whether that excludes 0. Every item is asked by every template, so the interval is that of a
    paired difference (`labkit.statistics.mean_interval`). The two templates were picked for being extreme: the interval
    holds for all pairs of templates at once (Bonferroni). It says nothing of templates that were not tried.

    Raises LabkitError for fewer than two templates, and for templates that were not asked the same items.
    """
    found = []
    for (ability, metric), group in rows.groupby(["ability", "metric"], sort=False):
        table = group.pivot(index="item", columns="template", values="value")
        if table.shape[1] < 2 or table.isna().to_numpy().any():
            received = f"{ability}, {metric}: {', '.join(table.columns)}"
            remedy = "Ask once more with n, seed and at least two templates in one call."
            raise LabkitError("sensitivity is that of the same items under two or more templates", received, remedy)
        means = table.mean()
        lowest, highest = means.idxmin(), means.idxmax()
        pairs = len(means) * (len(means) - 1) / 2
        # There is one model: its items take the place of seeds, each with a single value.
        spread = Spread.of((table[highest] - table[lowest]).to_numpy()[None, :, None])
        unit = UNIT.get(metric, 0.0 if metric == NLL_NATS else 1.0)
        low, high = mean_interval(spread, [1.0], level=1 - (1 - LEVEL) / pairs, unit=unit)
        bounds = (max(float(low), 0.0), float(high))
        found.append(
            (ability, metric, len(means), len(table), group["chance"].mean(), means.mean(), lowest, highest,
             means.max() - means.min(), *bounds, bounds[0] > 0)
        )  # fmt: skip
    return pd.DataFrame(found, columns=list(COLUMNS))
