"""What is done to a model in a study: a chain of labkit's own verbs, with arguments that are checked before it runs."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.compression.checks import check_arguments
from labkit.compression.names import NAMES
from labkit.compression.verbs import SIZES, STUDENT_VERBS, VERBS, function
from labkit.errors import LabkitError, unknown

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

__all__ = ["SIZES", "STUDENT_VERBS", "VERBS", "Compression"]


@dataclasses.dataclass(frozen=True)
class Compression:
    """A chain of verbs, each with its arguments, e.g. ``{"prune": {"criterion": "wanda", "sparsity": 0.5}}``.

    Attributes
    ----------
    steps: ((verb, ((argument, value), …)), …) in the order of `VERBS`; arguments as in ``labkit.prune``
        (also ``propagate`` of its ``Options``, and ``allocation``, one of `checks.ALLOCATIONS`), ``labkit.drop_layers`` (or
        ``drop``, how many to take away), ``labkit.shrink`` (a float is a share of what the model has),
        ``labkit.recover`` and ``labkit.quantize``.
        ``train`` makes a ``student`` (the name of a rung) from scratch: the control, which never sees the model.
        ``distill`` makes one that learns from the model; arguments as in ``labkit.distill`` and its ``Options``.
        Where either names no ``student``, what the steps before left of the model is trained on.
    """

    steps: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]

    @classmethod
    def parse(cls, written: Mapping[str, Mapping[str, Any]]) -> Compression:
        """Of one table of a study file. Raises LabkitError for a verb, argument or value that labkit does not know."""
        for verb, arguments in written.items():
            if verb not in VERBS:
                raise unknown("verb of a compression", verb, VERBS)
            if not isinstance(arguments, Mapping):
                raise LabkitError(f"{verb} takes a table of arguments", arguments, f"Write {verb} = {{ … }}.")
            check_arguments(verb, arguments)
        if not written:
            raise LabkitError("a compression has at least one verb", dict(written), f"Use one of {', '.join(VERBS)}.")
        if "shrink" in written and (pattern := written.get("prune", {}).get("pattern")) is not None:
            rule = f"a pattern does not outlast shrink, which is applied after prune: {', '.join(VERBS)}"
            raise LabkitError(rule, f"pattern={pattern!r}", "Prune to a sparsity, or leave shrink out.")
        return cls(tuple((v, tuple(sorted(written[v].items()))) for v in VERBS if v in written))

    @classmethod
    def expand(cls, written: Mapping[str, Mapping[str, Any]]) -> Iterator[Compression]:
        """All compressions of a table in which a list stands for "each of these", in the order they are written."""
        for verb, arguments in written.items():
            if isinstance(arguments, Mapping) and (empty := [name for name, value in arguments.items() if value == []]):
                received = f"{verb} {empty[0]} = []"
                raise LabkitError("a list of a compression holds values", received, "Add one, or leave it out.")
        places = [(v, a) for v, arguments in written.items() if isinstance(arguments, Mapping) for a in arguments]
        choices = [value if isinstance(value := written[v][a], list) else [value] for v, a in places]
        for picked in itertools.product(*choices):
            table: dict[str, Any] = {v: {} if isinstance(a, Mapping) else a for v, a in written.items()}
            for (verb, argument), value in zip(places, picked, strict=True):
                table[verb][argument] = value
            yield cls.parse(table)

    @property
    def name(self) -> str:
        """What the column `compression` says, e.g. "wanda", "wanda 2:4", "drop-layers 1", "wanda + lora 500k"."""
        return " + ".join(NAMES[verb](dict(arguments)) for verb, arguments in self.steps)

    @property
    def nominal_sparsity(self) -> float:
        """Fraction of zeros asked for in the prunable matrices; 0 where tensors get smaller instead."""
        asked = dict(dict(self.steps).get("prune", ()))
        if asked.get("pattern") is not None:
            kept, of = map(int, asked["pattern"].split(":"))
            return 1 - kept / of
        return asked.get("sparsity") or 0.0

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules of labkit that decide what comes out."""
        verbs = {verb for verb, _ in self.steps}
        fresh = verbs <= {"train", "distill"} and "student" in dict(self.steps[0][1])
        used = {
            "pruning": not fresh,  # the ledger of masks, in every training, is of no effect on a fresh student
            "divergences": verbs & {"distill", "recover"},
            "distillation": "distill" in verbs,
            "ladder": verbs & {"train", "distill"},
            "recovery": "recover" in verbs,
            "quantization": "quantize" in verbs,
            "storage": "quantize" in verbs,
            "training": verbs & {"train", "distill", "recover"},
        }
        return tuple(module for module, needed in used.items() if needed)

    def check(self, model: PreTrainedModel, length: int) -> None:
        """Raise the LabkitError that a verb would raise for the sizes of the model, which needs no weights, or for fewer
        tokens than one batch of rows of ``length``.
        """
        from labkit.pruning import blocks, masks, shrinking, surgery
        from labkit.recovery import BATCH

        for verb, arguments in self.steps:
            asked = _absolute(model, dict(arguments))
            if verb == "prune" and asked.get("pattern") is not None:
                _, m = masks.parse_pattern(asked["pattern"])
                for name, matrix in blocks.matrices(model).items():
                    masks.check_divisible(name, matrix.weight.shape[1], m)
            elif verb == "drop_layers":
                surgery.check_keep(model, asked["keep"])
            elif verb == "shrink":
                shrinking.check_sizes(model, *(asked.get(size) for size in SIZES))
            elif asked.get("tokens", BATCH * length) < BATCH * length:
                rule = f"{verb} takes at least one batch of {BATCH} × {length} tokens"
                raise LabkitError(rule, asked["tokens"], "Raise tokens.")

    def apply(
        self, model: PreTrainedModel, calibration: Tensor, corpus: Any, seed: int, folder: Path | None = None
    ) -> PreTrainedModel:
        """A new, compressed model; the one given is the teacher of recovery and distillation.

        With a ``folder``, what trains keeps its checkpoints there and a killed run goes on from the last one.
        """
        given = {"calibration": calibration, "corpus": corpus, "teacher": model, "seed": seed}
        for verb, arguments in self.steps:
            takes = inspect.signature(function(verb)).parameters
            fitting = {name: value for name, value in given.items() if name in takes}
            if folder is not None and verb in ("train", "distill", "recover"):
                fitting["folder"] = folder / verb
            asked = _absolute(model, dict(arguments))
            if asked.pop("allocation", "uniform") == "outlier-weighed":
                from labkit.pruning import outlier_weighed

                asked["sparsity"] = outlier_weighed(model, asked["sparsity"], calibration)
            if "propagate" in asked:
                from labkit.pruning import Options

                asked["options"] = Options(propagate=asked.pop("propagate"))
            model = function(verb)(model, **fitting, **asked)
        return model


def _absolute(model: PreTrainedModel, asked: dict[str, Any]) -> dict[str, Any]:
    """Arguments with layers to drop and shares of heads, neurons or width turned into the model's numbers."""
    config = model.config.get_text_config()
    if "drop" in asked:
        asked["keep"] = config.num_hidden_layers - asked.pop("drop")
    for what, attribute in SIZES.items():
        if isinstance(asked.get(what), float):
            asked[what] = round(asked[what] * getattr(config, attribute))
    return asked
