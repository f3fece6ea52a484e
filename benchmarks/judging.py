"""Seconds to judge a million item rows, and ten million, on one core.

OMP_NUM_THREADS=1 python benchmarks/judging.py [--rows 1000000 --rows 10000000]
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
import pandas as pd

from labkit.records import EXACT_MATCH, NLL_NATS
from labkit.verdict import judge

SEEDS, ITEMS = 5, 2000
CONDITIONS = (("dense", 0.0), ("magnitude", 0.5), ("wanda", 0.5), ("wanda", 0.7), ("random", 0.5))


def made_up(rows: int, seed: int = 0) -> pd.DataFrame:
    """So many rows of a study: five seeds, 2,000 items, two metrics, five conditions, and abilities to fill it."""
    each = SEEDS * ITEMS
    groups = rows // each
    metric, condition, ability = np.unravel_index(np.arange(groups), (2, len(CONDITIONS), -(-groups // 10)))
    generator, of = np.random.default_rng(seed), np.repeat(np.arange(groups), each)
    right = generator.random(groups * each) < np.where(condition == 0, 0.9, 0.6)[of]
    value = np.where(metric[of] == 0, right, np.where(right, 0.1, 1.5) + 0.1 * generator.random(groups * each))

    def words(names: list[str], code: np.ndarray) -> pd.Categorical:
        return pd.Categorical.from_codes(code[of], names)  # as a store hands them out

    names, sparsities = zip(*CONDITIONS, strict=True)
    distinct = sorted(set(names))
    return pd.DataFrame({
        **{name: words([text], np.zeros(groups, int)) for name, text in (("run", "r"), ("model", "m"), ("rung", "x"))},
        "params": 99_000,
        "seed": np.tile(np.repeat(np.arange(SEEDS), ITEMS), groups),
        "compression": words(distinct, np.array([distinct.index(name) for name in names])[condition]),
        "sparsity": np.array(sparsities)[condition][of],
        "ability": words([f"ability-{i:03d}" for i in range(-(-groups // 10))], ability),
        "metric": words([EXACT_MATCH, NLL_NATS], metric), "item": np.tile(np.arange(ITEMS), SEEDS * groups),
        "value": value, "chance": np.where(metric == 0, 0.1, 2.3)[of],
    })  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, action="append", help="default: 1,000,000 and 10,000,000")
    parser.add_argument("--repeats", type=int, default=3, help="the median is printed")
    chosen = parser.parse_args()
    for rows in chosen.rows or [1_000_000, 10_000_000]:
        frame, seconds = made_up(rows), []
        for _ in range(chosen.repeats):
            start = time.perf_counter()
            verdicts = judge(frame)
            seconds.append(time.perf_counter() - start)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        median = float(np.median(seconds))
        print(f"{len(frame):>11,} rows  {len(verdicts):4d} verdicts  {median:7.2f} s  {1e6 * median / rows:5.2f} s "
              f"per million  peak {peak:.1f} GiB", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
