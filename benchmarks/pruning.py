"""Seconds of Wanda and SparseGPT, over one plain forward pass of the calibration set, and beside llmcompressor.

OMP_NUM_THREADS=2 python benchmarks/pruning.py                      (ours alone)
PYTHONPATH=src .venv-oracles/bin/python benchmarks/pruning.py       (with the extra `oracles`: side by side)

Same model, same calibration tokens, same micro-batches for the plain pass. Wanda cannot be as fast as a plain pass:
every block runs twice, dense for the norms (all but its last matrix) and pruned for the next block (but for the last).
On a GPU also: the measured speed-up of a 2:4 matrix product with PyTorch's semi-structured tensors, batch 1 to 512.
"""

from __future__ import annotations

import argparse
import copy
import resource
import tempfile
import time
import warnings
from collections.abc import Callable

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
    """The fastest of some runs, after one to warm up."""
    work()
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


def peak_mib() -> float:
    """Of the GPU, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=2)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    cuda = torch.cuda.is_available()
    model = build(asked.width, asked.layers).to("cuda" if cuda else "cpu")
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1024, (asked.sequences, asked.length), generator=generator)
    name = torch.cuda.get_device_name() if cuda else f"cpu, {torch.get_num_threads()} threads"
    print(f"Llama {asked.width}x{asked.layers}, {tokens.numel():,} calibration tokens, 50 %, {name}")
    once = seconds(lambda: plain(model, tokens.to(model.device)), asked.repeats)
    print(f"plain forward pass {once:.2f} s")
    for criterion in ("wanda", "sparsegpt"):
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        ours = seconds(lambda c=criterion: prune(model, c, 0.5, calibration=tokens), asked.repeats)
        print(f"{criterion}: {ours:.2f} s, x{ours / once:.2f} of a plain pass; peak so far {peak_mib():.0f} MiB")
    try:
        import llmcompressor  # noqa: F401
    except ImportError:
        print("llmcompressor is not installed here: nothing to compare with")
    else:
        for criterion in ("wanda", "sparsegpt"):
            theirs = seconds(lambda c=criterion: peer(model, tokens, c), asked.repeats)
            print(f"llmcompressor {criterion}: {theirs:.2f} s; peak so far {peak_mib():.0f} MiB")
    if cuda:
        semi_structured()


if __name__ == "__main__":
    main()
