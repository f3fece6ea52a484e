import dataclasses
import subprocess
import sys

import pytest

from labkit import records

FRAME_HALF = ("errors", "records", "statistics", "store", "verdict")


def test_columns_are_the_fields_in_order():
    names = "run model rung params seed compression sparsity ability metric item value chance".split()
    assert list(records.columns(records.ItemRow)) == names


def test_metrics_are_named_once():
    assert len(set(records.METRICS)) == 4
    assert {records.EXACT_MATCH, records.TOKEN_ACCURACY, records.NLL_NATS, records.BRIER} == set(records.METRICS)


def test_rows_cannot_be_changed():
    row = records.ItemRow("r", "m", "16x1", 1, 0, records.DENSE, 0.0, "recall", "brier", 0, 0.5, 0.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.value = 1.0


def test_the_frame_half_loads_no_torch_and_the_store_loads_no_duckdb():
    script = "; ".join(
        [
            "import sys, labkit.store",
            "assert not {'torch', 'duckdb', 'pandas'} & set(sys.modules), 'the store'",
            f"import {', '.join(f'labkit.{name}' for name in FRAME_HALF)}",
            "assert not {'torch', 'transformers'} & set(sys.modules), 'the frame half'",
        ]
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
