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
from labkit.store import provenance
from labkit.zoo import MANIFEST, artifacts, sha256

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 110
_SHOWN = ("labkit", "torch", "transformers", "pandas", "duckdb")


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


def check_share(function: Callable) -> None:
    """Check the exercise ``share(score, chance, best)``: how much of the way from chance to best was made."""
    cases = {
        "at chance": ((0.25, 0.25, 1.0), 0.0),
        "perfect": ((1.0, 0.25, 1.0), 1.0),
        "halfway, by exact match": ((0.5, 0.0, 1.0), 0.5),
        "worse than chance": ((0.1, 0.2, 1.0), -0.125),
        "nats, where the best score is 0": ((0.5, 2.0, 0.0), 0.75),
    }
    _report(function, cases, lambda got, expected: isinstance(got, (int, float)) and np.isclose(got, expected))


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
        "a part of a weight stays: 5 weights at 0.5 lose 2": ([[5.0, -1.0, 4.0, 2.0, 3.0]], 0.5),
        "of equals the first goes first": ([[1.0, 1.0], [-1.0, 1.0]], 0.25),
    }
    cases = {}
    for name, (values, sparsity) in weights.items():
        weight = torch.tensor(values)
        cases[name] = (weight, sparsity), keep_highest(weight.abs(), sparsity, "layer")
    _report(function, cases, lambda got, expected: isinstance(got, torch.Tensor) and torch.equal(got, expected))


def _report(function: Callable, cases: Mapping[str, tuple[tuple, object]], right: Callable[..., bool]) -> None:
    """Run a reader's function on every case, ``name -> (arguments, expected)``, and print how each went."""
    done = 0
    for name, (arguments, expected) in cases.items():
        try:
            received = function(*arguments)
            correct = right(received, expected)
        except Exception as error:  # the reader's code may raise anything, and deserves to be told what
            received, correct = f"{type(error).__name__}: {error}", False
        done += correct
        print(f"[{'OK' if correct else 'not yet'}] {name}")
        if not correct:
            print(f"    called with {_brief(arguments)}\n    expected {_brief(expected)}, received {_brief(received)}")
    print(f"{done} of {len(cases)} right." + (" Well done." if done == len(cases) else ""))


def _brief(value: object) -> str:
    """A value on one line; tensors as lists, since their repr breaks lines."""
    if isinstance(value, tuple):
        return ", ".join(map(_brief, value))
    return str(value.tolist() if hasattr(value, "tolist") else value)
