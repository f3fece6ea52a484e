"""Published pairs: a model and a smaller one that others made of it, what they report, and what measuring them needs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from labkit.errors import LabkitError

GIB = 2**30
FLOPS_PER_S = 2e13  # kept up in reading: a modest share of what a recent GPU is sold with
BYTES_PER_S = 1e12  # of GPU memory, which writing waits for: each token of a batch takes all weights once
WRITING_BATCH = 8  # texts that are written at once, as by `labkit.harness`


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two models that are measured as one that was compressed: rows of the small one are paired with the dense one's.

    Attributes
    ----------
    dense, small: hub ids or folders. how: what stands in the column ``compression``, e.g. "distilled".
    """

    dense: str
    small: str
    how: str

    def __post_init__(self) -> None:
        if self.dense == self.small:
            raise LabkitError("a pair is of two models", self.dense, "Name the smaller one as small.")


@dataclasses.dataclass(frozen=True)
class Figure:
    """One published number, to be read beside ours: other items, prompts and shots, so never judged with ours.

    Attributes
    ----------
    model: as in the study. task: with the number of shots. metric: with its unit. value. source: where it stands.
    ours: "ability: metric" of our rows that comes nearest to it, where something does. An ability may be a group:
    "mmlu: choice_accuracy" is the mean over the items of all abilities whose names begin with "mmlu_".
    """

    model: str
    task: str
    metric: str
    value: float
    source: str
    ours: str = ""

    def __post_init__(self) -> None:
        if self.ours and not all(self.ours.partition(": ")):
            raise LabkitError("ours names an ability and a metric", self.ours, 'Write e.g. "gsm8k: exact_match".')
        if isinstance(self.value, bool) or not isinstance(self.value, int | float) or not math.isfinite(self.value):
            raise LabkitError("a published figure is a number", f"{self.value!r} of {self.model}", "Give e.g. 24.3.")
        if not self.source.strip():
            raise LabkitError("a published figure names its source", f"{self.task} of {self.model}", "Say where it stands.")


@dataclasses.dataclass(frozen=True)
class Needs:
    """What a study needs, by arithmetic and before any model is there. Sizes in GiB (2³⁰ bytes).

    Attributes
    ----------
    parameters: model -> all its parameters, embeddings included.
    bytes: of a parameter as it is published: 2 for bfloat16 and float16, 4 for float32.
    read, written: tokens of all benchmarks that one model reads, and that it writes; about, by our reckoning.
    """

    parameters: Mapping[str, float]
    bytes: int = 2
    read: float = 0.0
    written: float = 0.0

    def __post_init__(self) -> None:
        if not self.parameters or min(self.parameters.values()) <= 0:
            raise LabkitError("needs count the parameters of each model", self.parameters, "Give e.g. gpt2 = 124e6.")

    def memory_gib(self, model: str) -> float:
        """A model's weights, and a fifth more for activations and what the allocator holds."""
        return 1.2 * self.disk_gib(model)

    def disk_gib(self, model: str) -> float:
        """Its weights."""
        return self.bytes * self.parameters[model] / GIB

    def hours(self, model: str, read: float = 0.0, written: float = 0.0) -> float:
        """Of one GPU for the benchmarks, and for so many further tokens, by two rates that this module names.

        What is read takes 2 FLOPs a parameter and token; what is written takes all weights from memory, once a batch.
        """
        reading = 2 * (self.read + read) * self.parameters[model] / FLOPS_PER_S
        writing = (self.written + written) / WRITING_BATCH * self.bytes * self.parameters[model] / BYTES_PER_S
        return (reading + writing) / 3600
