"""What the command line prints: tables of verdicts, comparisons, plans and published figures that fit a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import pandas as pd

COLOURS = {"kept": "green", "degraded": "yellow", "lost": "red", "undecided": "cyan", "absent": "dim"}
MOST_COLUMNS = 8  # compressions side by side


def table(*columns: str, **options: Any) -> Table:
    """A plain, narrow table; a column whose name begins with > holds numbers: aligned to the right, and whole at 80."""
    narrow = {"box": box.SIMPLE_HEAD, "show_edge": False, "pad_edge": False, "padding": (0, 1, 0, 0)}
    made = Table(**narrow, title_justify="left", caption_justify="left", **options)
    # What gives first in a narrow terminal is a label, which goes on in the next line; digits that are cut say so.
    number, label = {"justify": "right", "no_wrap": True, "overflow": "ellipsis"}, {"overflow": "fold", "min_width": 4}
    for name in columns:
        made.add_column(Text(name.removeprefix(">")), **(number if name.startswith(">") else label))
    return made


def verdict_tables(verdicts: pd.DataFrame) -> list[Table]:
    """One table for each rung: abilities down, compressions across; each cell a verdict over its interval.

    Of more than `MOST_COLUMNS` compressions only how many abilities each keeps, degrades or loses.
    """
    return [
        (_counts if len(_conditions(of_rung)) > MOST_COLUMNS else _cells)(str(rung), of_rung)
        for rung, of_rung in verdicts.groupby("rung", sort=False)
    ]


def _cells(rung: str, verdicts: pd.DataFrame) -> Table:
    conditions = _conditions(verdicts)
    made = table(
        "ability",
        *(_condition(*condition).replace(" ", "\n") for condition in conditions),
        title=Text(f"Rung {rung}", "bold"),
    )
    for ability, of_ability in verdicts.groupby("ability", sort=False):
        cells = {(row.compression, row.sparsity): _cell(row) for row in of_ability.itertuples()}
        made.add_row(Text(ability), *(cells.get(condition, "") for condition in conditions))
    return made


def _counts(rung: str, verdicts: pd.DataFrame) -> Table:
    made = table("compression", *(f">{word}" for word in COLOURS), title=Text(f"Rung {rung}: abilities", "bold"))
    counts = verdicts.groupby(["compression", "sparsity"])["verdict"].value_counts()
    for condition in _conditions(verdicts):
        numbers = {word: counts.get((*condition, word), 0) for word in COLOURS}
        made.add_row(Text(_condition(*condition)), *(Text(f"{n or ''}", COLOURS[word]) for word, n in numbers.items()))
    return made


def _conditions(verdicts: pd.DataFrame) -> list[tuple[str, float]]:
    return list(dict.fromkeys(zip(verdicts["compression"], verdicts["sparsity"], strict=True)))


def _condition(compression: str, sparsity: float) -> str:
    """Its name, with the sparsity where that is not part of it."""
    return compression if ":" in compression or not sparsity else f"{compression} {sparsity:.0%}"


def _cell(row: Any) -> Text:
    bounds = "" if row.low != row.low else f"\n{row.low:.2f} to {row.high:.2f}"  # NaN: there is no interval
    return Text.assemble((row.verdict, COLOURS[row.verdict]), (bounds, "dim"))


def legend(verdicts: pd.DataFrame) -> Text:
    seeds = verdicts["n_seeds"]
    return Text(
        "Below each verdict: the 95 % interval of retention, (compressed - chance) / (dense - chance), over "
        f"{_span(seeds[seeds > 0])} seeds and {_span(verdicts['n_items'])} items each."
    )


def _span(numbers: pd.Series) -> str:
    low, high = (numbers.min(), numbers.max()) if len(numbers) else (0, 0)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def comparison_table(frame: pd.DataFrame, a: str, b: str) -> Table:
    stored, one_seed = "rung" in frame, (frame["n_seeds"] == 1).all()
    made = table(
        *(("rung", "compression") if stored else ()), "ability", "metric", ">n", ">A", ">B", ">B - A", ">low", ">high",
        ">beyond\nnoise",
        title=Text(f"A: {a}\nB: {b}"),
        caption=Text(
            f"n: {'items' if one_seed else 'seeds x items'}, paired. Low to high: 95 % interval of B - A over "
            f"{'items' if one_seed else 'seeds and items'}; beyond noise: it excludes 0, as one in twenty does by "
            "chance. Of nll_nats (nats) and brier, less is better."
        ),
    )  # fmt: skip
    for row in frame.itertuples():
        made.add_row(
            *((Text(row.rung), Text(_condition(row.compression, row.sparsity))) if stored else ()), Text(row.ability),
            Text(row.metric), f"{row.n_items}" if one_seed else f"{row.n_seeds} x {row.n_items}", f"{row.a:.3f}",
            f"{row.b:.3f}", *(f"{number:+.3f}" for number in (row.difference, row.low, row.high)),
            "yes" if row.beyond_noise else "no", style="bold" if row.beyond_noise else "",
        )  # fmt: skip
    return made


def plan_table(lines: Sequence[Any], span: tuple[float, float]) -> Table:
    """What `labkit.planning.foretell` says: a row for each kind of run, and what is left below; the time within ``span``, as multiples."""
    left = [(line, line.runs - line.here) for line in lines]
    seconds = sum(line.seconds * count for line, count in left)
    low, high = (_duration(seconds * factor) for factor in span)
    most = max((line for line, count in left), key=lambda line: line.memory_bytes)
    parts = [most.weight_bytes, most.activation_bytes, most.training_bytes]
    made = table(
        "model", "compression", ">sparsity", ">runs", ">done", ">asked\ntokens", ">trained\ntokens", ">FLOPs", ">time", ">memory\nMiB",
        caption=Text(
            f"All but runs and done: of one run, nominal. Left: {sum(count for _, count in left)} of "
            f"{sum(line.runs for line in lines)} runs, {sum(line.flops * count for line, count in left):.2g} FLOPs, about "
            f"{_duration(seconds)} ({low} to {high}) one after the other on this machine, by the rate of a short "
            "forward pass measured now.\nMost memory: "
            f"{' + '.join(f'{part / 2**20:,.1f}' for part in parts)} MiB (weights + activations + 16 B for each "
            "parameter that trains), beside Python and PyTorch themselves."
        ),
    )  # fmt: skip
    for line in lines:
        made.add_row(
            Text(line.model), Text(line.compression), f"{line.sparsity:g}" if line.sparsity else "", f"{line.runs}", f"{line.here}", f"{line.asked_tokens:,}",
            f"{line.trained_tokens:,}" if line.trained_tokens else "", f"{line.flops:.1e}",
            _duration(line.seconds), f"{line.memory_bytes / 2**20:,.1f}",
        )  # fmt: skip
    return made


def needs_table(needs: Any, prompts: tuple[int, int]) -> Table:
    """What each model of `labkit.pairs.Needs` takes on one GPU; of the prompts, tokens that are read and written."""
    made = table(
        "model", ">parameters", ">GPU memory\nGiB", ">disk\nGiB", ">time",
        caption=Text(
            f"By arithmetic, before any model is there. Together: {sum(map(needs.disk_gib, needs.parameters)):.1f} GiB of disk, "
            f"{_duration(3600 * sum(needs.hours(model, *prompts) for model in needs.parameters))} of one GPU, for about "
            f"{needs.read + prompts[0]:.1g} tokens read and {needs.written + prompts[1]:.1g} written by each model. Memory: "
            "the weights and a fifth more. A model larger than the GPU: loading = { device_map = \"auto\" }."
        ),
    )  # fmt: skip
    for model, parameters in needs.parameters.items():
        made.add_row(
            Text(model), f"{parameters / 1e9:.2f} B", f"{needs.memory_gib(model):.1f}", f"{needs.disk_gib(model):.1f}",
            _duration(3600 * needs.hours(model, *prompts)),
        )  # fmt: skip
    return made


def published_table(frame: pd.DataFrame) -> Table:
    """What `labkit.published.beside` says; without our column where nothing is measured yet."""
    measured = bool(frame["n_items"].sum())
    sources = list(dict.fromkeys(frame["source"]))
    made = table(
        "model", "task", "metric", ">published", *((">ours", "of", ">items") if measured else ()), ">source",
        title=Text("What others report", "bold"),
        caption=Text(
            ("Ours: other items, prompts and shots, so the difference of the two columns says nothing.\n" if measured else "")
            + "\n".join(f"[{number}] {source}" for number, source in enumerate(sources, start=1))
        ),
    )  # fmt: skip
    for row in frame.itertuples():
        ours = (f"{row.ours:.3g}", Text(row.of), f"{row.n_items:,}") if row.n_items else ("", "", "")
        made.add_row(
            Text(row.model), Text(row.task), Text(row.metric), f"{row.published:.3g}", *(ours if measured else ()),
            Text(f"[{sources.index(row.source) + 1}]"),
        )  # fmt: skip
    return made


def _duration(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
