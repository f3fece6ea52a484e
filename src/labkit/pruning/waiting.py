"""Where the hidden states of all sequences wait between two blocks, and how they come to the device and go."""

from __future__ import annotations

import torch
from torch import Tensor


class HiddenStates:
    """(sequences, time, width), the states before one block; those after it take their place, some at a time.

    Those of a GPU wait in memory of the CPU that the GPU copies by itself. A stream of its own brings the next ones and
    takes the last ones away while the GPU computes, by way of two buffers of one micro-batch each. What is copied there
    is copied in order, so that states are never brought before they have been put. Anywhere else they wait on the device.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        gpu = device.type == "cuda"
        self.device = device
        self.states = torch.empty(shape, dtype=dtype, device="cpu" if gpu else device, pin_memory=gpu)
        self.copies = torch.cuda.Stream(device) if self.states.is_pinned() else None
        self.buffers: list[Tensor] = []
        self.last = 0  # buffer, of two, of what was taken last
        self.coming: tuple[slice, torch.cuda.Event] | None = None  # into the other
        self.first = slice(0, 0)

    def take(self, part: slice) -> Tensor:
        """Those of some sequences, on the device, until the next are taken, which are likely those behind them."""
        if self.copies is None:
            return self.states[part].to(self.device)
        if self.coming is None or self.coming[0] != part:
            self._bring(part)
        torch.cuda.current_stream(self.device).wait_event(self.coming[1])
        self.last, size, end = 1 - self.last, part.stop - part.start, len(self.states)
        if not part.start:
            self.first = part
        then = slice(part.stop, min(part.stop + size, end)) if part.stop < end else self.first
        if then == part:  # others will have been put in their place
            self.coming = None
        else:
            self._bring(then)
        return self.buffers[self.last][:size]

    def put(self, part: slice, states: Tensor) -> None:
        """Keep these of some sequences, the ones taken last if any were. Nothing here waits for a GPU."""
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
        """Let go of the buffers, for their size is another from here on."""
        if self.copies is not None:
            self.copies.synchronize()
        self.buffers, self.coming = [], None

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
        return self.buffers[number][:size]
