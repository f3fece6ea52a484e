"""Seconds and memory of Wanda and SparseGPT, over one plain forward pass of the calibration set and beside a peer.

OMP_NUM_THREADS=2 python benchmarks/pruning.py                      (ours alone)
PYTHONPATH=src .venv-oracles/bin/python benchmarks/pruning.py       (with the extra `oracles`: side by side)

Same model, same calibration tokens, same micro-batches for the plain pass. Wanda cannot be as fast as a plain pass:
every block runs twice, dense for the norms (all but its last matrix) and pruned for the next block (but for the last).
Each is measured in a process of its own, whose memory has no earlier peaks: the peak is what it grows by (resident
memory, on a GPU allocated memory) from model and tokens being there until the pruned model is, its copy included.
On a GPU also: the measured speed-up of a 2:4 matrix product with PyTorch's semi-structured tensors, batch 1 to 512.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.sparse import to_sparse_semi_structured
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from labkit.pruning import blocks, prune


def build(width: int, layers: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024, hidden_size=width, intermediate_size=width * 8 // 3 // 16 * 16, num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64), max_position_embeddings=2048, pad_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def seconds(work: Callable[[], object], repeats: int) -> float:
    """The fastest of some runs."""
    times = []
    for _ in range(repeats):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def memory_mib(peak: bool) -> float:
    """Of the GPU, else resident memory of the process: now, or the most there has been."""
    if torch.cuda.is_available():
        return (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / 2**20
    if peak:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


@torch.no_grad()
def plain(model: PreTrainedModel, tokens: Tensor) -> None:
    for batch in blocks.micro_batches(tokens):
        model(input_ids=batch, use_cache=False)


def peer(model: PreTrainedModel, tokens: Tensor, criterion: str) -> None:
    """The same with `llmcompressor.oneshot`: 50 %, blocks in order, embeddings and head dense."""
    from llmcompressor import oneshot
    from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier

    modifier = {"wanda": WandaPruningModifier, "sparsegpt": SparseGPTModifier}[criterion]
    with tempfile.TemporaryDirectory() as folder:  # it looks for files of the model by its name
        model.config.save_pretrained(folder)
        model = copy.deepcopy(model)
        model.name_or_path = model.config._name_or_path = folder
        _oneshot(oneshot, model, tokens, modifier)
    assert abs(blocks.sparsity(model) - 0.5) < 0.01  # both do the same work


def _oneshot(oneshot: Callable, model: PreTrainedModel, tokens: Tensor, modifier: type) -> None:
    batches = [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in blocks.micro_batches(tokens)]
    oneshot(
        model=model, dataset=DataLoader(batches, batch_size=None), num_calibration_samples=len(tokens),
        processor=object(),  # asked for, though tokens need none
        recipe=[modifier(sparsity=0.5, mask_structure="0:0", targets=["LlamaDecoderLayer"])],
    )  # fmt: skip


@torch.no_grad()
def semi_structured(width: int = 4096) -> None:
    """2:4 beside dense, float16, square matrix of a large model's width."""
    dense = nn.Linear(width, width, bias=False, device="cuda", dtype=torch.float16)
    dense.weight.mul_(torch.tensor([0, 0, 1, 1], device="cuda", dtype=torch.float16).repeat(width, width // 4))
    sparse = copy.deepcopy(dense)
    sparse.weight = nn.Parameter(to_sparse_semi_structured(dense.weight), requires_grad=False)
    for batch in (1, 8, 16, 32, 64, 128, 256, 512):
        x = torch.randn(batch, width, device="cuda", dtype=torch.float16)
        try:
            pair = [seconds(lambda m=m: [m(x) for _ in range(100)], 5) / 100 for m in (dense, sparse)]
            times = f"{pair[0] * 1e6:.1f} -> {pair[1] * 1e6:.1f} us"
            print(f"2:4 {width}x{width} batch {batch:3}: {times}, x{pair[0] / pair[1]:.2f}")
        except RuntimeError as error:
            print(f"2:4 {width}x{width} batch {batch:3}: not supported ({str(error).splitlines()[0]})")


def measure(asked: argparse.Namespace) -> tuple[float, float]:
    """(seconds, MiB that memory grows by at most) of `asked.only`, one of `WORK`; in a process of its own."""
    cuda = torch.cuda.is_available()
    generator = torch.Generator().manual_seed(0)
    small = torch.randint(1024, (4, 32), generator=generator)
    WORK[asked.only](build(64, 1).to("cuda" if cuda else "cpu"), small)  # imports, kernels
    model = build(asked.width, asked.layers).to("cuda" if cuda else "cpu")
    tokens = torch.randint(1024, (asked.sequences, asked.length), generator=generator)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    before = memory_mib(peak=False)
    WORK[asked.only](model, tokens)  # the first run of this size: memory that is not yet there cannot be used again
    grown = memory_mib(peak=True) - before
    return seconds(lambda: WORK[asked.only](model, tokens), asked.repeats), grown


WORK: dict[str, Callable[[PreTrainedModel, Tensor], object]] = {
    "plain": lambda model, tokens: plain(model, tokens.to(model.device)),
    "wanda": lambda model, tokens: prune(model, "wanda", 0.5, calibration=tokens),
    "sparsegpt": lambda model, tokens: prune(model, "sparsegpt", 0.5, calibration=tokens),
    "llmcompressor wanda": lambda model, tokens: peer(model, tokens, "wanda"),
    "llmcompressor sparsegpt": lambda model, tokens: peer(model, tokens, "sparsegpt"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only", choices=WORK, help="measure this here, and print seconds and MiB")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    if asked.only:
        print(*measure(asked))
        return
    cuda = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if cuda else f"cpu, {torch.get_num_threads()} threads"
    count = asked.sequences * asked.length
    print(f"Llama {asked.width}x{asked.layers}, {count:,} calibration tokens, 50 %, {name}")
    work = [name for name in WORK if importlib.util.find_spec("llmcompressor") or "llmcompressor" not in name]
    found: dict[str, tuple[float, float]] = {}
    for name in work:
        done = subprocess.run([sys.executable, *sys.argv, "--only", name], capture_output=True, text=True, check=True)
        found[name] = tuple(map(float, done.stdout.splitlines()[-1].split()))
        time_s, grown = found[name]
        print(f"{name}: {time_s:.2f} s, x{time_s / found['plain'][0]:.2f} of a plain pass; peak +{grown:.0f} MiB")
    for criterion in ("wanda", "sparsegpt"):
        if f"llmcompressor {criterion}" in found:
            times, peaks = zip(found[criterion], found[f"llmcompressor {criterion}"], strict=True)
            ratios = f"{times[1] / times[0]:.2f} times as fast, {peaks[0] / peaks[1]:.2f} of the memory"
            print(f"{criterion} beside llmcompressor: {ratios}")
    if len(work) == 3:
        print("llmcompressor is not installed here: nothing to compare with")
    if cuda:
        semi_structured()


if __name__ == "__main__":
    main()
