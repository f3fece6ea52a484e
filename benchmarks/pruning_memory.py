"""Memory that pruning takes on a GPU, ours beside `llmcompressor.oneshot`, counted on one that is simulated.

PYTHONPATH=src .venv-oracles/bin/python benchmarks/pruning_memory.py --shape smollm2-135m

Needs llmcompressor, and no GPU. Counted are the bytes of all tensors on it, as an allocator would hand them out; not
what kernels take for themselves, so sequences are short, for which attention takes little whatever computes it. Blocks
are alike, and three of them are taken.
"""

from __future__ import annotations

import argparse
import copy
import sys
import warnings
from pathlib import Path
from unittest import mock

import pruning
import torch

from labkit.pruning import prune

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
from gpus import SimulatedGPU  # noqa: E402

BLOCKS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=pruning.SHAPES, default="256x8", help="of the model; its weights are random")
    parser.add_argument("--sequences", type=int, default=128, help="of 128 tokens")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    config = copy.deepcopy(pruning.SHAPES[asked.shape])
    config.num_hidden_layers = BLOCKS
    model = pruning.build(config)
    tokens = torch.randint(1024, (asked.sequences, 128), generator=torch.Generator().manual_seed(0))
    accelerator = {"is_available": lambda: True, "current_accelerator": lambda *_: torch.device("cuda")}
    with (
        SimulatedGPU() as gpu,
        mock.patch.multiple(torch.accelerator, **accelerator),  # the peer asks it where to compute
        mock.patch.object(pruning, "DEVICE", "cuda"),
    ):
        for where, dense in {"model there": copy.deepcopy(model).to("cuda"), "model on the CPU": model}.items():
            for criterion in ("wanda", "sparsegpt"):
                ours = gpu.most(lambda d=dense, c=criterion: prune(d, c, 0.5, calibration=tokens, options=pruning.LEND))
                peer = gpu.most(lambda d=dense, c=criterion: pruning.peer(d, tokens, c))
                sizes = f"{ours / 2**20:.1f} MiB beside {peer / 2**20:.1f}"
                print(f"{asked.shape} {criterion}, {where}: {sizes}, {ours / peer:.2f} of the memory", flush=True)


if __name__ == "__main__":
    main()
