"""One exception type: it states the rule, the value received and the remedy. And warnings that show who asked."""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Iterable
from numbers import Integral


class LabkitError(ValueError):
    """Input that breaks a rule.

    Examples
    --------
    >>> raise LabkitError("sparsity lies in [0, 1)", 1.5, "Give the fraction of zeros wanted, e.g. 0.5.")
    Traceback (most recent call last):
    labkit.errors.LabkitError: sparsity lies in [0, 1); got 1.5. Give the fraction of zeros wanted, e.g. 0.5.
    """

    def __init__(self, rule: str, received: object, remedy: str) -> None:
        super().__init__(f"{rule}; got {received!r}. {remedy}")
        self.rule, self.received, self.remedy = rule, received, remedy


class Failure(LabkitError):
    """Work that was well asked for and could not be finished: the command line ends with 1, not with 2."""


def whole(what: str, value: object, example: int) -> int:
    """The number as an int of Python. Raises LabkitError for a bool, and for what is no whole number."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise LabkitError(f"{what} is a whole number", value, f"Give e.g. {example}.")
    return int(value)


def unknown(kind: str, name: str, known: Iterable[str]) -> LabkitError:
    """The error for a name that is not in a list: the nearest names first, then all of them."""
    known = list(known)
    nearest = difflib.get_close_matches(str(name), known, n=3, cutoff=0.4)
    hint = f"Nearest: {', '.join(nearest)}. " if nearest else ""
    return LabkitError(f"a known {kind} is needed", name, f"{hint}All: {', '.join(known)}.")


def warn(message: str) -> None:
    """Warn (UserWarning) as from the caller's line: the nearest that is neither labkit's nor a decorator's of PyTorch."""
    level, frame = 2, sys._getframe(1)
    while frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in ("labkit", "torch"):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
