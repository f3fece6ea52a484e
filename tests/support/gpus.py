"""Two GPUs for tests: the one that is there, and one that is not.

Inside ``with SimulatedGPU() as gpu`` a tensor sent to ``"cuda"`` says that it lies there, meets tensors on the CPU with
PyTorch's error, and counts towards ``gpu.allocated``; more than ``gpu.capacity`` raises `torch.OutOfMemoryError`. The
arithmetic is the CPU's. What an operation takes for itself while it runs is not counted, nor what an allocator keeps.
"""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

needs_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)

ROUNDED_TO = 512
"""Bytes: PyTorch's allocator gives multiples of them."""

CROSSING = ("is_same_size", "copy_")
"""Operations that take tensors on both sides."""

INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_")
"""Operations that take indices on the CPU for a tensor on the GPU, but not the other way."""

LOOKING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "allclose", "_unique2", "repeat_interleave")
"""Operations that wait for what the GPU has computed."""


CAPTURING = "CUDA error: operation not permitted when stream is capturing"


class RealGPU:
    """What `SimulatedGPU` tells, of the one that is there."""

    def most(self, work: Callable[[], object]) -> int:
        """Bytes that allocated memory grows by at most."""
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    @contextlib.contextmanager
    def at_most(self, more: int) -> Iterator[None]:
        """Only so many bytes more can be allocated inside the with."""
        torch.cuda.empty_cache()
        allowed = torch.cuda.memory_reserved() + more
        torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.get_device_properties(0).total_memory)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)


class SimulatedGPU(TorchFunctionMode):
    """One GPU that holds ``capacity`` bytes."""

    def __init__(self, capacity: float = math.inf) -> None:
        super().__init__()
        self.capacity, self.allocated, self.peak = capacity, 0, 0
        self.storages: set[int] = set()  # that lie there
        self.made = CPU  # where an operation that is given no tensor puts what it makes
        self.operations, self.recording = _Operations(self), False
        self.recordings = self.replays = 0
        self.patch = mock.patch("labkit.pruning.kernels.record", self.record)

    def __enter__(self) -> SimulatedGPU:
        super().__enter__()
        self.operations.__enter__()
        self.patch.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.patch.stop()
        self.operations.__exit__(*error)
        super().__exit__(*error)

    def most(self, work: Callable[[], object]) -> int:
        """Bytes that allocated memory grows by at most."""
        before = self.peak = self.allocated
        work()
        return self.peak - before

    @contextlib.contextmanager
    def at_most(self, more: int) -> Iterator[None]:
        """Only so many bytes more can be allocated inside the with."""
        before, self.capacity = self.capacity, self.allocated + more
        try:
            yield
        finally:
            self.capacity = before

    def record(self, function: Callable, arguments: Sequence) -> tuple[Any, Callable[[], None]]:
        """In the place of `labkit.pruning.kernels.record`: the function is called again, and what waits is refused."""
        self.recording = True
        self.recordings += 1
        try:
            results = function(*arguments)
        finally:
            self.recording = False

        def replay() -> None:
            self.replays += 1
            for result, again in zip(_tensors(results), _tensors(function(*arguments)), strict=True):
                result.copy_(again)

        return results, replay

    def device(self, tensor: Tensor) -> torch.device:
        """Where it lies."""
        return GPU if tensor.untyped_storage()._cdata in self.storages else CPU

    def put(self, made: Any, device: torch.device) -> Any:
        """The same, with the memory of every tensor in it there."""
        for tensor in _tensors(made):
            storage = tensor.untyped_storage()
            if device.type == "cuda" and storage._cdata not in self.storages:
                size = -(-storage.nbytes() // ROUNDED_TO) * ROUNDED_TO
                if self.allocated + size > self.capacity:
                    raise torch.OutOfMemoryError(f"{size} bytes asked for, {self.capacity - self.allocated} are free")
                self.allocated += size
                self.peak = max(self.peak, self.allocated)
                self.storages.add(storage._cdata)
                weakref.finalize(storage, self._free, storage._cdata, size)
        return made

    def _free(self, storage: int, size: int) -> None:
        self.storages.remove(storage)
        self.allocated -= size

    def common(self, tensors: Sequence[Tensor]) -> torch.device:
        """Where an operation on them is done."""
        return GPU if any(self.device(tensor) == GPU for tensor in tensors) else CPU

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """What Python calls: whatever names a device, or would be done by another library."""
        kwargs = dict(kwargs or {})
        if function in ANSWERS:
            return ANSWERS[function](self, *args, **kwargs)
        named = "device" in kwargs and kwargs["device"] is not None
        where = torch.device(kwargs["device"]) if named else self.common(_tensors((args, kwargs)))
        if named:
            kwargs["device"] = CPU
        if kwargs.pop("pin_memory", False):
            _check_pinned(where)
        before, self.made = self.made, where
        try:
            made = function(*args, **kwargs)
        finally:
            self.made = before
        return self.put(made, where) if named else made

    def _to(self, tensor: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
        if args and isinstance(args[0], Tensor):
            args = (self.device(args[0]), args[0].dtype, *args[1:])
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        here, dtype = self.device(tensor), dtype or tensor.dtype
        if device is None or device.type == here.type:
            return tensor.to(dtype, copy=copy)
        if self.recording:
            raise RuntimeError(f"{CAPTURING} (from {here} to {device})")
        with self.operations.unplaced():
            moved = tensor.to(dtype, copy=True)
        return self.put(moved, device)

    def _numpy(self, tensor: Tensor, **kwargs: Any) -> Any:
        if self.device(tensor) == GPU:
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        return tensor.numpy(**kwargs)

    def _pinned(self, tensor: Tensor) -> Tensor:
        _check_pinned(self.device(tensor))
        return tensor.clone()


ANSWERS: dict[Callable, Callable] = {
    Tensor.device.__get__: SimulatedGPU.device,
    Tensor.is_cuda.__get__: lambda gpu, tensor: gpu.device(tensor) == GPU,
    Tensor.to: SimulatedGPU._to,
    Tensor.cpu: partial(SimulatedGPU._to, device=CPU),
    Tensor.cuda: partial(SimulatedGPU._to, device=GPU),
    Tensor.numpy: SimulatedGPU._numpy,
    Tensor.pin_memory: SimulatedGPU._pinned,
}


class _Operations(TorchDispatchMode):
    """Every operation below what Python calls: its tensors lie on one side, and what it makes lies there too."""

    def __init__(self, gpu: SimulatedGPU) -> None:
        super().__init__()
        self.gpu, self.places = gpu, True

    @contextlib.contextmanager
    def unplaced(self) -> Iterator[None]:
        """What is made inside the with is put somewhere by whoever asks."""
        self.places = False
        try:
            yield
        finally:
            self.places = True

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        given = _tensors((args, kwargs))
        where = self.gpu.common(given) if given else self.gpu.made
        name = function.overloadpacket.__name__
        if name in CROSSING or (name in INDEXED and self.gpu.device(given[0]) == GPU):
            where = self.gpu.device(given[0])
        elif where == GPU and any(self.gpu.device(tensor) == CPU for tensor in given if tensor.ndim):
            rule = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
            raise RuntimeError(f"{rule} ({function})")
        chosen = name in INDEXED and any(tensor.dtype == torch.bool for tensor in given[1:])  # by a mask
        if self.gpu.recording and (chosen or name in LOOKING):
            raise RuntimeError(f"{CAPTURING} ({function})")
        made = function(*args, **(kwargs or {}))
        return self.gpu.put(made, where) if self.places else made


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _check_pinned(device: torch.device) -> None:
    if device == GPU:
        raise RuntimeError("Only dense CPU tensors can be pinned")
