"""``import labkit as lk``: every public name resolves when it is first used, and to the same thing ever after."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
import types

import pytest

import labkit as lk


def there(module: str) -> bool:
    return importlib.util.find_spec(f"labkit.{module}") is not None


@pytest.mark.parametrize("name", sorted(lk._HOME))
def test_a_public_name_is_that_of_its_module(name):
    home = lk._HOME[name]
    if not there(home):
        pytest.skip(f"labkit.{home} is not in this tree")
    module = importlib.import_module(f"labkit.{home}")
    assert getattr(lk, name) is getattr(module, name)
    assert not isinstance(getattr(lk, name), types.ModuleType)


@pytest.mark.parametrize("name", sorted(lk._MODULES))
def test_a_public_module_is_a_module(name):
    if not there(lk._MODULES[name]):
        pytest.skip(f"labkit.{lk._MODULES[name]} is not in this tree")
    assert isinstance(getattr(lk, name), types.ModuleType)


@pytest.mark.parametrize("name", ["ladder", "zoo", "abilities"])  # light ones: each takes a fresh interpreter
def test_a_function_stays_one_when_the_module_of_its_name_is_imported_in_whatever_order(name):
    code = f"""
import labkit, importlib
module = importlib.import_module("labkit.{name}")
assert callable(labkit.{name}), labkit.{name}
from labkit import {name}
assert {name} is module.{name}
import labkit.{name}
assert labkit.{name} is module.{name}
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="module 'labkit' has no attribute 'juggle'"):
        lk.juggle  # noqa: B018


def test_every_public_name_is_listed():
    assert set(lk.__all__) <= set(dir(lk))
    assert lk.__all__ == sorted(set(lk.__all__))
