"""The simulated GPU keeps apart what a GPU keeps apart, and counts what it counts."""

from __future__ import annotations

import copy

import pytest
import torch
from gpus import SimulatedGPU
from torch import nn


@pytest.fixture(autouse=True)
def gpu():
    with SimulatedGPU() as simulated:
        yield simulated


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(3, device="cuda"),
        lambda: torch.tensor([1.0], device="cuda:0"),
        lambda: torch.arange(3).to("cuda"),
        lambda: torch.arange(3).cuda().float(),
        lambda: torch.zeros(3, 3, device="cuda")[1:].T,
        lambda: torch.zeros(3, device="cuda").add_(1) + torch.tensor(2),
        lambda: torch.zeros(3).to(torch.zeros(1, device="cuda")),
        lambda: nn.Linear(2, 2).to("cuda").weight,
        lambda: copy.deepcopy(nn.BatchNorm1d(2).to("cuda")).running_mean,
        lambda: nn.Linear(2, 2).to("cuda")(torch.ones(1, 2, device="cuda")),
        lambda: torch.nn.functional.one_hot(torch.arange(3, device="cuda")),
    ],
)
def test_what_is_made_there_lies_there_and_comes_back(make):
    there = make()
    assert (there.device.type, there.is_cuda, there.cpu().device.type) == ("cuda", True, "cpu")
    assert torch.equal(there.cpu().to("cuda").cpu(), there.cpu())


def test_what_is_made_here_lies_here():
    weight = nn.Linear(2, 2).weight
    assert {x.device.type for x in (torch.zeros(3), weight, weight.detach() + 1, weight.to(torch.float64))} == {"cpu"}


@pytest.mark.parametrize(
    "mixes",
    [
        lambda here, there: here + there,
        lambda here, there: torch.cat([here, there]),
        lambda here, there: there.addmm_(here, here),
        lambda here, there: here * there.sum(),
        lambda here, there: nn.functional.linear(there, here),
        lambda here, there: here[there.long()],
    ],
)
def test_two_sides_do_not_mix(mixes):
    with pytest.raises(RuntimeError, match="found at least two devices, cuda:0 and cpu!"):
        mixes(torch.ones(2, 2), torch.ones(2, 2, device="cuda"))


def test_a_copy_crosses_and_stays_where_it_is_kept():
    here, there = torch.zeros(2), torch.ones(2, device="cuda")
    assert here.copy_(there).device.type == "cpu" and here.tolist() == [1, 1]
    assert there[torch.tensor([0])].device.type == "cuda"  # an index may wait on the CPU


def test_what_only_memory_of_the_cpu_can_is_refused():
    there = torch.zeros(2, device="cuda")
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        there.numpy()
    with pytest.raises(RuntimeError, match="Only dense CPU tensors can be pinned"):
        there.pin_memory()


def test_bytes_are_those_of_what_is_alive(gpu):
    kept = torch.zeros(1000, device="cuda")  # 4,000 bytes, in blocks of 512
    assert gpu.allocated == 4096
    assert gpu.most(lambda: (kept + 1) * 2) == 2 * 4096
    assert gpu.most(lambda: kept.view(10, 100).T.mul_(2)) == 0
    del kept
    assert gpu.allocated == 0


def test_a_module_that_visits_it_leaves_nothing(gpu):
    module = nn.Linear(100, 100).to("cuda")
    assert gpu.allocated == 100 * 100 * 4 + 448 + 512  # 40,000 and 400 bytes, rounded up
    module.cpu()
    assert gpu.allocated == 0


def test_what_does_not_fit_is_refused_and_takes_nothing(gpu):
    with gpu.at_most(4096):
        there = torch.zeros(1000, device="cuda")
        for asks in (lambda: there + 1, lambda: torch.zeros(1, device="cuda"), lambda: torch.zeros(1).to("cuda")):
            with pytest.raises(torch.OutOfMemoryError):
                asks()
    assert gpu.allocated == 4096 and (there + 1).sum() == 1000


def test_a_recording_looks_at_nothing_and_repeats_what_it_does_in_the_same_memory():
    with SimulatedGPU() as gpu:
        given = torch.ones(4, device="cuda")
        turned, replay = gpu.record(lambda x: (2 * x).flip(0), [given])
        for number in (3.0, 5.0):
            given.copy_(torch.tensor([0.0, 0.0, 0.0, number]))
            replay()
            assert turned.tolist() == [2 * number, 0, 0, 0]


@pytest.mark.parametrize(
    "look",
    [lambda x: x * bool(x.any()), lambda x: x[x > 0], lambda x: x.cpu(), lambda x: torch.equal(x, x), torch.unique],
)
def test_a_recording_is_refused_what_waits_for_the_gpu(look):
    with SimulatedGPU() as gpu, pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        gpu.record(look, [torch.ones(4, device="cuda")])
