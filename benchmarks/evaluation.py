"""Items per second of `labkit.evaluate` on a rung of about one million parameters.

OMP_NUM_THREADS=2 python benchmarks/evaluation.py
"""

from __future__ import annotations

import time

import torch

from labkit.abilities import abilities
from labkit.evaluation import evaluate
from labkit.ladder import Rung

ITEMS = 512  # per ability


def main() -> None:
    rung, suite = Rung(128, 5), abilities()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = rung.build().to(device)
    print(f"rung {rung.name}: {rung.params:,} non-embedding parameters, {device}, {torch.get_num_threads()} threads")
    evaluate(model, suite, n=32, progress=False)  # warm-up
    for ability in [None, *suite]:
        chosen = suite if ability is None else (ability,)
        start = time.perf_counter()
        rows = evaluate(model, chosen, n=ITEMS, progress=False)
        seconds = time.perf_counter() - start
        items = len(rows[["ability", "item"]].drop_duplicates())
        print(f"{'all' if ability is None else ability.name:10s} {items:6d} items  {items / seconds:8.0f} items/s")


if __name__ == "__main__":
    main()
