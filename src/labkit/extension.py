"""What a user adds under a name of their own: an ability, a criterion, a divergence or a metric.

Each function of this module takes the thing, registers it for this process, and gives it back, so that it can stand
above a definition as a decorator. A study names the files to be read first in ``extensions``; the text of those files
is part of every run's address.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from labkit.errors import LabkitError

_ADDED: dict[str, dict[str, Any]] = {kind: {} for kind in ("ability", "criterion", "divergence", "metric")}


def ability(thing: Any) -> Any:
    """Add an instance of a `labkit.abilities.Ability`, or a class that is made without arguments, by its own name."""
    made = thing() if isinstance(thing, type) else thing
    _add("ability", made.name, made)
    return thing


def criterion(score: Callable | None = None, *, calibrated: bool = False) -> Callable:
    """Add a pruning criterion of the form given in `labkit.pruning.criteria`, by its function's name.

    ``calibrated`` asks for the norms of a matrix's inputs; without them ``norms`` is None.
    """
    if score is None:
        return lambda function: criterion(function, calibrated=calibrated)
    _add("criterion", _spoken(score), (score, calibrated))
    return score


def divergence(function: Callable) -> Callable:
    """Add a divergence of the form given in `labkit.divergences`, by its function's name."""
    _add("divergence", _spoken(function), function)
    return function


def metric(function: Callable) -> Callable:
    """Add a metric of the form given in `labkit.metrics`, by its function's name.

    It is computed where it is asked for, and has no level of chance: it stands in the rows and in no verdict.
    """
    _add("metric", function.__name__, function)
    return function


def added(kind: str, taken: Iterable[str] = ()) -> dict[str, Any]:
    """Name -> what was added, of one kind: "ability", "criterion" (with whether it is calibrated), …

    Raises LabkitError if something was added under a name that labkit's own have ``taken``.
    """
    for name in taken:
        if name in _ADDED[kind]:
            raise LabkitError(f"a name is given to one {kind}, and labkit has this one", name, "Choose another name.")
    return dict(_ADDED[kind])


def read(paths: Sequence[Path | str]) -> str:
    """Run files of Python that add things, each once a process; the hash of their text.

    Raises LabkitError for a file that is not there or fails; names that are taken are refused as they are added.
    """
    digest = hashlib.sha256()
    for path in map(Path, paths):
        try:
            text = path.read_bytes()
        except OSError as error:
            remedy = "Give its path from the folder you are in, or from that of the study."
            raise LabkitError("an extension is a Python file", f"{path} ({error.strerror})", remedy) from None
        digest.update(text)
        name = f"labkit_extension_{hashlib.sha256(text).hexdigest()[:16]}"
        if name not in sys.modules:
            _run(name, path)
    return digest.hexdigest()[:16]


def _run(name: str, path: Path) -> None:
    before = {kind: dict(names) for kind, names in _ADDED.items()}
    module = importlib.util.module_from_spec(spec := importlib.util.spec_from_file_location(name, path))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        for kind, names in before.items():  # a file counts whole or not at all
            _ADDED[kind] = names
        if isinstance(error, LabkitError):
            raise
        raise LabkitError("an extension runs", f"{path}: {type(error).__name__}: {error}", "Mend the file.") from error


def _add(kind: str, name: str, thing: Any) -> None:
    if name in _ADDED[kind]:
        raise LabkitError(f"a name is given to one {kind}", name, "Choose another name.")
    _ADDED[kind][name] = thing


def _spoken(function: Callable) -> str:
    return function.__name__.replace("_", "-")
