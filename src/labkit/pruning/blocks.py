"""Finding a model's decoder blocks and their matrices, and walking over them with calibration tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from labkit.errors import LabkitError

MICRO_BATCH_TOKENS = 8_192
"""Calibration tokens in one forward pass: what the memory for activations grows with."""


def decoder_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Name and list of the decoder blocks: the outermost `ModuleList` with one entry per layer of the config."""
    layers = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == layers:
            return name, module
    raise LabkitError(
        "a decoder keeps its blocks in one torch.nn.ModuleList",
        f"{type(model).__name__} without a list of {layers} blocks",
        "Use a causal language model of transformers.",
    )


def matrices(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """Name -> linear layer, for every matrix inside the decoder blocks, in order. What pruning may touch.

    Embeddings and the output head stand outside the blocks. Raises LabkitError, with the name, if a block holds a
    matrix in another kind of module: leaving it dense silently would make the sparsity asked for a wrong number.
    """
    found = {}
    prefix, blocks = decoder_blocks(model)
    for name, module in blocks.named_modules(prefix=prefix):
        if isinstance(module, nn.Linear):
            found[name] = module
        elif any(p.ndim > 1 for p in module.parameters(recurse=False)):
            raise LabkitError(
                "only matrices in torch.nn.Linear can be pruned",
                f"{name}, a {type(module).__name__}",
                "Use an architecture whose blocks are made of torch.nn.Linear.",
            )
    return found


def sparsity(model: PreTrainedModel) -> float:
    """Fraction of zeros in the prunable matrices, 0..1."""
    weights = [linear.weight for linear in matrices(model).values()]
    return 1 - sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights)


def check_calibration(model: PreTrainedModel, calibration: Tensor | None, purpose: str) -> Tensor:
    """The tokens, on the model's device. Raises LabkitError unless int64 (sequences, time) of its vocabulary."""
    remedy = "Give int64 tokens (sequences, time) from the model's own vocabulary, never padded."
    if calibration is None:
        raise LabkitError(f"{purpose} needs calibration tokens", calibration, remedy)
    if not isinstance(calibration, Tensor):
        raise LabkitError("calibration tokens are a torch.Tensor", type(calibration).__name__, remedy)
    if calibration.dtype != torch.int64 or calibration.ndim != 2 or calibration.numel() == 0:
        received = f"{calibration.dtype} {tuple(calibration.shape)}"
        raise LabkitError("calibration tokens are int64 with shape (sequences, time)", received, remedy)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    low, high = int(calibration.min()), int(calibration.max())
    if low < 0 or high >= vocabulary:
        rule = f"calibration tokens lie in the vocabulary, 0..{vocabulary - 1}"
        raise LabkitError(rule, f"tokens {low}..{high}", remedy)
    return calibration.to(model.device)


def micro_batches(tokens: Tensor) -> Sequence[Tensor]:
    """Split (sequences, time) so that one part holds about `MICRO_BATCH_TOKENS`, at least one sequence."""
    return tokens.split(max(1, MICRO_BATCH_TOKENS // tokens.shape[1]))


@torch.no_grad()
def walk(model: PreTrainedModel, tokens: Tensor) -> Iterator[dict[str, Tensor]]:
    """Yield, block by block, the norms of the inputs of each of its matrices: name -> (inputs,) fp32.

    The norm of input j is ‖X_j‖₂ over all calibration tokens. When the caller comes back for the next block, the
    last one is run again: whatever was done to its weights is what the next block sees.
    Raises LabkitError, with the block's name, if its output is not finite. The model must be in eval mode.
    """
    prefix, blocks = decoder_blocks(model)
    batches = micro_batches(tokens)
    hidden = [_hidden_of(*_calls(model, blocks[:1], batch)[0]) for batch in batches]
    # What else a block is given (masks, positions) may differ between blocks, but depends on the batch's shape alone.
    calls = {len(batch): _calls(model, blocks, batch) for batch in (batches[0], batches[-1])}
    for number, block in enumerate(blocks):
        name = f"{prefix}.{number}"
        linears = {n: module for n, module in block.named_modules(prefix=name) if isinstance(module, nn.Linear)}
        squares: dict[str, Tensor] = {}
        handles = [module.register_forward_pre_hook(_adds_squares(squares, n)) for n, module in linears.items()]
        try:
            for x in hidden:
                check_finite(_run(block, x, calls[len(x)][number]), name)
        finally:
            for handle in handles:
                handle.remove()
        if unseen := linears.keys() - squares.keys():
            rule = "every matrix takes part in the forward pass of the calibration tokens"
            raise LabkitError(rule, ", ".join(sorted(unseen)), "Give more calibration sequences.")
        yield {matrix: total.sqrt() for matrix, total in squares.items()}
        if number + 1 < len(blocks):
            hidden = [_run(block, x, calls[len(x)][number]) for x in hidden]


def check_finite(hidden: Tensor, block: str) -> None:
    """Raise LabkitError, with the block's name, if what comes out of it is not finite."""
    if not torch.isfinite(hidden).all():
        raise LabkitError(
            "calibration activations are finite",
            f"NaN or infinity after block {block}",
            "Check the weights, and use bfloat16 or float32 if they are float16.",
        )


class _Reached(Exception):
    """Leaves a forward pass that has gone far enough."""


def _calls(model: PreTrainedModel, blocks: Sequence[nn.Module], tokens: Tensor) -> list[tuple[tuple, dict[str, Any]]]:
    """The arguments (args, kwargs) the model gives to each of its first ``blocks``; later ones are not run."""
    calls: list[tuple[tuple, dict[str, Any]]] = []

    def note(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        calls.append((args, kwargs))
        if len(calls) == len(blocks):
            raise _Reached

    handles = [block.register_forward_pre_hook(note, with_kwargs=True) for block in blocks]
    try:
        with contextlib.suppress(_Reached):
            model(input_ids=tokens, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _hidden_of(args: tuple, kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _run(block: nn.Module, hidden: Tensor, call: tuple[tuple, dict[str, Any]]) -> Tensor:
    """Output (batch, time, width) of a block for ``hidden`` in place of what it was called with."""
    args, kwargs = call
    rest = {key: value for key, value in kwargs.items() if key != "hidden_states"}
    output = block(hidden, *args[1:], **rest)
    return output[0] if isinstance(output, tuple) else output


def _adds_squares(squares: dict[str, Tensor], name: str) -> Callable[[nn.Linear, tuple], None]:
    def hook(module: nn.Linear, args: tuple) -> None:
        total = args[0].detach().flatten(0, -2).float().square().sum(0)  # (batch, time, inputs) -> (inputs,)
        squares[name] = squares[name] + total if name in squares else total

    return hook
