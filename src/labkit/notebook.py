"""What the notebooks use beside the library: a provenance card, figures with alt text, and checks of the exercises."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from labkit.errors import LabkitError
from labkit.exercises import check, check_decide, check_excess, check_power, check_training_bytes  # noqa: F401 (for the notebooks)
from labkit.plotting.shapes import short
from labkit.plotting.style import GREY, STYLE, condition, draw_retentions, finished, hollow, look, mark, panel_grid
from labkit.store import provenance
from labkit.zoo import MANIFEST, artifacts, sha256

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

DPI = 110
UNTOUCHED = "none"
"""The damage of a model that was not pruned."""
_SHOWN = ("labkit", "torch", "transformers", "pandas", "duckdb")
# "wanda + lora 200k", "full learning_rate 0.0064 50k"
_RECOVERED = r"^(?:(?P<before>.+) \+ )?(?P<method>[a-z]+(?: [a-z_]+ [\d.e-]+)*) (?P<size>[\d.]+)(?P<unit>[kM])$"
_FRAME = (-0.35, 1.35)  # retention drawn; what lies beyond stands at the edge


@dataclasses.dataclass(frozen=True)
class Card:
    """Where the numbers of a notebook come from: title -> text, in order."""

    lines: Mapping[str, str]

    def __repr__(self) -> str:
        return "\n".join(f"{title}: {text}" for title, text in self.lines.items())

    def _repr_html_(self) -> str:
        cells = (f"<tr><th>{html.escape(t)}</th><td>{html.escape(x)}</td></tr>" for t, x in self.lines.items())
        return f"<table><caption>Provenance of this notebook</caption>{''.join(cells)}</table>"


def setup(device: str = "auto", seed: int = 0) -> Card:
    """Quieten the loading of models and say what runs here. Put it last in a cell, so that the card is shown.

    Parameters
    ----------
    device : "auto" (a GPU if there is one), "cpu" or "cuda".
    seed : written on the card; functions of labkit take theirs as an argument, and no global state is touched.

    Raises LabkitError for another device, or for "cuda" where there is none.
    """
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # a bar for three small files, stored in the notebook's output
    from transformers.utils import logging

    logging.disable_progress_bar()
    device = _device(device)
    here = provenance(config={}, artifacts={}, wall_s=0.0, device=device)
    versions = [f"{name} {here['versions'][name]}" for name in ("python", *_SHOWN) if name in here["versions"]]
    changes = ", with changes" if here["dirty"] else ""
    commit = here["commit"][:12] + changes if here["commit"] else "an installed copy"
    listed = artifacts() / MANIFEST
    checksum = f"sha256 {sha256(listed)[:12]} of {MANIFEST}" if listed.is_file() else "none shipped"
    lines = {"versions": ", ".join(versions), "commit": commit, "device": device, "artifacts": checksum}
    return Card({**lines, "seed": str(seed)})


def _device(name: str) -> str:
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise LabkitError('a device is "auto", "cpu" or "cuda"', name, 'Set DEVICE = "auto".')
    if name == "cuda" and not torch.cuda.is_available():
        raise LabkitError("a device is one that this machine has", name, 'Set DEVICE = "auto".')
    return "cuda" if name == "auto" and torch.cuda.is_available() else name.replace("auto", "cpu")


def show(figure: Figure, alt: str) -> None:
    """Display a figure as PNG with alt text, and close it. The alt text is also what stands in for it as plain text.

    Raises LabkitError if the alt text is empty.
    """
    import matplotlib.pyplot as plt
    from IPython.display import display

    if not alt.strip():
        raise LabkitError("a figure has alt text", alt, "Say in a sentence what it shows.")
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=DPI, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    data = {"image/png": base64.b64encode(image.getvalue()).decode(), "text/plain": f"Figure: {alt}"}
    display(data, raw=True, metadata={"image/png": {"alt": alt}})


def draw_weights(matrices: Mapping[str, np.ndarray]) -> Figure:
    """Heatmaps side by side of (outputs, inputs) weights, title -> matrix, on one colour scale, zeros white."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(matrices), figsize=(3.1 * len(matrices), 3.4), sharey=True, layout="constrained")
    limit = max(np.abs(weights).max() for weights in matrices.values())
    for axis, (title, weights) in zip(np.atleast_1d(axes), matrices.items(), strict=True):
        image = axis.imshow(np.ma.masked_equal(weights, 0), cmap="berlin", vmin=-limit, vmax=limit, aspect="auto")
        axis.set(title=title, xlabel="input (column)")
    np.atleast_1d(axes)[0].set_ylabel("output (row)")
    figure.colorbar(image, ax=axes, label="weight (dark: small, white: zero)")
    return figure


def interval(estimate: float, low: float, high: float) -> str:
    """A number with its interval for a table, "0.52 [0.45, 0.60]"; what is not known, NaN, is "…"."""
    told = ["…" if np.isnan(x) else f"{round(x, 2) + 0.0:.2f}" for x in (estimate, low, high)]  # + 0.0: no "-0.00"
    return "…" if told == ["…"] * 3 else f"{told[0]} [{told[1]}, {told[2]}]"


# -- recovery ----------------------------------------------------------------------------------------------------------


def recoveries(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Verdicts of a recovery study with what their column ``compression`` says told apart, absent abilities left out.

    Parameters
    ----------
    verdicts : what `labkit.judge` returns, compressions named as in a study: "wanda", "wanda + lora 200k", "full 1M".

    Returns
    -------
    The same columns and three more: ``damage`` ("wanda 70 %"; `UNTOUCHED` for the control, which was only trained on),
    ``method`` ("" for the damage itself) and ``tokens`` trained on (0 for the damage itself).
    """
    named = verdicts["compression"].astype(str).str.extract(_RECOVERED)
    before = named["before"].where(named["method"].notna(), verdicts["compression"].astype(str)).fillna(UNTOUCHED)
    tokens = named["size"].astype(float) * named["unit"].map({"k": 1e3, "M": 1e6})
    told = verdicts.assign(
        damage=[condition(*pair) for pair in zip(before, verdicts["sparsity"], strict=True)],
        method=named["method"].fillna(""),
        tokens=tokens.fillna(0).round().astype(int),
    )
    return told[told["verdict"] != "absent"]


def comebacks(verdicts: pd.DataFrame, back: float = 0.8, few: int = 200_000) -> pd.DataFrame:
    """What became of every ability that was pruned away: a working rule for "damaged, or merely unelicited?".

    The first that holds, of 95 % intervals of retention: *spared*, pruning alone leaves at least `back`; *elicitable*,
    at least `back` after low-rank adapters, or after at most `few` tokens of any training; *trained back*, at least
    `back` after more; *damaged*, every recovery stays below `back` while the control, never pruned but trained on for
    as long as any, does not; *open*, all else, and what fewer seeds have than a verdict asks for (`labkit.Rule`).

    Parameters
    ----------
    verdicts : as for `recoveries`. back : retention, in (0, 1]. few : tokens.

    Returns
    -------
    One row per rung, damage and ability: retention with its interval after the damage (``pruned``), in the best
    recovery (``best``) and in the ``control``; the fewest ``tokens`` that bring at least `back`, by which ``methods``
    (NaN and "" if none does); ``n_seeds``; ``outcome``.
    """
    import pandas as pd

    from labkit.verdict import Rule

    told, rows, seeds = recoveries(verdicts), [], Rule().min_seeds
    for (rung, ability), group in told.groupby(["rung", "ability"], sort=False, observed=True):
        last = group[group["damage"] == UNTOUCHED].sort_values("tokens").iloc[-1:]
        for damage, ways in group[group["damage"] != UNTOUCHED].groupby("damage", sort=False):
            pruned, recovered = ways[ways["method"] == ""], ways[ways["method"] != ""]
            if pruned.empty or recovered.empty:
                continue
            returned = recovered[recovered["low"] >= back]
            cheap = returned[returned["method"].str.startswith("lora") | (returned["tokens"] <= few)]
            fewest = returned[returned["tokens"] == returned["tokens"].min()]
            control = (last["low"] >= back).any() and (last["tokens"] >= recovered["tokens"].max()).all()
            rules = (
                ("open", pruned["n_seeds"].iloc[0] < seeds),
                ("spared", (pruned["low"] >= back).all()),
                ("elicitable", len(cheap) > 0),
                ("trained back", len(returned) > 0),
                ("damaged", (recovered["high"] < back).all() and control),
                ("open", True),
            )
            best = recovered.sort_values("retention").iloc[-1:]
            shown = [_first(part) for part in (pruned, best, last)]
            tokens, methods = fewest["tokens"].min(), ", ".join(sorted(fewest["method"]))
            outcome = next(name for name, holds in rules if holds)
            rows.append((rung, damage, ability, *shown, tokens, methods, int(pruned["n_seeds"].iloc[0]), outcome))
    names = ["rung", "damage", "ability", "pruned", "best", "control", "tokens", "methods", "n_seeds", "outcome"]
    return pd.DataFrame(rows, columns=names)


def _first(verdicts: pd.DataFrame) -> str:
    return next((interval(r.retention, r.low, r.high) for r in verdicts.itertuples()), "…")


def draw_recoveries(verdicts: pd.DataFrame, columns: int = 4) -> Figure:
    """Retention against the tokens of a recovery, a panel per ability, a line per damage and method; bars are 95 %.

    Lines start at the damage alone, that of the control at 1; a damage that was not measured alone is left out. Hollow
    marks are undecided, dotted lines of ways that were not measured at every number of tokens. Tokens stand at equal
    distances; what lies beyond the frame is an arrowhead at its edge.

    Raises LabkitError for verdicts of several rungs, or without a recovery.
    """
    import matplotlib.pyplot as plt
    import pandas as pd

    told = _from_the_start(verdicts)
    ways = told.loc[told["method"] != "", ["damage", "method"]].drop_duplicates().values.tolist()
    if told["rung"].nunique() != 1 or not ways:
        received = f"rungs {sorted(told['rung'].unique())}, {len(ways)} ways of recovery"
        raise LabkitError("recoveries are drawn for one rung", received, "Choose one: verdicts[verdicts.rung == …].")
    control = told[told["damage"] == UNTOUCHED].drop_duplicates("ability")  # before its training it is the dense model
    start = {"method": "", "tokens": 0, "retention": 1.0, "low": 1.0, "high": 1.0, "verdict": "kept"}
    told = pd.concat([control.assign(**start), told])
    doses = sorted({0, *told["tokens"]})
    panels = told.groupby("ability", observed=True)
    order = panels["retention"].mean().sort_values(ascending=False).index
    with plt.rc_context(STYLE):
        figure, grid = panel_grid(len(order), columns, width=2.2, height=1.6)
        for axes, ability in zip(grid, order, strict=True):
            axes.set_title(ability, loc="left", fontweight="bold", fontsize=9)
            for level in (0, 1):
                axes.axhline(level, color=GREY, linewidth=0.8, zorder=1)
            for number, (damage, method) in enumerate(ways):
                panel = panels.get_group(ability)
                line = panel[(panel["damage"] == damage) & panel["method"].isin(["", method])].sort_values("tokens")
                x = [doses.index(t) + 0.08 * (number - (len(ways) - 1) / 2) for t in line["tokens"]]
                *how, style = look(number)
                how = *how, style if {*doses} <= {*line["tokens"]} else ":"
                draw_retentions(axes, x, line, line["verdict"] == "undecided", _FRAME, how)
            axes.set(ylim=_FRAME, yticks=[0, 0.5, 1], yticklabels=["0", "0.5", "1"])
            axes.set_xticks(range(len(doses)), [short(dose) for dose in doses])
        figure.supxlabel("tokens trained on after pruning", fontsize=9)
        figure.supylabel("retention (0 = chance, 1 = dense)", fontsize=9)
        key = [mark(number, _way(*way)) for number, way in enumerate(ways)]
        figure.legend(handles=[*key, hollow()], loc="outside upper center", ncols=min(3, columns), frameon=False)
    return finished(figure)


def recoveries_alt(verdicts: pd.DataFrame) -> str:
    """The figure of `draw_recoveries` in words: retention after every recovery's most tokens."""
    told, sentences = _from_the_start(verdicts), []
    for ability, panel in told.groupby("ability", sort=False, observed=True):
        last = panel.sort_values("tokens").groupby(["damage", "method"], sort=False).tail(1)
        ends = [f"{_way(r.damage, r.method)} {r.retention:.2f} at {r.tokens:,}" for r in last.itertuples()]
        sentences.append(f"{ability}: {', '.join(ends)}")
    return f"Retention against tokens of recovery, with 95 % intervals. {'; '.join(sentences)}."


def _from_the_start(verdicts: pd.DataFrame) -> pd.DataFrame:
    """`recoveries` of the damages that were measured alone too, and of the control."""
    told = recoveries(verdicts)
    return told[told["damage"].isin([UNTOUCHED, *told.loc[told["method"] == "", "damage"]])]


def _way(damage: str, method: str) -> str:
    if damage == UNTOUCHED:
        return f"not pruned, {method}"
    return f"{damage}, {method}" if method else damage


# -- exercises ---------------------------------------------------------------------------------------------------------


def check_share(function: Callable) -> None:
    """Check the exercise ``share(score, chance, best)``: how much of the way from chance to best was made."""
    cases = {
        "at chance": ((0.25, 0.25, 1.0), 0.0),
        "perfect": ((1.0, 0.25, 1.0), 1.0),
        "halfway, by exact match": ((0.5, 0.0, 1.0), 0.5),
        "worse than chance": ((0.1, 0.2, 1.0), -0.125),
        "nats, where the best score is 0": ((0.5, 2.0, 0.0), 0.75),
    }
    check(function, cases, lambda got, expected: isinstance(got, (int, float, np.number)) and np.isclose(got, expected))


def check_magnitude_mask(function: Callable) -> None:
    """Check the exercise ``magnitude_mask(weight, sparsity)``: a bool tensor, True where a weight of the matrix stays.

    The ⌊size · sparsity⌋ weights of smallest magnitude go, in the whole matrix; of equals the first goes first.
    """
    import torch

    from labkit.pruning.masks import keep_highest

    weights = {
        "the signs do not matter": ([[-4.0, 1.0], [2.0, -3.0]], 0.5),
        "the whole matrix is one group, not each row": ([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], 0.5),
        "nothing goes at sparsity 0": ([[1.0, -2.0], [0.5, 3.0]], 0.0),
        "a part of a weight stays: 7 weights at 0.5 lose 3": ([[5.0, -1.0, 4.0, 2.0, 3.0, 7.0, 6.0]], 0.5),
        "of equals the first goes first": ([[1.0, 1.0], [-1.0, 1.0]], 0.25),
    }
    cases = {}
    for name, (values, sparsity) in weights.items():
        weight = torch.tensor(values)
        cases[name] = (weight, sparsity), keep_highest(weight.abs(), sparsity, "layer")
    check(function, cases, lambda got, expected: isinstance(got, torch.Tensor) and torch.equal(got, expected))


def check_merge(function: Callable) -> None:
    """Check the exercise ``merge(weight, b, a)``: W + 2·B·A where W is not zero, and zero where it is.

    ``weight`` (outputs, inputs), ``b`` (outputs, rank), ``a`` (rank, inputs); a tensor of the shape of ``weight``.
    """
    import torch

    cases = {}
    for name, *values in (
        ("what stays gets 2·B·A", [[1.0, -2.0]], [[0.5]], [[1.0, 3.0]], [[2.0, 1.0]]),
        ("zeros stay zero", [[1.0, 0.0], [0.0, -4.0]], [[1.0], [0.5]], [[1.0, 1.0]], [[3.0, 0.0], [0.0, -3.0]]),
        ("negative weights stay too", [[-1.0, 0.0]], [[1.0]], [[-1.0, 2.0]], [[-3.0, 0.0]]),
        ("the ranks are summed over", [[1.0, 1.0]], [[1.0, 2.0]], [[1.0, 0.0], [0.0, 1.0]], [[3.0, 5.0]]),
        ("an update of zero changes nothing", [[3.0, 0.0]], [[0.0]], [[7.0, 7.0]], [[3.0, 0.0]]),
    ):  # fmt: skip
        *given, expected = map(torch.tensor, values)
        cases[name] = tuple(given), expected
    check(function, cases, lambda got, expected: isinstance(got, torch.Tensor) and torch.equal(got, expected))


def check_looked_at(function: Callable) -> None:
    """Check the exercise ``looked_at(tokens, t)``: the place an induction head looks at from place t, None if none.

    That is the place after the last one before t that holds the same token, if it lies before t.
    """
    import torch

    from labkit.inside.heads import targets

    texts = {
        "what followed the same token": ("catca", 4),
        "the last time, not the first": ("abcabdab", 6),
        "a token that is new": ("cats", 3),
        "twice in a row: what followed is the place itself": ("caa", 2),
        "three times in a row": ("caaa", 3),
        "the first place": ("c", 0),
    }
    cases = {}
    for name, (text, t) in texts.items():
        target, exists = targets(torch.tensor([list(map(ord, text))]), "induction")
        cases[name] = (list(text), t), int(target[0, t]) if exists[0, t] else None
    check(function, cases, lambda got, expected: got is None if expected is None else got is not None and got == expected)
