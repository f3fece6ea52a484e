"""The build backend: setuptools, but an editable install is pinned.

A wheel is a library and declares the ranges of pyproject.toml. A checkout installed with ``pip install -e .`` is the
lab itself, in which numbers are measured, so it asks for the exact versions of constraints.txt: the same that conda
and ``make`` install. Extras are pinned by ``-c constraints.txt``, which those two give to pip.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  (the hooks that stay as they are)

CONSTRAINTS = Path(__file__).with_name("constraints.txt")
EXTRAS_BEGIN = "# labkit[notebook,test]"
"""The comment line in constraints.txt that ends the pins of a plain install."""


def base_pins(constraints: str) -> list[str]:
    """The pins, as written, of what labkit needs without its extras."""
    base, mark, _ = constraints.partition(EXTRAS_BEGIN)
    if not mark:
        raise ValueError(f"constraints.txt needs the line {EXTRAS_BEGIN!r} between labkit's pins and its extras'.")
    return [line.strip() for line in base.splitlines() if line.strip() and not line.startswith("#")]


def with_pins(metadata: str, pins: list[str]) -> str:
    """Core metadata (headers, a blank line, the description) with one more ``Requires-Dist`` header for each pin."""
    headers, blank, description = metadata.partition("\n\n")
    return headers + "".join(f"\nRequires-Dist: {pin}" for pin in pins) + blank + description


def prepare_metadata_for_build_editable(metadata_directory: str, config_settings: dict | None = None) -> str:
    """setuptools' hook, then the pins."""
    folder = build_meta.prepare_metadata_for_build_editable(metadata_directory, config_settings)
    path = Path(metadata_directory, folder, "METADATA")
    pins = base_pins(CONSTRAINTS.read_text(encoding="utf-8"))
    path.write_text(with_pins(path.read_text(encoding="utf-8"), pins), encoding="utf-8")
    return folder


def build_editable(
    wheel_directory: str, config_settings: dict | None = None, metadata_directory: str | None = None
) -> str:
    """setuptools' hook around our metadata, made again: installers do not agree on what ``metadata_directory`` is."""
    with tempfile.TemporaryDirectory() as folder:
        prepare_metadata_for_build_editable(folder, config_settings)
        return build_meta.build_editable(wheel_directory, config_settings, folder)
