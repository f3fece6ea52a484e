"""What a verb of a study runs: labkit's own functions, and the two that make another model than the one given."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.ladder import HEAD_DIM, Rung

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VERBS = ("prune", "drop_layers", "shrink", "train", "distill", "recover", "quantize")
"""In the order they are applied."""

SIZES = {"heads": "num_attention_heads", "ffn": "intermediate_size", "width": "hidden_size"}
"""Arguments of ``labkit.shrink``, and where a model's config says how many it has."""

STUDENT_VERBS = {"train": ("student", "tokens"), "distill": ("student", "divergence", "tokens", "temperature", "alpha")}
"""What a study may say of the verbs that make another model than the one given; to ``distill`` also its `Options`."""


def _train(
    model: PreTrainedModel, corpus: Any, seed: int, tokens: int, student: str | None = None, folder: Path | None = None
) -> PreTrainedModel:
    """The verb ``train``: on labels alone. Of the model given, a fresh student takes nothing but the device it is on."""
    from labkit.lineage import record
    from labkit.training import train

    new = copy.deepcopy(model) if student is None else _fresh(student, seed, model)
    rate, named = _learning_rate(new), {} if student is None else {"student": student}
    done = train(new, corpus, tokens, learning_rate=rate, folder=folder, label=f"train {student or 'on'} seed {seed}")
    record(new, "train", **named, seed=seed, learning_rate=rate, tokens=done.tokens, flops=done.flops, seconds=done.seconds)
    return new


def _distill(
    model: PreTrainedModel, corpus: Any, teacher: PreTrainedModel, seed: int, folder: Path | None = None,
    student: str | None = None, **asked: Any,
) -> PreTrainedModel:  # fmt: skip
    """The verb ``distill``: it differs from ``train`` in the signal alone."""
    from labkit.distillation import Options, distill

    if student is not None:
        model = _fresh(student, seed, teacher)
    plain, options = split({"learning_rate": _learning_rate(model), "seed": seed, **asked})
    return distill(teacher, model, corpus, **plain, folder=folder, options=Options(**options))


def _fresh(student: str, seed: int, model: PreTrainedModel) -> PreTrainedModel:
    return Rung.parse(student).build(seed).to(model.device)


def _learning_rate(model: PreTrainedModel) -> float:
    """That of a rung as wide."""
    return Rung(model.config.get_text_config().hidden_size // HEAD_DIM * HEAD_DIM, 1).learning_rate


def split(asked: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `labkit.distill` takes itself, and what its `Options` do."""
    own = [name for name in STUDENT_VERBS["distill"] if name in asked]
    return {name: asked[name] for name in own}, {name: asked[name] for name in asked if name not in own}


def function(verb: str) -> Callable:
    """What a verb runs: a model and the arguments of a study in, another model out."""
    if verb in STUDENT_VERBS:
        return {"train": _train, "distill": _distill}[verb]
    if verb == "recover":
        from labkit.recovery import recover

        return recover
    if verb == "quantize":
        from labkit.quantization import quantize

        return quantize
    from labkit import pruning

    return getattr(pruning, verb)
