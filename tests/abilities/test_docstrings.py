"""Every drawing in a docstring is what the code draws."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import labkit

HERE = Path(labkit.__file__).parent
MODULES = [f"abilities.{path.stem}" for path in sorted((HERE / "abilities").glob("[!_]*.py"))] + ["errors", "ladder"]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_the_docstrings_are_real(name):
    module = importlib.import_module(f"labkit.{name}")
    tests = doctest.DocTestFinder().find(module)
    failed, tried = doctest.testmod(module)
    assert failed == 0
    assert tried == sum(len(test.examples) for test in tests)
    assert tried or name in {"abilities.base", "abilities.mixture"}
