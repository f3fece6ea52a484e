"""Tables fit a terminal, and count what they have no room to show."""

from __future__ import annotations

import io

import pandas as pd
from rich.console import Console

from labkit import terminal


def test_a_table_fits_a_narrow_terminal():
    verdict = {"rung": "64x2", "n_seeds": 5, "n_items": 1000, "verdict": "undecided", "low": 0.87, "high": 1.04}
    conditions = [("random", 0.5), ("magnitude", 0.5), ("wanda", 0.5), ("magnitude 2:4", 0.5), ("wanda 2:4", 0.5),
                  ("drop-layers 1", 0.0)]  # fmt: skip
    frame = pd.DataFrame(
        [{**verdict, "compression": name, "sparsity": zeros, "ability": "addition"} for name, zeros in conditions]
    )
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(*terminal.verdict_tables(frame))
    text = console.export_text()
    assert text.count("undecided") == text.count("0.87") == text.count("1.04") == 6 and "…" not in text


def test_many_compressions_are_counted():
    verdict = {"rung": "64x2", "compression": "wanda", "low": 0.0, "high": 1.0}
    told = [(s, a, "lost" if s > 0.5 else "kept") for s in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9) for a in "xyz"]
    frame = pd.DataFrame([{**verdict, "sparsity": s, "ability": a, "verdict": v} for s, a, v in told])
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(*terminal.verdict_tables(frame))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["compression", *terminal.COLOURS] in lines
    assert ["wanda", "50%", "3"] in lines and ["wanda", "60%", "3"] in lines and len(lines) == 1 + 2 + 9


def test_no_number_is_cut_off_however_narrow_the_terminal_is():
    row = {"rung": "64x2", "compression": "drop-layers 1 by block-influence", "sparsity": 0.0, "ability": "addition", "metric": "exact_match",
           "n_seeds": 5, "n_items": 1000, "a": 0.123, "b": 0.456, "difference": 0.333, "low": -0.112, "high": 0.778, "beyond_noise": True}  # fmt: skip
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(terminal.comparison_table(pd.DataFrame([row]), "runs/a", "runs/b"))
    text = console.export_text()
    assert all(number in text for number in ("5 x 1000", "0.123", "0.456", "+0.333", "-0.112", "+0.778")) and "…" not in text


def test_names_are_no_markup():
    row = {"rung": "a[bold]b", "compression": "dense", "sparsity": 0.0, "ability": "x", "metric": "m[red]", "n_seeds": 1, "n_items": 1,
           "a": 0.0, "b": 0.0, "difference": 0.0, "low": 0.0, "high": 0.0, "beyond_noise": False}  # fmt: skip
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(terminal.comparison_table(pd.DataFrame([row]), "a", "b"))
    assert {"a[bold]b", "m[red]"} <= set(console.export_text().split())


def test_numbers_are_aligned_to_the_right():
    made = terminal.table("a", ">n")
    for cells in (("x", "1"), ("y", "1,234")):
        made.add_row(*cells)
    console = Console(width=40, record=True, file=io.StringIO())
    console.print(made)
    ends = {len(line.rstrip()) for line in console.export_text().splitlines()[2:]}
    assert len(ends) == 1
    console = Console(width=6, record=True, file=io.StringIO())
    console.print(made)
    assert "1,234" in console.export_text() or "…" in console.export_text()  # what is cut says so
