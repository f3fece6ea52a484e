"""Draw the README's figures and print its tables from the shipped rows: `python docs/figures.py`."""

from __future__ import annotations

from pathlib import Path

import labkit as lk

HERE = Path(__file__).parent


def main() -> None:
    rows = lk.Store(lk.artifacts() / "quick").frame()
    verdicts = lk.judge(rows)
    lk.plot.emergence(rows).savefig(HERE / "emergence.png", dpi=110, bbox_inches="tight")
    lk.plot.retention(verdicts).savefig(HERE / "retention.png", dpi=110, bbox_inches="tight")
    dense = rows[(rows["compression"] == "dense") & rows["metric"].isin(["exact_match", "token_accuracy"])]
    primary = dense[(dense["metric"] == "exact_match") | (dense["ability"] == "markov")]
    print(primary.pivot_table(index="ability", columns=["params", "rung"], values="value").round(2).to_string())
    print(verdicts.pivot_table(index=["rung", "compression"], columns="verdict", values="ability", aggfunc="count"))
    print(verdicts[["rung", "compression", "ability", "retention", "low", "high", "n_seeds", "verdict"]].round(2).to_string())


if __name__ == "__main__":
    main()
