"""What was done to a model stays with it: in order, as JSON, on disk, and apart from the models it was copied from."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from labkit.errors import LabkitError
from labkit.ladder import Rung
from labkit.lineage import lineage, record
from labkit.zoo import load


def test_what_was_done_is_kept_in_order_and_comes_back_from_disk(tmp_path):
    model = Rung(16, 1).build()
    assert lineage(model) == ()
    record(model, "prune", criterion="wanda", sparsity=0.5, pattern=None)
    record(model, "recover", tokens=3072, flops=1.5e9, kept=(0, 2))
    expected = (
        {"verb": "prune", "criterion": "wanda", "sparsity": 0.5, "pattern": None},
        {"verb": "recover", "tokens": 3072, "flops": 1.5e9, "kept": [0, 2]},
    )
    assert lineage(model) == expected
    model.save_pretrained(tmp_path)
    assert lineage(load(str(tmp_path))) == expected


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy])
def test_a_copy_goes_its_own_way(copier):
    parent = Rung(16, 1).build()
    record(parent, "prune")
    child = copier(parent)
    child.config = copier(parent.config)
    record(child, "recover")
    assert [entry["verb"] for entry in lineage(parent)] == ["prune"]
    assert [entry["verb"] for entry in lineage(child)] == ["prune", "recover"]
    lineage(child)[0]["verb"] = "changed"  # what is handed out is not what is kept
    record(child, "prune", sparsity={"a": 0.5})
    lineage(child)[2]["sparsity"]["a"] = 9
    assert lineage(child)[2]["sparsity"] == {"a": 0.5}
    assert lineage(child)[0]["verb"] == "prune"


def test_numbers_of_numpy_and_pytorch_are_pythons():
    model = Rung(16, 1).build()
    record(model, "prune", seed=np.int64(3), sparsity=np.float32(0.5), steps=(torch.tensor(2), np.bool_(True)))
    entry = {"verb": "prune", "seed": 3, "sparsity": 0.5, "steps": [2, True]}
    assert lineage(model) == (entry,) and [*map(type, entry["steps"])] == [int, bool]


@pytest.mark.parametrize("fact", [float("nan"), np.float32("inf"), torch.ones(2), float("inf"), {1, 2}, object()])
def test_a_fact_that_json_cannot_hold_is_refused_and_nothing_is_added(fact):
    model = Rung(16, 1).build()
    with pytest.raises(LabkitError, match="facts of a lineage are plain JSON; got .prune: .*Give numbers that are finite"):
        record(model, "prune", fact=fact)
    assert lineage(model) == ()
