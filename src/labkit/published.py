"""Scores that others have published: in the form of our own rows, so that the same rule reads both, or beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from labkit.pairs import Figure, Pair
from labkit.records import DENSE, EXACT_MATCH, NLL_NATS, ItemRow, columns

PYTHIA = Path(__file__).parent / "artifacts" / "published" / "pythia_final_step.csv"
"""The shipped table; the lines at its top that begin with # name its source and say what its columns are."""

_VOCABULARY = 50_254  # tokens of the GPT-NeoX tokenizer, which Pythia uses: perplexity of a guesser


def pythia() -> pd.DataFrame:
    """Scores of the Pythia models, 70 M to 12 B parameters, after their last training step: one row per figure.

    Returns
    -------
    Frame with the columns model, layers, width, params (all of them, embeddings included), deduped, shots, task,
    metric ("acc", "ppl"), value, stderr (over items), chance (NaN of perplexities).

    Source: github.com/EleutherAI/pythia, folder evals; Biderman et al. (2023), arXiv 2304.01373.
    """
    return pd.read_csv(PYTHIA, comment="#")


def pythia_rows() -> pd.DataFrame:
    """The same scores with the columns of `labkit.records.ItemRow`, one "item" per model and task: the mean.

    Fractions correct become exact match. A perplexity becomes its logarithm, nats per last word (LAMBADA asks for the
    last word of a text), whose guesser takes every token of the vocabulary for equally likely. The two models of a
    size, of the Pile (`seed` 0) and of the deduplicated Pile (1), stand in for two seeds: they differ in data *and* in
    its order, so their spread is not the spread over seeds. `params` are non-embedding, as everywhere in labkit.
    """
    table = pythia()
    perplexity = table["metric"] == "ppl"
    named = table["task"].str.replace(r"^num_arith_|_mean\d+$|_openai$", "", regex=True)
    rows = pd.DataFrame(
        {
            "run": "published",
            "model": table["model"],
            "rung": table["model"].str.extract(r"^pythia-([\d.]+[mb])")[0].str.upper(),
            "params": _non_embedding(table["layers"], table["width"]),
            "seed": table["deduped"].astype(int),
            "compression": DENSE,
            "sparsity": 0.0,
            "ability": named,  # each in one number of shots: see the table
            "metric": np.where(perplexity, NLL_NATS, EXACT_MATCH),
            "item": 0,
            "value": np.where(perplexity, np.log(table["value"]), table["value"]),
            "chance": table["chance"].where(~perplexity, np.log(_VOCABULARY)),
        }
    )
    return rows[list(columns(ItemRow))]


def _non_embedding(layers: pd.Series, width: pd.Series) -> pd.Series:
    """Parameters of GPT-NeoX blocks and the last layer norm: 12 d² in matrices, 13 d in biases and norms, a block."""
    return layers * (12 * width**2 + 13 * width) + 2 * width


def beside(figures: Sequence[Figure], pairs: Sequence[Pair], rows: pd.DataFrame) -> pd.DataFrame:
    """Published figures beside our means: one row a figure, in their order.

    Columns model, task, metric, published, ours (the mean, times 100 where the published one is in percent), of (the
    metric of ours), n_items, source. Ours is NaN, of 0 items, where the rows do not hold it. Counted are models as they
    were published, dense or as the smaller of a pair, and none that we compressed. Items, prompts and shots of the two
    differ: nothing is concluded from the difference.
    """
    rows, found = rows[rows["compression"].isin([DENSE, *(pair.how for pair in pairs)])], []
    for figure in figures:
        ability, _, metric = figure.ours.partition(": ")
        named = (rows["ability"] == ability) | rows["ability"].str.startswith(f"{ability}_")
        same = rows["model"].str.split("@").str[0] == figure.model.partition("@")[0]
        mine = rows[same & named & (rows["metric"] == metric)]
        mean = mine["value"].mean() * (100 if "percent" in figure.metric else 1)
        found.append((figure.model, figure.task, figure.metric, figure.value, mean, metric, len(mine), figure.source))
    return pd.DataFrame(found, columns=["model", "task", "metric", "published", "ours", "of", "n_items", "source"])
