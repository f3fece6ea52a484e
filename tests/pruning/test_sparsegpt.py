"""SparseGPT against llmcompressor, the closed-form surgeon, and its own laws."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from labkit.errors import LabkitError
from labkit.ladder import Rung
from labkit.pruning import blocks, masks, prune, sparsegpt
from labkit.pruning.criteria import wanda
from labkit.pruning.moments import Hessian, Norms

ORACLE = load_file(Path(__file__).parents[1] / "data" / "llmcompressor-sparsify.safetensors")
"""Made by tests/oracles/pruning.py with llmcompressor 0.14.0.1."""

NO_DEAD = torch.zeros(256, dtype=torch.bool)
KEEPS = {
    "0.5": (partial(masks.keep_highest, sparsity=0.5, group="layer"), None),
    "0.3": (partial(masks.keep_highest, sparsity=0.3, group="layer"), None),
    "2:4": (partial(masks.keep_n_of_m, n=2, m=4), 4),
    "4:8": (partial(masks.keep_n_of_m, n=4, m=8), 8),
}


def statistic(kind: type[Norms] | type[Hessian], inputs: torch.Tensor) -> torch.Tensor:
    found = kind()
    for part in inputs.split(250):
        found.add(part)
    return found.value()


@pytest.mark.parametrize("asked", KEEPS)
def test_wanda_drops_what_llmcompressor_drops(asked):
    keep, _ = KEEPS[asked]
    if asked in ("0.5", "0.3"):
        keep = partial(masks.keep_highest, sparsity=float(asked), group="row")
    scores = wanda(ORACLE["weight"], statistic(Norms, ORACLE["inputs"]), torch.Generator())
    assert torch.equal(ORACLE["weight"] * keep(scores), ORACLE[f"wanda {asked}"])


@pytest.mark.parametrize("asked", KEEPS)
def test_sparsegpt_drops_and_updates_as_llmcompressor_does(asked):
    keep, m = KEEPS[asked]
    factor = sparsegpt.inverse_factor(statistic(Hessian, ORACLE["inputs"]), "oracle")
    found = sparsegpt.prune_columns(ORACLE["weight"], factor, NO_DEAD, keep, m)
    assert torch.equal(found == 0, ORACLE[f"sparsegpt {asked}"] == 0)
    torch.testing.assert_close(found, ORACLE[f"sparsegpt {asked}"], rtol=1e-4, atol=2e-6)


def problem(seed: int, rows: int = 3, columns: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (rows, columns) and a well-conditioned Hessian, fp64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(60, columns, generator=generator, dtype=torch.float64)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64), 2 * x.T @ x / len(x)


@pytest.mark.parametrize("seed", range(3))
def test_one_weight_lost_is_made_up_for_in_closed_form(seed):
    """Optimal brain surgeon: δ = −w_q / [H⁻¹]_qq · H⁻¹_:,q. The first column may use all others, so q = 0."""
    weight, hessian = problem(seed)
    damped = hessian.numpy() + sparsegpt.DAMPING * hessian.diagonal().mean().item() * np.eye(6)
    inverse = np.linalg.inv(damped)
    expected = weight.numpy() - np.outer(weight[:, 0] / inverse[0, 0], inverse[0])
    found = sparsegpt.prune_columns(
        weight, sparsegpt.inverse_factor(hessian.float(), "w"), NO_DEAD[:6],
        lambda scores: torch.arange(6).expand_as(scores) > 0,
    )  # fmt: skip
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert (found[:, 0] == 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_what_is_left_is_the_least_squares_solution_when_the_first_columns_go(seed):
    """Dropping a leading run of columns one by one ends at the optimum over the rest, which a solver also finds."""
    weight, hessian = problem(seed)
    damped = hessian + sparsegpt.DAMPING * hessian.diagonal().mean() * torch.eye(6)
    # min ‖(w − v) H^½‖² over v with v_0 = v_1 = 0
    expected = torch.linalg.solve(damped[2:, 2:], damped[2:] @ weight.T).T
    found = sparsegpt.prune_columns(
        weight, sparsegpt.inverse_factor(hessian.float(), "w"), NO_DEAD[:6],
        lambda scores: torch.arange(6).expand_as(scores) > 1,
    )  # fmt: skip
    torch.testing.assert_close(found[:, 2:].double(), expected, rtol=1e-4, atol=1e-5)


def test_an_identity_hessian_is_plain_magnitude():
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    keep = KEEPS["0.5"][0]
    found = sparsegpt.prune_columns(weight, sparsegpt.inverse_factor(torch.eye(64), "w"), NO_DEAD[:64], keep)
    assert torch.equal(found, weight * keep(weight.abs()))


@pytest.mark.parametrize(("columns", "m"), [(300, None), (300, 6), (260, 4), (400, 200)])
def test_zeros_are_exact_in_every_group_whatever_the_width(columns, m):
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(900, columns, generator=generator), torch.randn(8, columns, generator=generator)
    factor = sparsegpt.inverse_factor(2 * x.T @ x / len(x), "w")
    keep = partial(masks.keep_n_of_m, n=m // 2, m=m) if m else partial(masks.keep_highest, sparsity=0.37, group="layer")
    zeros = sparsegpt.prune_columns(weight, factor, torch.zeros(columns, dtype=torch.bool), keep, m) == 0
    if m:
        assert (zeros.reshape(-1, m).sum(1) == m - m // 2).all()
    else:
        parts = zeros.split(128, dim=1)
        assert [int(part.sum()) for part in parts] == [int(part.numel() * 0.37) for part in parts]


def test_dead_inputs_lose_their_weights_and_disturb_nothing():
    x = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    x[:, [3, 7]] = 0
    hessian = 2 * x.T @ x / len(x)
    weight, dead = torch.ones(2, 16), hessian.diagonal() == 0
    found = sparsegpt.prune_columns(
        weight, sparsegpt.inverse_factor(hessian, "w"), dead, partial(masks.keep_highest, sparsity=2 / 16, group="row")
    )
    assert torch.equal(found == 0, dead.expand(2, 16))
    torch.testing.assert_close(found[:, ~dead], weight[:, ~dead])


def test_what_is_zero_stays_zero_and_counts():
    weight, hessian = problem(0, rows=8, columns=64)
    weight[:, ::4] = 0
    keep = partial(masks.keep_n_of_m, n=2, m=4)
    found = sparsegpt.prune_columns(weight, sparsegpt.inverse_factor(hessian.float(), "w"), NO_DEAD[:64], keep, 4)
    assert (found[:, ::4] == 0).all() and ((found == 0).view(-1, 4).sum(1) == 2).all()


def test_a_hessian_that_does_not_factorise_raises_the_damping_and_says_so():
    hessian = torch.diag(torch.tensor([1.0, 1.0, 1.0, -0.05]))
    with pytest.warns(UserWarning, match="of layers.3.up is not positive definite: damping raised to 0.1 of its mean"):
        factor = sparsegpt.inverse_factor(hessian.clone(), "layers.3.up")
    damped = hessian + 0.1 * hessian.diagonal().mean() * torch.eye(4)
    torch.testing.assert_close(factor.T @ factor, torch.linalg.inv(damped))


@pytest.mark.parametrize("worst", [-1e9, float("nan")])
def test_a_hopeless_hessian_is_an_error_and_never_an_identity(worst):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(LabkitError, match="is positive definite; got 'layers.3.up, not even with damping 100'"):
            sparsegpt.inverse_factor(torch.diag(torch.tensor([1.0, worst])), "layers.3.up")


def test_an_input_that_is_always_zero_loses_its_weights_and_nothing_is_warned_of():
    model = Rung(32, 1).build().eval()
    mlp = model.model.layers[0].mlp
    mlp.up_proj.weight.data[5] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokens = torch.randint(1, 168, (8, 40), generator=torch.Generator().manual_seed(0))
        found = prune(model, "sparsegpt", 0.125, calibration=tokens).model.layers[0].mlp.down_proj.weight
    assert not found[:, 5].any() and mlp.down_proj.weight[:, 5].all()
    assert (found[:, 6:] == 0).float().mean() < 0.2


def test_fewer_tokens_than_inputs_are_warned_of_once_with_the_first_matrix():
    tokens = torch.randint(1, 168, (2, 10), generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="20 calibration tokens for the 32 inputs of .*layers.0.self_attn.q_proj") as seen:
        pruned = prune(Rung(32, 2).build().eval(), "sparsegpt", 0.5, calibration=tokens)
    told = [warning for warning in seen if "has no full rank" in str(warning.message)]
    assert [warning.filename for warning in told] == [__file__]  # the line that asked for it is what is shown
    assert str(told[0].message).endswith("; give more sequences")
    assert blocks.sparsity(pruned) == 0.5
