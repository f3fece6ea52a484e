"""Which weights matter. A criterion is one function, and one entry in `CRITERIA`.

Every criterion has the same form ``(weight, norms, generator) -> scores``:

- ``weight`` (outputs, inputs),
- ``norms`` (inputs,) fp32, ‖X_j‖₂ of each input over the calibration tokens, or None,
- ``generator``, the only source of randomness, on the CPU so that a seed means the same on every device,
- ``scores`` (outputs, inputs) fp32; the lowest are dropped.
"""

from __future__ import annotations

import torch
from torch import Tensor


def random(weight: Tensor, norms: Tensor | None, generator: torch.Generator) -> Tensor:
    """Uniform scores: the control. A criterion that does not beat it says something."""
    return torch.rand(weight.shape, generator=generator).to(weight.device)


def magnitude(weight: Tensor, norms: Tensor | None, generator: torch.Generator) -> Tensor:
    """|W_ij|. Source: Han et al. 2015, *Learning both weights and connections*, section 3."""
    return weight.float().abs()


def wanda(weight: Tensor, norms: Tensor, generator: torch.Generator) -> Tensor:
    """|W_ij| · ‖X_j‖₂. Source: Sun et al. 2023, *A simple and effective pruning approach*, equation 1."""
    return weight.float().abs() * norms


CALIBRATED = (wanda,)
"""Those that need ``norms``. Input norms tell the inputs of one output apart, so rows are their default group."""

CRITERIA = (random, magnitude, *CALIBRATED)
