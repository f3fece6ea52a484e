"""How much is done at once, and what happens where it does not fit into memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

import torch
from torch import Tensor

from labkit.errors import LabkitError, warn

MICRO_BATCH_TOKENS = {"cpu": 2_048, "cuda": 8_192}
"""Calibration tokens in one forward pass, by type of device: what the memory for activations grows with. A GPU needs
many at a time; of a CPU the activations of few stay in the caches (10 to 20 % less time, measured)."""

ELSEWHERE = "Leave the model on the CPU; prune then takes Options(device='cuda'), or 'cpu' where that is too small, too."
"""What to do where a device is too small."""


def micro_batch(length: int, device: torch.device) -> int:
    """How many sequences of ``length`` tokens hold about `MICRO_BATCH_TOKENS` of the device, at least one."""
    return max(1, of_device(MICRO_BATCH_TOKENS, device) // length)


def of_device(sizes: Mapping[str, int], device: torch.device) -> int:
    """The size for the device's type, or the CPU's for a type that is not named."""
    return sizes.get(device.type, sizes["cpu"])


def micro_batches(tokens: Tensor) -> Sequence[Tensor]:
    """Split (sequences, time) into parts of `micro_batch` sequences."""
    return tokens.split(micro_batch(tokens.shape[1], tokens.device))


class Portions:
    """Steps over calibration sequences, as many at a time as fit.

    Attributes
    ----------
    size: sequences in a step, about `MICRO_BATCH_TOKENS` of tokens; memory of a GPU that runs out halves it, with a warning.
    """

    def __init__(self, tokens: Tensor, device: torch.device) -> None:
        """Of tokens (sequences, time), on the device."""
        self.sequences, self.length = tokens.shape
        self.device = device
        self.size = min(self.sequences, micro_batch(self.length, device))

    def each(
        self, step: Callable[[slice], None], name: str, first: int | None = None, totals: Sequence[Tensor] = ()
    ) -> None:
        """Take the step for all sequences, or the ``first`` ones. What it adds to ``totals`` before memory runs out
        is taken back. Raises LabkitError, with the name, where one sequence is too much.
        """
        start, end = 0, first or self.sequences
        while start < end:
            part = slice(start, min(start + self.size, end))
            before = [total.clone() for total in totals]
            with contextlib.suppress(torch.OutOfMemoryError):
                step(part)
                start = part.stop
                continue
            for total, was in zip(totals, before, strict=True):
                total.copy_(was)
            self._halve(part.stop - part.start, name)  # once the frames of what ran out are gone, and their memory

    def release(self) -> None:
        """Let go of what is kept for steps of a size that was too much; here there is nothing."""

    def _halve(self, size: int, name: str) -> None:
        if size == 1:
            raise LabkitError(
                "one calibration sequence, and what computes with it, fit into the device's memory",
                f"out of memory in {name} with one sequence of {self.length} tokens",
                f"Give shorter sequences. {ELSEWHERE}",
            )
        self.size = size // 2
        self.release()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        warn(f"out of memory in {name}: on with {self.size} calibration sequences at a time")


class must_fit:  # noqa: N801
    """Raise LabkitError if memory runs out inside the with, where nothing can be done about it.

    The error does not hold the memory, as the frames of the work that ran out would. So it is no generator: those refer
    to their frames from the outside.
    """

    def __init__(self, what: str, name: str) -> None:
        self.what, self.name = what, name

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type | None, error: BaseException | None, frames: TracebackType | None) -> None:
        if isinstance(error, torch.OutOfMemoryError):
            del frames
            raise LabkitError(
                f"{self.what} fit into the device's memory",
                f"out of memory in {self.name}",
                ELSEWHERE,
            ) from error.with_traceback(None)
