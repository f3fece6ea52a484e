"""Scores against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from labkit.pruning import criteria


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(6, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def norms() -> torch.Tensor:
    return torch.rand(8, generator=torch.Generator().manual_seed(1)) + 0.1


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("criterion", criteria.CRITERIA, ids=lambda c: c.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_criterion_gives_one_fp32_score_per_weight(criterion, dtype, weight, norms):
    scores = criterion(weight.to(dtype), norms, generator())
    assert scores.shape == weight.shape
    assert scores.dtype == torch.float32
    assert (scores >= 0).all()


@pytest.mark.parametrize("criterion", criteria.CRITERIA, ids=lambda c: c.__name__)
def test_every_criterion_depends_on_the_seed_alone_for_its_randomness(criterion, weight, norms):
    torch.manual_seed(1)
    first = criterion(weight, norms, generator(5))
    torch.manual_seed(2)
    assert torch.equal(first, criterion(weight, norms, generator(5)))


def test_random_differs_between_seeds(weight):
    assert not torch.equal(criteria.random(weight, None, generator(0)), criteria.random(weight, None, generator(1)))


def test_magnitude_is_the_absolute_weight(weight):
    np.testing.assert_array_equal(criteria.magnitude(weight, None, generator()), np.abs(weight.numpy()))


def test_wanda_agrees_with_loops(weight, norms):
    scores = criteria.wanda(weight, norms, generator())
    for i, j in np.ndindex(*weight.shape):
        assert scores[i, j].item() == pytest.approx(abs(weight[i, j].item()) * norms[j].item(), rel=1e-6)


def test_wanda_follows_a_permutation_of_the_inputs(weight, norms):
    order = torch.randperm(8, generator=generator(3))
    permuted = criteria.wanda(weight[:, order], norms[order], generator())
    assert torch.equal(permuted, criteria.wanda(weight, norms, generator())[:, order])
