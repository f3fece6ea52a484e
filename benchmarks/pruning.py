"""Seconds and memory of Wanda and SparseGPT, over one plain forward pass of the calibration set and beside a peer.

OMP_NUM_THREADS=2 python benchmarks/pruning.py                      (ours alone)
PYTHONPATH=src .venv-oracles/bin/python benchmarks/pruning.py       (with the extra `oracles`: side by side)

Same model, same calibration tokens, same micro-batches for the plain pass. All are timed in one process, in turn, round
after round, so that what else the machine does strikes all alike; the fastest round counts. Where other work never
stops, ``OMP_NUM_THREADS=1 … --processor`` counts the process's own processor seconds instead.
Memory is measured in a process for each, which has no earlier peaks: the peak is what it grows by (resident memory, on
a GPU allocated memory) from model and tokens being there until the pruned model is, its copy included.

Wanda cannot be as fast as a plain pass: every block runs twice, dense for the norms (all but its last matrix) and
pruned for the next block (but for the last block). What this alone comes to is printed beside the time.
On a GPU also: the measured speed-up of 2:4 by PyTorch's semi-structured tensors beside dense, in the matrices of one
real block (of the size of Llama 3 8B) and in the block as a whole, for 1 to 512 tokens at a time.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.sparse import to_sparse_semi_structured
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from labkit.pruning import blocks, prune


def shape(width: int, neurons: int, layers: int, vocabulary: int, key_value_heads: int | None = None) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=neurons, num_hidden_layers=layers,
        num_attention_heads=width // 64, num_key_value_heads=key_value_heads, tie_word_embeddings=True,
        max_position_embeddings=2048, pad_token_id=None,
    )  # fmt: skip


WARM = shape(64, 160, 1, 1024)
SHAPES = {
    "256x8": shape(256, 672, 8, 1024),
    "smollm2-135m": shape(576, 1536, 30, 49_152, 3),  # the config.json of HuggingFaceTB/SmolLM2-135M
}


def build(config: LlamaConfig) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(copy.deepcopy(config)).eval()


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call, on a GPU with all that it started."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = clock()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


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
def semi_structured(
    width: int = 4096, neurons: int = 14336, device: str = "cuda", sparse: Callable = to_sparse_semi_structured
) -> None:
    """2:4 beside dense, in float16: every shape of matrix in one block pruned by labkit, and the whole block."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024, hidden_size=width, intermediate_size=neurons, num_hidden_layers=1,
        num_attention_heads=width // 128, num_key_value_heads=max(1, width // 512), pad_token_id=None,
    )  # fmt: skip
    dense = prune(LlamaForCausalLM(config).half().to(device).eval(), "magnitude", pattern="2:4")
    halved = copy.deepcopy(dense)
    for matrix in blocks.matrices(halved).values():
        matrix.module.weight = nn.Parameter(sparse(matrix.weight), requires_grad=False)
    pairs = {}
    for name, matrix in blocks.matrices(dense).items():
        label = f"{name.rpartition('.')[2]} {'x'.join(map(str, matrix.weight.shape))}"
        pairs.setdefault(tuple(matrix.weight.shape), (label, matrix.module, halved.get_submodule(name)))
    for tokens in (1, 8, 16, 32, 64, 128, 256, 512):
        for (_, inputs), (label, *both) in pairs.items():
            x = torch.randn(tokens, inputs, device=device, dtype=torch.float16)
            _beside(label, tokens, *(partial(module, x) for module in both))
        ids = torch.randint(1024, (tokens, 1), device=device)  # one step of generation for as many texts
        _beside("block", tokens, *(lambda m=m: m.model(input_ids=ids, use_cache=False)[0] for m in (dense, halved)))


def _beside(label: str, tokens: int, dense: Callable[[], Tensor], sparse: Callable[[], Tensor]) -> None:
    """Time both, a hundred calls at a time, and see that they compute the same."""
    try:
        expected, found = dense().float(), sparse().float()
        assert (found - expected).norm() < 0.01 * expected.norm(), f"{label}: 2:4 gives something else than dense"
        times = [min(seconds(lambda f=f: [f() for _ in range(100)]) for _ in range(5)) / 100 for f in (dense, sparse)]
        told = f"{times[0] * 1e6:.1f} -> {times[1] * 1e6:.1f} us, x{times[0] / times[1]:.2f}"
    except RuntimeError as error:
        told = f"not supported ({str(error).splitlines()[0]})"
    print(f"2:4 {label}, {tokens} tokens: {told}", flush=True)


def prepared(asked: argparse.Namespace, names: Collection[str]) -> tuple[PreTrainedModel, Tensor]:
    """The model and its calibration tokens, after a small run of each of `names`: imports, kernels."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    small, tokens = (
        torch.randint(1024, shape, generator=generator) for shape in ((4, 32), (asked.sequences, asked.length))
    )
    for name in names:
        WORK[name](build(WARM).to(device), small)
    return build(SHAPES[asked.shape]).to(device), tokens


def measure_memory(asked: argparse.Namespace) -> float:
    """MiB that memory grows by at most; the first run of this size, for freed memory would be used again."""
    model, tokens = prepared(asked, [asked.memory])
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    before = memory_mib(peak=False)
    WORK[asked.memory](model, tokens)
    return memory_mib(peak=True) - before


def measure_times(asked: argparse.Namespace) -> dict[str, float]:
    """Name -> seconds of the fastest round."""
    clock = time.process_time if asked.processor else time.perf_counter
    model, tokens = prepared(asked, names := available())
    rounds = [{n: seconds(lambda n=n: WORK[n](model, tokens), clock) for n in names} for _ in range(asked.repeats)]
    return {name: min(times[name] for times in rounds) for name in names}


def least(model: PreTrainedModel) -> float:
    """Plain passes that Wanda takes by its definition, by the products of matrices alone."""
    sizes = [m.weight.numel() for name, m in blocks.matrices(model).items() if ".layers.0." in name]
    block, last, layers = sum(sizes), sizes[-1], model.config.num_hidden_layers
    return (layers * (block - last) + (layers - 1) * block) / (layers * block + model.lm_head.weight.numel())


WORK: dict[str, Callable[[PreTrainedModel, Tensor], object]] = {
    "plain": lambda model, tokens: plain(model, tokens.to(model.device)),
    "wanda": lambda model, tokens: prune(model, "wanda", 0.5, calibration=tokens),
    "sparsegpt": lambda model, tokens: prune(model, "sparsegpt", 0.5, calibration=tokens),
    "llmcompressor wanda": lambda model, tokens: peer(model, tokens, "wanda"),
    "llmcompressor sparsegpt": lambda model, tokens: peer(model, tokens, "sparsegpt"),
}


def available() -> list[str]:
    return [name for name in WORK if importlib.util.find_spec("llmcompressor") or "llmcompressor" not in name]


def child(*more: str) -> str:
    """The last line that this file prints with these arguments too, in a process of its own."""
    done = subprocess.run([sys.executable, *sys.argv, *more], capture_output=True, text=True)  # the peer draws bars
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout.splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="256x8", help="of the model; its weights are random")
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3, help="rounds that are timed")
    parser.add_argument("--processor", action="store_true", help="processor seconds instead of seconds")
    parser.add_argument("--memory", choices=WORK, help="print the MiB that this takes, and no more")
    parser.add_argument("--times", action="store_true", help="print the seconds of all as JSON, and no more")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    if asked.memory or asked.times:
        print(measure_memory(asked) if asked.memory else json.dumps(measure_times(asked)))
        return
    cuda = torch.cuda.is_available()
    where = torch.cuda.get_device_name() if cuda else f"cpu, {torch.get_num_threads()} threads"
    count, unit = asked.sequences * asked.length, "processor s" if asked.processor else "s"
    print(f"Llama {asked.shape}, {count:,} calibration tokens, 50 %, {where}", flush=True)
    times = json.loads(child("--times"))
    grown = {name: float(child("--memory", name)) for name in times}
    for name, spent in times.items():
        print(f"{name}: {spent:.2f} {unit}, x{spent / times['plain']:.2f} of a plain pass; peak +{grown[name]:.0f} MiB")
    print(f"Wanda's definition alone: x{least(build(SHAPES[asked.shape])):.2f} of a plain pass")
    for criterion in ("wanda", "sparsegpt"):
        if (other := f"llmcompressor {criterion}") in times:
            ratios = times[other] / times[criterion], grown[criterion] / grown[other]
            print(f"{criterion} beside llmcompressor: {ratios[0]:.2f} times as fast, {ratios[1]:.2f} of the memory")
        else:
            print(f"llmcompressor is not installed here: no peer for {criterion}")
    if cuda:
        semi_structured()


if __name__ == "__main__":
    main()
