"""The ledger of masks: which weights were pruned, kept with the model, so that zeros that come back are found.

The zeros themselves are the mask; the config holds, for every matrix, how many there are and a hash of where. Any
change of a recorded pattern is a violation: weights that are zero no longer, and zeros that were not recorded. bfloat16 keeps
the exponents of float32 and with them the pattern; float16 underflows below 2⁻²⁵, which adds zeros: `check_masks` then
says how many, and `record_masks` takes them as pruned, as `labkit.load` does that reads a model in float16.
"""

from __future__ import annotations

import dataclasses
import hashlib
from concurrent.futures import ThreadPoolExecutor
from numbers import Real

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from labkit.errors import LabkitError
from labkit.pruning import blocks

FIELD = "labkit_masks"

KINDS = {"sparsity": Real, "shape": list, "sha256": str}
"""What is recorded of each matrix."""


def record_masks(model: PreTrainedModel) -> None:
    """Write ``config.labkit_masks``, in place: matrix name -> sparsity, shape and sha256 of its zero pattern.

    Every matrix of the decoder blocks that holds a zero is recorded, and what was recorded before is replaced: call it
    after whatever changes the pattern or the matrices' names on purpose. A model without zeros has no ledger.
    """
    weights = _weights(model)
    with ThreadPoolExecutor() as threads:  # they count and hash while the next is packed
        told = threads.map(_told, (_packed(weight == 0) for weight in weights.values()))
        recorded = {
            name: {"sparsity": zeros / weight.numel(), "shape": [*weight.shape], "sha256": digest}
            for (name, weight), (zeros, digest) in zip(weights.items(), told, strict=True)
            if zeros
        }
    if recorded:
        setattr(model.config, FIELD, recorded)
    elif hasattr(model.config, FIELD):
        delattr(model.config, FIELD)


def check_masks(model: PreTrainedModel) -> None:
    """Raise LabkitError unless the zeros of every recorded matrix stand where they were recorded.

    The message names the first matrix that differs, how many zeros are gone, new or elsewhere, and how many further
    matrices differ. A ledger whose matrices the model does not have, or in another shape, is one for another model.
    A model without a ledger passes.
    """
    weights = _recorded_weights(model)
    wrong = []
    for name, entry in _ledger(model).items():
        zero = weights[name] == 0
        if _hash(zero) == entry["sha256"]:
            continue
        recorded, now = round(entry["sparsity"] * zero.numel()), int(zero.sum())
        if now < recorded:
            wrong.append(f"{name}: {recorded - now} of {recorded} zeros are zero no longer")
        elif now > recorded:
            wrong.append(f"{name}: {now - recorded} zeros more than the {recorded} recorded")
        else:
            wrong.append(f"{name}: its {now} zeros stand elsewhere")
    if wrong:
        _raise(wrong)


def masks_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """Matrix name -> mask (outputs, inputs), bool, True where a weight stays, for every recorded matrix.

    Read from the weights as they are; empty without a ledger. Raises LabkitError for a ledger of another model.
    """
    return {name: weight != 0 for name, weight in _recorded_weights(model).items()}


@dataclasses.dataclass(frozen=True)
class Held:
    """The masks of a model in training. Calling it zeroes the gradients of pruned weights; see `hold`."""

    model: PreTrainedModel
    masks: dict[str, Tensor]  # name -> (outputs, inputs), True where a weight stays
    gradients: tuple[tuple[nn.Parameter, Tensor], ...]  # a trained parameter, and True where it is pruned

    def __call__(self) -> None:
        for parameter, pruned in self.gradients:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(pruned, 0)

    def settle(self) -> None:
        """Check that every pruned weight is 0, and take weights that training set to 0 exactly into the ledger.

        Raises LabkitError with the matrix's name and the exact count of weights that are no longer zero.
        """
        if not self.masks:
            return
        weights, ledger = _recorded_weights(self.model), dict(_ledger(self.model))
        wrong = []
        for name, keep in self.masks.items():
            zero = weights[name] == 0
            pruned = keep.numel() - int(keep.sum())
            if gone := int((~keep & ~zero).sum()):
                wrong.append(f"{name}: {gone} of {pruned} zeros are zero no longer")
            if int(zero.sum()) != pruned:
                sparsity = int(zero.sum()) / zero.numel()
                ledger[name] = {"sparsity": sparsity, "shape": [*zero.shape], "sha256": _hash(zero)}
        if wrong:
            _raise(wrong)
        setattr(self.model.config, FIELD, ledger)


def hold(model: PreTrainedModel) -> Held:
    """What keeps pruned weights at zero while the model is trained: call it between backward and clipping.

    Adam without a gradient from its first step on moves nothing, and weight decay of 0 is 0: the weights stay exactly
    zero, and gradients that lead nowhere take no share of the clipped norm. Without a ledger it does nothing, nor for a
    model of peft, which freezes the matrices that its adapters stand beside (merging them is another matter).
    Raises LabkitError if the zeros are not the recorded ones (`check_masks`).
    """
    if hasattr(model, "get_base_model"):
        return Held(model, {}, ())
    check_masks(model)
    masks, found = masks_of(model), blocks.matrices(model)
    pruned: dict[nn.Parameter, Tensor] = {}
    for name, keep in masks.items():
        parameter = getattr(found[name].module, found[name].parameter)
        if parameter.requires_grad:  # a frozen one has no gradient
            whole = pruned.setdefault(parameter, torch.zeros_like(parameter, dtype=torch.bool, requires_grad=False))
            found[name].view(whole).copy_(~keep)  # a matrix may be transposed, or one expert of many
    return Held(model, masks, tuple(pruned.items()))


def _ledger(model: PreTrainedModel) -> dict[str, dict]:
    """What is recorded. Raises LabkitError if it is no ledger."""
    ledger = getattr(model.config, FIELD, None)
    if ledger is None:
        return {}
    for name, entry in ledger.items() if isinstance(ledger, dict) else [(FIELD, ledger)]:
        told = [entry.get(key) for key in KINDS] if isinstance(entry, dict) else [None]
        if not all(map(isinstance, told, KINDS.values())):
            remedy = "Take the config that the model was saved with."
            raise LabkitError("a ledger of masks has sparsity, shape and sha256 of each matrix", f"another {name}", remedy)
    return ledger


def _weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Matrix name -> (outputs, inputs)."""
    return {name: matrix.weight.detach() for name, matrix in blocks.matrices(model).items()}


def _recorded_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights the ledger names. Raises LabkitError if it is one for another model."""
    ledger = _ledger(model)
    if not ledger:
        return {}
    blocks.check_itself(model)
    weights = _weights(model)
    remedy = "Load the weights with the config they were saved with; after surgery, call record_masks(model)."
    for name, entry in ledger.items():
        if name not in weights or [*weights[name].shape] != entry["shape"]:
            has = "x".join(map(str, weights[name].shape)) if name in weights else "no such matrix"
            wants = "x".join(map(str, entry["shape"]))
            raise LabkitError("a mask belongs to the model it was made for", f"{name} of {wants}, but {has}", remedy)
    return {name: weights[name] for name in ledger}


def _hash(zero: Tensor) -> str:
    """sha256 of a pattern (outputs, inputs)."""
    return _told(_packed(zero))[1]


def _told(packed: np.ndarray) -> tuple[int, str]:
    """How many zeros a packed pattern has, and its sha256."""
    return int(np.bitwise_count(packed).sum()), hashlib.sha256(packed).hexdigest()


def _packed(zero: Tensor) -> np.ndarray:
    """A pattern (outputs, inputs) packed row by row, as `numpy.packbits` does, on a GPU there: an eighth leaves it."""
    if zero.device.type == "cpu":
        return np.packbits(zero.numpy())
    bits = zero.flatten().view(torch.uint8)
    bits = nn.functional.pad(bits, (0, -len(bits) % 8)).view(-1, 8)
    powers = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=bits.device)
    return (bits * powers).sum(1, dtype=torch.uint8).cpu().numpy()


def _raise(wrong: list[str]) -> None:
    more = f", and {len(wrong) - 1} further matrices differ" if len(wrong) > 1 else ""
    remedy = "Set them to 0 again, or, if the new pattern is meant, call labkit.pruning.ledger.record_masks(model)."
    raise LabkitError("the zeros of a pruned model stay where they were recorded", wrong[0] + more, remedy)
