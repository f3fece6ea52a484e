"""Students: how each was made, by whom it was taught and what that cost, from the names and lineages of a study."""

from __future__ import annotations

import dataclasses
import re

import pandas as pd

from labkit.errors import LabkitError

SCRATCH = "scratch"
"""The way of a student that never meets the teacher: the control."""

FRESH = "fresh"
"""The start of a student whose weights were drawn at random."""

PRACTICE = "train"
"""The way of a student that starts from what is left of its teacher, and is then trained without it."""

WHOLE = "the teacher"
"""The start of a student that is its teacher, with nothing taken away."""

UNASKED = ("nothing", "weights")
"""What students have seen who never asked their teacher for an answer."""

NEAR = 1.25
"""Within this factor two students took equal FLOPs."""

CONDITION = ["rung", "compression", "sparsity"]
"""The columns that tell kinds of students apart; `rung` is the teacher's."""

_NAMED = re.compile(
    r"(?:(?P<start>.+) \+ )?(?:(?P<size>\d+x\d+) )?(?P<way>scratch|train|distil [a-z]\S*(?: .+)?) (?P<count>[\d.]+)(?P<unit>[kM])"
)
_SEEN = {SCRATCH: "nothing", PRACTICE: "nothing", "sequence": "text", "hidden-state": "hidden states"}
_COSTS = ("flops", "teacher_flops", "sampling_flops")


@dataclasses.dataclass(frozen=True)
class Student:
    """What the name of a compression says of a student.

    Attributes
    ----------
    start : `FRESH`, or what was left of the teacher to start from, e.g. "keep-layers 2", or `WHOLE`.
    size : its rung, e.g. "64x2"; empty where `start` decides it.
    way : what it learned from: a divergence with its options, e.g. "forward-kl on_policy 0.5", or labels alone: `SCRATCH`
        for one that started fresh, else `PRACTICE`.
    tokens : it was trained on, as named ("3M").

    >>> Student.parse("64x2 distil sequence 3M")
    Student(start='fresh', size='64x2', way='sequence', tokens=3000000)
    """

    start: str
    size: str
    way: str
    tokens: int

    @classmethod
    def parse(cls, compression: str) -> Student | None:
        """The student called so in a study (`labkit.compression`), or None for what is not one."""
        named = _NAMED.fullmatch(compression)
        if named is None:
            return None
        tokens = round(float(named["count"]) * {"k": 1_000, "M": 1_000_000}[named["unit"]])
        start = named["start"] or (FRESH if named["size"] else WHOLE)
        return cls(start, named["size"] or "", named["way"].removeprefix("distil "), tokens)

    @property
    def seen(self) -> str:
        """What of the teacher it saw: "nothing", "text", "hidden states" or "logits"; of one that did not start `FRESH`
        "weights", or "logits and weights" and the like."""
        answers = _SEEN.get(self.way.split()[0], "logits")
        if self.start == FRESH:
            return answers
        return "weights" if answers == "nothing" else f"{answers} and weights"


def students(rows: pd.DataFrame, provenance: pd.DataFrame | None = None) -> pd.DataFrame:
    """Every kind of student in the rows of a study.

    Parameters
    ----------
    rows : frame with the columns of `labkit.records.ItemRow`; what is no student is passed over.
    provenance : of the same store, as ``Store.provenance()`` returns: its lineages say what was spent.

    Returns
    -------
    Frame with the columns of `CONDITION`, params, start, size (where a start decides it: that of a fresh student of as
    many parameters, if there is one), way, seen, tokens (as named), trained (tokens, as counted), and flops (all that
    making it took, the teacher's part included), teacher_flops and sampling_flops (parts of it): nominal, NaN without a
    provenance. Smallest and shortest first, controls before others.

    Raises
    ------
    LabkitError
        A provenance without lineages, or without a run of the rows.
    """
    runs = rows[[*CONDITION, "params", "run"]].drop_duplicates()
    parsed = {name: Student.parse(name) for name in runs["compression"].unique()}
    runs = runs[[parsed[name] is not None for name in runs["compression"]]].astype(dict.fromkeys(CONDITION[:2], str))
    told = [dataclasses.asdict(parsed[name]) | {"seen": parsed[name].seen} for name in runs["compression"]]
    names = [*(field.name for field in dataclasses.fields(Student)), "seen"]
    found = runs.reset_index(drop=True).join(pd.DataFrame(told, columns=names))
    if provenance is not None:
        spent = _spent(provenance)
        unknown = sorted(set(found["run"]) - set(spent.index))
        if unknown:
            raise LabkitError("a provenance knows every run of the rows", unknown[0], "Take both from one store.")
        found = found.join(spent, on="run")
    found = found.reindex(columns=[*CONDITION, "params", *names, "trained", *_COSTS])
    found = found.groupby([*CONDITION, "params", *names], as_index=False, sort=False).mean()
    sizes = found[found["size"] != ""].drop_duplicates("params").set_index("params")["size"]
    found["size"] = found["size"].where(found["size"] != "", found["params"].map(sizes).fillna(""))
    order = found.assign(taught=found["way"] != SCRATCH, cut=found["start"] != FRESH)
    order = order.sort_values(["rung", "params", "cut", "taught", "way", "start", "tokens"])
    return found.loc[order.index].reset_index(drop=True)


def _spent(provenance: pd.DataFrame) -> pd.DataFrame:
    """By run: tokens trained on and FLOPs, summed over all that was done to the model."""
    if "lineage" not in provenance:
        raise LabkitError("a provenance has lineages", sorted(provenance), "Measure with this version of labkit.")
    spent = {
        run: {"trained": sum(entry.get("tokens", 0) for entry in lineage)}
        | {cost: float(sum(entry.get(cost, 0) for entry in lineage)) for cost in _COSTS}
        for run, lineage in zip(provenance["run"], provenance["lineage"], strict=True)
        if isinstance(lineage, list | tuple)
    }
    return pd.DataFrame.from_dict(spent, orient="index", columns=["trained", *_COSTS])
