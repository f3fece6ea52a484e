"""What is added up over tokens, part by part, is what NumPy finds over all of them at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from labkit.pruning.moments import Hessian, Norms


def inputs(columns: int) -> torch.Tensor:
    """(tokens, columns)"""
    return torch.randn(2600, columns, generator=torch.Generator().manual_seed(columns))


def added(kind: type[Norms] | type[Hessian], x: torch.Tensor) -> Norms | Hessian:
    found = kind()
    for part in x.split([7, 1, 2500, 92]):
        found.add(part)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_are_the_roots_of_summed_squares_in_float32(dtype):
    x = inputs(5).to(dtype)
    found = added(Norms, x)
    assert found.value().dtype == torch.float32 and found.rows == 2600
    np.testing.assert_allclose(found.value(), np.linalg.norm(x.double().numpy(), axis=0), rtol=1e-5)


@pytest.mark.parametrize("columns", [1, 3, 4, 10, 257])
def test_the_hessian_of_which_half_is_computed_is_the_whole_one(columns):
    x = inputs(columns)
    expected = 2 * x.numpy().astype(np.float64).T @ x.numpy() / len(x)
    found = added(Hessian, x)
    assert found.rows == 2600
    assert torch.equal(found.value(), found.value().T)
    np.testing.assert_allclose(found.value(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(found.value(), found.take())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", [Norms, Hessian])
def test_one_input_that_is_not_finite_is_seen(kind, bad):
    x = inputs(10)
    assert added(kind, x).finite()
    x[2000, 9] = bad
    assert not added(kind, x).finite()
