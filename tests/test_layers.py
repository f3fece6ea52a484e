"""The architecture: which module may import which. Start reading here.

An import points strictly down the table. Modules of one row never import each other. The frame half (rows, arithmetic,
judgement, figures) never reaches torch, however indirectly. A module that is in no row fails the tests: place it first.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

LAYERS = (  # top first; the words in the comments are what a row is about
    {"cli", "notebook"},  # what a person touches
    {"planning", "cluster"},  # a study foretold; a study on many machines
    {"study", "schooling", "doctor", "report", "terminal", "exercises", "simulation"}  # and the judge judged
    | {"inheritance", "imitation"},  # students, by the judge's rule
    {"subjects"},  # what runs are of
    {"compression", "inside", "prompts", "harness"},  # a chain of verbs, as a study writes it; questions in words, ours and others'
    # measure and change a model; keep, judge, compare and draw rows
    {"evaluation", "cost", "distillation", "recovery", "quantization", "store", "verdict", "breakpoints", "emergence", "contrast"}
    | {"reader", "hypotheses", "comparison", "plotting", "published", "barrier"},
    {"ladder", "training", "zoo", "pairing", "dense_curve", "students"},  # one dial, the only loop, models by name; rows in pairs
    {"abilities", "pruning", "forward", "metrics", "divergences", "statistics", "scores", "curves", "modality"},  # the subject; formulas
    # row types; counting; what was done to a model; what users add and write
    {"addresses", "records", "flops", "lineage", "extension", "hub", "pairs", "places", "texts", "written", "storage"},
    {"errors"},
)
FRAME_HALF = {"errors", "extension", "records", "statistics", "scores", "curves", "pairing", "dense_curve", "store", "verdict"}
FRAME_HALF |= {"breakpoints", "emergence", "contrast", "hypotheses", "comparison", "plotting", "published", "simulation"}
FRAME_HALF |= {"exercises", "report", "modality", "students", "inheritance", "imitation", "barrier", "places", "storage", "addresses"}
TORCH = {"torch", "transformers", "peft", "accelerate", "safetensors.torch"}

# Inside a package the same rule: these rows at the bottom, every other file in one row above them, `__init__` on top.
PACKAGES: dict[str, tuple[set[str], ...]] = {
    "abilities": ({"base"}, {"vocabulary"}),
    "compression": ({"verbs"},),
    "distillation": ({"cache", "sampling"}, {"bodies"}),
    "hypotheses": ({"base"},),
    "inside": ({"sites"},),
    "plotting": ({"style"},),
    "pruning": (
        {"engine"},
        {"criteria", "sparsegpt", "streaming", "surgery", "units"},
        {"anatomy", "calls", "kernels", "ledger", "masks", "moments", "waiting"},
        {"blocks", "memory"},
    ),
}

PLACED = set().union(*LAYERS)
SOURCE = Path(__file__).parents[1] / "src" / "labkit"


def imports(node: ast.AST, package: str) -> set[str]:
    """Absolute dotted names that a file of ``package`` imports, inside functions too, but not for types only."""
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        return set()
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        base = ".".join([*parents, *([node.module] if node.module else [])])
        return {f"{base}.{alias.name}" for alias in node.names}
    return set().union(*(imports(child, package) for child in ast.iter_child_nodes(node)))


def files(source: Path) -> dict[str, Path]:
    """Dotted module name inside labkit (``pruning.masks``; a package is its ``__init__``) -> file."""
    names = {path: ".".join(path.relative_to(source).with_suffix("").parts) for path in source.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


def graph(source: Path) -> dict[str, set[str]]:
    """Module -> what it imports: modules of labkit as in `files`, ``__init__`` for the public names, others in full."""
    modules, edges = files(source), {}
    for name, path in modules.items():
        package, edges[name] = ".".join(["labkit", *path.relative_to(source).parent.parts]), set()
        for target in imports(ast.parse(path.read_text(encoding="utf-8")), package):
            root, *inside = target.split(".")
            while inside and ".".join(inside) not in {*modules, *PLACED}:  # a name in a module -> the module
                inside.pop()
            edges[name].add(target if root != "labkit" else ".".join(inside) or "__init__")
    return edges


def row(name: str, rows: tuple[set[str], ...]) -> int | None:
    """Number of the row that holds ``name``, 0 on top; None where no row does."""
    return next((number for number, modules in enumerate(rows) if name in modules), None)


def violations(source: Path) -> list[str]:
    """Every import that the table forbids, as a sentence."""
    modules, edges = files(source), graph(source)
    pairs = [(name, target) for name in sorted(edges) for target in sorted(edges[name]) if name != "__init__"]
    own = [(name, target) for name, target in pairs if target in {*modules, *PLACED, "__init__"} and name != target]
    return [f"{name} imports {target}: {why}" for name, target in own if (why := forbidden(name, target))]


def forbidden(name: str, target: str) -> str | None:
    """Why module ``name`` must not import ``target``, if so."""
    (top, _, module), (target_top, _, sibling) = name.partition("."), target.partition(".")
    if target == "__init__":
        return None if top in LAYERS[0] else "use the module that defines the name"
    rows, above, below = (LAYERS, top, target_top) if top != target_top else (PACKAGES.get(top, ()), module, sibling)
    if rows is not LAYERS and not module:
        return None  # a package's __init__ ties its files together
    if rows is not LAYERS and not sibling:
        return "use the file that defines the name"
    above, below = row(above, rows), row(below, rows)
    return None if below is not None and (above is None or above < below) else "it is not below"


def reached(name: str, edges: dict[str, set[str]]) -> set[str]:
    """Everything that importing ``name`` could import, through any number of labkit's modules."""
    seen, waiting = set(), [name]
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        waiting += edges.get(module, set()) - {"__init__"}
        waiting += [module.rpartition(".")[0]] if module in edges and "." in module else []  # its package's __init__
    return seen


def heavy(names: set[str]) -> set[str]:
    return {name for name in names if any(f"{name}.".startswith(f"{root}.") for root in TORCH)}


def loaded_by(module: str) -> set[str]:
    """Top-level packages, and ``safetensors.torch``, in a fresh interpreter that has imported ``module``."""
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name for name in done.stdout.split() if "." not in name or name == "safetensors.torch"}


def present(names: set[str]) -> list[str]:
    return sorted(names & {name.split(".")[0] for name in files(SOURCE)})


# --- the real tree ---------------------------------------------------------------------------------------------------


def test_every_module_has_one_place() -> None:
    modules = {name.split(".")[0] for name in files(SOURCE)} - {"__init__"}
    assert modules - PLACED == set(), "a new module: give it a row in LAYERS"
    assert sum(map(len, LAYERS)) == len(PLACED)
    assert FRAME_HALF <= PLACED


def test_imports_point_down() -> None:
    assert violations(SOURCE) == []


@pytest.mark.parametrize("module", present(FRAME_HALF))
def test_frame_half_never_reaches_torch(module: str) -> None:
    edges = graph(SOURCE)
    assert {name: heavy(edges[name]) for name in reached(module, edges) & set(edges) if heavy(edges[name])} == {}


def test_importing_labkit_loads_nothing_heavy() -> None:
    assert loaded_by("labkit") & {"torch", "transformers", "peft", "pandas", "duckdb", "matplotlib", "scipy"} == set()


@pytest.mark.parametrize("module", present(FRAME_HALF))
def test_frame_half_loads_no_torch(module: str) -> None:
    assert loaded_by(f"labkit.{module}") & TORCH == set()


# --- the rules themselves, on small trees that break them ------------------------------------------------------------


def tree(folder: Path, **sources: str) -> Path:
    """A package with one file for each keyword; ``pruning__masks`` is ``pruning/masks.py``."""
    for name, text in {"__init__": "", **sources}.items():
        path = folder.joinpath(*name.split("__")) if name != "__init__" else folder / "__init__"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".py").write_text(text)
    for package in {path.parent for path in folder.rglob("*.py")}:
        (package / "__init__.py").touch()
    return folder


@pytest.mark.parametrize(
    ("sources", "wrong"),
    [
        ({"study": "from labkit.store import Store"}, []),
        ({"store": "from labkit.study import Study"}, ["store imports study: it is not below"]),
        ({"store": "def f():\n    from . import study", "study": ""}, ["store imports study: it is not below"]),
        ({"store": "import labkit.verdict", "verdict": ""}, ["store imports verdict: it is not below"]),
        ({"metrics": "from .pruning.masks import keep", "pruning__masks": ""},
         ["metrics imports pruning.masks: it is not below"]),
        ({"pruning__masks": "from ..errors import LabkitError", "errors": ""}, []),
        ({"pruning__masks": "from .criteria import wanda", "pruning__criteria": ""},
         ["pruning.masks imports pruning.criteria: it is not below"]),
        ({"abilities__shift": "from labkit.abilities.base import Items", "abilities__base": "from . import vocabulary",
          "abilities__vocabulary": ""}, []),
        ({"abilities__vocabulary": "from . import base", "abilities__base": ""},
         ["abilities.vocabulary imports abilities.base: it is not below"]),
        ({"verdict": "import labkit as lk"},
         ["verdict imports __init__: use the module that defines the name"]),
        ({"cli": "import labkit as lk"}, []),
    ],
)  # fmt: skip
def test_violations_are_named(sources: dict[str, str], wrong: list[str], tmp_path: Path) -> None:
    assert violations(tree(tmp_path, **sources)) == wrong


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch.nn as nn", {"torch.nn"}),
        ("def f():\n    from safetensors.torch import load_file", {"safetensors.torch.load_file"}),
        ("from safetensors.numpy import load_file\nimport torchaudio", set()),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch", set()),
    ],
)
def test_torch_is_seen_through_other_modules(source: str, found: set[str], tmp_path: Path) -> None:
    edges = graph(tree(tmp_path, report="from labkit.store import Store", store="from . import errors", errors=source))
    assert heavy(reached("report", edges)) == found
