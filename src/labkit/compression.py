"""What is done to a model in a study: a chain of labkit's own verbs, with arguments that are checked before it runs."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from labkit.errors import LabkitError, unknown

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

VERBS = ("prune", "drop_layers", "shrink", "recover")
"""In the order they are applied."""

SIZES = {"heads": "num_attention_heads", "ffn": "intermediate_size", "width": "hidden_size"}
"""Arguments of ``labkit.shrink``, and where a model's config says how many it has."""

ALLOCATIONS = ("uniform", "outlier-weighed")
"""How a sparsity is shared out among blocks: the same for all, or ``labkit.pruning.outlier_weighed``."""

GIVEN = {"model", "calibration", "corpus", "teacher", "seed", "folder", "device"}
"""Arguments that the study supplies itself."""


@dataclasses.dataclass(frozen=True)
class Compression:
    """A chain of verbs, each with its arguments, e.g. ``{"prune": {"criterion": "wanda", "sparsity": 0.5}}``.

    Attributes
    ----------
    steps: ((verb, ((argument, value), …)), …) in the order of `VERBS`; arguments as in ``labkit.prune``
        (and ``allocation``, one of `ALLOCATIONS`), ``labkit.drop_layers`` (or ``drop``, how many to take away), ``labkit.shrink`` (a float is a share of what the
        model has) and ``labkit.recover``.
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
            _check(verb, arguments)
        if not written:
            raise LabkitError("a compression has at least one verb", dict(written), f"Use one of {', '.join(VERBS)}.")
        return cls(tuple((v, tuple(sorted(written[v].items()))) for v in VERBS if v in written))

    @classmethod
    def expand(cls, written: Mapping[str, Mapping[str, Any]]) -> Iterator[Compression]:
        """All compressions of a table in which a list stands for "each of these", in the order they are written."""
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
        return " + ".join(_NAMES[verb](dict(arguments)) for verb, arguments in self.steps)

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
        return ("pruning", *(("divergences", "recovery", "training") if "recover" in dict(self.steps) else ()))

    def apply(self, model: PreTrainedModel, calibration: Tensor, corpus: Any, seed: int) -> PreTrainedModel:
        """A new, compressed model; the one given is what recovery takes as its teacher."""
        given = {"calibration": calibration, "corpus": corpus, "teacher": model, "seed": seed}
        for verb, arguments in self.steps:
            takes = inspect.signature(_function(verb)).parameters
            fitting = {name: value for name, value in given.items() if name in takes}
            model = _function(verb)(model, **fitting, **_absolute(model, dict(arguments), calibration))
        return model


def _absolute(model: PreTrainedModel, asked: dict[str, Any], calibration: Tensor) -> dict[str, Any]:
    """Arguments with what depends on the model turned into numbers: layers to drop, shares of heads, budgets."""
    config = model.config.get_text_config()
    if asked.pop("allocation", "uniform") == "outlier-weighed":
        from labkit.pruning import outlier_weighed

        asked["sparsity"] = outlier_weighed(model, asked["sparsity"], calibration)
    if "drop" in asked:
        asked["keep"] = config.num_hidden_layers - asked.pop("drop")
    for what, attribute in SIZES.items():
        if isinstance(asked.get(what), float):
            asked[what] = round(asked[what] * getattr(config, attribute))
    return asked


def _function(verb: str) -> Callable:
    if verb == "recover":
        from labkit.recovery import recover

        return recover
    from labkit import pruning

    return getattr(pruning, verb)


def _check(verb: str, arguments: Mapping[str, Any]) -> None:
    """Raise the LabkitError that the verb would raise for these, as far as it can be told without a model."""
    known = [name for name in inspect.signature(_function(verb)).parameters if name not in GIVEN]
    known += {"drop_layers": ["drop"], "prune": ["allocation"]}.get(verb, [])
    for name in arguments:
        if name not in known:
            raise unknown(f"argument of {verb}", name, known)
    if verb == "prune":
        from labkit.pruning import check_prune

        check_prune(arguments.get("criterion", "wanda"), arguments.get("sparsity"), arguments.get("pattern"))
        if (allocation := arguments.get("allocation", "uniform")) not in ALLOCATIONS:
            raise unknown("allocation", allocation, ALLOCATIONS)
        if allocation != "uniform" and arguments.get("pattern") is not None:
            raise LabkitError("a pattern has one sparsity", f"allocation={allocation!r}", "Leave one of them out.")
    if verb == "drop_layers" and ("drop" in arguments) == ("keep" in arguments):
        raise LabkitError("drop_layers says either drop or keep", dict(arguments), "Write e.g. { drop = 1 }.")


# -- names: what a reader of a table needs to tell compressions apart ---------------------------------------------------


def _prune_name(asked: dict[str, Any]) -> str:
    extra = [f"by {asked['group']}"] if asked.get("group") else []
    extra += [asked["allocation"]] if asked.get("allocation", "uniform") != "uniform" else []
    return " ".join([asked.get("criterion", "wanda"), *([asked["pattern"]] if asked.get("pattern") else []), *extra])


def _layers_name(asked: dict[str, Any]) -> str:
    how = f"drop-layers {asked['drop']}" if "drop" in asked else f"keep-layers {asked['keep']}"
    return f"{how} by {asked['importance']}" if "importance" in asked else how


def _shrink_name(asked: dict[str, Any]) -> str:
    kept = [f"{what} {_share(asked[what])}" for what in SIZES if asked.get(what) is not None]
    return " ".join(["shrink", *kept, *([f"by {asked['importance']}"] if "importance" in asked else [])])


def _recover_name(asked: dict[str, Any]) -> str:
    tokens = asked.get("tokens", inspect.signature(_function("recover")).parameters["tokens"].default)
    short = f"{tokens // 1_000_000}M" if tokens % 1_000_000 == 0 else f"{tokens // 1000}k"
    return f"{asked.get('method', 'lora')} {short}"


def _share(value: float) -> str:
    return f"{value:.0%}" if isinstance(value, float) else str(value)


_NAMES = {"prune": _prune_name, "drop_layers": _layers_name, "shrink": _shrink_name, "recover": _recover_name}
