"""Write tests/data/llmcompressor-sparsify.safetensors: what llmcompressor makes of one Linear and its inputs.

Run it where the extra `oracles` is installed: ``python tests/oracles/pruning.py``. The fixture holds, for seeded
weights (48, 256) and inputs (400, 256) of very different sizes, the weights after `wanda_sparsify` and `sgpt_sparsify`.

Without a pattern llmcompressor's SparseGPT drops every weight whose score is ``<=`` the k-th smallest counted from 0,
k = ⌊n·sparsity⌋: k + 1 of the n weights of 128 columns. labkit drops k. The sparsity handed over here is
therefore (k − ½) / n, so that both drop the same number, and the same ones.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

ROWS, INPUTS, TOKENS, BLOCK = 48, 256, 400, 128
ASKED: dict[str, tuple[float, int, int]] = {  # name -> sparsity, kept N, of M (0: no pattern)
    "0.5": (0.5, 0, 0),
    "0.3": (0.3, 0, 0),
    "2:4": (0.5, 2, 4),
    "4:8": (0.5, 4, 8),
}


def linear() -> nn.Linear:
    generator = torch.Generator().manual_seed(0)
    module = nn.Linear(INPUTS, ROWS, bias=False)
    module.weight.data = torch.randn(ROWS, INPUTS, generator=generator) / INPUTS**0.5
    return module


def inputs() -> Tensor:
    """(tokens, inputs), correlated, some features much larger than others."""
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(INPUTS, INPUTS, generator=generator) / INPUTS**0.5
    scale = torch.exp(torch.randn(INPUTS, generator=generator))
    return (torch.randn(TOKENS, INPUTS, generator=generator) @ (mix + torch.eye(INPUTS))) * scale


def main() -> None:
    from llmcompressor.modifiers.pruning.sparsegpt import sgpt_sparsify
    from llmcompressor.modifiers.pruning.wanda import wanda_sparsify

    x, found = inputs(), {"weight": linear().weight.data, "inputs": inputs()}
    for name, (sparsity, n, m) in ASKED.items():
        module = linear()
        scalars, _ = wanda_sparsify.accumulate_row_scalars(x, module, wanda_sparsify.make_empty_row_scalars(module), 0)
        found[f"wanda {name}"] = wanda_sparsify.sparsify_weight(module, {module: scalars}, sparsity, m - n, m)
        hessian, _ = sgpt_sparsify.accumulate_hessian(x, module, sgpt_sparsify.make_empty_hessian(module), 0)
        size = ROWS * BLOCK
        _, weight = sgpt_sparsify.sparsify_weight(
            module, {module: hessian}, (int(size * sparsity) - 0.5) / size, m - n, m, BLOCK, 0.01, False
        )
        found[f"sparsegpt {name}"] = weight.detach()
    path = Path(__file__).parents[1] / "data" / "llmcompressor-sparsify.safetensors"
    save_file({key: tensor.contiguous().float() for key, tensor in found.items()}, path)
    print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
