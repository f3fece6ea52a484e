"""What stands in a TOML file, checked as it becomes a frozen dataclass: keys, types, and what is missing."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labkit.errors import LabkitError, unknown


def read(path: Path, what: str) -> dict[str, Any]:
    """The tables of a file. Raises LabkitError for one that is not TOML, naming the place."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise LabkitError(f"{what} is a TOML file", f"{path}: {error}", "Mend it at the place named.") from None


def check(kind: type, values: Mapping[str, Any], where: str, keys: Mapping[str, str] | None = None) -> None:
    """Refuse what a dataclass cannot be made of.

    Parameters
    ----------
    kind : the dataclass; its annotations are the schema.
    values : of one table. where : of which file, for the message.
    keys : key -> field, where a table says it otherwise than the dataclass does.

    Raises LabkitError for a key that is not known (with the nearest that are), for a value of another type, and for a
    key that is needed and not there.
    """
    called, keys = f"a {kind.__name__.lower()}", dict(keys or {})
    fields = {f.name: f for f in dataclasses.fields(kind) if f.name not in keys.values()}
    fields |= {key: f for key, name in keys.items() for f in dataclasses.fields(kind) if f.name == name}
    for key, value in values.items():
        if key not in fields:
            raise unknown(f"key of {called}", key, fields)
        fits, form = _fits(value, str(fields[key].type), key)
        if not fits:
            raise LabkitError(f"{key} of {called} is {form}", value, f"Mend {key} in {where}.")
    missing = dataclasses.MISSING
    needed = [name for name, f in fields.items() if f.default is f.default_factory is missing and name not in values]
    if needed:
        raise LabkitError(f"{called} names {', '.join(needed)}", sorted(values), f"Add what is missing to {where}.")


def build(kind: type, values: Mapping[str, Any], where: str) -> Any:
    """A dataclass from a table that `check` lets pass; its lists become tuples."""
    check(kind, values, where)
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def _fits(value: Any, annotated: str, key: str) -> tuple[bool, str]:
    """Whether a value of TOML has the type that a field is annotated with, and how that type is said."""
    texts, tables = ([isinstance(each, kind) for each in value] if isinstance(value, list) else [False] for kind in (str, dict))
    inside = list(value.values()) if isinstance(value, dict) else [None]
    return {
        "str": (isinstance(value, str), 'a text, e.g. "…"'),
        "int": (isinstance(value, int) and not isinstance(value, bool), "a whole number"),
        "float": (_is_number(value), "a number"),
        "tuple[str, ...]": (all(texts), 'a list of texts, e.g. ["…"]'),
        "Mapping[str, str]": (all(isinstance(each, str) for each in inside), 'a table of texts, e.g. { … = "…" }'),
        "Mapping[str, float]": (all(map(_is_number, inside)), "a table of numbers, e.g. { … = 1e9 }"),
    }.get(
        annotated,
        (all(tables), f"a list of tables, [[{key}]]") if annotated.startswith("tuple") else (isinstance(value, dict), f"a table, [{key}]"),
    )  # fmt: skip


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
