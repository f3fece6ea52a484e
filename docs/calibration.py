"""Judge the judge once and ship what came of it: `python docs/calibration.py`, about twenty minutes on one core.

Writes src/labkit/artifacts/judge/calibration.parquet with its provenance in the footer, as parts of a store have it.
"""

from __future__ import annotations

import dataclasses
import json
import time

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

import labkit as lk
from labkit.simulation import Scene, calibrate
from labkit.store import provenance
from labkit.verdict import Rule

OUT = lk.artifacts() / "judge" / "calibration.parquet"
SCENE = Scene(dense=0.8)  # room enough above it for seeds whose retention differs by .1 around 1
RUNS = {
    "normal": {"seeds": [3, 5, 8, 12, 20], "items": [500, 2000], "retentions": [0.2, 0.95, 1.0],
               "between": [0.0, 0.03, 0.1], "repeats": 10_000, "seed": 0},
    "two-point": {"seeds": [3, 5, 8, 12, 20], "items": [500], "retentions": [0.95], "between": [0.1],
                  "repeats": 10_000, "seed": 1},
    "skewed": {"seeds": [3, 5, 8, 12, 20], "items": [500], "retentions": [0.95], "between": [0.1],
               "repeats": 10_000, "seed": 2},
}  # fmt: skip


def main() -> None:
    start = time.perf_counter()
    frames = [calibrate(**run, scene=dataclasses.replace(SCENE, shape=shape)) for shape, run in RUNS.items()]
    config = {"runs": RUNS, "scene": dataclasses.asdict(SCENE), "rule": dataclasses.asdict(Rule())}
    told = provenance(config, artifacts={}, wall_s=round(time.perf_counter() - start, 1), device="cpu")
    table = pa.Table.from_pandas(pd.concat(frames, ignore_index=True), preserve_index=False)
    table = table.replace_schema_metadata({b"labkit.provenance": json.dumps(told).encode()})
    OUT.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, OUT, compression="zstd")
    print(f"{OUT.name}: {table.num_rows} rows, {OUT.stat().st_size / 1024:.0f} KiB, {told['wall_s']:.0f} s")


if __name__ == "__main__":
    main()
