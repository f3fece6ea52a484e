"""How much is done at once; and where it does not fit, half as much, the same results, or an error that holds nothing."""

from __future__ import annotations

import warnings
import weakref

import pytest
import torch
from torch import nn

from labkit.errors import LabkitError
from labkit.ladder import Rung
from labkit.pruning import memory, streaming

TOKENS = torch.randint(1, 168, (6, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("length", "sequences"), [(1, 2048), (100, 20), (2048, 1), (5000, 1)])
def test_a_micro_batch_on_a_cpu_is_2048_tokens_or_one_sequence(length, sequences):
    assert memory.micro_batch(length, torch.device("cpu")) == sequences
    assert [len(part) for part in memory.micro_batches(torch.zeros(2 * sequences, length))] == [sequences] * 2


@pytest.mark.parametrize("how", ["one matrix", "one sequence"])
def test_an_error_about_memory_does_not_hold_it(how):
    """While it is there, what the work that ran out had is not."""
    held = []

    def work(module: nn.Module | None = None, args: tuple = (TOKENS,)) -> None:
        mine = torch.zeros(4)
        if args[0].shape[1] == TOKENS.shape[1]:  # not the few tokens that tell what a block returns
            held.append(weakref.ref(mine))
            raise torch.OutOfMemoryError("simulated")

    model = Rung(32, 1).build().eval()
    model.model.layers[0].mlp.register_forward_pre_hook(work)
    with pytest.raises(LabkitError, match="fit into the device's memory; got 'out of memory in ") as caught:
        if how == "one matrix":
            with memory.must_fit("a matrix", "w"):
                work()
        else:
            next(streaming.walk(model, TOKENS[:1]))
    assert caught.value.rule and [mine() for mine in held] == [None]


class Holds(memory.Portions):
    """Of a device that holds ``most`` sequences."""

    def __init__(self, sequences: int, most: int) -> None:
        super().__init__(torch.zeros(sequences, 12, dtype=torch.int64), torch.device("cpu"))
        self.most, self.total, self.done, self.released = most, torch.zeros(2), [], []

    def step(self, part: slice) -> None:
        self.total[0] += part.stop - part.start
        if part.stop - part.start > self.most:
            raise torch.OutOfMemoryError("simulated")
        self.total[1] += part.stop - part.start
        self.done += range(part.start, part.stop)

    def release(self) -> None:
        self.released.append(self.size)


@pytest.mark.parametrize(("sequences", "most", "halves"), [
    (1, 1, []), (8, 8, []), (8, 3, [4, 2]), (7, 3, [3]), (7, 1, [3, 1]), (13, 1, [6, 3, 1]), (13, 12, [6]),
])  # fmt: skip
def test_every_sequence_is_taken_once_in_order_and_totals_are_of_what_was_done(sequences, most, halves):
    holds = Holds(sequences, most)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        holds.each(holds.step, "a block", totals=[holds.total])
    assert holds.done == list(range(sequences))
    assert holds.total.tolist() == [sequences, sequences]
    assert holds.released == halves
    told = [f"out of memory in a block: on with {size} calibration sequences at a time" for size in halves]
    assert [str(warning.message) for warning in caught] == told
    holds.each(holds.step, "a block", first=1)
    assert holds.done == [*range(sequences), 0]


def test_one_sequence_that_is_too_much_is_named():
    rule = "one calibration sequence, .* got 'out of memory in a block with one sequence of 12 tokens'. Give shorter"
    holds = Holds(1, most=0)
    with pytest.raises(LabkitError, match=rule):
        holds.each(holds.step, "a block")


def test_other_errors_come_through():
    def fails(part: slice) -> None:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        Holds(4, most=4).each(fails, "a block")
