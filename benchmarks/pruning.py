"""Seconds and memory of Wanda and SparseGPT, over one plain forward pass of the calibration set and beside a peer.

OMP_NUM_THREADS=2 python benchmarks/pruning.py                      (ours alone)
PYTHONPATH=src .venv-oracles/bin/python benchmarks/pruning.py       (with the extra `oracles`: side by side)

Same model, same calibration tokens, same micro-batches for the plain pass. All are timed in one process, in turn, round
after round, so that what else the machine does strikes all alike; the fastest round counts, and the first is told too
(on a GPU it also pins the memory in which hidden states wait). Freed memory that goes back to the system costs all of
them page faults; with ``MALLOC_TRIM_THRESHOLD_=4000000000 MALLOC_MMAP_THRESHOLD_=4000000000`` none does (glibc). Where
other work never stops, ``OMP_NUM_THREADS=1 … --processor`` counts the process's own processor seconds instead.
The peak of memory is what it grows by from model and tokens being there until the pruned model is, its copy included:
on a GPU of allocated memory, else of resident memory, in a process for each, which has no earlier peaks.

Wanda cannot be as fast as a plain pass: every block runs twice, dense for the norms (all but its last matrix) and
pruned for the next block (but for the last block). What this takes alone is timed too (``passes``), and the operations
in products of matrices, attention's included, are counted: a bound where these are what takes the time. ``in one pass``
is without the second (``Options(propagate=False)``), which gives other masks.
On a GPU also: the same with the model on the CPU and one block at a time on the GPU (``lent``), and the measured
speed-up of 2:4 by PyTorch's semi-structured tensors beside dense, in the matrices of one real block (of the size of
Llama 3 8B) and in the block as a whole, for 1 to 512 tokens at a time: as Python calls them, and as a CUDA graph,
with the algorithm that cuSPARSELt finds best for each.
Matrices of less than the GPU's cache are read from it; only the block as a whole reads its weights from memory.
"""

from __future__ import annotations

import argparse
import copy
import csv
import importlib.util
import json
import resource
import statistics
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
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.sparse import (
    SparseSemiStructuredTensor,
    SparseSemiStructuredTensorCUSPARSELT,
    to_sparse_semi_structured,
)
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from labkit.pruning import Options, blocks, memory, prune, streaming


def shape(width: int, neurons: int, layers: int, vocabulary: int, key_value_heads: int | None = None) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=neurons, num_hidden_layers=layers,
        num_attention_heads=width // 64, num_key_value_heads=key_value_heads, tie_word_embeddings=True,
        max_position_embeddings=2048, pad_token_id=None,
    )  # fmt: skip


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

CALLS = 20
"""Of 2:4 and of dense that are timed as one."""

WARM = shape(64, 160, 1, 1024)
SHAPES = {
    "256x8": shape(256, 672, 8, 1024),
    "smollm2-135m": shape(576, 1536, 30, 49_152, 3),  # the config.json of HuggingFaceTB/SmolLM2-135M
    "llama-3.2-1b": shape(2048, 8192, 16, 128_256, 8),  # of meta-llama/Llama-3.2-1B
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
    for batch in memory.micro_batches(tokens):
        model(input_ids=batch, use_cache=False)


def passes(model: PreTrainedModel, tokens: Tensor) -> None:
    """What Wanda's definition asks for before a weight is looked at: both passes over the blocks, and the norms."""
    for _ in streaming.walk(model, tokens.to(model.device)):
        pass


def peer(model: PreTrainedModel, tokens: Tensor, criterion: str, propagate: bool = True) -> None:
    """The same with `llmcompressor.oneshot`: 50 %, blocks in order, embeddings and head dense."""
    from llmcompressor import oneshot
    from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier

    modifier = {"wanda": WandaPruningModifier, "sparsegpt": SparseGPTModifier}[criterion]
    with tempfile.TemporaryDirectory() as folder:  # it looks for files of the model by its name
        model.config.save_pretrained(folder)
        model = copy.deepcopy(model)
        model.name_or_path = model.config._name_or_path = folder
        _oneshot(oneshot, model, tokens, modifier, propagate)
    assert abs(blocks.sparsity(model) - 0.5) < 0.01  # both do the same work


def _oneshot(oneshot: Callable, model: PreTrainedModel, tokens: Tensor, modifier: type, propagate: bool) -> None:
    size = memory.micro_batch(tokens.shape[1], torch.device(DEVICE))  # as many at a time as ours
    batches = [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in tokens.split(size)]
    oneshot(
        model=model, dataset=DataLoader(batches, batch_size=None), num_calibration_samples=len(tokens),
        processor=object(),  # asked for, though tokens need none
        propagate_error=propagate,
        recipe=[modifier(sparsity=0.5, mask_structure="0:0", targets=["LlamaDecoderLayer"])],
    )  # fmt: skip


@torch.inference_mode()
def semi_structured(width: int = 4096, neurons: int = 14336, device: str = "cuda") -> list[dict[str, object]]:
    """2:4 beside dense, in float16: every shape of matrix in one block pruned by labkit, and the whole block."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024, hidden_size=width, intermediate_size=neurons, num_hidden_layers=1,
        num_attention_heads=width // 128, num_key_value_heads=max(1, width // 512), pad_token_id=None,
    )  # fmt: skip
    dense = prune(LlamaForCausalLM(config).half().to(device).eval(), "magnitude", pattern="2:4")
    found = []
    for backend in ("cuSPARSELt", "CUTLASS"):
        SparseSemiStructuredTensor._FORCE_CUTLASS = backend == "CUTLASS"
        halved = _halved(dense)
        shapes = {matrix.weight.shape: name for name, matrix in reversed(blocks.matrices(dense).items())}
        try:
            for tokens in (1, 8, 16, 32, 64, 128, 256, 512):
                _choose_algorithms(halved, tokens)
                for (outputs, inputs), name in shapes.items():
                    x = torch.randn(tokens, inputs, device=device, dtype=torch.float16)
                    both = [partial(model.get_submodule(name), x) for model in (dense, halved)]
                    label = f"{name.rpartition('.')[2]} {outputs}x{inputs}"
                    found += _beside({"backend": backend, "part": label, "tokens": tokens}, *both)
                x = torch.randn(tokens, 1, width, device=device, dtype=torch.float16)  # one new token of each text
                where = dense.model.rotary_emb(x, torch.zeros(tokens, 1, device=device, dtype=torch.int64))
                both = [partial(model.model.layers[0], x, position_embeddings=where) for model in (dense, halved)]
                found += _beside({"backend": backend, "part": "block", "tokens": tokens}, *both)
        except RuntimeError as error:
            print(f"2:4 by {backend} is not supported here: {str(error).splitlines()[0]}", flush=True)
    return found


def _halved(dense: PreTrainedModel) -> PreTrainedModel:
    """The same model with its matrices in PyTorch's semi-structured form."""
    halved = copy.deepcopy(dense)
    for matrix in blocks.matrices(halved).values():
        matrix.module.weight = nn.Parameter(to_sparse_semi_structured(matrix.weight), requires_grad=False)
    return halved


def _choose_algorithms(halved: PreTrainedModel, tokens: int) -> None:
    """For every matrix the algorithm that cuSPARSELt itself finds the fastest for as many tokens."""
    for module in (matrix.module for matrix in blocks.matrices(halved).values()):
        if isinstance(module.weight, SparseSemiStructuredTensorCUSPARSELT):
            rows = -(-tokens // 8) * 8  # PyTorch pads to it
            x = torch.randn(rows, module.in_features, device=module.weight.device, dtype=torch.float16)
            module.weight.alg_id_cusparselt = torch._cslt_sparse_mm_search(module.weight.packed, x.t())


def _beside(what: dict[str, object], dense: Callable[[], Tensor], sparse: Callable[[], Tensor]) -> list[dict]:
    """Time both in turn, as Python calls them and as a GPU alone runs them (a CUDA graph), and see that they agree."""
    expected, found = dense().float(), sparse().float()
    assert (found - expected).norm() < 0.01 * expected.norm(), f"{what}: 2:4 gives something else than dense"
    rows = []
    for way, prepare in (("called", _repeated), ("replayed", _recorded)):
        works = [prepare(f) for f in (dense, sparse)]
        for repeat in range(7):
            times = [seconds(work) / CALLS * 1e6 for work in works]
            rows.append({**what, "way": way, "repeat": repeat, "dense_us": times[0], "sparse_us": times[1]})
        medians = [statistics.median(row[key] for row in rows[-7:]) for key in ("dense_us", "sparse_us")]
        told = f"{way} {medians[0]:.1f} -> {medians[1]:.1f} us, x{medians[0] / medians[1]:.2f}"
        print(f"2:4 {' '.join(map(str, what.values()))} tokens: {told}", flush=True)
    return rows


def _repeated(work: Callable[[], Tensor]) -> Callable[[], object]:
    return lambda: [work() for _ in range(CALLS)]


def _recorded(work: Callable[[], Tensor]) -> Callable[[], object]:
    """The calls as one CUDA graph: nothing is left of what Python and the library do before the kernels run."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            work()
    graph.replay()
    return graph.replay


def prepared(asked: argparse.Namespace, names: Collection[str]) -> Callable[[str], None]:
    """What runs a piece of work, given its name, after a small run of each of `names`: imports, kernels."""
    generator = torch.Generator().manual_seed(0)
    small, tokens = (
        torch.randint(1024, shape, generator=generator) for shape in ((4, 32), (asked.sequences, asked.length))
    )

    def models(config: LlamaConfig) -> dict[str, PreTrainedModel]:
        with torch.device(DEVICE):  # a GPU draws random weights much faster
            there = build(config).to(getattr(torch, asked.dtype))
        return {"cpu": there if DEVICE == "cpu" else copy.deepcopy(there).cpu(), DEVICE: there}

    def run(name: str, models: dict[str, PreTrainedModel], tokens: Tensor) -> None:
        WORK[name](models["cpu" if name in LENT else DEVICE], tokens)

    for name in names:
        run(name, models(WARM), small)
    return partial(run, models=models(SHAPES[asked.shape]), tokens=tokens)


def grown(work: Callable[[], None]) -> float:
    """MiB that memory grows by at most."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    before = memory_mib(peak=False)
    work()
    return memory_mib(peak=True) - before


def measure_memory(asked: argparse.Namespace) -> float:
    """Of the first run of this size, for a process uses again what it has freed."""
    return grown(partial(prepared(asked, [asked.memory]), asked.memory))


def measure_times(asked: argparse.Namespace) -> dict[str, list[float]]:
    """Name -> seconds of the fastest round and of the first, and MiB, which mean something on a GPU."""
    clock = time.process_time if asked.processor else time.perf_counter
    names = [name for name in available() if not asked.work or name in ("plain", *asked.work)]
    run = prepared(asked, names)
    rounds = []
    for _ in range(asked.repeats):
        memory = {}
        times = {n: seconds(lambda n=n, m=memory: m.update({n: grown(partial(run, n))}), clock) for n in names}
        rounds.append((times, memory))
    (first, memory), *_ = rounds
    return {name: [min(times[name] for times, _ in rounds), first[name], memory[name]] for name in names}


def count_products(asked: argparse.Namespace) -> dict[str, int]:
    """Name -> floating-point operations in products of matrices, of all whose work is the passes."""
    names = [name for name in available() if "sparsegpt" not in name]
    run, counts = prepared(asked, names), {}
    for name in names:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # others are not all counted
            run(name)
        counts[name] = counter.get_total_flops()
    return counts


ONE_PASS, LEND = Options(propagate=False), Options(device="cuda")

WORK: dict[str, Callable[[PreTrainedModel, Tensor], object]] = {
    "plain": lambda model, tokens: plain(model, tokens.to(model.device)),
    "passes": passes,
    "wanda": lambda model, tokens: prune(model, "wanda", 0.5, calibration=tokens),
    "wanda in one pass": lambda model, tokens: prune(model, "wanda", 0.5, calibration=tokens, options=ONE_PASS),
    "sparsegpt": lambda model, tokens: prune(model, "sparsegpt", 0.5, calibration=tokens),
    "wanda lent": lambda model, tokens: prune(model, "wanda", 0.5, calibration=tokens, options=LEND),
    "sparsegpt lent": lambda model, tokens: prune(model, "sparsegpt", 0.5, calibration=tokens, options=LEND),
    "llmcompressor wanda": lambda model, tokens: peer(model, tokens, "wanda"),
    "llmcompressor wanda in one pass": lambda model, tokens: peer(model, tokens, "wanda", propagate=False),
    "llmcompressor sparsegpt": lambda model, tokens: peer(model, tokens, "sparsegpt"),
    "llmcompressor wanda lent": lambda model, tokens: peer(model, tokens, "wanda"),
    "llmcompressor sparsegpt lent": lambda model, tokens: peer(model, tokens, "sparsegpt"),
}

LENT = [name for name in WORK if name.endswith(" lent")]
"""With the model on the CPU."""


def available() -> list[str]:
    left_out = [] if torch.cuda.is_available() else LENT
    return [
        name
        for name in WORK
        if name not in left_out and (importlib.util.find_spec("llmcompressor") or "llmcompressor" not in name)
    ]


def child(*more: str) -> str:
    """The last line that this file prints with these arguments too, in a process of its own."""
    done = subprocess.run([sys.executable, *sys.argv, *more], capture_output=True, text=True)  # the peer draws bars
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout.splitlines()[-1]


def compare(asked: argparse.Namespace) -> None:
    """Print seconds and memory of all that is there, and how ours stands beside the peer's."""
    cuda = torch.cuda.is_available()
    where = torch.cuda.get_device_name() if cuda else f"cpu, {torch.get_num_threads()} threads"
    count, unit = asked.sequences * asked.length, "processor s" if asked.processor else "s"
    print(f"Llama {asked.shape} {asked.dtype}, {count:,} calibration tokens, 50 %, {where}", flush=True)
    measured = json.loads(child("--times"))
    times = {name: spent for name, (spent, _, _) in measured.items()}
    memory = {name: most if cuda else float(child("--memory", name)) for name, (_, _, most) in measured.items()}
    products = json.loads(child("--products", "--sequences", "8"))
    for name, spent in times.items():
        plain_passes = f"x{spent / times['plain']:.2f} of a plain pass"
        if name in products:
            plain_passes += f" (products x{products[name] / products['plain']:.2f})"
        first = f" (first {measured[name][1]:.2f})" if asked.repeats > 1 else ""
        print(f"{name}: {spent:.2f} {unit}{first}, {plain_passes}; peak +{memory[name]:.0f} MiB")
    peers = [name for name in times if name.startswith("llmcompressor")]
    for other in peers:
        if (ours := other.removeprefix("llmcompressor ")) not in times:
            continue
        ratios = times[other] / times[ours], memory[ours] / memory[other]
        print(f"{ours} beside llmcompressor: {ratios[0]:.2f} times as fast, {ratios[1]:.2f} of the memory")
    if not peers:
        print("llmcompressor is not installed here: no peer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="256x8", help="of the model; its weights are random")
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights")
    parser.add_argument("--repeats", type=int, default=3, help="rounds that are timed")
    parser.add_argument("--processor", action="store_true", help="processor seconds instead of seconds")
    only = f"only a plain pass and these of: {', '.join(WORK)}"
    parser.add_argument("--work", nargs="+", choices=WORK, metavar="NAME", help=only)
    parser.add_argument("--only", choices=("pruning", "2:4"), help="one half of what a GPU is asked")
    parser.add_argument("--out", type=Path, help="a new CSV file for every timing of 2:4")
    parser.add_argument("--commit", help="what its rows say, e.g. $(git rev-parse HEAD)")
    parser.add_argument("--memory", choices=WORK, metavar="NAME", help="print the MiB that this takes, and no more")
    parser.add_argument("--times", action="store_true", help="print the seconds of all as JSON, and no more")
    parser.add_argument("--products", action="store_true", help="print the operations in products, and no more")
    asked = parser.parse_args()
    if asked.out and asked.out.exists():
        parser.error(f"--out names a new file; got {asked.out}, which is there")
    warnings.simplefilter("ignore")
    alone = {measure_memory: asked.memory, measure_times: asked.times, count_products: asked.products}
    for measure in (measure for measure, wanted in alone.items() if wanted):
        print(json.dumps(measure(asked)))
        return
    if asked.only != "2:4":
        compare(asked)
    if torch.cuda.is_available() and asked.only != "pruning":
        rows = semi_structured()
        if asked.out:
            about = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "commit": asked.commit}
            with asked.out.open("x", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, [*rows[0], *about])
                writer.writeheader()
                writer.writerows({**row, **about} for row in rows)


if __name__ == "__main__":
    main()
