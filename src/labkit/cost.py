"""What a model costs to hold and to run: size, arithmetic, time, memory and energy of one forward pass."""

from __future__ import annotations

import contextlib
import dataclasses
import html
import time
from collections.abc import Callable

import numpy as np
import torch
from transformers import PreTrainedModel

from labkit.errors import LabkitError
from labkit.flops import forward_flops_per_token

WARM_UP = 5  # untimed passes: allocator, kernel choice, clocks


@dataclasses.dataclass(frozen=True, repr=False)
class Cost:
    """Cost of one forward pass over ``batch`` sequences of ``length`` tokens, all at once (prefill, no cache)."""

    device: str
    batch: int
    length: int
    parameters: int  # stored, zeros included
    nonzero_parameters: int
    weight_bytes: int  # as stored: a zero takes as much room as any other weight
    forward_flops: int  # nominal, of the whole pass: zeros are counted as work (see `labkit.flops`)
    latency_ms: float  # median over the repeats
    latency_p95_ms: float
    throughput_tokens_per_s: float  # batch·length over the median latency
    peak_memory_mib: float | None  # of the pass, weights included; CUDA only
    energy_j: float | None  # per pass, idle power subtracted; None without an energy counter

    def _rounded(self) -> dict[str, str]:
        """Field -> text: whole numbers from a thousand on, three digits below."""
        return {name: _text(value) for name, value in dataclasses.asdict(self).items()}

    def __repr__(self) -> str:
        return f"Cost({', '.join(f'{name}={text}' for name, text in self._rounded().items())})"

    def _repr_html_(self) -> str:
        fields = self._rounded().items()
        rows = "".join(f"<tr><th>{name}</th><td>{html.escape(text)}</td></tr>" for name, text in fields)
        return f"<table><caption>Cost of one forward pass</caption>{rows}</table>"


def cost(model: PreTrainedModel, batch: int = 1, length: int = 128, repeats: int = 50, seed: int = 0) -> Cost:
    """Measure one forward pass on the model's own device.

    Parameters
    ----------
    batch, length
        Sequences and tokens per sequence of the pass (each ≥ 1); tokens are drawn uniformly by ``seed``.
    repeats
        Timed passes (≥ 1) after a warm-up, each synchronised with the device.

    Raises
    ------
    LabkitError
        ``batch``, ``length`` or ``repeats`` < 1; a ``length`` beyond a model's table of places.
    """
    for name, value in (("batch", batch), ("length", length), ("repeats", repeats)):
        if value < 1:
            raise LabkitError(f"{name} is at least 1", value, "Give a whole number of at least 1.")
    device, parameters = model.device, list(model.parameters())
    generator = torch.Generator().manual_seed(seed)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    tokens = torch.randint(vocabulary, (batch, length), generator=generator).to(device)
    was_training = model.training
    model.eval()

    @torch.inference_mode()
    def forward() -> None:
        model(input_ids=tokens, use_cache=False)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    try:
        seconds, peak = _timings(forward, repeats, device)
        energy = _energy_per_call(forward, counter) if (counter := _energy_counter(device)) else None
    except IndexError as error:
        raise LabkitError("a length is one that the model has places for", f"length={length}", "Give less.") from error
    finally:
        model.train(was_training)
    median = float(np.median(seconds))
    on_cuda = device.type == "cuda"
    return Cost(
        device=torch.cuda.get_device_name(device) if on_cuda else f"{device} ({torch.get_num_threads()} threads)",
        batch=batch,
        length=length,
        parameters=sum(p.numel() for p in parameters),
        nonzero_parameters=sum(int(p.count_nonzero()) for p in parameters),
        weight_bytes=sum(p.numel() * p.element_size() for p in parameters),
        forward_flops=batch * length * forward_flops_per_token(model, length),
        latency_ms=1e3 * median,
        latency_p95_ms=1e3 * float(np.percentile(seconds, 95)),
        throughput_tokens_per_s=batch * length / median,
        peak_memory_mib=peak,
        energy_j=energy,
    )


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _timings(forward: Callable[[], None], repeats: int, device: torch.device) -> tuple[list[float], float | None]:
    """Seconds of each repeat, and the peak device memory in MiB."""
    for _ in range(WARM_UP):
        forward()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        forward()
        seconds.append(time.perf_counter() - start)
    return seconds, torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None


def _energy_counter(device: torch.device) -> Callable[[], float] | None:
    """A function that reads the device's total energy in joules, or None where there is no such counter."""
    if device.type != "cuda":
        return None
    # pynvml is optional, and cards before Volta have no counter
    with contextlib.suppress(Exception):
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
    return None


def _energy_per_call(call: Callable[[], None], counter: Callable[[], float], window_s: float = 2.0) -> float:
    """Joules per call above idle power, over two long windows: the counter ticks every 20 to 100 ms only."""
    start_j, start = counter(), time.perf_counter()
    time.sleep(window_s)
    idle_w = (counter() - start_j) / (time.perf_counter() - start)
    start_j, start, calls = counter(), time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - start < window_s:
        call()
        calls += 1
    return (counter() - start_j - idle_w * (time.perf_counter() - start)) / calls
