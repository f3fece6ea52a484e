"""Hidden states that wait elsewhere are those that were put there, whatever is copied while others are computed."""

from __future__ import annotations

import contextlib

import pytest
import torch
from gpus import needs_a_gpu

from labkit.pruning.waiting import HiddenStates


class AtOnce:
    """A stream on which every copy is made when it is asked for: as early as it can be."""

    def wait_stream(self, other: object) -> None: ...

    def wait_event(self, event: object) -> None: ...

    def record_event(self) -> None: ...

    def synchronize(self) -> None: ...


@pytest.fixture(params=["here", "at once", pytest.param("real", marks=needs_a_gpu)])
def waiting(request, monkeypatch):
    """A function that makes states of a shape, on the CPU, on a GPU that copies at once, or on one."""
    device = torch.device("cuda" if request.param == "real" else "cpu")

    def make(*shape: int) -> HiddenStates:
        states = HiddenStates(shape, torch.float32, device)
        if request.param == "at once":
            states.copies = AtOnce()
            monkeypatch.setattr(torch.cuda, "current_stream", lambda device: AtOnce())
            monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
            monkeypatch.setattr(torch.Tensor, "is_cuda", True)
        return states

    return make


def parts(sequences: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, sequences)) for start in range(0, sequences, size)]


@pytest.mark.parametrize(("sequences", "size"), [(8, 2), (7, 3), (6, 4), (4, 4), (1, 1), (2, 1)])
def test_passes_that_read_and_passes_that_write(waiting, sequences, size):
    """What a GPU brings ahead is never what is about to be replaced; each state is sequence + 100 · block."""
    states = waiting(sequences, 256, 64)
    for part in parts(sequences, size):
        numbers = torch.arange(part.start, part.stop, dtype=torch.float32, device=states.device)
        states.put(part, numbers[:, None, None].expand(-1, 256, 64))
    numbers = torch.arange(sequences, dtype=torch.float32)
    for block in range(4):
        assert states.take(slice(0, 1)).shape == (1, 256, 64)  # one sequence alone, as to see what is shared
        for replaced in (False, False, True):
            for part in parts(sequences, size):
                taken = states.take(part)
                if states.device.type == "cuda":
                    torch.cuda._sleep(1_000_000)  # the GPU is far behind Python
                assert torch.equal(taken[:, 0, 0].cpu(), numbers[part] + 100 * block)
                assert torch.equal(taken.amin((1, 2)), taken.amax((1, 2)))
                if replaced:
                    states.put(part, taken + 100)


@needs_a_gpu
def test_python_may_be_far_ahead_of_the_gpu():
    """Nothing waits for it: what was asked for is done in an order that gives the same."""
    states, generator = HiddenStates((64, 128, 256), torch.float32, torch.device("cuda")), torch.Generator("cuda")
    start = torch.randn(64, 128, 256, generator=generator.manual_seed(0), device="cuda")
    for part in parts(64, 4):
        states.put(part, start[part])
    seen = []
    for _ in range(6):
        for part in parts(64, 4):
            torch.cuda._sleep(200_000)
            seen.append(states.take(part).double().sum())
        for part in parts(64, 4):
            taken = states.take(part)
            torch.cuda._sleep(200_000)
            states.put(part, taken * 2)
    expected = [start[part].double().sum() * 2**block for block in range(6) for part in parts(64, 4)]
    torch.testing.assert_close(torch.stack(seen), torch.stack(expected))
    torch.cuda.synchronize()
    assert torch.equal(states.states, (start * 64).cpu())


def test_parts_that_get_smaller_on_the_way(waiting):
    """As when memory runs out: what was brought ahead does not fit any more."""
    states = waiting(8, 4, 4)
    for part in parts(8, 4):
        states.put(part, torch.full((4, 4, 4), float(part.start), device=states.device))
    for part in parts(8, 4):
        states.release()  # the second is on its way
        assert torch.equal(states.take(part).cpu(), torch.full((4, 4, 4), float(part.start)))
    states.release()
    states.take(slice(7, 8))  # the last of a pass may be fewer than those of the next
    for size in (2, 1):
        for part in parts(8, size):
            assert torch.equal(states.take(part).cpu(), torch.full((size, 4, 4), part.start // 4 * 4.0))
