"""labkit: which abilities survive when a model is made smaller?

Names are loaded when they are first used, so that ``import labkit`` is instant and judging rows needs no torch.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "LabkitError": "errors",
    "Rung": "ladder",
    "Store": "store",
    "Study": "study",
    "abilities": "abilities",
    "artifacts": "zoo",
    "ask": "prompts",
    "barrier": "barrier",
    "benchmark": "harness",
    "corpus": "abilities",
    "break_point": "breakpoints",
    "cost": "cost",
    "distill": "distillation",
    "drop_layers": "pruning",
    "evaluate": "evaluation",
    "imitation": "imitation",
    "inheritance": "inheritance",
    "judge": "verdict",
    "ladder": "ladder",
    "lineage": "lineage",
    "load": "zoo",
    "prune": "pruning",
    "quantize": "quantization",
    "recover": "recovery",
    "shrink": "pruning",
    "students": "students",
    "text_corpus": "texts",
    "train": "training",
    "zoo": "zoo",
}
_MODULES = {"inside": "inside", "notebook": "notebook", "plot": "plotting"}

__all__ = sorted([*_HOME, *_MODULES])


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"labkit.{_MODULES[name]}")
    if name in _HOME:
        value = getattr(importlib.import_module(f"labkit.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'labkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]


class _Package(types.ModuleType):
    """Keeps ``lk.ladder()`` the function when ``labkit.ladder``, the module, is imported afterwards."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
