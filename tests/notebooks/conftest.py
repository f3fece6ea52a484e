"""How nbval compares the notebooks: on what a reader reads, standard output and plain text.

A conftest's file hooks do not reach the notebooks, which lie in another folder; the list of collected items does.
Replacements inside the compared text are in sanitize.cfg, which `make test` names to nbval.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from nbval.plugin import IPyNbFile

# Progress bars write to stderr; HTML and SVG carry generated ids, and plain text stands beside each of them.
SKIPPED = ("stderr", "text/html", "image/svg+xml")


def pytest_collection_modifyitems(items: Iterable[pytest.Item]) -> None:
    for notebook in {item.parent for item in items if isinstance(item.parent, IPyNbFile)}:
        notebook.skip_compare += SKIPPED
