"""The row types: their fields are the columns of every table, and all that the torch half and the frame half share."""

from __future__ import annotations

import dataclasses

DENSE = "dense"
"""The value of ``compression`` for an uncompressed model."""

EXACT_MATCH, TOKEN_ACCURACY, NLL_NATS, BRIER = METRICS = ("exact_match", "token_accuracy", "nll_nats", "brier")
"""Every metric, by the name it has in rows. For the first two more is better, for the last two less is."""

CHOICE_ACCURACY = "choice_accuracy"
"""Of models asked in words: whether the right one of the choices is the likeliest, 0 or 1 an item."""

IGNORE = -100
"""Label of a place where nothing is asked (the value PyTorch's cross-entropy skips)."""


@dataclasses.dataclass(frozen=True)
class ItemRow:
    """One metric of one item under one model: the evidence that every figure and verdict is computed from."""

    run: str  # content address of what was run (see `labkit.store`)
    model: str  # e.g. "ladder/64x2/seed-0"
    rung: str  # size of the dense parent, e.g. "64x2"
    params: int  # non-embedding parameters that are stored, zeros included
    seed: int  # training seed of the dense parent: what compressed and dense rows are paired by
    compression: str  # "dense", "wanda", "wanda 2:4", "drop-layers keep 1", ...
    sparsity: float  # fraction of zeros in the prunable matrices, 0..1
    ability: str
    metric: str  # one of METRICS
    item: int  # index of the item: (ability, evaluation seed, item) reproduces it
    value: float
    chance: float  # value of the metric for a guesser without the ability


def columns(row_type: type) -> tuple[str, ...]:
    """Column names of a row type, in order."""
    return tuple(field.name for field in dataclasses.fields(row_type))
