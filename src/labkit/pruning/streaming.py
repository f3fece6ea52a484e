"""Walking over the decoder blocks with calibration tokens: one block and one micro-batch on the device at a time.

The hidden states of all sequences wait on the CPU. A block is brought to the device, the statistics of its matrices'
inputs are gathered from one micro-batch after another, the caller prunes it, and it is run again with what the pruned
weights give for the next block. The device memory that this takes is one block, its statistics, what one micro-batch
takes, and the hidden states of the next, which are on their way.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from labkit.errors import LabkitError
from labkit.pruning import blocks, kernels, memory
from labkit.pruning.blocks import Matrix
from labkit.pruning.calls import Call, Inputs, calls_of, returned, states_in
from labkit.pruning.memory import Portions
from labkit.pruning.moments import Norms, Statistic
from labkit.pruning.waiting import HiddenStates

MAPPED_BYTES = 2**25 - 2**16
"""The largest block of memory that glibc learns from: 32 MiB, with what it adds to a block."""


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
    ``changes=False`` the next sees what it gave before the caller had it. For the numbers in ``skip`` nothing is
    gathered and an empty dict is yielded, and so for all blocks if ``statistic`` is None, where ``tokens`` are not
    looked at.

    Memory that runs out halves the micro-batch, with a warning. Raises LabkitError if a block or one sequence is still
    too much, if inputs or outputs of a block are not finite, or if no token reaches a matrix. The model must be in eval
    mode.
    """
    prefix, layers = blocks.decoder_blocks(model)
    stream = None if statistic is None else _Stream(model, tokens, device)
    for number, block in enumerate(layers):
        name = f"{prefix}.{number}"
        followed = stream is not None and number + 1 < len(layers)
        with _lent(block, name, device):
            if stream is None or number in skip:
                if followed and not changes:
                    stream.advance(number, name)
                yield {}
            else:
                yield stream.gather(number, name, statistic, advance=followed and not changes)
            if followed and changes:
                stream.advance(number, name)


class _Stream(Portions):
    """The hidden states of all sequences before one block, and how the model calls its blocks."""

    def __init__(self, model: PreTrainedModel, tokens: Tensor, device: torch.device | str | None) -> None:
        self.model, self.tokens, self.layers = model, tokens, blocks.decoder_blocks(model)[1]
        super().__init__(tokens, torch.device(device if device is not None else next(self.layers.parameters()).device))
        self.returns = returned(model, self.layers, tokens[:1, :8])
        self.calls: dict[int, list[Call]] = {}  # sequences in a micro-batch -> each block's
        self.known: dict[tuple[str, ...], tuple[list[int], bool]] = {}  # the inside of a block -> `_sharing`
        if self.device.type == "cpu":
            keep_freed_memory()
        self.extremes: list[Tensor] = []  # lowest and highest of each part of a block's outputs, NaN if there is one
        self.hidden: HiddenStates | None = None  # of all sequences, made with the first
        self.each(self._embed, "the embeddings")

    def _embed(self, part: slice) -> None:
        """Keep what some of the sequences are before the first block, and how the model calls its blocks with them."""
        size = part.stop - part.start
        hidden, calls = calls_of(self.model, self.layers, self.tokens[part], self.returns)
        if hidden.ndim != 3 or hidden.shape[:2] != self.tokens[part].shape:
            raise LabkitError(
                "blocks pass on hidden states (sequences, time, width)",
                f"{tuple(hidden.shape)} for tokens {tuple(self.tokens[part].shape)} in {type(self.model).__name__}",
                "Use an architecture whose blocks pass on one vector for each token.",
            )
        if not part.start:
            self.hidden = HiddenStates((len(self.tokens), *hidden.shape[1:]), hidden.dtype, self.device)
        self.hidden.put(part, hidden)
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
        keys = list(found)
        first, once = self._sharing(number, name, found)
        counting = {keys[i]: kind() for i in sorted({*first})}
        gathered = {key: counting[keys[i]] for key, i in zip(keys, first, strict=True)}
        until: dict[tuple[str, int], int] = {}  # (matrix, how many calls before) -> sequences whose rows are counted

        def step(part: slice) -> None:
            calls: Counter[str] = Counter()

            def count(key: str, rows: Tensor) -> None:
                call = key, calls[key]
                calls[key] += 1
                # A forward pass that ran out of memory is made again, in halves, but its rows are not counted again.
                if key in counting and until.get(call, 0) <= part.start:
                    counting[key].add(rows.flatten(0, -2))
                    until[call] = part.stop

            output = None
            with Inputs(found.values(), count, stop=once and not advance):  # nothing is needed after the last input
                output = self._run(number, part)
            if output is not None and advance:
                self._put(part, output)

        self.each(step, name)
        if advance:
            self._check_finite(name)
        if unseen := [key for key, statistic in gathered.items() if not statistic.rows]:
            rule = "every matrix takes part in the forward pass of the calibration tokens"
            remedy = "Give more calibration sequences; attention to an encoder is never reached."
            raise LabkitError(rule, ", ".join(unseen), remedy)
        for key, statistic in gathered.items():
            if not statistic.finite():
                raise LabkitError(
                    "calibration activations are finite",
                    f"NaN or infinity at the inputs of {key}",
                    blocks.MAKE_FINITE,
                )
        return gathered

    def _sharing(self, number: int, name: str, found: Mapping[str, Matrix]) -> tuple[list[int], bool]:
        """For each matrix the number of the first that is given the same tensors, whose rows are counted for both; and
        whether each is called once. One sequence tells, for all blocks with the same inside.
        """
        inside = tuple(key.removeprefix(name) for key in found)
        if inside not in self.known:
            given: dict[str, list[Tensor]] = {}

            def note(part: slice) -> None:
                given.update({key: [] for key in found})
                with Inputs(found.values(), lambda key, rows: given[key].append(rows)):
                    self._run(number, part)

            self.each(note, name, first=1)
            of = list(given.values())
            # What this sequence does not reach (an expert) shares with nothing.
            first = [next((j for j in range(i) if calls and _alike(of[j], calls)), i) for i, calls in enumerate(of)]
            self.known[inside] = first, all(len(calls) == 1 for calls in of)
        return self.known[inside]

    def advance(self, number: int, name: str) -> None:
        """Put the outputs of a block in the place of its inputs."""

        self.each(lambda part: self._put(part, self._run(number, part)), name)
        self._check_finite(name)

    def _run(self, number: int, part: slice) -> Tensor:
        """Output (batch, time, width) of a block for some of the sequences."""
        size = part.stop - part.start
        if size not in self.calls:
            calls = calls_of(self.model, self.layers, self.tokens[part], self.returns)[1]
            self.calls[size] = _to(calls, self.device, {})
        args, kwargs = self.calls[size][number]
        block = self.layers[number]
        with kernels.better(block, self.device):
            return states_in(block(self.hidden.take(part), *args, **kwargs))

    def _put(self, part: slice, output: Tensor) -> None:
        """Keep the output of a block for some of the sequences. Nothing here waits for the GPU."""
        self.extremes += torch.aminmax(output)
        self.hidden.put(part, output)

    def _check_finite(self, name: str) -> None:
        """Raise LabkitError if an output that was kept for the block is not finite."""
        blocks.check_finite(torch.stack(self.extremes), name)
        self.extremes.clear()

    def release(self) -> None:
        """Let go of the buffers, and of masks of batches that large."""
        self.calls = {}
        if self.hidden is not None:
            self.hidden.release()


def keep_freed_memory() -> None:
    """Let a process on Linux use the memory of freed activations again, instead of giving it back and asking anew.

    What lies free at the end of the heap goes back to the system once it is more than a limit, and is paid for again in
    page faults by the next micro-batch: 10 to 18 % of Wanda's time at width 576. The limit is twice the largest block
    that was mapped by itself and freed, of 32 MiB at most (mallopt(3), M_MMAP_THRESHOLD): here one is, never touched.
    """
    torch.empty(MAPPED_BYTES, dtype=torch.uint8)


def _alike(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))


def move(block: nn.Module, device: torch.device | str) -> None:
    """Bring a block's parameters and buffers to the device, in place."""
    block.to(device)


@contextlib.contextmanager
def _lent(block: nn.Module, name: str, device: torch.device | str | None) -> Iterator[None]:
    """The block is on the device inside the with, and where it was afterwards."""
    if device is None:
        yield
        return
    home = next(block.parameters()).device
    try:
        with memory.must_fit("the weights of a block", name):
            move(block, device)
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
