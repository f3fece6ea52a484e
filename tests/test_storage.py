import pytest

from labkit.storage import quantized_bits, sparse_bits


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_some_sparsity_takes_the_bytes_of_every_number_of_bits(bits):
    """Counted for a matrix of 64 × 32 weights: integers and 64 scales; weights that stay and a bitmap."""
    weights = 64 * 32
    assert quantized_bits(bits) * weights == bits * weights + 16 * 64
    kept = round(weights * (1 - (1 - (bits - 0.5) / 16)))
    assert sparse_bits(1 - kept / weights) * weights == 16 * kept + weights
    assert sparse_bits(1 - (bits - 0.5) / 16) == quantized_bits(bits)


def test_a_dense_matrix_pays_for_its_bitmap():
    assert sparse_bits(0.0) == 17
