"""What the parts of a model are called with, caught on the way: blocks, and the matrices in them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from labkit.errors import LabkitError
from labkit.pruning import blocks
from labkit.pruning.blocks import Matrix

Call = tuple[tuple, dict[str, Any]]
"""What a block is called with, but for the hidden states: (args, kwargs)."""


def states_in(output: Tensor | tuple | list) -> Tensor:
    """The hidden states (batch, time, width) in what a block returns: that itself, or the first value of several."""
    return output[0] if isinstance(output, tuple | list) else output


class Reached(Exception):
    """Leaves a forward pass that has gone far enough."""


class Inputs:
    """Inside the with ``take`` is given name and inputs (..., inputs) of each of the matrices when it is called.

    With ``stop`` the forward pass is left, and the with too, once every matrix has been called. The inputs of a fused
    expert are the tokens routed to it. Nothing is kept.
    """

    def __init__(self, found: Collection[Matrix], take: Callable[[str, Tensor], None], stop: bool = False) -> None:
        self.take, self.stop, self.handles = take, stop, []
        self.matrices: dict[nn.Module, list[Matrix]] = {}
        for matrix in found:
            self.matrices.setdefault(matrix.module, []).append(matrix)
        self.waiting = set(self.matrices)

    def __enter__(self) -> Inputs:
        self.handles = [m.register_forward_pre_hook(self._note, with_kwargs=True) for m in self.matrices]
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        for handle in self.handles:
            handle.remove()
        return kind is Reached

    def _note(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        given = (*args, *kwargs.values())
        inputs = _expert_inputs(module, *given[:2]) if blocks.is_fused(module) else given[:1]
        for matrix, rows in zip(self.matrices[module], inputs, strict=True):
            self.take(matrix.name, rows)
        self.waiting.discard(module)
        if self.stop and not self.waiting:
            raise Reached


def _expert_inputs(experts: nn.Module, hidden: Tensor, chosen: Tensor) -> list[Tensor]:
    """What each expert's two matrices are given: the tokens (tokens, width) routed to it by ``chosen`` (tokens, k)."""
    weights = experts.gate_up_proj.mT if experts.is_transposed else experts.gate_up_proj
    biases = getattr(experts, "gate_up_proj_bias", [None] * len(weights))
    routed = [hidden[(chosen == e).any(-1)] for e in range(len(weights))]
    into = zip(routed, weights, biases, strict=True)
    return [*routed, *(experts._apply_gate(nn.functional.linear(*each)) for each in into)]


def returned(model: PreTrainedModel, layers: nn.ModuleList, tokens: Tensor) -> int | None:
    """How many values a block returns, or None if it returns the hidden states themselves.

    ``tokens`` int64 (batch, time), few: the first block is run on them, and nothing after it. Raises LabkitError if it
    is not: what was taken for the blocks is something else.
    """
    seen = []

    def note(module: nn.Module, args: tuple, output: Tensor | tuple | list) -> None:
        seen.append(None if isinstance(output, Tensor) else len(output))
        raise Reached

    handle = layers[0].register_forward_hook(note)
    try:
        with contextlib.suppress(Reached):
            model(input_ids=tokens, use_cache=False)
    finally:
        handle.remove()
    if not seen:
        received = f"{type(model).__name__}, which runs no {type(layers[0]).__name__}"
        raise LabkitError("a decoder runs its blocks on tokens", received, "Use a causal language model.")
    return seen[0]


def calls_of(
    model: PreTrainedModel, layers: nn.ModuleList, tokens: Tensor, returns: int | None
) -> tuple[Tensor, list[Call]]:
    """The hidden states (batch, time, width) before the first block, and what else the model calls each block with.

    ``tokens`` int64 (batch, time). No block is computed: each hands on its input, in the form that the model expects of
    it, which is ``returns``, the answer of `returned`.
    """
    first: list[Tensor] = []
    calls: list[Call] = []

    def forward(*args: Any, **kwargs: Any) -> Tensor | tuple:
        hidden = args[0] if args else kwargs.pop("hidden_states")
        first.append(hidden)
        calls.append((args[1:], kwargs))
        if len(calls) == len(layers):
            raise Reached
        return hidden if returns is None else (hidden, *[None] * (returns - 1))

    own = [vars(block).get("forward") for block in layers]  # what somebody has put in the place of the class's
    try:
        for block in layers:
            block.forward = forward
        with contextlib.suppress(Reached):
            model(input_ids=tokens, use_cache=False)
    finally:
        for block, was in zip(layers, own, strict=True):
            del block.forward
            if was is not None:
                block.forward = was
    return first[0], calls
