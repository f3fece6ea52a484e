"""What runs are of: models by their names, and the condition that the rows of a run stand under."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from labkit.compression import Compression
from labkit.errors import LabkitError, unknown
from labkit.hub import is_id
from labkit.pairs import Pair
from labkit.records import DENSE
from labkit.zoo import manifest, model_config

Job = tuple[str, Compression | None]
"""(model, compression) of one run; None is the dense model."""


class Condition(NamedTuple):
    """What rows say of the model that they are of, the columns of `labkit.records.ItemRow`; pairs are made by it."""

    rung: str
    seed: int
    compression: str
    sparsity: float

    def __str__(self) -> str:
        return f"rung {self.rung}, seed {self.seed}, {self.compression}, sparsity {self.sparsity:g}"


def matching(patterns: Sequence[str]) -> list[str]:
    """Names of shipped models that fit a pattern, local folders and hub ids, each once, in the order of the patterns."""
    records = manifest()["models"]
    known = sorted(records, key=lambda name: (records[name]["params"], name))
    found: dict[str, None] = {}
    for pattern in patterns:
        fitting = [pattern] if Path(pattern).is_dir() else fnmatch.filter(known, pattern)
        if not fitting and is_id(pattern):
            fitting = [pattern]
        if not fitting:
            raise unknown("model name, pattern, local folder or hub id", pattern, known)
        found.update(dict.fromkeys(fitting))
    return list(found)


def vocabulary_size(model: str) -> int:
    """Tokens of a model, by its config; labkit's where that does not say. Raises LabkitError as `zoo.model_config`."""
    from labkit.abilities import vocabulary

    asked = model_config(model)
    return (asked.get("text_config") or asked).get("vocab_size", vocabulary.SIZE)


def check_vocabulary(model: str, remedy: str) -> None:
    """Raise LabkitError for a model whose tokens mean something else than labkit's, with what to do instead."""
    from labkit.abilities import vocabulary

    if (size := vocabulary_size(model)) != vocabulary.SIZE:
        rule = f"abilities in tokens are asked in labkit's vocabulary of {vocabulary.SIZE}"
        raise LabkitError(rule, f"{model}, which has {size}", remedy)


def pair_of(model: str, pairs: Sequence[Pair]) -> Pair | None:
    """The pair whose smaller model this is."""
    return next((pair for pair in pairs if pair.small == model), None)


def condition(job: Job, pairs: Sequence[Pair] = ()) -> Condition:
    """The condition of a run: a model that others made smaller stands under its dense one, by what they did to it."""
    name, compression = job
    pair = pair_of(name, pairs)
    done = [pair.how] if pair else []
    if compression is not None:
        done.append(compression.name)
    sparsity = 0.0 if compression is None else compression.nominal_sparsity
    return Condition(*_origin(pair.dense if pair else name), " + ".join(done) or DENSE, sparsity)


def check_distinct(jobs: Iterable[Job], pairs: Sequence[Pair] = ()) -> None:
    """Raise LabkitError for two runs of one condition: their rows could never be told apart."""
    known: dict[Condition, Job] = {}
    for job in jobs:
        other = known.setdefault(at := condition(job, pairs), job)
        if other != job:
            told = " and ".join(f"{name} {compression.name if compression else DENSE}" for name, compression in (other, job))
            remedy = "Leave one out or put it into a study of its own; else give folders other names, pairs another how."
            raise LabkitError("the runs of a study differ in rung, seed or compression", f"{told}, both {at}", remedy)


def check_pairs(pairs: Sequence[Pair]) -> None:
    """Raise LabkitError for a model that is the smaller one of two pairs, or of one and the dense one of another."""
    small = [pair.small for pair in pairs]
    for pair in pairs:
        if small.count(pair.small) > 1:
            raise LabkitError("a model is the smaller one of one pair", pair.small, "Give each pair a study of its own.")
        if pair.dense in small:
            remedy = "Name the first of the chain as dense in every pair."
            raise LabkitError("the dense model of a pair is nobody's smaller one", pair.dense, remedy)


def subject(config: Mapping[str, Any]) -> str:
    """What a run is about, however it is measured: the model and what was done to it."""
    return json.dumps([config.get("model"), config.get("compression")], sort_keys=True)


def _origin(name: str) -> tuple[str, int]:
    """(rung, seed) of a model by where it stands: …/<rung>/seed-<n>, or any other folder as its own rung with seed 0."""
    match = re.search(r"([^/]+)/seed-(\d+)/?$", name)
    return (match[1], int(match[2])) if match else (Path(name).name, 0)
