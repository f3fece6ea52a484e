"""Hidden states that wait elsewhere are those that were put there, whatever is copied while others are computed."""

from __future__ import annotations

import contextlib

import pytest
import torch
from gpus import needs_a_gpu
from torch import nn

from labkit.ladder import Rung
from labkit.pruning import memory, streaming
from labkit.pruning.moments import Hessian, Norms
from labkit.pruning.waiting import HiddenStates


class Copies:
    """A stream whose copies are made as early as they can be, when they are asked for, or as late: when waited for."""

    def __init__(self, late: bool) -> None:
        self.late, self.asked, self.made = late, [], 0

    def copy(self, into: torch.Tensor, states: torch.Tensor) -> None:
        self.asked.append((into, states))
        if not self.late:
            self.synchronize()

    def record_event(self) -> tuple[Copies, int]:
        return self, len(self.asked)

    def synchronize(self, until: int | None = None) -> None:
        for into, states in self.asked[self.made : until]:
            COPY(into, states)
        self.made = max(self.made, len(self.asked) if until is None else until)

    def wait_stream(self, other: object) -> None:
        """What computes is never late."""


class Computes:
    """The stream that everything else runs on, at once."""

    def wait_stream(self, other: Copies) -> None:
        other.synchronize()

    def wait_event(self, event: tuple[Copies, int]) -> None:
        event[0].synchronize(event[1])


COPY = torch.Tensor.copy_


def copying(monkeypatch: pytest.MonkeyPatch, late: bool) -> None:
    """The CPU is taken for a GPU by what uses streams."""
    init, inside = HiddenStates.__init__, []

    def on_the_stream(self: HiddenStates, *args: object) -> None:
        init(self, *args)
        self.copies = Copies(late)

    @contextlib.contextmanager
    def stream(copies: Copies):
        inside.append(copies)
        yield
        inside.clear()

    def copy(into: torch.Tensor, states: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        return inside[0].copy(into, states) if inside else COPY(into, states)

    monkeypatch.setattr(HiddenStates, "__init__", on_the_stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Computes())
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.Tensor, "copy_", copy)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)


@pytest.fixture(params=["here", "early", "late", pytest.param("real", marks=needs_a_gpu)])
def waiting(request, monkeypatch):
    """A function that makes states of a shape, on the CPU, on a GPU that copies early or late, or on one."""
    if request.param in ("early", "late"):
        copying(monkeypatch, late=request.param == "late")
    device = torch.device("cuda" if request.param == "real" else "cpu")
    return lambda *shape: HiddenStates(shape, torch.float32, device)


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
        if block % 2:
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


def filled(states: HiddenStates) -> HiddenStates:
    """Each of 8 sequences is its number."""
    for part in parts(8, 4):
        numbers = torch.arange(part.start, part.stop, dtype=torch.float32, device=states.device)
        states.put(part, numbers[:, None, None].expand(-1, 4, 4))
    return states


def numbers_in(taken: torch.Tensor) -> list[float]:
    assert torch.equal(taken.amin((1, 2)), taken.amax((1, 2)))
    return taken[:, 0, 0].tolist()


def test_parts_of_another_size_after_a_release(waiting):
    """As when memory runs out: what was brought ahead does not fit any more. The last of a pass may be fewer."""
    states = filled(waiting(8, 4, 4))
    for part in parts(8, 4):
        states.release()  # the second is on its way
        assert numbers_in(states.take(part)) == list(range(part.start, part.stop))
    states.release()
    assert numbers_in(states.take(slice(7, 8))) == [7]
    for size in (2, 1, 4, 8):
        for part in parts(8, size):
            assert numbers_in(states.take(part)) == list(range(part.start, part.stop))


@pytest.mark.parametrize("replaced", [False, True])
def test_a_pass_whose_parts_get_smaller_from_the_second_on(waiting, replaced):
    states, taken = filled(waiting(8, 4, 4)), []
    for number, part in enumerate([slice(0, 4), slice(4, 6), slice(6, 8), *parts(8, 2)]):
        if number == 1:
            states.take(slice(4, 8))  # in whose middle it ran out
            states.release()
        taken += numbers_in(found := states.take(part))
        if replaced:
            states.put(part, found + 100)
    assert taken == [*range(8), *(number + 100 * replaced for number in range(8))]


@pytest.mark.parametrize("kind", [Norms, Hessian])
@pytest.mark.parametrize("changes", [True, False])
@pytest.mark.parametrize("late", [False, True])
def test_memory_that_runs_out_anywhere_changes_no_statistic(monkeypatch, kind, changes, late):
    """Each micro-batch of each pass in turn is halved."""
    monkeypatch.setitem(memory.MICRO_BATCH_TOKENS, "cpu", 4 * 12)
    copying(monkeypatch, late)
    model = Rung(32, 3).build(seed=0).eval()
    tokens = torch.randint(1, 168, (12, 12), generator=torch.Generator().manual_seed(0))
    sizes: list[int] = []
    failing = None

    def check(module: nn.Module, args: tuple) -> None:
        sizes.append(len(args[0]))
        if len(sizes) - 1 == failing:
            raise torch.OutOfMemoryError("simulated")

    def walked() -> dict[str, torch.Tensor]:
        sizes.clear()
        steps = streaming.walk(model, tokens, kind, changes=changes)
        return {name: statistic.value() for step in steps for name, statistic in step.items()}

    for layer in model.model.layers:
        layer.mlp.register_forward_pre_hook(check)
    expected = walked()
    can_fail = [call for call, size in enumerate(sizes) if size > 1]
    assert len(can_fail) == 3 * (5 if changes else 3)  # of three blocks, the last of which is not run again
    for failing in can_fail:
        with pytest.warns(UserWarning, match="on with 2 calibration sequences at a time"):
            found = walked()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
