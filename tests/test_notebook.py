"""What the notebooks use: the card tells the truth and escapes, figures carry alt text, checks tell right from wrong."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch

from labkit import notebook
from labkit.errors import LabkitError
from labkit.zoo import MANIFEST

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def share(score, chance, best):
    return (score - chance) / (best - chance)


def magnitude_mask(weight: torch.Tensor, sparsity: float) -> torch.Tensor:
    """By NumPy, and by counting: a weight stays if at least ⌊size·sparsity⌋ others go before it."""
    flat = np.abs(weight.numpy()).ravel()
    before = [sum((f, j) < (g, i) for j, f in enumerate(flat)) for i, g in enumerate(flat)]
    return torch.tensor(np.array(before).reshape(weight.shape) >= int(flat.size * sparsity))


def merge(weight: torch.Tensor, b: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """By NumPy, one weight at a time."""
    out = weight.numpy().copy()
    for i, j in zip(*out.nonzero(), strict=True):
        out[i, j] += 2 * sum(b[i, k].item() * a[k, j].item() for k in range(len(a)))
    return torch.from_numpy(out)


def looked_at(tokens: list[str], t: int) -> int | None:
    """By a search backwards; what followed may be the place that looks."""
    found = next((p + 1 for p in reversed(range(t)) if tokens[p] == tokens[t]), None)
    return None if found == t else found


# --- the card --------------------------------------------------------------------------------------------------------


def test_the_card_says_what_runs() -> None:
    lines = notebook.setup(device="cpu", seed=7).lines
    assert f"torch {torch.__version__.split('+')[0]}" in lines["versions"]
    assert (lines["device"], lines["seed"]) == ("cpu", "7")


def test_the_card_has_the_checksum_of_the_manifest(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(notebook, "artifacts", lambda: tmp_path)
    assert notebook.setup("cpu").lines["artifacts"] == "none shipped"
    (tmp_path / MANIFEST).write_text("{}")
    assert notebook.setup("cpu").lines["artifacts"] == "sha256 44136fa355b3 of manifest.json"  # of "{}"


def test_the_card_is_one_line_each_and_escapes() -> None:
    card = notebook.Card({"<b>": "a & b", "seed": "0"})
    assert repr(card) == "<b>: a & b\nseed: 0"
    assert "<th>&lt;b&gt;</th><td>a &amp; b</td>" in card._repr_html_()


def test_setup_leaves_the_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    notebook.setup("cpu", seed=3)
    assert torch.equal(before, torch.random.get_rng_state())


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(LabkitError, match=r'a device is "auto", "cpu" or "cuda"; got \'gpu0\'\. Set DEVICE = "auto"'):
        notebook.setup(device="gpu0")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_absent_is_refused() -> None:
    assert notebook.setup("auto").lines["device"] == "cpu"
    with pytest.raises(LabkitError, match="a device is one that this machine has; got 'cuda'"):
        notebook.setup(device="cuda")


# --- figures ---------------------------------------------------------------------------------------------------------


def test_show_displays_a_png_with_alt_text_and_closes_it(monkeypatch) -> None:
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw, metadata: shown.append((data, raw, metadata)))
    figure = plt.figure()
    notebook.show(figure, "A rising line")
    ((data, raw, metadata),) = shown
    assert raw and metadata == {"image/png": {"alt": "A rising line"}}
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert data["text/plain"] == "Figure: A rising line"
    assert not plt.fignum_exists(figure.number)


def test_a_figure_without_alt_text_is_refused() -> None:
    with pytest.raises(LabkitError, match="a figure has alt text; got ' '"):
        notebook.show(None, " ")


def test_zeros_are_left_blank_and_the_scale_is_shared() -> None:
    figure = notebook.draw_weights({"one": np.array([[0.0, 1.0]]), "two": np.array([[-3.0, 0.0]])})
    images = [axis.images[0] for axis in figure.axes if axis.images and axis.get_title()]
    assert [image.get_array().mask.tolist() for image in images] == [[[True, False]], [[False, True]]]
    assert {image.get_clim() for image in images} == {(-3.0, 3.0)}
    plt.close(figure)


# --- recovery --------------------------------------------------------------------------------------------------------


def test_an_interval_in_a_table() -> None:
    assert notebook.interval(0.521, 0.45, 0.6) == "0.52 [0.45, 0.60]"
    assert notebook.interval(-0.001, -0.004, np.nan) == "0.00 [0.00, …]"  # no "-0.00"
    assert notebook.interval(*[np.nan] * 3) == "…"


def verdicts(**bounds: tuple[float, float]) -> pd.DataFrame:
    """Verdicts of one ability; compression with _ for a space -> low and high, retention halfway between."""
    rows = [
        {"rung": "64x2", "compression": name, "sparsity": 0.0 if name.startswith("full") else 0.7, "ability": "recall",
         "retention": (low + high) / 2, "low": low, "high": high, "n_seeds": 5, "verdict": "undecided"}
        for name, (low, high) in ((name.replace("_plus_", " + ").replace("_", " "), b) for name, b in bounds.items())
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_a_compression_is_told_apart() -> None:
    told = notebook.recoveries(verdicts(wanda=(0, 0), wanda_plus_lora_200k=(0, 1), full_1M=(1, 1)))
    assert told[["damage", "method", "tokens"]].values.tolist() == [
        ["wanda 70 %", "", 0], ["wanda 70 %", "lora", 200_000], ["none", "full", 1_000_000]
    ]  # fmt: skip
    at_rate = verdicts(wanda=(0, 1)).assign(compression="wanda + full learning_rate 6.4e-05 rank 2 50k")
    assert notebook.recoveries(at_rate)[["damage", "method", "tokens"]].values.tolist() == [
        ["wanda 70 %", "full learning_rate 6.4e-05 rank 2", 50_000]
    ]  # fmt: skip
    structured = verdicts(wanda=(0, 1)).assign(compression="drop-layers 1 by loss", sparsity=0.0)
    assert notebook.recoveries(structured)[["damage", "method"]].values.tolist() == [["drop-layers 1 by loss", ""]]
    assert notebook.recoveries(structured.assign(verdict="absent")).empty
    tenths = notebook.recoveries(structured.assign(compression="wanda + lora 1.5M"))
    assert tenths[["method", "tokens"]].values.tolist() == [["lora", 1_500_000]]


LOW, HIGH, WIDE = (0.0, 0.1), (0.9, 1.0), (0.1, 0.95)


@pytest.mark.parametrize(
    ("outcome", "tokens", "methods", "bounds"),
    [
        ("spared", 200_000, "full", {"wanda": HIGH, "wanda_plus_full_200k": HIGH, "full_1M": HIGH}),
        ("elicitable", 200_000, "full", {"wanda": LOW, "wanda_plus_full_200k": HIGH, "full_1M": HIGH}),
        ("elicitable", 1_000_000, "full, lora",
         {"wanda": LOW, "wanda_plus_full_1M": HIGH, "wanda_plus_lora_1M": HIGH, "full_1M": HIGH}),
        ("trained back", 1_000_000, "full", {"wanda": LOW, "wanda_plus_full_200k": LOW, "wanda_plus_full_1M": HIGH}),
        ("damaged", None, "", {"wanda": LOW, "wanda_plus_full_200k": LOW, "wanda_plus_full_1M": LOW, "full_1M": HIGH}),
        ("open", None, "", {"wanda": LOW, "wanda_plus_full_1M": LOW, "full_1M": WIDE}),  # the control is not sure
        ("open", None, "", {"wanda": LOW, "wanda_plus_full_1M": LOW, "full_200k": HIGH}),  # it trained for less
        ("open", None, "", {"wanda": LOW, "wanda_plus_full_1M": LOW}),  # there is none
        ("open", None, "", {"wanda": LOW, "wanda_plus_full_200k": LOW, "wanda_plus_full_1M": WIDE, "full_1M": HIGH}),
    ],
)  # fmt: skip
def test_what_became_of_an_ability(outcome, tokens, methods, bounds) -> None:
    (row,) = notebook.comebacks(verdicts(**bounds)).to_dict("records")
    assert (row["outcome"], row["methods"], row["damage"]) == (outcome, methods, "wanda 70 %")
    assert row["tokens"] == tokens if tokens else np.isnan(row["tokens"])


def test_of_fewer_seeds_than_a_verdict_needs_nothing_is_said() -> None:
    few = verdicts(wanda=LOW, wanda_plus_full_200k=HIGH, full_1M=HIGH).assign(n_seeds=4)
    assert list(notebook.comebacks(few).outcome) == ["open"]


def test_comebacks_show_the_best_recovery_and_the_control() -> None:
    (row,) = notebook.comebacks(
        verdicts(wanda=(0.0, 0.1), wanda_plus_full_200k=(0.5, 0.7), wanda_plus_full_1M=(0.4, 0.6), full_1M=(0.9, 1.0))
    ).to_dict("records")
    shown = ["0.05 [0.00, 0.10]", "0.60 [0.50, 0.70]", "0.95 [0.90, 1.00]"]
    assert [row["pruned"], row["best"], row["control"]] == shown


def test_recoveries_are_drawn_where_the_verdicts_say() -> None:
    lora = {"wanda_plus_lora_200k": (0.3, 0.5), "wanda_plus_lora_1M": (0.6, 0.8)}
    unmeasured_alone = {"random_plus_full_1M": (0.0, 0.2)}
    rows = verdicts(wanda=(0.1, 0.3), **lora, full_1M=(0.9, 1.1), **unmeasured_alone)
    (axes,) = notebook.draw_recoveries(rows).axes
    curves = [line.get_ydata().tolist() for line in axes.lines if line.get_linewidth() == 1.2]
    assert curves == [pytest.approx([0.2, 0.4, 0.7]), pytest.approx([1.0, 1.0])]  # the control starts as dense
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "200k", "1M"]
    alt = notebook.recoveries_alt(rows)
    assert "recall: wanda 70 % 0.20 at 0, wanda 70 %, lora 0.70 at 1,000,000, not pruned, full 1.00 at 1,000,000" in alt
    assert "random" not in alt


def test_recoveries_of_two_rungs_or_none_are_refused() -> None:
    rows = verdicts(wanda=LOW, wanda_plus_full_1M=LOW)
    with pytest.raises(LabkitError, match=r"recoveries are drawn for one rung; got \"rungs \['32x2', '64x2'\], 1 ways"):
        notebook.draw_recoveries(pd.concat([rows, rows.assign(rung="32x2")]))
    with pytest.raises(LabkitError, match="recoveries are drawn for one rung; .*0 ways of recovery"):
        notebook.draw_recoveries(rows[:1])


# --- checks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "solution"),
    [
        (notebook.check_share, share),
        (notebook.check_magnitude_mask, magnitude_mask),
        (notebook.check_merge, merge),
        (notebook.check_looked_at, looked_at),
    ],
)
def test_a_check_passes_an_independent_solution(check, solution, capsys) -> None:
    check(solution)
    out = capsys.readouterr().out
    assert "not yet" not in out and out.endswith(" right. Well done.\n")


@pytest.mark.parametrize(
    ("check", "wrong", "named"),
    [
        (notebook.check_share, lambda s, c, b: s - c, "nats, where the best score is 0"),
        (notebook.check_share, lambda s, c, b: max(share(s, c, b), 0), "worse than chance"),
        (notebook.check_magnitude_mask, lambda w, s: w > w.median(), "the signs do not matter"),
        (notebook.check_magnitude_mask, lambda w, s: w.abs() > w.abs().median(1, keepdim=True).values, "not each row"),
        (notebook.check_magnitude_mask, lambda w, s: ~magnitude_mask(w, s), "nothing goes at sparsity 0"),
        (notebook.check_magnitude_mask, lambda w, s: magnitude_mask(w.flip(1), s).flip(1), "of equals the first"),
        (notebook.check_magnitude_mask, lambda w, s: w * magnitude_mask(w, s), "nothing goes at sparsity 0"),
        (notebook.check_merge, lambda w, b, a: w + 2 * b @ a, "zeros stay zero"),
        (notebook.check_merge, lambda w, b, a: (w + b @ a) * (w != 0), "what stays gets 2·B·A"),
        (notebook.check_merge, lambda w, b, a: (w + 2 * b @ a) * (w > 0), "negative weights stay too"),
        (notebook.check_merge, lambda w, b, a: (w + 2 * b[:, :1] @ a[:1]) * (w != 0), "the ranks are summed over"),
        (notebook.check_merge, lambda w, b, a: 2 * b @ a * (w != 0), "an update of zero changes nothing"),
        (notebook.check_looked_at, lambda x, t: x.index(x[t]) + 1, "the last time, not the first"),
        (notebook.check_looked_at, lambda x, t: looked_at(x, t) or 0, "a token that is new"),
        (notebook.check_looked_at, lambda x, t: t, "what followed the same token"),
    ],
)
def test_a_check_names_the_case_that_fails(check, wrong, named, capsys) -> None:
    check(wrong)
    out = capsys.readouterr().out
    assert re.search(rf"\[not yet\] .*{re.escape(named)}", out) and "Well done" not in out


def test_a_check_shows_expected_and_received(capsys) -> None:
    notebook.check_magnitude_mask(lambda weight, sparsity: 1 / 0)
    expected = "    called with [[-4.0, 1.0], [2.0, -3.0]], 0.5\n    expected [[True, False], [False, True]]"
    assert f"{expected}, received ZeroDivisionError: division by zero\n" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_the_folded_solution_passes_the_check_of_its_notebook(path: Path, capsys) -> None:
    cells = nbformat.read(path, as_version=4).cells
    solutions = [c.source for c in cells if c.cell_type == "markdown" and "<summary>Solution" in c.source]
    code = "\n".join(c.source for c in cells if c.cell_type == "code")
    checks = re.findall(r"lk\.notebook\.(check_\w+)\((\w+)\)", code)
    assert len(solutions) == len(checks) > 0
    for solution, (check, function) in zip(solutions, checks, strict=True):
        names: dict = {"torch": torch, "np": np}
        exec(re.search(r"```python\n(.*?)```", solution, re.DOTALL)[1], names)
        getattr(notebook, check)(names[function])
        assert "Well done" in capsys.readouterr().out


def test_numbers_of_numpy_are_answers_too(capsys) -> None:
    def looked_at(tokens, t):
        places = np.flatnonzero(np.array(tokens[:t]) == tokens[t])
        return places[-1] + 1 if len(places) and places[-1] + 1 < t else None

    notebook.check_looked_at(looked_at)
    notebook.check_share(lambda score, chance, best: np.float32((score - chance) / (best - chance)))
    assert capsys.readouterr().out.count("Well done") == 2


def test_rounding_a_share_is_not_cutting_it_off(capsys) -> None:
    def magnitude_mask(weight, sparsity):
        keep = torch.ones(weight.numel(), dtype=torch.bool)
        keep[weight.abs().flatten().argsort(stable=True)[: round(weight.numel() * sparsity)]] = False
        return keep.view_as(weight)

    notebook.check_magnitude_mask(magnitude_mask)
    assert "4 of 5 right" in capsys.readouterr().out


def test_the_last_place_before_counts_too(capsys) -> None:
    def looked_at(tokens, t):
        return next((p + 1 for p in reversed(range(t - 1)) if tokens[p] == tokens[t]), None)

    notebook.check_looked_at(looked_at)
    assert "right. Well done" not in capsys.readouterr().out
