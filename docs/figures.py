"""Draw the README's figure and write its table of findings from the shipped rows: `make figures`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import labkit as lk

if TYPE_CHECKING:
    import pandas as pd

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
BEGIN, END = "<!-- found:begin -->\n", "<!-- found:end -->"
SHOWN = "64x2"  # the rung whose compressions the table shows
WAYS = (("wanda", 0.5), ("random", 0.5), ("drop-layers 1", 0.0))


def found(rows: pd.DataFrame, verdicts: pd.DataFrame) -> str:
    """Markdown: per ability the mean score on each rung, and what compressing one rung leaves of it."""
    dense = rows[(rows["compression"] == "dense") & rows["metric"].isin(["exact_match", "token_accuracy"])]
    exact = set(dense.loc[dense["metric"] == "exact_match", "ability"])
    dense = dense[(dense["metric"] == "exact_match") | ~dense["ability"].isin(exact)]
    score = dense.pivot_table(index="ability", columns="rung", values="value")
    rungs = dense.groupby("rung")["params"].first().sort_values().index
    seeds = dense.groupby("rung")["seed"].nunique()
    lines = [
        "Left: mean score of the dense models (exact match; token accuracy for markov) with the number of seeds. Right: "
        f"what is left of it in {SHOWN} after one-shot compression without any healing, as retention (1 as the dense "
        "model, 0 as chance) with its 95 % interval, and the verdict.",
        "",
        "| ability | chance | " + " | ".join(f"{rung} ({seeds[rung]})" for rung in rungs)
        + " | " + " | ".join(_title(*way) for way in WAYS) + " |",
        "|---" * (2 + len(rungs) + len(WAYS)) + "|",
    ]  # fmt: skip
    chance = dense.groupby("ability")["chance"].mean()
    order = score.loc[:, list(rungs)].mean(axis=1).sort_values(ascending=False).index
    for ability in order:
        cells = [f"{score.loc[ability, rung]:.2f}" for rung in rungs]
        lines.append(
            f"| {ability} | {chance[ability]:.2f} | " + " | ".join([*cells, *(_cell(verdicts, ability, *w) for w in WAYS)]) + " |"
        )
    return "\n".join(lines) + "\n"


def _title(compression: str, sparsity: float) -> str:
    return f"{compression} {sparsity:.0%}" if sparsity else compression


def _cell(verdicts: pd.DataFrame, ability: str, compression: str, sparsity: float) -> str:
    fits = (verdicts["rung"] == SHOWN) & (verdicts["ability"] == ability)
    row = verdicts[fits & (verdicts["compression"] == compression) & (verdicts["sparsity"] == sparsity)].iloc[0]
    if row["verdict"] == "absent":
        return "absent"
    return f"{row['retention']:.2f} [{row['low']:.2f}, {row['high']:.2f}] {row['verdict']}"


def main() -> None:
    rows = lk.Store(lk.artifacts() / "quick").frame()
    lk.plot.emergence(rows).savefig(HERE / "emergence.png", dpi=90, bbox_inches="tight", facecolor="white")
    before, rest = README.read_text().split(BEGIN)
    README.write_text(before + BEGIN + found(rows, lk.judge(rows)) + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
