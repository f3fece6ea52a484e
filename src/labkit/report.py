"""One self-contained page: the question, the answer, the evidence, and where it comes from."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from labkit import plotting
from labkit.errors import LabkitError
from labkit.places import Remote, place, replace
from labkit.records import DENSE
from labkit.store import Store
from labkit.verdict import VERDICTS, Rule, judge

_NO_VERDICTS = "Only dense models have been measured so far, so which of their abilities survive compression is open."
_DPI = 150
_STYLE = """
:root { color-scheme: light }
body { margin: 0 auto; max-width: 68rem; padding: 1rem; font: 1rem/1.55 system-ui, sans-serif; color: #1b1f24;
  background: #fff; overflow-wrap: break-word }
h1 { font-size: 1.6rem; line-height: 1.25 } h2 { font-size: 1.25rem; margin-top: 2.2rem } h3 { font-size: 1rem }
.answer { border-left: .3rem solid #0173b2; background: #f2f7fb; padding: .1rem 1rem; margin: 1rem 0 }
.answer ul { padding-left: 1.2rem } .answer li { margin: .3rem 0 }
.scroll { overflow-x: auto; margin: .6rem 0 } .scroll:focus { outline: 2px solid #0173b2 }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #d8dde3; text-align: left; white-space: nowrap }
thead th { border-bottom: 2px solid #6b7480; vertical-align: bottom }
tbody th { position: sticky; left: 0; background: #fff }
.number { text-align: right } .reason { white-space: normal; min-width: 30rem }
.kept { background: #d9f2e0; color: #0a4a22 } .degraded { background: #fdebc8; color: #5c3a00 }
.lost { background: #fbd9d6; color: #7d1117 } .undecided { background: #e8ebf0; color: #333b46 }
.absent { color: #57606a; font-style: italic }
figure { margin: 1rem 0 } img { max-width: 100%; height: auto; display: block; margin: 0 auto }
figcaption, .note { font-size: .88rem; color: #444c56 }
details { margin: .4rem 0 } summary { cursor: pointer } details details { margin-left: 1rem }
pre { overflow-x: auto; background: #f5f6f8; padding: .6rem; font-size: .8rem }
.narrow { display: none }
@media (max-width: 640px) {
  .narrow { display: inline } table { font-size: .75rem } th, td { padding: .25rem .4rem }
  .overview th, .overview td { white-space: normal } .overview tbody th { white-space: nowrap } dd { margin-left: 1rem }
}
"""
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{title}</h1>{question}</header>
<main>
{main}
</main>
</body>
</html>
"""


def write_report(
    folder: str | Path, out: str | Path | None = None, rule: Rule = Rule(), verdicts: pd.DataFrame | None = None
) -> Path | Remote:
    """Write the report of a store, whole or not at all: an earlier report stays until the new one is complete.

    Parameters
    ----------
    folder : a store, or its URL; its ``study.json``, if there, gives the name of the study and its question.
    out : the page, by default ``report.html`` in `folder`.
    rule : what the rows are judged by.
    verdicts : what `judge` says of the store's rows by that rule, where it has been asked already.

    Returns
    -------
    Path of the page. It needs no network: figures and style are inside of it.

    Raises
    ------
    LabkitError
        The folder is not a store, has no rows or rows that cannot be judged yet, or `out` cannot be written.
    """
    store = Store(folder)
    rows = store.frame()
    if rows.empty:
        remedy = f"Measure some first: labkit run quick --out {folder}."
        raise LabkitError("a report needs rows", f"a store without any, {str(folder)!r}", remedy)
    try:
        verdicts = judge(rows, rule=rule) if verdicts is None else verdicts
    except LabkitError as error:
        remedy = f"Finish the run, with the command that began it, and report again. What is missing: {error}"
        raise LabkitError("a report needs rows that can be judged", str(folder), remedy) from error
    study = _study(store.path)
    title = f"labkit: {study['name']}" if "name" in study else "labkit: which abilities survive?"
    question = f"<p>{escape(study['question'])}</p>" if "question" in study else ""
    sections = [_answer(*_said(verdicts, rule))]
    sections += [] if verdicts.empty else [_verdicts(verdicts)]
    sections += [] if (rows["compression"] != DENSE).all() else [_emergence(rows)]
    sections += [] if verdicts.empty else [_retention(verdicts, rule), _numbers(verdicts)]
    sections += [_rule(rule), _provenance(rows, store.provenance())]
    page = _PAGE.format(title=escape(title), style=_STYLE, question=question, main="\n".join(sections))
    path = place(out) if out is not None else store.path / "report.html"
    _write(path, page)
    return path


def answer(verdicts: pd.DataFrame, rule: Rule = Rule()) -> str:
    """What the verdicts say, in one sentence: how many there are of each, and what each compression loses or degrades.

    Parameters
    ----------
    verdicts : what `labkit.verdict.judge` returns; it may be empty.
    rule : the one they were judged by.
    """
    head, told, note = _said(verdicts, rule)
    return f"{head}: {'; '.join(told)}{f' ({note})' if note else ''}." if told else head


def _said(verdicts: pd.DataFrame, rule: Rule) -> tuple[str, list[str], str]:
    """The counts, what is said of each compression that harms, and how to read the numbers in brackets."""
    if verdicts.empty:
        return _NO_VERDICTS, [], ""
    counts = verdicts["verdict"].value_counts()
    told = [f"{counts.get(verdict, 0)} {verdict}" for verdict in VERDICTS]
    few = int(((verdicts["verdict"] == "undecided") & (verdicts["n_seeds"] < rule.min_seeds)).sum())
    if few:
        told[3] += f" ({few} of them for having fewer than {rule.min_seeds} seeds)"
    rungs = list(dict.fromkeys(verdicts["rung"]))
    where = f"abilities and compressions at rung {rungs[0]}" if len(rungs) == 1 else "rungs, abilities and compressions"
    head = f"Of {len(verdicts)} combinations of {where}, {_listed(told)}"
    harms = []
    for (compression, sparsity), group in verdicts.groupby(["compression", "sparsity"], sort=False, observed=True):
        verbs = {"loses": "lost", "degrades": "degraded"}
        parts = [f"{verb} {_listed(named)}" for verb, v in verbs.items() if (named := _named(group, v, len(rungs) > 1))]
        harms += [f"{plotting.condition(compression, sparsity)} {' and '.join(parts)}"] if parts else []
    if harms:
        return head, harms, "in brackets: on how many of the rungs that have the ability" if len(rungs) > 1 else ""
    return head, [f"nothing is shown to be {'lost or degraded' if counts.get('kept', 0) else 'kept, degraded or lost'}"], ""


def _answer(head: str, told: Sequence[str], note: str) -> str:
    """What `answer` says, as a list where there is more than one thing to say."""
    if len(told) < 2:
        lines = f"<p><strong>Answer.</strong> {escape(f'{head}: {told[0]}.' if told else head)}</p>"
    else:
        points = "".join(f"<li>{escape(point)}</li>" for point in told)
        lines = f"<p><strong>Answer.</strong> {escape(head)}:</p><ul>{points}</ul>"
    note = f'<p class="note">{escape(note[:1].upper() + note[1:])}.</p>' if note else ""
    return f'<div class="answer">{lines}{note}</div>'


def _named(group: pd.DataFrame, verdict: str, many_rungs: bool) -> list[str]:
    """Abilities with this verdict, and on how many of the rungs whose dense models have them."""
    have = group[group["verdict"] != "absent"].groupby("ability", observed=True)["verdict"]
    named = {ability: ((given == verdict).sum(), len(given)) for ability, given in have}
    suffix = {ability: f" ({hit} of {of})" if many_rungs else "" for ability, (hit, of) in named.items()}
    return [f"{ability}{suffix[ability]}" for ability, (hit, _) in named.items() if hit]


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _study(folder: Path | Remote) -> dict[str, str]:
    path = folder / "study.json"
    if not path.is_file():
        return {}
    try:
        study = json.loads(path.read_text(encoding="utf-8"))
        return {key: str(study[key]) for key in ("name", "question") if study.get(key)}
    except (OSError, ValueError, AttributeError) as error:
        remedy = f"Delete it and run the study again: rows that are here stay. ({error})"
        raise LabkitError("study.json holds the name and the question of a study", str(path), remedy) from error


def _verdicts(verdicts: pd.DataFrame) -> str:
    """An overview for each rung: abilities down, compressions across."""
    tables = []
    for rung, group in verdicts.groupby("rung", sort=False, observed=True):
        labels = [plotting.condition(*pair) for pair in zip(group["compression"], group["sparsity"], strict=True)]
        cells = {(row.ability, label): row for row, label in zip(group.itertuples(), labels, strict=True)}
        body = [
            [_cell(ability, "th"), *(_judged(cells.get((ability, label))) for label in dict.fromkeys(labels))]
            for ability in dict.fromkeys(group["ability"])
        ]
        tables.append(f"<h3>Rung {escape(str(rung))}, dense seeds: {group['seeds_all'].max()}</h3>")
        tables.append(_table(["ability", *dict.fromkeys(labels)], body, f"Verdicts of rung {rung}", "overview"))
    note = "The number is retention: 1 is as good as the dense models, 0 is chance. Intervals and reasons are below."
    sideways = '<span class="narrow"> Tables scroll sideways.</span>'
    return _section("Verdicts", f'<p class="note">{note}{sideways}</p>', *tables)


def _judged(row: Any) -> str:
    if row is None:
        return _cell("not measured")
    return _cell(f"{row.verdict} {row.retention:z.2f}" if pd.notna(row.retention) else row.verdict, kind=row.verdict)


def _numbers(verdicts: pd.DataFrame) -> str:
    """Every verdict with its intervals, counts and reason, folded by rung."""
    head = ["ability", "compression", "verdict", "metric", "dense", "compressed", "chance", "retention"]
    head += ["95 % interval", "90 % interval", "retention on nats, 90 %", "seeds used", "dense seeds with it"]
    head += ["items per seed", "reason"]
    folded = []
    for rung, group in verdicts.groupby("rung", sort=False, observed=True):
        body = [
            [
                _cell(row.ability, "th"),
                _cell(plotting.condition(row.compression, row.sparsity)),
                _cell(row.verdict, kind=row.verdict),
                _cell(row.metric.replace("_", " ")),
                *(_cell(_number(v), kind="number") for v in (row.dense, row.compressed, row.chance, row.retention)),
                *(_cell(_span(*ends)) for ends in ((row.low, row.high), (row.low90, row.high90))),
                _cell(_span(row.nats_low90, row.nats_high90)),
                *(_cell(v, kind="number") for v in (row.n_seeds, f"{row.seeds_with} of {row.seeds_all}", row.n_items)),
                _cell(row.reason, kind="reason"),
            ]
            for row in group.itertuples()
        ]
        counts = ", ".join(f"{n} {v}" for v in VERDICTS if (n := (group["verdict"] == v).sum()))
        table = _table(head, body, f"All numbers of rung {rung}")
        folded.append(f"<details><summary>Rung {escape(str(rung))}: {counts}</summary>{table}</details>")
    return _section("All numbers", *folded)


def _emergence(rows: pd.DataFrame) -> str:
    caption = (
        "Dense models. A dot is one seed's mean over the test items, the line is the mean over seeds, a bar the 95 % "
        "t-interval of that mean over seeds (none with one seed; cut off at the frame), the dashed line is chance. "
        "Where seeds fall into two modes, read the dots: no interval around their mean describes them."
    )

    def draw(columns: int) -> Figure:
        return plotting.emergence(rows, columns=columns)

    return _section("What emerges along the ladder", _figure(draw, (4, 2), plotting.emergence_alt(rows), caption))


def _retention(verdicts: pd.DataFrame, rule: Rule) -> str:
    """A figure against sparsity for each rung where there are several, and one of all other compressions."""
    caption = (
        "Retention = (compressed - chance) / (dense - chance), paired with the same seed's dense model. Bars are 95 % "
        "intervals over seeds and items (Fieller, with t quantiles; see labkit.statistics.ratio_interval). No interval "
        "over a few seeds can see a failure that none of them shows. No bar: one seed, or no bounds. Hollow: undecided."
    )
    swept, figures = plotting.swept(verdicts), []
    judged = verdicts[swept & verdicts["retention"].notna()]
    for rung, group in judged.groupby("rung", sort=False, observed=True):

        def draw_sweep(columns: int, group: pd.DataFrame = group) -> Figure:
            return plotting.sweep(group, rule.margin, rule.lost, columns)

        shown = _figure(draw_sweep, (4, 2), plotting.sweep_alt(group), caption)
        figures += [f"<h3>Rung {escape(str(rung))}</h3>", shown]
    if (others := verdicts[~swept])["retention"].notna().any() or not figures and len(others):

        def draw(columns: int) -> Figure:
            return plotting.retention(others, rule.margin, rule.lost, columns)

        figures.append(_figure(draw, (3, 1), plotting.retention_alt(others), caption))
    return _section("What compression leaves", *figures)


def _rule(rule: Rule) -> str:
    low, high = f"{1 - rule.margin:g}", f"{1 + rule.margin:g}"
    items = {
        "absent": f"the dense models do not reliably go {100 * rule.gate:g} % of the way from chance to a perfect "
        "score; seeds whose own dense model does not are left aside and counted",
        "undecided": f"fewer than {rule.min_seeds} such seeds are left, or none of the other rules applies",
        "kept": f"the 90 % interval of retention lies within {low} to {high}, and so does that of retention on nats",
        "lost": f"the upper 95 % bound of retention is below {rule.lost:g}",
        "degraded": f"the upper 95 % bound of retention is below {low}, and the ability is not lost",
    }
    lines = "".join(f'<dt><span class="{name}">{name}</span></dt><dd>{words}</dd>' for name, words in items.items())
    return _section("The rule", f"<p>Its bounds are set before rows are read.</p><dl>{lines}</dl>")


def _provenance(rows: pd.DataFrame, runs: pd.DataFrame) -> str:
    keys = ["run", "model", "compression", "sparsity"]
    what = {
        row.run: f"{row.model}, {plotting.condition(row.compression, row.sparsity)}"
        for row in rows[keys].drop_duplicates("run").itertuples()
    }
    folded = [
        f"<details><summary>{escape(what.get(record['run'], 'no rows'))} (run {escape(record['run'])})</summary>"
        f"<pre>{escape(json.dumps(record, indent=2, default=str, ensure_ascii=False))}</pre></details>"
        for record in runs.astype(object).where(runs.notna(), None).to_dict("records")
    ]
    devices, commits = (", ".join(sorted({str(value) for value in runs[key]})) for key in ("device", "commit"))
    dirty = int((runs["dirty"] == True).sum())  # noqa: E712 - it may be None, outside of a checkout
    seconds = pd.to_numeric(runs["wall_s"]).sum()
    summary = f"{len(runs)} runs, {len(rows):,} rows, {seconds:,.0f} s in all, on {devices}; commit {commits}"
    summary += f"; {dirty} of the runs with uncommitted changes" if dirty else ""
    return _section(
        "Provenance", f"<p>{escape(summary)}.</p><details><summary>Every run</summary>{''.join(folded)}</details>"
    )


def _section(heading: str, *parts: str) -> str:
    return f"<section><h2>{heading}</h2>\n{''.join(parts)}\n</section>"


def _table(head: Iterable[str], body: Iterable[Iterable[str]], label: str, kind: str = "") -> str:
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    lines = "".join(f"<tr>{''.join(cells)}</tr>" for cells in body)
    box = f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">'
    kind = f' class="{kind}"' if kind else ""
    return f"{box}<table{kind}><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>"


def _cell(value: object, tag: str = "td", kind: str = "") -> str:
    attributes = ' scope="row"' if tag == "th" else f' class="{kind}"' if kind else ""
    return f"<{tag}{attributes}>{escape(str(value))}</{tag}>"


def _number(value: float) -> str:
    return "none" if pd.isna(value) else f"{value:z.3f}"


def _span(low: float, high: float) -> str:
    return "none" if pd.isna(low) or pd.isna(high) else f"{low:z.3f} to {high:z.3f}"


def _figure(draw: Callable[[int], Figure], columns: tuple[int, int], alt: str, caption: str) -> str:
    """A figure drawn twice, with many columns for a screen and with few for a phone; a browser shows one."""
    wide, narrow = (_png(draw(number)) for number in columns)
    image = f'<img src="{wide}" alt="{escape(alt)}">'
    picture = f'<picture><source media="(max-width: 640px)" srcset="{narrow}">{image}</picture>'
    return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, bbox_inches="tight", facecolor="white", metadata={"Software": None})
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _write(path: Path | Remote, text: str) -> None:
    try:
        replace(text, path)
    except OSError as error:
        remedy = "Choose a place you may write to, with space left: what was there is unchanged."
        raise LabkitError(f"a report is written to {path}", error.strerror or str(error), remedy) from error
