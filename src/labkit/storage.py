"""How many bits a weight takes on disk, by the way a matrix was made smaller: what "equal bytes" means."""

from __future__ import annotations

WEIGHT_BITS = 16
"""Of a weight that is kept as it is, and of a scale: half precision, in which language models are usually published."""

BLOCK = 32
"""Consecutive inputs that share a scale when they are quantised, as in the formats Q8_0 and Q4_0 of llama.cpp."""


def quantized_bits(bits: int) -> float:
    """Bits per weight of integers of ``bits`` bits with a scale for every `BLOCK` of them.

    >>> quantized_bits(4)
    4.5
    """
    return bits + WEIGHT_BITS / BLOCK


def sparse_bits(sparsity: float) -> float:
    """Bits per weight of a pruned matrix: those that stay, and a bitmap that says where they stand.

    A list of places would take less from a sparsity of about 0.9 on.

    >>> sparse_bits(0.78125)
    4.5
    """
    return WEIGHT_BITS * (1 - sparsity) + 1
