"""What a compression is called: what a reader of a table needs to tell it from others."""

from __future__ import annotations

import inspect
from typing import Any

from labkit.compression.verbs import SIZES, function


def _prune_name(asked: dict[str, Any]) -> str:
    extra = [f"by {asked['group']}"] if asked.get("group") else []
    extra += [asked["allocation"]] if asked.get("allocation", "uniform") != "uniform" else []
    extra += [] if asked.get("propagate", True) else ["in one pass"]
    return " ".join([asked.get("criterion", "wanda"), *([asked["pattern"]] if asked.get("pattern") else []), *extra])


def _layers_name(asked: dict[str, Any]) -> str:
    how = f"drop-layers {asked['drop']}" if "drop" in asked else f"keep-layers {asked['keep']}"
    return f"{how} by {asked['importance']}" if "importance" in asked else how


def _shrink_name(asked: dict[str, Any]) -> str:
    kept = [f"{what} {_share(asked[what])}" for what in SIZES if asked.get(what) is not None]
    return " ".join(["shrink", *kept, *([f"by {asked['importance']}"] if "importance" in asked else [])])


def _recover_name(asked: dict[str, Any]) -> str:
    tokens = asked.get("tokens", inspect.signature(function("recover")).parameters["tokens"].default)
    options = [f"{name} {asked[name]:g}" for name in sorted(set(asked) - {"method", "tokens"})]
    return " ".join([asked.get("method", "lora"), *options, _count(tokens)])


def _train_name(asked: dict[str, Any]) -> str:
    return f"{asked['student']} scratch {_count(asked['tokens'])}" if "student" in asked else f"train {_count(asked['tokens'])}"


def _distill_name(asked: dict[str, Any]) -> str:
    first = [asked.get("student"), "distil", asked.get("divergence", "forward-kl")]
    options = sorted(set(asked) - {"student", "divergence", "tokens"})
    return " ".join([*filter(None, first), *(f"{name} {asked[name]:g}" for name in options), _count(asked["tokens"])])


def _bits_name(asked: dict[str, Any]) -> str:
    return f"int{asked.get('bits', inspect.signature(function('quantize')).parameters['bits'].default)}"


def _count(tokens: int) -> str:
    return f"{float(f'{tokens / 1e6:.3g}'):g}M" if tokens >= 1_000_000 else f"{tokens // 1000}k"


def _share(value: float) -> str:
    return f"{value:.0%}" if isinstance(value, float) else str(value)


NAMES = {
    "prune": _prune_name,
    "drop_layers": _layers_name,
    "shrink": _shrink_name,
    "train": _train_name,
    "distill": _distill_name,
    "recover": _recover_name,
    "quantize": _bits_name,
}
