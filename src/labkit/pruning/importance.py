"""Which blocks matter. An importance is one function, and one entry in `IMPORTANCES`.

Every importance has the same form ``(model, calibration, generator) -> scores`` (layers,); the lowest are dropped.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from labkit.pruning import blocks


@torch.no_grad()
def block_influence(model: PreTrainedModel, calibration: Tensor | None, generator: torch.Generator) -> Tensor:
    """1 − mean over tokens of cos(x_in, x_out) of each block, 0..2. The model must be in eval mode.

    Raises LabkitError for missing or unfit ``calibration`` (sequences, time), and for activations that are not finite.
    Source: Men et al. 2024, *ShortGPT* (arXiv 2403.03853), the definition of block influence.
    """
    tokens = blocks.check_calibration(model, calibration, "block influence")
    prefix, layers = blocks.decoder_blocks(model)
    cosines = torch.zeros(len(layers), dtype=torch.float64)

    def adds_cosines(number: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Tensor | tuple) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            blocks.check_finite(after, f"{prefix}.{number}")
            cosines[number] += torch.cosine_similarity(before.float(), after.float(), dim=-1).sum().item()

        return hook

    handles = [b.register_forward_hook(adds_cosines(i), with_kwargs=True) for i, b in enumerate(layers)]
    try:
        for batch in blocks.micro_batches(tokens):
            model(input_ids=batch, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return 1 - cosines / tokens.numel()


def random(model: PreTrainedModel, calibration: Tensor | None, generator: torch.Generator) -> Tensor:
    """Uniform scores: the control."""
    return torch.rand(len(blocks.decoder_blocks(model)[1]), generator=generator)


IMPORTANCES = (block_influence, random)
