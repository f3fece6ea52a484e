"""Quantisation: weights rounded to few bits. The floats that those bits stand for are kept, so nothing runs faster."""

from __future__ import annotations

import copy
from numbers import Integral
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from labkit.errors import LabkitError
from labkit.lineage import record
from labkit.pruning import blocks, ledger
from labkit.storage import BLOCK

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BITS = range(2, 9)


def quantize(model: PreTrainedModel, bits: int = 4) -> PreTrainedModel:
    """A copy of the model whose matrices are rounded to the nearest of the values that ``bits`` bits can say.

    In every row, each `BLOCK` of consecutive inputs (the last may be shorter) has a scale of its own in half precision,
    s = max|w| / (2^(bits − 1) − 1), and w becomes s · round(w / s). It is the plainest way, and needs no calibration:
    what it loses, better ones may keep. Zeros stay zero. Embeddings, output head and the router of a mixture of experts
    stay as they are, as in pruning; `labkit.storage.quantized_bits` says what the others would take on disk.

    Parameters
    ----------
    bits
        2 to 8, the sign included.

    Raises
    ------
    LabkitError
        ``bits`` out of range; weights that are not finite, or too large for a scale in half precision; a model that is
        quantised already, compiled or offloaded, adapters that are not merged, an unsupported module, zeros that are
        not those recorded.

    Source: Jacob et al. 2018, *Quantization and training of neural networks for efficient integer-arithmetic-only
    inference*, arXiv 1712.05877, equation 1 without a zero point.
    """
    check_quantize(bits)
    blocks.check_itself(model)
    if getattr(model.config, "quantization_config", None) is not None:
        received = f"a quantised {type(model).__name__}"
        raise LabkitError("a model is quantised once", received, "Load it without quantization_config.")
    if adapter := next((name for name, module in model.named_modules() if hasattr(module, "base_layer")), None):
        raise LabkitError("adapters are merged before a model is quantised", f"one at {adapter}", "Merge it first.")
    ledger.check_masks(model)
    rounded = copy.deepcopy(model)
    for name, matrix in blocks.matrices(rounded).items():
        matrix.weight.copy_(_rounded(matrix.weight.float(), bits, name))
    if hasattr(model.config, ledger.FIELD):
        ledger.record_masks(rounded)  # weights near zero have joined the zeros
    record(rounded, "quantize", bits=bits)
    return rounded


def check_quantize(bits: int) -> None:
    """Raise the LabkitError that `quantize` would raise for these, before any model is loaded."""
    if isinstance(bits, bool) or not isinstance(bits, Integral) or bits not in BITS:
        raise LabkitError(f"bits lie in {BITS[0]}..{BITS[-1]}", bits, "Give e.g. 4.")


def _rounded(weight: Tensor, bits: int, name: str) -> Tensor:
    """(outputs, inputs) fp32 -> the same, on the grid of its blocks."""
    largest = 2 ** (bits - 1) - 1
    outputs, inputs = weight.shape
    groups = torch.nn.functional.pad(weight, (0, -inputs % BLOCK)).reshape(outputs, -1, BLOCK)
    scale = (groups.abs().amax(-1, keepdim=True) / largest).half().float()
    if not scale.isfinite().all():
        remedy = "Look at the weights: NaN, infinity, or larger than half precision holds."
        raise LabkitError("weights to be quantised are finite", name, remedy)
    steps = (groups / scale.where(scale > 0, 1.0)).round().clamp(-largest, largest)
    return (steps * scale).flatten(1)[:, :inputs]
