"""Addresses of runs: a hash of all that decides their rows, code included."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labkit.errors import LabkitError


def run_id(config: Mapping[str, Any]) -> str:
    """Content address of a run: the first 16 hex digits of the SHA-256 of its configuration as canonical JSON.

    Key order does not matter. Raises LabkitError for what JSON cannot hold exactly, NaN included.
    """
    try:
        canonical = json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise LabkitError("a configuration is finite JSON", config, f"Use plain values: {error}.") from error
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


@functools.cache
def code_hash(*names: str) -> str:
    """Hash of what modules of labkit do: their syntax trees, without docstrings; comments and layout do not count.

    It stands in every run's address, so that rows of an ability, metric or criterion since corrected are not taken for
    rows of the present one.
    """
    root, digest = Path(__file__).parent, hashlib.sha256()
    for name in names:
        paths = sorted((root / name).glob("*.py")) if (root / name).is_dir() else [root / f"{name}.py"]
        for path in paths:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
                    node.body = node.body[1:] or [ast.Pass()]
            digest.update(f"{path.name}:{ast.dump(tree)}\n".encode())
    return digest.hexdigest()[:16]
