import numpy as np
import pytest

from labkit import modality

# Values and p of diptest 0.12.0 (an independent implementation, with its own table of p-values).
DIPS = [
    ([0.0, 0.0, 0.08, 0.98, 0.99, 0.99, 1.0, 1.0], 0.17219387755102042, 0.0111),
    ([1, 2, 3, 4, 5, 6, 7, 8], 0.0625, 0.998),
    ([0, 0, 1, 1], 0.25, 0.0),
]


@pytest.mark.parametrize(("values", "dip", "p"), DIPS)
def test_dip_agrees_with_another_implementation(values, dip, p):
    assert modality.dip(values) == pytest.approx(dip, abs=1e-8)
    if len(values) == 8:
        assert modality.dip_p(values) == pytest.approx(p, abs=0.01)


def test_dip_agrees_with_diptest_on_random_samples():
    diptest = pytest.importorskip("diptest")
    generator = np.random.default_rng(0)
    for n in (4, 7, 12, 40):
        for decimals in (1, 8):
            values = np.round(generator.normal(size=n), decimals)
            assert modality.dip(values) == pytest.approx(diptest.dipstat(values), abs=1e-8)


def test_dip_is_between_its_bounds_and_does_not_mind_scale():
    values = np.random.default_rng(1).normal(size=20)
    assert 1 / 40 <= modality.dip(values) <= 1 / 4
    assert modality.dip(3 * values - 5) == pytest.approx(modality.dip(values))
    assert modality.dip(-values) == pytest.approx(modality.dip(values))
    assert modality.dip([2.0] * 6) == pytest.approx(1 / 12)


def test_sarle_is_five_ninths_of_a_uniform_and_a_third_of_a_normal():
    generator = np.random.default_rng(0)
    assert modality.sarle(generator.random(200_000)) == pytest.approx(5 / 9, abs=0.005)
    assert modality.sarle(generator.normal(size=200_000)) == pytest.approx(1 / 3, abs=0.005)
    assert modality.sarle([0] * 20 + [1] * 20) > 0.8
    assert np.isnan(modality.sarle([1, 2, 3])) and np.isnan(modality.sarle([1, 1, 1, 1]))
