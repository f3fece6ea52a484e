"""What is done to a model in a study: a chain of labkit's own verbs, with arguments that are checked before it runs."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.errors import LabkitError, unknown, whole
from labkit.ladder import HEAD_DIM, Rung

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

VERBS = ("prune", "drop_layers", "shrink", "train", "distill", "recover", "quantize")
"""In the order they are applied."""

SIZES = {"heads": "num_attention_heads", "ffn": "intermediate_size", "width": "hidden_size"}
"""Arguments of ``labkit.shrink``, and where a model's config says how many it has."""

ALLOCATIONS = ("uniform", "outlier-weighed")
"""How a sparsity is shared out among blocks: the same for all, or ``labkit.pruning.outlier_weighed``."""

GIVEN = {"model", "calibration", "corpus", "teacher", "seed", "folder", "options"}
"""Arguments that the study supplies itself."""

STUDENT_VERBS = {"train": ("student", "tokens"), "distill": ("student", "divergence", "tokens", "temperature", "alpha")}
"""What a study may say of the verbs that make another model than the one given; to ``distill`` also its `Options`."""


@dataclasses.dataclass(frozen=True)
class Compression:
    """A chain of verbs, each with its arguments, e.g. ``{"prune": {"criterion": "wanda", "sparsity": 0.5}}``.

    Attributes
    ----------
    steps: ((verb, ((argument, value), …)), …) in the order of `VERBS`; arguments as in ``labkit.prune``
        (also ``propagate`` of its ``Options``, and ``allocation``, one of `ALLOCATIONS`), ``labkit.drop_layers`` (or
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
            _check(verb, arguments)
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
            takes = inspect.signature(_function(verb)).parameters
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
            model = _function(verb)(model, **fitting, **asked)
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
    plain, options = _split({"learning_rate": _learning_rate(model), "seed": seed, **asked})
    return distill(teacher, model, corpus, **plain, folder=folder, options=Options(**options))


def _fresh(student: str, seed: int, model: PreTrainedModel) -> PreTrainedModel:
    return Rung.parse(student).build(seed).to(model.device)


def _learning_rate(model: PreTrainedModel) -> float:
    """That of a rung as wide."""
    return Rung(model.config.get_text_config().hidden_size // HEAD_DIM * HEAD_DIM, 1).learning_rate


def _split(asked: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `labkit.distill` takes itself, and what its `Options` do."""
    own = [name for name in STUDENT_VERBS["distill"] if name in asked]
    return {name: asked[name] for name in own}, {name: asked[name] for name in asked if name not in own}


def _function(verb: str) -> Callable:
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


def _check(verb: str, arguments: Mapping[str, Any]) -> None:
    """Raise the LabkitError that the verb would raise for these, as far as it can be told without a model."""
    known = STUDENT_VERBS.get(verb) or [n for n in inspect.signature(_function(verb)).parameters if n not in GIVEN]
    known = [*known, *_more_arguments(verb)]
    for name in arguments:
        if name not in known:
            raise unknown(f"argument of {verb}", name, known)
    if verb == "prune":
        from labkit.pruning import Options, check_prune, engine
        from labkit.pruning.masks import GROUPS

        asked = {name: arguments.get(name) for name in ("sparsity", "pattern")}
        check_prune(arguments.get("criterion", "wanda"), **asked)
        Options(propagate=arguments.get("propagate", True))
        if (group := arguments.get("group")) not in (None, *GROUPS):
            raise unknown("group", group, GROUPS)
        if group is not None and asked["pattern"] is not None:
            raise LabkitError("a pattern has groups of its own", f"group={group!r}", "Leave group out.")
        if "propagate" in arguments and engine.methods()[arguments.get("criterion", "wanda")].statistic is None:
            received = f"propagate={arguments['propagate']}"
            raise LabkitError(f"{arguments['criterion']} is not calibrated", received, "Leave propagate out.")
        if (allocation := arguments.get("allocation", "uniform")) not in ALLOCATIONS:
            raise unknown("allocation", allocation, ALLOCATIONS)
        if allocation != "uniform" and arguments.get("pattern") is not None:
            raise LabkitError("a pattern has one sparsity", f"allocation={allocation!r}", "Leave one of them out.")
    if verb == "quantize" and "bits" in arguments:
        from labkit.quantization import check_quantize

        check_quantize(arguments["bits"])
    if verb == "recover":
        from labkit.recovery import check_recover

        check_recover(**arguments)
        if "rank" in arguments and arguments.get("method", "lora") != "lora":
            received = f"rank={arguments['rank']} of {arguments['method']}"
            raise LabkitError("a rank is one of lora", received, "Leave rank out, or write method and rank of lora apart.")
    if verb in STUDENT_VERBS:
        _check_student(verb, arguments)
    if verb == "drop_layers" and ("drop" in arguments) == ("keep" in arguments):
        raise LabkitError("drop_layers says either drop or keep", dict(arguments), "Write e.g. { drop = 1 }.")
    if verb == "shrink" and all(arguments.get(size) is None for size in SIZES):
        raise LabkitError("shrink needs a number of heads, ffn or width", dict(arguments), "Write e.g. { ffn = 0.5 }.")
    if "importance" in arguments:
        from labkit.pruning import IMPORTANCES
        from labkit.pruning.units import UNIT_IMPORTANCES

        functions = IMPORTANCES if verb == "drop_layers" else UNIT_IMPORTANCES
        known = [function.__name__.replace("_", "-") for function in functions]
        if arguments["importance"] not in known:
            raise unknown("importance", arguments["importance"], known)
    for name in ("drop", "keep", *SIZES):
        if arguments.get(name) is not None:
            _check_size(f"{name} of {verb}", arguments[name], share=name in SIZES)


def _check_size(what: str, value: Any, share: bool) -> None:
    """Of layers, heads, neurons or width: a whole number, or, where it may be a ``share``, with a point, in (0, 1]."""
    if share and isinstance(value, float):
        if not 0 < value <= 1:
            raise LabkitError(f"{what}, with a point, is the share kept", value, "Write e.g. 0.5.")
    elif whole(what, value, 1) < 1:
        raise LabkitError(f"{what} is 1 or more", value, "Write e.g. 1.")


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
    if verb == "distill":
        from labkit.distillation import Options, check_distill, distill

        usual = {name: each.default for name, each in inspect.signature(distill).parameters.items()}
        usual |= {field.name: field.default for field in dataclasses.fields(Options)}
        for name, value in arguments.items():
            numbers = [isinstance(x, Real) and not isinstance(x, bool) for x in (usual.get(name), value)]
            if numbers == [True, False]:
                raise LabkitError(f"{name} of {verb} is a number", value, f"Write e.g. {usual[name]:g}.")
        plain, options = _split(arguments)
        plain = {name: value for name, value in plain.items() if name not in ("student", "tokens")}
        check_distill(**plain, options=Options(**options))


def _more_arguments(verb: str) -> Sequence[str]:
    if verb == "distill":
        from labkit.distillation import Options

        return [field.name for field in dataclasses.fields(Options) if field.name not in ("cache", "seed")]
    return {"drop_layers": ["drop"], "prune": ["allocation", "propagate"]}.get(verb, [])


# -- names: what a reader of a table needs to tell compressions apart ---------------------------------------------------


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
    tokens = asked.get("tokens", inspect.signature(_function("recover")).parameters["tokens"].default)
    options = [f"{name} {asked[name]:g}" for name in sorted(set(asked) - {"method", "tokens"})]
    return " ".join([asked.get("method", "lora"), *options, _count(tokens)])


def _train_name(asked: dict[str, Any]) -> str:
    return f"{asked['student']} scratch {_count(asked['tokens'])}" if "student" in asked else f"train {_count(asked['tokens'])}"


def _distill_name(asked: dict[str, Any]) -> str:
    first = [asked.get("student"), "distil", asked.get("divergence", "forward-kl")]
    options = sorted(set(asked) - {"student", "divergence", "tokens"})
    return " ".join([*filter(None, first), *(f"{name} {asked[name]:g}" for name in options), _count(asked["tokens"])])


def _bits_name(asked: dict[str, Any]) -> str:
    return f"int{asked.get('bits', inspect.signature(_function('quantize')).parameters['bits'].default)}"


def _count(tokens: int) -> str:
    return f"{float(f'{tokens / 1e6:.3g}'):g}M" if tokens >= 1_000_000 else f"{tokens // 1000}k"


def _share(value: float) -> str:
    return f"{value:.0%}" if isinstance(value, float) else str(value)


_NAMES = {
    "prune": _prune_name,
    "drop_layers": _layers_name,
    "shrink": _shrink_name,
    "train": _train_name,
    "distill": _distill_name,
    "recover": _recover_name,
    "quantize": _bits_name,
}
