"""Laws of masks, and agreement with brute force in NumPy."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.errors import LabkitError
from labkit.pruning import masks

few = settings(max_examples=25, deadline=None)
shapes = st.tuples(st.integers(1, 6), st.integers(1, 12))
seeds = st.integers(0, 2**31)
sparsities = st.floats(0, 1, exclude_max=True)


def scores_of(shape: tuple[int, int], seed: int) -> torch.Tensor:
    """Few different values, so that equals occur."""
    return torch.randint(0, 7, shape, generator=torch.Generator().manual_seed(seed)).float()


@few
@given(shapes, seeds, sparsities)
def test_every_row_loses_exactly_its_count_and_the_whole_matrix_too(shape, seed, sparsity):
    scores = scores_of(shape, seed)
    rows = masks.keep_highest(scores, sparsity, "row")
    assert ((~rows).sum(1) == int(shape[1] * sparsity)).all()
    layer = masks.keep_highest(scores, sparsity, "layer")
    assert (~layer).sum() == int(scores.numel() * sparsity)


@few
@given(shapes, seeds, sparsities, st.sampled_from(masks.GROUPS))
def test_a_dropped_score_is_never_above_a_kept_one_of_its_group(shape, seed, sparsity, group):
    scores = scores_of(shape, seed)
    keep = masks.keep_highest(scores, sparsity, group)
    for s, k in zip(scores, keep, strict=True) if group == "row" else [(scores, keep)]:
        if (~k).any():
            assert s[~k].max() <= s[k].min()


@few
@given(shapes, seeds, sparsities, st.sampled_from(masks.GROUPS))
def test_masking_twice_is_masking_once(shape, seed, sparsity, group):
    weight = scores_of(shape, seed) - 3.0
    once = weight * masks.keep_highest(weight.abs(), sparsity, group)
    assert torch.equal(once, once * masks.keep_highest(once.abs(), sparsity, group))


@few
@given(shapes, seeds, sparsities)
def test_rows_agree_with_a_stable_argsort_in_numpy(shape, seed, sparsity):
    scores = scores_of(shape, seed)
    expected = np.ones(shape, dtype=bool)
    for row, values in zip(expected, scores.numpy(), strict=True):
        row[np.argsort(values, kind="stable")[: int(shape[1] * sparsity)]] = False
    np.testing.assert_array_equal(masks.keep_highest(scores, sparsity, "row"), expected)


def test_of_equals_the_first_are_dropped():
    """Wide, because short sorts are stable by accident."""
    scores = torch.ones(2, 500)
    first_half = torch.arange(500) >= 250
    assert torch.equal(masks.keep_highest(scores, 0.5, "row"), first_half.expand(2, 500))
    assert torch.equal(masks.keep_highest(scores, 0.5, "layer"), torch.tensor([[False], [True]]).expand(2, 500))


@few
@given(st.permutations(range(10)), seeds)
def test_rows_follow_a_permutation_of_the_inputs(order, seed):
    scores = torch.rand(4, 10, generator=torch.Generator().manual_seed(seed))
    keep = masks.keep_highest(scores, 0.5, "row")
    assert torch.equal(masks.keep_highest(scores[:, order], 0.5, "row"), keep[:, order])


@few
@given(seeds, st.sampled_from([(1, 2), (1, 4), (2, 4), (4, 8), (5, 6)]), st.integers(1, 4), st.integers(1, 4))
def test_n_of_m_keeps_exactly_n_in_every_group(seed, pattern, rows, groups):
    n, m = pattern
    keep = masks.keep_n_of_m(scores_of((rows, groups * m), seed), n, m)
    assert (keep.view(rows, groups, m).sum(-1) == n).all()


def test_a_wide_pattern_and_wide_rows_agree_with_a_sort():
    """They are selected, not compared in pairs; and short rows a selection sorts whole."""
    scores = torch.rand(6, 3200, generator=torch.Generator().manual_seed(0))
    for keep, groups, kept in (
        (masks.keep_n_of_m(scores, 24, 32), scores.view(-1, 32), 24),
        (masks.keep_highest(scores, 0.7, "row"), scores, 960),
        (masks.keep_highest(scores, 0.7, "layer"), scores.view(1, -1), 5760),
    ):
        expected = groups >= groups.sort(descending=True).values[:, kept - 1, None]
        assert torch.equal(keep, expected.view_as(scores))


@few
@given(seeds)
def test_two_of_four_is_the_best_of_all_six_patterns(seed):
    scores = torch.rand(3, 8, generator=torch.Generator().manual_seed(seed))
    keep = masks.keep_n_of_m(scores, 2, 4)
    for group, kept in zip(scores.view(-1, 4).numpy(), keep.view(-1, 4), strict=True):
        best = max(combinations(range(4), 2), key=lambda pair: group[list(pair)].sum())
        assert tuple(np.flatnonzero(kept)) == best


@pytest.mark.parametrize(("pattern", "expected"), [("2:4", (2, 4)), ("4:8", (4, 8)), ("1:16", (1, 16))])
def test_a_pattern_is_read_as_n_of_m(pattern, expected):
    assert masks.parse_pattern(pattern) == expected


@pytest.mark.parametrize("pattern", ["2-4", "0:4", "2:4:8", "", " 2:4", 24])
def test_what_is_no_pattern_is_answered_with_the_known_ones(pattern):
    with pytest.raises(LabkitError, match="a known pattern is needed; got .* 2:4, 4:8"):
        masks.parse_pattern(pattern)


@pytest.mark.parametrize("pattern", ["4:4", "5:4"])
def test_a_pattern_that_drops_nothing_is_refused(pattern):
    with pytest.raises(LabkitError, match=f"keeps fewer than M, N < M; got '{pattern}'"):
        masks.parse_pattern(pattern)


@pytest.mark.parametrize("sparsity", [-0.1, 1, 1.5, float("nan"), "0.5", [0.5], True, torch.tensor(0.5)])
def test_sparsity_outside_its_range_is_refused(sparsity):
    with pytest.raises(LabkitError, match=r"sparsity lies in \[0, 1\); got .*e\.g\. 0\.5"):
        masks.check_sparsity(sparsity)


def test_a_width_that_does_not_divide_is_refused_by_the_name_of_the_matrix():
    masks.check_divisible("layers.0.up", 12, 4)
    with pytest.raises(LabkitError, match="divisible by 4; got 'layers.0.up of width 10'"):
        masks.check_divisible("layers.0.up", 10, 4)
