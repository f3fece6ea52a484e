"""What is wrong with the arguments of a verb, as far as it can be told without a model."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

from labkit.compression.verbs import SIZES, STUDENT_VERBS, function, split
from labkit.errors import LabkitError, unknown, whole
from labkit.ladder import Rung

ALLOCATIONS = ("uniform", "outlier-weighed")
"""How a sparsity is shared out among blocks: the same for all, or ``labkit.pruning.outlier_weighed``."""

GIVEN = {"model", "calibration", "corpus", "teacher", "seed", "folder", "options"}
"""Arguments that the study supplies itself."""


def check_arguments(verb: str, arguments: Mapping[str, Any]) -> None:
    """Raise the LabkitError that the verb would raise for these, as far as it can be told without a model."""
    known = STUDENT_VERBS.get(verb) or [n for n in inspect.signature(function(verb)).parameters if n not in GIVEN]
    known = [*known, *_more_arguments(verb)]
    for name in arguments:
        if name not in known:
            raise unknown(f"argument of {verb}", name, known)
    CHECKS[verb](arguments)


def _more_arguments(verb: str) -> Sequence[str]:
    if verb == "distill":
        from labkit.distillation import Options

        return [field.name for field in dataclasses.fields(Options) if field.name not in ("cache", "seed")]
    return {"drop_layers": ["drop"], "prune": ["allocation", "propagate"]}.get(verb, [])


def _check_prune(arguments: Mapping[str, Any]) -> None:
    from labkit.pruning import Options, check_prune, engine
    from labkit.pruning.masks import GROUPS

    criterion, pattern = arguments.get("criterion", "wanda"), arguments.get("pattern")
    check_prune(criterion, arguments.get("sparsity"), pattern)
    Options(propagate=arguments.get("propagate", True))
    if (group := arguments.get("group")) not in (None, *GROUPS):
        raise unknown("group", group, GROUPS)
    if group is not None and pattern is not None:
        raise LabkitError("a pattern has groups of its own", f"group={group!r}", "Leave group out.")
    if "propagate" in arguments and engine.methods()[criterion].statistic is None:
        rule, received = "only what is calibrated can do without propagating", f"propagate of {criterion}"
        raise LabkitError(rule, received, "Leave propagate out.")
    if (allocation := arguments.get("allocation", "uniform")) not in ALLOCATIONS:
        raise unknown("allocation", allocation, ALLOCATIONS)
    if allocation != "uniform" and pattern is not None:
        raise LabkitError("a pattern has one sparsity", f"allocation={allocation!r}", "Leave one of them out.")


def _check_drop_layers(arguments: Mapping[str, Any]) -> None:
    from labkit.pruning import IMPORTANCES

    if ("drop" in arguments) == ("keep" in arguments):
        raise LabkitError("drop_layers says either drop or keep", dict(arguments), "Write e.g. { drop = 1 }.")
    _check_importance(arguments, IMPORTANCES)
    for name in ("drop", "keep"):
        if name in arguments:
            _check_size(f"{name} of drop_layers", arguments[name], share=False)


def _check_shrink(arguments: Mapping[str, Any]) -> None:
    from labkit.pruning.units import UNIT_IMPORTANCES

    asked = {size: arguments[size] for size in SIZES if arguments.get(size) is not None}
    if not asked:
        raise LabkitError("shrink needs a number of heads, ffn or width", dict(arguments), "Write e.g. { ffn = 0.5 }.")
    _check_importance(arguments, UNIT_IMPORTANCES)
    for size, value in asked.items():
        _check_size(f"{size} of shrink", value, share=True)


def _check_importance(arguments: Mapping[str, Any], functions: Sequence[Callable]) -> None:
    known = [each.__name__.replace("_", "-") for each in functions]
    if "importance" in arguments and arguments["importance"] not in known:
        raise unknown("importance", arguments["importance"], known)


def _check_size(what: str, value: Any, share: bool) -> None:
    """Of layers, heads, neurons or width: a whole number, or, where it may be a ``share``, with a point, in (0, 1]."""
    if share and isinstance(value, float):
        if not 0 < value <= 1:
            raise LabkitError(f"{what}, with a point, is the share kept", value, "Write e.g. 0.5.")
    elif whole(what, value, 1) < 1:
        raise LabkitError(f"{what} is 1 or more", value, "Write e.g. 1.")


def _check_train(arguments: Mapping[str, Any]) -> None:
    _check_student("train", arguments)


def _check_distill(arguments: Mapping[str, Any]) -> None:
    from labkit.distillation import Options, check_distill, distill

    _check_student("distill", arguments)
    usual = {name: each.default for name, each in inspect.signature(distill).parameters.items()}
    usual |= {field.name: field.default for field in dataclasses.fields(Options)}
    for name, value in arguments.items():
        numbers = [isinstance(x, Real) and not isinstance(x, bool) for x in (usual.get(name), value)]
        if numbers == [True, False]:
            raise LabkitError(f"{name} of distill is a number", value, f"Write e.g. {usual[name]:g}.")
    plain, options = split(arguments)
    plain = {name: value for name, value in plain.items() if name not in ("student", "tokens")}
    check_distill(**plain, options=Options(**options))


def _check_student(verb: str, arguments: Mapping[str, Any]) -> None:
    if "tokens" not in arguments:
        example = f'{verb} = {{ student = "64x2", tokens = 4_000_000 }}'
        raise LabkitError(f"{verb} says tokens", dict(arguments), f"Write e.g. {example}.")
    if whole(f"tokens of {verb}", arguments["tokens"], 4_000_000) < 1:
        raise LabkitError(f"tokens of {verb} are 1 or more", arguments["tokens"], "Write e.g. 4_000_000.")
    if "student" in arguments:
        if not isinstance(arguments["student"], str):
            raise LabkitError("a student is the name of a rung", arguments["student"], 'Write e.g. student = "64x2".')
        Rung.parse(arguments["student"])


def _check_recover(arguments: Mapping[str, Any]) -> None:
    from labkit.recovery import check_recover

    check_recover(**arguments)
    if "rank" in arguments and arguments.get("method", "lora") != "lora":
        received = f"rank={arguments['rank']} of {arguments['method']}"
        raise LabkitError("a rank is one of lora", received, "Leave rank out, or write method and rank of lora apart.")


def _check_quantize(arguments: Mapping[str, Any]) -> None:
    from labkit.quantization import check_quantize

    if "bits" in arguments:
        check_quantize(arguments["bits"])


CHECKS = {
    "prune": _check_prune,
    "drop_layers": _check_drop_layers,
    "shrink": _check_shrink,
    "train": _check_train,
    "distill": _check_distill,
    "recover": _check_recover,
    "quantize": _check_quantize,
}
"""Verb -> what its arguments must be."""
