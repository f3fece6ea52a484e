"""What a user adds under a name of their own: an ability, a criterion, a divergence or a metric.

Each function of this module takes the thing, registers it for this process, and gives it back, so that it can stand
above a definition as a decorator. A study names the files to be read first in ``extensions``; the text of those files
is part of every run's address. A worked example is in ``docs/extending.md``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from labkit.errors import LabkitError

HERE = "this session"
"""Where something was added that stands in no file that was read: a notebook's cell, which may be run again."""

_ADDED: dict[str, dict[str, tuple[Any, str]]] = {kind: {} for kind in ("ability", "criterion", "divergence", "metric")}
_READ: dict[str, str] = {}  # file -> hash of the text that was run
_running = [HERE]  # the file that is being run, last


def ability(thing: Any) -> Any:
    """Add an instance of a `labkit.abilities.Ability`, or a class that is made without arguments, by its own name."""
    made = thing() if isinstance(thing, type) else thing
    if not callable(getattr(made, "sample", None)):
        raise LabkitError("an ability is one of labkit.abilities.Ability", repr(thing), "Derive its class from that.")
    _add("ability", made.name, made)
    return thing


def criterion(score: Callable | None = None, *, calibrated: bool = False) -> Callable:
    """Add a pruning criterion of the form given in `labkit.pruning.criteria`, by its function's name.

    ``calibrated`` asks for the norms of a matrix's inputs; without them ``norms`` is None.
    """
    if score is None:
        return lambda function: criterion(function, calibrated=calibrated)
    if not callable(score):
        raise LabkitError("a criterion is a function", score, "Give one that scores weights, see docs/extending.md.")
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
    return {name: thing for name, (thing, _) in _ADDED[kind].items()}


def read(paths: Sequence[Path | str]) -> str:
    """Run files of Python that add things, each text once a process; the hash of all their texts.

    A file that was changed since is run again, and what its old text added is gone. A file counts whole or not at all.
    Raises LabkitError for a file that is not there or fails; names that are taken are refused as they are added.
    """
    digest = hashlib.sha256()
    for path in map(Path, paths):
        try:
            text = path.read_bytes()
        except OSError as error:
            remedy = "Give its path from the folder you are in, or from that of the study."
            raise LabkitError("an extension is a Python file", f"{path} ({error.strerror})", remedy) from None
        if path.suffix != ".py":
            raise LabkitError("an extension is a Python file", str(path), "Name one that ends in .py.")
        digest.update(text)
        version = hashlib.sha256(text).hexdigest()[:16]
        if version not in _READ.values():  # a copy of a file adds nothing new
            _run(path, text, version)
    return digest.hexdigest()[:16]


def _run(path: Path, text: bytes, version: str) -> None:
    where, name = str(path.resolve()), f"labkit_extension_{version}"
    before, read_before = {kind: dict(names) for kind, names in _ADDED.items()}, dict(_READ)
    for old in [each for each in _READ if each == where or not Path(each).exists()]:  # changed, or a worker's copy
        del _READ[old]
        for kind, names in _ADDED.items():
            _ADDED[kind] = {each: entry for each, entry in names.items() if entry[1] != old}
    _running.append(where)
    try:
        module = importlib.util.module_from_spec(spec := importlib.util.spec_from_file_location(name, path))
        sys.modules[name] = module
        # This very text: bytecode that is kept beside a file may be of an older one.
        exec(compile(text, path, "exec", dont_inherit=True), module.__dict__)
        _READ[where] = version
    except BaseException as error:  # an exit or a Ctrl-C must not leave half a file either
        sys.modules.pop(name, None)
        _ADDED.update(before)
        _READ.update(read_before)
        if isinstance(error, LabkitError) or not isinstance(error, Exception):
            raise
        raise LabkitError("an extension runs", f"{path}: {type(error).__name__}: {error}", "Mend the file.") from error
    finally:
        _running.pop()


def _add(kind: str, name: str, thing: Any) -> None:
    where = _running[-1]
    other = _ADDED[kind].get(name, (None, HERE))[1]
    if name in _ADDED[kind] and not where == other == HERE:
        raise LabkitError(f"a name is given to one {kind}", f"{name}, added by {other} already", "Choose another name.")
    _ADDED[kind][name] = (thing, where)


def _spoken(function: Callable) -> str:
    return function.__name__.replace("_", "-")
