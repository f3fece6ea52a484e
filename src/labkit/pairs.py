"""Published pairs: a model and a smaller one that others made of it, what they report, and what measuring them needs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from labkit.errors import LabkitError

GIB = 2**30


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
    """

    model: str
    task: str
    metric: str
    value: float
    source: str

    def __post_init__(self) -> None:
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
    """

    parameters: Mapping[str, float]
    bytes: int = 2

    def __post_init__(self) -> None:
        if not self.parameters or min(self.parameters.values()) <= 0:
            raise LabkitError("needs count the parameters of each model", self.parameters, "Give e.g. gpt2 = 124e6.")

    @property
    def memory_gib(self) -> float:
        """The largest model's weights, and a fifth more for activations and what the allocator holds."""
        return 1.2 * self.bytes * max(self.parameters.values()) / GIB

    @property
    def disk_gib(self) -> float:
        """All weights."""
        return self.bytes * sum(self.parameters.values()) / GIB

    def hours(self, tokens: float, flops_per_s: float = 2e13) -> float:
        """Of running ``tokens`` tokens through each model once, at 2 FLOPs a parameter and token.

        The default speed, 20 TFLOP/s kept up, is a modest share of what a recent GPU is sold with.
        """
        return 2 * tokens * sum(self.parameters.values()) / flops_per_s / 3600
