"""Which blocks matter. An importance is one function, and one entry in `IMPORTANCES`.

Every importance has the same form ``(model, calibration, generator) -> scores`` (layers,); the lowest are dropped.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from labkit.errors import LabkitError
from labkit.pruning import blocks
from labkit.pruning.calls import states_in
from labkit.pruning.memory import Portions


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
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Tensor | tuple | list) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = states_in(output)
            blocks.check_finite(after, f"{prefix}.{number}")
            cosines[number] += torch.cosine_similarity(before.float(), after.float(), dim=-1).sum().item()

        return hook

    handles = [b.register_forward_hook(adds_cosines(i), with_kwargs=True) for i, b in enumerate(layers)]

    def step(part: slice) -> None:
        model(input_ids=tokens[part], use_cache=False)

    try:
        Portions(tokens, model.device).each(step, type(model).__name__, totals=[cosines])
    finally:
        for handle in handles:
            handle.remove()
    return 1 - cosines / tokens.numel()


@torch.no_grad()
def loss(model: PreTrainedModel, calibration: Tensor | None, generator: torch.Generator) -> Tensor:
    """Mean next-token loss without the block − mean next-token loss with it, nats per token. In eval mode.

    A block is removed by handing on its input; the calibration tokens are run once for each block, and once more.
    Raises LabkitError for missing or unfit ``calibration`` (sequences, time ≥ 2), for a model that foretells no tokens,
    and for a loss that is not finite.
    Source: Kim et al. 2024, *Shortened LLaMA* (arXiv 2402.02834), which ranks blocks by the perplexity without them.
    """
    tokens = blocks.check_calibration(model, calibration, "importance 'loss'")
    if tokens.shape[1] < 2:
        rule = "a next-token loss needs sequences of at least 2 tokens"
        raise LabkitError(rule, tuple(tokens.shape), "Give longer calibration sequences.")
    prefix, layers = blocks.decoder_blocks(model)

    portions = Portions(tokens, model.device)

    def mean_loss(without: str) -> float:
        total = torch.zeros((), dtype=torch.float64)

        def step(part: slice) -> None:
            logits = getattr(model(input_ids=tokens[part], use_cache=False), "logits", torch.empty(0))
            if logits.ndim != 3 or logits.shape[:2] != tokens[part].shape or logits.shape[2] <= tokens[part].max():
                remedy = "Use a causal language model, or importance='block-influence'."
                raise LabkitError("importance 'loss' needs a model that foretells tokens", type(model).__name__, remedy)
            foretold, following = logits[:, :-1].float().flatten(0, 1), tokens[part, 1:].flatten()
            total.add_(nn.functional.cross_entropy(foretold, following, reduction="sum").item())

        portions.each(step, type(model).__name__)
        if not total.isfinite():
            raise LabkitError("calibration losses are finite", f"{total.item()} without {without}", blocks.MAKE_FINITE)
        return total.item() / (tokens.numel() - len(tokens))

    def hands_on(module: nn.Module, args: tuple, kwargs: dict, output: Tensor | tuple | list) -> Tensor | tuple:
        before = args[0] if args else kwargs["hidden_states"]
        return before if isinstance(output, Tensor) else (before, *output[1:])

    dense, losses = mean_loss("any change"), []
    for number, block in enumerate(layers):
        handle = block.register_forward_hook(hands_on, with_kwargs=True)
        try:
            losses.append(mean_loss(f"{prefix}.{number}"))
        finally:
            handle.remove()
    return torch.tensor(losses, dtype=torch.float64) - dense


def random(model: PreTrainedModel, calibration: Tensor | None, generator: torch.Generator) -> Tensor:
    """Uniform scores: the control."""
    return torch.rand(len(blocks.decoder_blocks(model)[1]), generator=generator)


IMPORTANCES = (block_influence, loss, random)
