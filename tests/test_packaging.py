"""pyproject.toml (what we support), constraints.txt (what we measure with) and environment.yml (conda) say the same."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8")
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
INSTALLED_BY_MAKE = [*PROJECT["dependencies"], *EXTRAS["notebook"], *EXTRAS["test"]]
GPU_BUILD = re.compile(r"nvidia|cuda|triton")  # what torch brings along depends on the build; torch pins it itself


def backend():
    spec = importlib.util.spec_from_file_location("build_backend", ROOT / "build_backend.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def names(requirements: Iterable[str]) -> list[str]:
    return [canonicalize_name(Requirement(requirement).name) for requirement in requirements]


def pin_lines() -> list[str]:
    return [line for line in CONSTRAINTS.splitlines() if line and not line.startswith("#")]


def pins() -> dict[str, Version]:
    parsed = [Requirement(line) for line in pin_lines()]
    return {canonicalize_name(pin.name): Version(next(iter(pin.specifier)).version) for pin in parsed}


def closure(requirements: Iterable[str]) -> set[str]:
    """Every package that these requirements install here, read from the metadata of the installed ones."""
    seen, waiting = set(), [(Requirement(text), "") for text in requirements]
    while waiting:
        requirement, asked_by = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": asked_by}):
            continue
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras}:
            if (name, extra) not in seen and not GPU_BUILD.match(name):
                seen.add((name, extra))
                waiting += [(Requirement(text), extra) for text in importlib.metadata.requires(name) or []]
    return {name for name, _ in seen}


def test_constraints_are_exact_and_portable() -> None:
    for line in pin_lines():
        assert re.fullmatch(r'[a-z0-9.-]+==[0-9][0-9a-z.]*(; sys_platform == "\w+")?', line), line
    assert len(names(pin_lines())) == len(set(names(pin_lines())))
    assert not [name for name in pins() if GPU_BUILD.match(name)]


@pytest.mark.parametrize("requirement", sorted({*INSTALLED_BY_MAKE}))
def test_every_direct_dependency_is_pinned_inside_its_range(requirement: str) -> None:
    requirement = Requirement(requirement)
    assert pins()[canonicalize_name(requirement.name)] in requirement.specifier


def test_nothing_that_gets_installed_is_left_unpinned() -> None:
    assert closure(INSTALLED_BY_MAKE) - set(pins()) == set()
    assert closure(PROJECT["dependencies"]) - set(names(backend().base_pins(CONSTRAINTS))) == set()


def test_the_given_packages_are_declared() -> None:
    assert {"jupyterlab", "torch", "transformers", "peft", "seaborn", "nbval"} <= set(names(INSTALLED_BY_MAKE))


def test_oracles_stay_apart() -> None:
    assert set(names(EXTRAS["oracles"])).isdisjoint(pins())


def test_this_environment_has_the_pinned_versions() -> None:
    installed = {canonicalize_name(found.name) for found in importlib.metadata.distributions()}
    here = {name: Version(importlib.metadata.version(name)).public for name in installed & set(pins())}
    assert {"torch", "transformers", "pytest"} <= set(here)
    assert {name: (found, str(pins()[name])) for name, found in here.items() if found != str(pins()[name])} == {}


def test_conda_installs_the_same_through_pip() -> None:
    (through_pip,) = [entry["pip"] for entry in CONDA["dependencies"] if isinstance(entry, dict)]
    assert sorted(through_pip) == ["-c constraints.txt", "-e .[notebook,test]"]
    assert "-c constraints.txt -e '.[notebook,test]'" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_conda_brings_a_python_we_support_and_nothing_that_pip_pins() -> None:
    from_conda = [entry for entry in CONDA["dependencies"] if isinstance(entry, str)]
    python = [entry.partition("=")[2] for entry in from_conda if entry.startswith("python=")]
    assert len(python) == 1 and python[0] in SpecifierSet(PROJECT["requires-python"])
    assert {entry.partition("=")[0] for entry in from_conda} == {"python", "pip"}


def test_a_plain_editable_install_asks_for_every_base_pin() -> None:
    """`pip install -e .` reads this metadata, so pip's own resolver has no other version to choose."""
    ranges = "Metadata-Version: 2.4\nName: labkit\nRequires-Dist: torch>=2.11\n\nRequires-Dist: not a header"
    base = backend().base_pins(CONSTRAINTS)
    headers, _, description = backend().with_pins(ranges, base).partition("\n\n")
    asked = [line.removeprefix("Requires-Dist: ") for line in headers.splitlines() if line.startswith("Requires-Dist")]
    assert asked == ["torch>=2.11", *base]
    assert description == "Requires-Dist: not a header"
    assert {"torch==2.13.0", "transformers==5.17.0"} <= set(base) <= set(pin_lines())
    assert "pytest" not in names(base)


def test_constraints_without_the_dividing_line_are_refused() -> None:
    with pytest.raises(ValueError, match=r"constraints.txt needs the line '# labkit\[notebook,test\]'"):
        backend().base_pins("torch==2.13.0\n")


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt", "environment.yml", "Makefile", ".ci/run"])
def test_no_index_is_prescribed(name: str) -> None:
    """Where packages come from is the machine's business."""
    assert not re.search(r"index-url|find-links|https?://|trusted-host", (ROOT / name).read_text(encoding="utf-8"))


def test_the_version_is_one() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"]
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_citation_has_what_the_format_requires() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["title"] == PROJECT["name"] and citation["license"] == PROJECT["license"] == "Apache-2.0"
    assert citation["authors"] == PROJECT["authors"]
    assert citation["message"]
