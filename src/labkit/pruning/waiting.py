"""Where the hidden states of all sequences wait between two blocks, and how they come to the device and go."""

from __future__ import annotations

import torch
from torch import Tensor


class HiddenStates:
    """(sequences, time, width), the states before one block; those after it take their place, some at a time.

    They wait on the CPU, for a GPU in memory that it copies by itself: a stream of its own brings the next ones and takes
    the last ones away while the GPU computes, by way of two buffers of one micro-batch each. What is copied there is
    copied in order, so that states are never brought before they have been put.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.device = device
        self.states = torch.empty(shape, dtype=dtype, device="cpu", pin_memory=device.type == "cuda")
        self.copies = torch.cuda.Stream(device) if self.states.is_pinned() else None
        self.last = 0  # buffer, of two, of what was taken last
        self.release()

    def take(self, part: slice) -> Tensor:
        """Those of some sequences, (batch, time, width), on the device: good until others are taken.

        The ones behind them, or the first after the last, are then brought ahead.
        """
        if self.copies is None:
            return self.states[part].to(self.device)
        if self.coming is None or self.coming[0] != part:
            self._bring(part)
        torch.cuda.current_stream(self.device).wait_event(self.coming[1])
        self.coming, self.last = None, 1 - self.last
        size, end = part.stop - part.start, len(self.states)
        here = self.buffers[self.last][:size]
        if not part.start:
            self.first = part
        then = slice(part.stop, min(part.stop + size, end)) if part.stop < end else self.first
        if then not in (None, part):  # others will have been put in the place of the same
            self._bring(then)
        return here

    def put(self, part: slice, states: Tensor) -> None:
        """Keep these, (batch, time, width), of the sequences taken last, if any were. Nothing here waits for a GPU."""
        if self.copies is None or not states.is_cuda:
            self.states[part].copy_(states)
            return
        computes, here = torch.cuda.current_stream(self.device), self._buffer(self.last, part)
        computes.wait_stream(self.copies)  # an earlier copy out of the buffer
        here.copy_(states)
        self.copies.wait_stream(computes)
        with torch.cuda.stream(self.copies):
            self.states[part].copy_(here, non_blocking=True)

    def release(self) -> None:
        """Let go of the buffers: from here on the parts are smaller, or larger."""
        if self.copies is not None:
            self.copies.synchronize()
        self.buffers: list[Tensor] = []
        self.coming: tuple[slice, torch.cuda.Event] | None = None  # into the buffer that was not taken last
        self.first: slice | None = None  # part of a pass, which the next pass is likely to begin with

    def _bring(self, part: slice) -> None:
        """Copy some to the buffer that was not taken last, once what was there is used."""
        here = self._buffer(1 - self.last, part)
        self.copies.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.copies):
            here.copy_(self.states[part], non_blocking=True)
        self.coming = part, self.copies.record_event()

    def _buffer(self, number: int, part: slice) -> Tensor:
        size = part.stop - part.start
        if not self.buffers or len(self.buffers[number]) < size:
            self.release()
            self.buffers = [self.states.new_empty((size, *self.states.shape[1:]), device=self.device) for _ in range(2)]
            for buffer in self.buffers:  # whoever is given its memory next waits for the copies
                buffer.record_stream(self.copies)
        return self.buffers[number][:size]
