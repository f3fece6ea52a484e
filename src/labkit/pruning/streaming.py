"""Walking over the decoder blocks with calibration tokens: one block and one micro-batch on the device at a time.

The hidden states of all sequences wait where the model is, or on the CPU if they do not fit there. A block is brought
to the device, the statistics of its matrices' inputs are gathered from one micro-batch after another, the caller prunes
it, and it is run again with what the pruned weights give for the next block. The device memory that a model on the CPU
takes is one block, its statistics, and what one micro-batch takes.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from labkit.errors import LabkitError
from labkit.pruning import blocks
from labkit.pruning.blocks import Matrix
from labkit.pruning.moments import Norms, Statistic

Call = tuple[tuple, dict[str, Any]]
"""What a block is called with, but for the hidden states: (args, kwargs)."""


@torch.no_grad()
def walk(
    model: PreTrainedModel,
    tokens: Tensor | None,
    statistic: type[Statistic] | None = Norms,
    *,
    device: torch.device | str | None = None,
    skip: Collection[int] = (),
    changes: bool = True,
) -> Iterator[dict[str, Statistic]]:
    """Yield, block by block, the statistics of the inputs of each of its matrices; matrices of one input share one.

    While the caller has a block it is on ``device`` (default: where it is). When the caller comes back for the next
    block, the last one is run again: whatever was done to its weights is what the next block sees. With
    ``changes=False`` it is not, and the next sees the dense block. For the numbers in ``skip`` nothing is gathered and
    an empty dict is yielded, and so for all blocks if ``statistic`` is None, where ``tokens`` are not looked at.

    Memory that runs out sends the hidden states to the CPU, if they are elsewhere, or else halves the micro-batch, with
    a warning. Raises LabkitError if one sequence is still too much, if inputs or outputs of a block are not finite, or
    if no token reaches a matrix. The model must be in eval mode.
    """
    prefix, layers = blocks.decoder_blocks(model)
    stream = None if statistic is None else _Stream(model, tokens, device)
    for number, block in enumerate(layers):
        name, last = f"{prefix}.{number}", number + 1 == len(layers)
        with _lent(block, device):
            if stream is None or number in skip:
                yield {}
            else:
                yield stream.gather(number, name, statistic, advance=not changes)
            if stream is not None and not last and (changes or number in skip):
                stream.advance(number, name)


class _Stream:
    """The hidden states of all sequences before one block, and how the model calls its blocks."""

    def __init__(self, model: PreTrainedModel, tokens: Tensor, device: torch.device | str | None) -> None:
        self.model, self.tokens, self.layers = model, tokens, blocks.decoder_blocks(model)[1]
        self.device = torch.device(device) if device is not None else next(self.layers.parameters()).device
        self.size = min(len(tokens), blocks.micro_batch(tokens.shape[1], self.device))
        self.returns = _returns(model, self.layers, tokens[:1, :8])
        self.calls: dict[int, list[Call]] = {}  # sequences in a micro-batch -> each block's
        self.once: set[frozenset[str]] = set()  # the insides of blocks that call each of their matrices once
        self.extremes: list[Tensor] = []  # lowest and highest of each part of a block's outputs, NaN if there is one
        self.home = model.device
        self.hidden = torch.empty(0)  # (sequences, time, width), there
        self._in_parts(self._embed, "the embeddings")

    @property
    def pinned(self) -> bool:
        """Whether the hidden states wait in memory that the GPU copies by itself, and several times as fast."""
        return self.device.type == "cuda" and self.home.type == "cpu"

    def _embed(self, part: slice) -> None:
        """Keep what some of the sequences are before the first block, and how the model calls its blocks with them."""
        size = part.stop - part.start
        hidden, calls = _calls(self.model, self.layers, self.tokens[part], self.returns)
        if not part.start:
            shape = (len(self.tokens), *hidden.shape[1:])
            self.hidden = torch.empty(shape, dtype=hidden.dtype, device=self.home, pin_memory=self.pinned)
        self.hidden[part].copy_(hidden, non_blocking=self.pinned)
        if size not in self.calls:
            self.calls[size] = _to(calls, self.device, {})
        elif part.start == size and not _same(self.calls[size], _to(calls, self.device, {})):
            raise LabkitError(
                "blocks are called with the same masks and positions whatever the tokens are",
                type(self.model).__name__,
                "Use an architecture whose blocks depend on the tokens through the hidden states alone.",
            )

    def gather(self, number: int, name: str, kind: type[Statistic], advance: bool) -> dict[str, Statistic]:
        """Statistics of the inputs of a block's matrices; with ``advance`` its outputs are kept as well."""
        found = blocks.block_matrices(name, self.layers[number])
        inside = frozenset(key.removeprefix(name) for key in found)
        gathered: dict[str, Statistic] = {}

        def step(part: slice) -> None:
            output = None
            # What follows the input of the last matrix is not needed; which is the last, only a whole run can tell.
            with _Inputs(found.values(), stop=inside in self.once and not advance) as inputs:
                output = self._run(number, part)
            if all(len(calls) == 1 for calls in inputs.of.values()):
                self.once.add(inside)
            new = [key for key in inputs.of if key not in gathered]
            for key in new:  # the same tensors given to several matrices are counted once
                twin = next(k for k in new if _alike(inputs.of[k], inputs.of[key]))
                gathered[key] = gathered[twin] if twin in gathered else kind()
            owners = {id(statistic): key for key, statistic in reversed(gathered.items()) if key in inputs.of}
            for key in owners.values():
                for rows in inputs.of[key]:
                    self._add(gathered[key], rows.flatten(0, -2), key)
            if output is not None and advance:
                self._put(part, output)

        self._in_parts(step, name)
        if advance:
            self._check_finite(name)
        if unseen := [key for key in found if key not in gathered or not gathered[key].rows]:
            rule = "every matrix takes part in the forward pass of the calibration tokens"
            raise LabkitError(rule, ", ".join(unseen), "Give more calibration sequences.")
        for key, statistic in gathered.items():
            if not statistic.finite():
                raise LabkitError(
                    "calibration activations are finite",
                    f"NaN or infinity at the inputs of {key}",
                    "Check the weights, and use bfloat16 or float32 if they are float16.",
                )
        return {key: gathered[key] for key in found}

    def advance(self, number: int, name: str) -> None:
        """Put the outputs of a block in the place of its inputs."""

        self._in_parts(lambda part: self._put(part, self._run(number, part)), name)
        self._check_finite(name)

    def _run(self, number: int, part: slice) -> Tensor:
        """Output (batch, time, width) of a block for some of the sequences."""
        size = part.stop - part.start
        if size not in self.calls:
            calls = _calls(self.model, self.layers, self.tokens[part], self.returns)[1]
            self.calls[size] = _to(calls, self.device, {})
        args, kwargs = self.calls[size][number]
        hidden = self.hidden[part].to(self.device, non_blocking=self.pinned)
        output = self.layers[number](hidden, *args, **kwargs)
        return output[0] if isinstance(output, tuple) else output

    def _put(self, part: slice, output: Tensor) -> None:
        """Keep the output of a block for some of the sequences. Nothing here waits for the GPU."""
        self.extremes += torch.aminmax(output)
        self.hidden[part].copy_(output, non_blocking=self.pinned)

    def _check_finite(self, name: str) -> None:
        """Raise LabkitError if an output that was kept for the block is not finite."""
        blocks.check_finite(torch.stack(self.extremes), name)
        self.extremes.clear()

    def _in_parts(self, step: Callable[[slice], None], name: str) -> None:
        """Take the step for all sequences, as many at a time as fit."""
        start = 0
        while start < len(self.tokens):
            part = slice(start, min(start + self.size, len(self.tokens)))
            try:
                step(part)
            except torch.OutOfMemoryError:
                if self.home.type == "cpu":
                    self._halve(part.stop - part.start, name)
                else:
                    self._unload(name)
            else:
                start = part.stop

    def _unload(self, name: str) -> None:
        """Let the hidden states wait on the CPU from here on."""
        self.home = torch.device("cpu")
        self.hidden = self.hidden.cpu()
        if self.pinned:
            self.hidden = self.hidden.pin_memory()
            torch.cuda.empty_cache()
        warnings.warn(f"out of memory in {name}: activations wait on the CPU from here on", stacklevel=2)

    def _halve(self, size: int, name: str) -> None:
        if size == 1:
            raise LabkitError(
                "a block, its statistics and one calibration sequence fit into the device's memory",
                f"out of memory in {name} with one sequence of {self.tokens.shape[1]} tokens",
                "Give shorter sequences, and let the model stay on the CPU: prune(..., device='cuda').",
            )
        self.size = size // 2
        self.calls = {}  # masks of batches that large are not needed again
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        warnings.warn(f"out of memory in {name}: on with {self.size} calibration sequences at a time", stacklevel=2)

    def _add(self, statistic: Statistic, rows: Tensor, name: str) -> None:
        """Add the rows, in halves if they do not fit: the forward pass fitted, and must not be counted twice."""
        if not len(rows):
            return
        try:
            statistic.add(rows)
            return
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                self._halve(1, name)
        for half in rows.chunk(2):
            self._add(statistic, half, name)


class _Reached(Exception):
    """Leaves a forward pass that has gone far enough."""


class _Inputs:
    """Notes the inputs of matrices, name -> one tensor (..., inputs) a call; may leave after the last one's."""

    def __init__(self, found: Collection[Matrix], stop: bool) -> None:
        self.of: dict[str, list[Tensor]] = {}
        self.stop, self.handles = stop, []
        self.matrices: dict[nn.Module, list[Matrix]] = {}
        for matrix in found:
            self.matrices.setdefault(matrix.module, []).append(matrix)
        self.waiting = set(self.matrices)

    def __enter__(self) -> _Inputs:
        self.handles = [m.register_forward_pre_hook(self._note, with_kwargs=True) for m in self.matrices]
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        for handle in self.handles:
            handle.remove()
        return kind is _Reached

    def _note(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        given = (*args, *kwargs.values())
        inputs = _expert_inputs(module, *given[:2]) if blocks.is_fused(module) else given[:1]
        for matrix, rows in zip(self.matrices[module], inputs, strict=True):
            self.of.setdefault(matrix.name, []).append(rows)
        self.waiting.discard(module)
        if self.stop and not self.waiting:
            raise _Reached


def _expert_inputs(experts: nn.Module, hidden: Tensor, chosen: Tensor) -> list[Tensor]:
    """What each expert's two matrices are given: the tokens (tokens, width) routed to it by ``chosen`` (tokens, k)."""
    routed = [hidden[(chosen == e).any(-1)] for e in range(len(experts.down_proj))]
    into = zip(routed, experts.gate_up_proj, strict=True)
    return [*routed, *(experts._apply_gate(nn.functional.linear(rows, weight)) for rows, weight in into)]


def _alike(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))


def _returns(model: PreTrainedModel, layers: nn.ModuleList, tokens: Tensor) -> int | None:
    """How many values a block returns in a tuple, or None if it returns the hidden states themselves."""
    seen = []

    def note(module: nn.Module, args: tuple, output: Tensor | tuple) -> None:
        seen.append(len(output) if isinstance(output, tuple) else None)
        raise _Reached

    handle = layers[0].register_forward_hook(note)
    try:
        with contextlib.suppress(_Reached):
            model(input_ids=tokens, use_cache=False)
    finally:
        handle.remove()
    return seen[0]


def _calls(
    model: PreTrainedModel, layers: nn.ModuleList, tokens: Tensor, returns: int | None
) -> tuple[Tensor, list[Call]]:
    """The hidden states (batch, time, width) before the first block, and what else the model calls each block with.

    No block is computed: each hands on its input, in the form that the model expects of it.
    """
    first: list[Tensor] = []
    calls: list[Call] = []

    def forward(*args: Any, **kwargs: Any) -> Tensor | tuple:
        hidden = args[0] if args else kwargs.pop("hidden_states")
        first.append(hidden)
        calls.append((args[1:], kwargs))
        if len(calls) == len(layers):
            raise _Reached
        return hidden if returns is None else (hidden, *[None] * (returns - 1))

    try:
        for block in layers:
            block.forward = forward
        with contextlib.suppress(_Reached):
            model(input_ids=tokens, use_cache=False)
    finally:
        for block in layers:
            del block.forward
    return first[0], calls


def move(block: nn.Module, device: torch.device | str) -> None:
    """Bring a block's parameters and buffers to the device, in place."""
    block.to(device)


@contextlib.contextmanager
def _lent(block: nn.Module, device: torch.device | str | None) -> Iterator[None]:
    """The block is on the device inside the with, and where it was afterwards."""
    if device is None:
        yield
        return
    home = next(block.parameters()).device
    move(block, device)
    try:
        yield
    finally:
        move(block, home)


def _to(value: Any, device: torch.device, moved: dict[int, Any]) -> Any:
    """The same structure with every tensor on the device; what several blocks share is moved once."""
    if isinstance(value, Tensor):
        return moved.setdefault(id(value), value.to(device))
    if isinstance(value, Mapping):
        return {key: _to(item, device, moved) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_to(item, device, moved) for item in value)
    return value


def _same(a: Any, b: Any) -> bool:
    """Whether two structures hold equal tensors; other values are not compared."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return not isinstance(a, list | tuple) or (len(a) == len(b) and all(map(_same, a, b)))
