"""Budgets and schedules against their formulas."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch

from labkit.errors import LabkitError
from labkit.ladder import Rung
from labkit.pruning import blocks, outlier_weighed, prune, schedule, sparsity

TOKENS = torch.randint(1, 168, (6, 12), generator=torch.Generator().manual_seed(0))
MODEL = Rung(32, 3).build().eval()
with torch.no_grad():
    MODEL.model.layers[1].mlp.up_proj.weight[:, :2] *= 30  # a block with outliers


def outlier_shares(m: float) -> list[float]:
    """By the paper's definition, in NumPy, from a plain forward pass of the dense model."""
    noted = {}
    for name, matrix in blocks.matrices(MODEL).items():
        matrix.module.register_forward_pre_hook(lambda _, args, name=name: noted.update({name: args[0].flatten(0, 1)}))
    with torch.no_grad():
        MODEL(input_ids=TOKENS)
    shares = []
    for i in range(3):
        inside = {name: matrix for name, matrix in blocks.matrices(MODEL).items() if f".{i}." in name}
        scores = np.concatenate(
            [(matrix.weight.abs() * noted[name].norm(dim=0)).numpy().ravel() for name, matrix in inside.items()]
        )
        shares.append((scores > m * scores.mean()).mean())
    return shares


def test_budgets_follow_the_share_of_outliers():
    budgets = outlier_weighed(MODEL, 0.5, TOKENS, m=3, width=0.1)
    by_block = [{budget for name, budget in budgets.items() if f".{i}." in name} for i in range(3)]
    shares = np.array(outlier_shares(3))
    expected = 0.5 - 2 * 0.1 * (shares - shares.mean()) / np.ptp(shares)
    assert list(budgets) == list(blocks.matrices(MODEL)) and all(len(found) == 1 for found in by_block)
    np.testing.assert_allclose([found.pop() for found in by_block], expected)


def test_the_mean_over_all_weights_is_what_was_asked_for():
    budgets = outlier_weighed(MODEL, 0.6, TOKENS)
    sizes = {name: matrix.weight.numel() for name, matrix in blocks.matrices(MODEL).items()}
    assert sum(budgets[n] * sizes[n] for n in sizes) / sum(sizes.values()) == pytest.approx(0.6, abs=1e-12)
    pruned = prune(MODEL, "wanda", budgets, calibration=TOKENS)
    assert sparsity(pruned) == pytest.approx(0.6, abs=1 / 32)  # rows are whole numbers of weights


def test_blocks_that_are_alike_get_the_same():
    model = Rung(32, 1).build().eval()
    assert set(outlier_weighed(model, 0.5, TOKENS).values()) == {0.5}


def test_the_model_is_left_as_it_was():
    model, seen = copy.deepcopy(MODEL).train(), []
    model.model.layers[0].eval()
    modes, block = [module.training for module in model.modules()], model.model.layers[1]
    own = block.forward = functools.partial(_noted, block.forward, seen)  # as accelerate does, too
    outlier_weighed(model, 0.5, TOKENS)
    assert [module.training for module in model.modules()] == modes
    assert seen and block.forward is own
    assert ["forward" in vars(block) for block in model.model.layers] == [False, True, *[False] * (len(model.model.layers) - 2)]
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), MODEL.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity lies in \[0, 1\)"),
        ({"sparsity": "half"}, r"sparsity lies in \[0, 1\); got 'half'"),
        ({"sparsity": 0.98, "width": 0.2}, r"block's sparsity lies in \[0, 1\); got .* around 0.98.*smaller width"),
        ({"sparsity": 0.5, "calibration": None}, "outlier-weighed sparsity needs calibration tokens; got None"),
        ({"sparsity": 0.5, "m": 0}, "m is above 0, and width is 0 or above; got 'm=0, width=0.08'. The paper's: 5 and 0.08"),
        ({"sparsity": 0.5, "width": "wide"}, "m is above 0, and width is 0 or above; got \"m=5.0, width='wide'\""),
        ({"sparsity": 0.5, "device": "gpu"}, "a device is one that PyTorch can compute on here; got 'gpu'"),
    ],
)
def test_bad_input_is_refused(asked, message):
    with pytest.raises(LabkitError, match=message):
        outlier_weighed(MODEL, **{"calibration": TOKENS, **asked})


def test_the_schedule_is_cubic_and_ends_where_asked():
    steps = schedule(0.8, 5)
    t = np.arange(1, 6)
    np.testing.assert_allclose(steps, 0.8 + (0 - 0.8) * (1 - t / 5) ** 3)
    assert steps[-1] == 0.8 and list(steps) == sorted(steps)
    assert schedule(0.5, 1) == (0.5,)


@pytest.mark.parametrize("steps", [0, -1, 2.0, True])
def test_steps_are_a_whole_number(steps):
    with pytest.raises(LabkitError, match=f"whole number ≥ 1; got {steps!r}"):
        schedule(0.5, steps)


def _noted(forward, seen, *args, **kwargs):
    seen.append(args)
    return forward(*args, **kwargs)
