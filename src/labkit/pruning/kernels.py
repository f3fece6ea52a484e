"""What makes a GPU faster at the same operations: better kernels, the same up to rounding, and fewer launches of them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

NO_SHARED_HEADS = (torch.float32, torch.float64)
"""Types for which no fused attention of PyTorch on a GPU knows keys that several heads share."""


@contextlib.contextmanager
def better(block: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside the with a block that is on a GPU is computed by these kernels; elsewhere nothing changes."""
    if device.type != "cuda":
        yield
        return
    # What somebody has put in the place of a module's own forward stays. Some norms have no weights.
    norms = [
        module
        for module in block.modules()
        if _is_rms_norm(type(module)) and "forward" not in vars(module) and getattr(module, "weight", None) is not None
    ]
    try:
        for norm in norms:
            norm.forward = functools.partial(rms_norm, norm)
        with RepeatedHeads() if next(block.parameters()).dtype in NO_SHARED_HEADS else contextlib.nullcontext():
            yield
    finally:
        for norm in norms:
            del norm.forward


class RepeatedHeads(TorchFunctionMode):
    """Inside the with, keys and values that several heads share are repeated for each of them.

    Queries (batch, heads, time, width), keys and values (batch, fewer heads, time, width), as PyTorch is given them.
    Without, it computes the attention of `NO_SHARED_HEADS` on a GPU by way of all scores, (time, time) for each
    head, which may take more time and memory than all else in a block. With, a fused kernel does that never holds them.
    """

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is F.scaled_dot_product_attention and len(args) == 3 and kwargs.pop("enable_gqa", False):
            query, *shared = args
            args = query, *(each.repeat_interleave(query.shape[-3] // each.shape[-3], -3) for each in shared)
        return function(*args, **kwargs)


class Recorded:
    """A function of tensors whose kernels are small and many: a GPU repeats by itself what it was once launched to do.

    The first call with arguments of some shapes is made as it is, at the second the function is recorded (`record`),
    and from there on that is replayed with copies of the arguments: the same kernels without what Python and the
    launches take, and where each element is computed by itself the same results to the bit. Other arguments are part of
    the function: with others what was recorded is dropped. On a CPU, and where a recording does not fit into memory,
    every call is made as it is.

    The function must change none of its arguments, and must not look at what is in them: nothing may wait for the GPU.
    What a call returns is good until the next one. Recordings keep the memory that the function takes, until this goes.
    """

    def __init__(self, function: Callable) -> None:
        self.function, self.others = function, ()
        self.known: dict[tuple, Callable | None] = {}  # shapes -> what to call from the second call on, once it is made

    def __call__(self, *given: Any) -> Any:
        if not given[0].is_cuda:
            return self.function(*given)
        others = tuple(each for each in given if not isinstance(each, Tensor))
        if others != self.others:
            self.known, self.others = {}, others
        key = tuple((each.shape, each.dtype, each.device) for each in given if isinstance(each, Tensor))
        if key not in self.known:
            self.known[key] = None
            return self.function(*given)
        self.known[key] = self.known[key] or self._repeated(given)
        return self.known[key](*given)

    def _repeated(self, given: Sequence) -> Callable:
        try:
            arguments = [torch.zeros_like(each) if isinstance(each, Tensor) else each for each in given]
            results, replay = record(self.function, arguments)
        except torch.OutOfMemoryError:
            return self.function

        def repeat(*given: Any) -> Any:
            for argument, each in zip(arguments, given, strict=True):
                if isinstance(each, Tensor):
                    argument.copy_(each)
            replay()
            return results

        return repeat


def record(function: Callable, arguments: Sequence) -> tuple[Any, Callable[[], object]]:
    """What a function returns, still to be computed, and what lets the GPU compute it from what the arguments hold then."""
    device, graph = arguments[0].device, torch.cuda.CUDAGraph()
    recorded = torch.cuda.graph(graph, stream=torch.cuda.Stream(device), capture_error_mode="thread_local")
    with torch.cuda.device(device), recorded:  # the GPU they lie on, of several; other threads may go on with theirs
        results = function(*arguments)
    return results, graph.replay


def rms_norm(module: nn.Module, hidden_states: Tensor) -> Tensor:
    """What a norm of transformers computes in six kernels, each of which reads or writes all of its input, in one.

    (…, width) -> (…, width), x / √(mean x² + ε) · weights. Source: Zhang & Sennrich 2019, *Root mean square layer
    normalization*, equation 4.
    """
    epsilon = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    return F.rms_norm(hidden_states, module.weight.shape, module.weight, epsilon)


@functools.cache
def _is_rms_norm(kind: type[nn.Module]) -> bool:
    """Whether `rms_norm` is what modules of a class compute. Its name does not tell: Gemma's adds 1 to the weights."""
    if not kind.__name__.endswith("RMSNorm"):
        return False
    with torch.device("cpu"), torch.no_grad(), contextlib.suppress(Exception):  # some are made otherwise
        module, hidden = kind(8), torch.linspace(-2, 3, 16).view(2, 8)
        module.weight.copy_(torch.linspace(0.5, 2, 8))
        return torch.allclose(module(hidden), rms_norm(module, hidden))
    return False
