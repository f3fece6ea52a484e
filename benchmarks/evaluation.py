"""Items per second of `labkit.evaluate` on a rung of about one million parameters, and the bound its products set.

OMP_NUM_THREADS=2 python benchmarks/evaluation.py

The bound is what the machine would score if it did nothing but the model's matrix products, at the rate that as many
threads reach, each on its own batch, on the widest product of the rung.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from labkit.abilities import abilities
from labkit.evaluation import evaluate
from labkit.flops import forward_flops_per_token
from labkit.ladder import Rung

ITEMS = 512  # per ability


def product_rate(rung: Rung, seconds: float = 1.0) -> float:
    """FLOP/s of 2,048 tokens through a projection of the feed-forward layer, all threads together, each its own."""
    threads = torch.get_num_threads()

    def work(_: int) -> float:
        x, w = torch.randn(2048, rung.width), torch.randn(rung.ffn, rung.width)
        begun, done = time.perf_counter(), 0
        while time.perf_counter() < begun + seconds:
            torch.nn.functional.linear(x, w)
            done += 1
        return 2 * x.numel() * rung.ffn * done / (time.perf_counter() - begun)

    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        rate = sum(pool.map(work, range(threads)))
    torch.set_num_threads(threads)
    return rate


def main() -> None:
    rung, suite = Rung(128, 5), abilities()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = rung.build().to(device)
    print(f"rung {rung.name}: {rung.params:,} non-embedding parameters, {device}, {torch.get_num_threads()} threads")
    evaluate(model, suite, n=32, progress=False)  # warm-up
    if device == "cpu":
        lengths = np.concatenate([ability.sample(ITEMS, 0).lengths for ability in suite])
        flops = np.mean([forward_flops_per_token(model, int(length)) * int(length) for length in lengths])
        rate = product_rate(rung)
        print(f"mean item: {lengths.mean():.1f} tokens, {flops / 1e6:.1f} MFLOP")
        print(f"matrix products at {rate / 1e9:.0f} GFLOP/s bound it to {rate / flops:,.0f} items/s")
    for ability in [None, *suite]:
        chosen = suite if ability is None else (ability,)
        start = time.perf_counter()
        rows = evaluate(model, chosen, n=ITEMS, progress=False)
        seconds = time.perf_counter() - start
        items = len(rows[["ability", "item"]].drop_duplicates())
        print(f"{'all' if ability is None else ability.name:10s} {items:6d} items  {items / seconds:8.0f} items/s")


if __name__ == "__main__":
    main()
