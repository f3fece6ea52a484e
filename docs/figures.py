"""Draw the README's figure and write its table of findings from the shipped rows: `make figures`."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

import labkit as lk
from labkit.comparison import SIDES, has_more
from labkit.students import FRESH, PRACTICE, SCRATCH

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
BEGIN, END = "<!-- found:begin -->\n", "<!-- found:end -->"
SHOWN = "64x2"  # the rung whose compressions the table shows
WAYS = (("wanda", 0.5), ("random", 0.5), ("drop-layers 1", 0.0))
NEAR = 0.05  # of chance, or of a perfect score
VERBS = {"kept": "keeps", "degraded": "degrades", "lost": "loses", "undecided": "leaves open"}


def found() -> str:
    """Markdown: what there is to see, in sentences, and per ability the mean score on each rung and what compressions leave."""
    rows = lk.Store(lk.artifacts() / "quick").frame()
    verdicts = lk.judge(rows)
    dense = rows[(rows["compression"] == "dense") & rows["metric"].isin(["exact_match", "token_accuracy"])]
    exact = set(dense.loc[dense["metric"] == "exact_match", "ability"])
    dense = dense[(dense["metric"] == "exact_match") | ~dense["ability"].isin(exact)]
    score = dense.pivot_table(index="ability", columns="rung", values="value")
    rungs = dense.groupby("rung")["params"].first().sort_values().index
    seeds = dense.groupby("rung")["seed"].nunique()
    chance = dense.groupby("ability")["chance"].mean()
    lines = [
        _emerges(score[list(rungs)], chance),
        *(_leaves(verdicts, *way) for way in WAYS),
        *_students(lk.Store(lk.artifacts() / "distillation")),
        _two_of_four(pd.read_csv(lk.artifacts() / "speed" / "2-4-h200.csv")),
        "",
        "Left: mean score of the dense models (exact match; token accuracy for markov) with the number of seeds. Right: "
        f"what is left of it in {SHOWN} after one-shot compression without any healing, as retention (1 as the dense "
        "model, 0 as chance) with its 95 % interval, and the verdict.",
        "",
        "| ability | chance | " + " | ".join(f"{rung} ({seeds[rung]})" for rung in rungs)
        + " | " + " | ".join(_title(*way) for way in WAYS) + " |",
        "|---" * (2 + len(rungs) + len(WAYS)) + "|",
    ]  # fmt: skip
    order = score.loc[:, list(rungs)].mean(axis=1).sort_values(ascending=False).index
    for ability in order:
        cells = [f"{score.loc[ability, rung]:.2f}" for rung in rungs]
        lines.append(
            f"| {ability} | {chance[ability]:.2f} | " + " | ".join([*cells, *(_cell(verdicts, ability, *w) for w in WAYS)]) + " |"
        )
    return "\n".join(lines) + "\n"


def _emerges(score: pd.DataFrame, chance: pd.Series) -> str:
    """Which abilities the rungs (columns, by size) have: from some size on, all along, never."""
    first, last = score.columns[0], score.columns[-1]
    low, high = score.sub(chance, axis=0) <= NEAR, score >= 1 - NEAR
    told = {
        f"at chance in {first} and near perfect in {last}": low[first] & high[last],
        f"near perfect in every rung but {first}": high.drop(columns=first).all(axis=1),
        "never above chance": low.all(axis=1),
    }
    parts = [f"{', '.join(score.index[which])} {'is' if which.sum() == 1 else 'are'} {how}" for how, which in told.items() if which.any()]
    return f"- **With size**: {'; '.join(parts)} (within {NEAR})."


def _leaves(verdicts: pd.DataFrame, compression: str, sparsity: float) -> str:
    fits = (verdicts["rung"] == SHOWN) & (verdicts["compression"] == compression) & (verdicts["sparsity"] == sparsity)
    groups = verdicts[fits].groupby("verdict")["ability"]
    told = [f"{VERBS[verdict]} {', '.join(groups.get_group(verdict))}" for verdict in VERBS if verdict in groups.groups]
    return f"- **{_title(compression, sparsity)}** of {SHOWN} {'; '.join(told)}."


def _two_of_four(timings: pd.DataFrame) -> str:
    """How many times as fast as dense 2:4 was, for the block and for the part that gains most."""
    times = timings.assign(times=timings["dense_us"] / timings["sparse_us"])
    medians = times.groupby(["way", "part", "tokens"])["times"].median()
    replayed = medians["replayed"].groupby("part").agg(["min", "max"])
    best, block = replayed["min"].idxmax(), replayed.loc["block"]
    called = medians["called"].groupby("part").max()
    return (
        f"- **2:4 on a GPU** ({timings['device'].iloc[0]}, PyTorch {timings['torch'].iloc[0]}, {timings['backend'].iloc[0]}, "
        f"float16, {timings['tokens'].min()} to {timings['tokens'].max()} tokens at a time): a whole block of the size of "
        f"Llama 3 8B runs {block['min']:.2f} to {block['max']:.2f} times as fast as dense, its {best} alone "
        f"{replayed.loc[best, 'min']:.2f} to {replayed.loc[best, 'max']:.2f} times, each as a CUDA graph; called from "
        f"Python nothing runs more than {called.max():.2f} times as fast."
    )


def _students(store: lk.Store) -> list[str]:
    """What students of the largest dose have beside those from scratch, and what answers add to weights."""
    rows = store.frame("metric <> 'brier'")
    told = lk.inheritance(rows, store.provenance())
    told = told[told["way"] != SCRATCH]
    told = told[told["tokens"] == told["tokens"].max()]
    parts = []
    for kind, group in told.groupby(["start", "way"], sort=False):
        groups = group.groupby("at_flops")["ability"]
        has = [f"{answer} of {', '.join(groups.get_group(answer))}" for answer in ("more", "less") if answer in groups.groups]
        parts.append(f"{lk.plot.way(*kind)} has {' and '.join(has) or 'more of none'}")
    made = lk.students(rows)
    cut = made[made["start"] != FRESH].sort_values("way", key=lambda way: way != PRACTICE)
    gained = has_more(*(rows[rows["compression"] == name] for name in cut["compression"]))
    groups = gained.groupby("answer")["ability"]
    said = {side: side for side in SIDES} | {"neither": "neither has"}
    added = [f"{said[answer]}: {', '.join(groups.get_group(answer))}" for answer in SIDES if answer in groups.groups]
    size, teacher, dose = told["size"].iloc[0], told["rung"].iloc[0], told["tokens"].iloc[0]
    return [
        f"- **Students** {size} of teachers {teacher}, {dose / 1e6:g} M tokens, beside the same from scratch at equal FLOPs "
        f"(95 % intervals, not corrected for so many looks): {'; '.join(parts)}.",
        "- **Weights or answers**: of two students that start as what is left of their pruned teacher, what has the one "
        f"that hears its answers beside the one trained on plain rows? {'; '.join(added)} (least p, adjusted: "
        f"{gained['p_adjusted'].min():.2f}).",
    ]


def _title(compression: str, sparsity: float) -> str:
    return f"{compression} {sparsity:.0%}" if sparsity else compression


def _cell(verdicts: pd.DataFrame, ability: str, compression: str, sparsity: float) -> str:
    fits = (verdicts["rung"] == SHOWN) & (verdicts["ability"] == ability)
    row = verdicts[fits & (verdicts["compression"] == compression) & (verdicts["sparsity"] == sparsity)].iloc[0]
    if row["verdict"] == "absent":
        return "absent"
    return f"{row['retention']:.2f} [{row['low']:.2f}, {row['high']:.2f}] {row['verdict']}"


def main() -> None:
    figure = lk.plot.emergence(lk.Store(lk.artifacts() / "quick").frame())
    figure.savefig(HERE / "emergence.png", dpi=90, bbox_inches="tight", facecolor="white")
    before, rest = README.read_text().split(BEGIN)
    README.write_text(before + BEGIN + found() + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
