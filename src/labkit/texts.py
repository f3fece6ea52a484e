"""A text of one's own, as rows to calibrate on and a stream to train on, for models that read words."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from labkit.errors import LabkitError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

APART = 128  # rows at the end, for calibration: as many as a study takes


@dataclasses.dataclass(frozen=True)
class Text:
    """What a study says of its text.

    Attributes
    ----------
    file: a plain text in UTF-8. length: tokens a row, ≥ 2; what recovery and distillation take 64 of at once.
    """

    file: str
    length: int = 128

    def __post_init__(self) -> None:
        if self.length < 2:
            raise LabkitError("a row of text has at least 2 tokens", self.length, "Give e.g. length = 128.")

    @property
    def sha256(self) -> str:
        """Checksum of the file. Raises LabkitError if it cannot be read, or is no text."""
        return hashlib.sha256(_text(self.file).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class TextCorpus:
    """Rows of a tokenized text, each once an epoch, in an order that is drawn anew for every epoch.

    Attributes
    ----------
    digest: of the tokens, and so what tells two corpora apart. seed: of the order. length: tokens a row.
    tokens: (rows, length + 1) int64; each row begins with the last token of the one before.
    """

    digest: str
    seed: int
    length: int
    tokens: np.ndarray = dataclasses.field(repr=False, compare=False)

    def calibration(self, sequences: int = APART) -> np.ndarray:
        """(sequences, length) int64, at most `APART`: the last rows, which no training sees."""
        if sequences > APART:
            raise LabkitError(f"a text keeps {APART} rows apart for calibration", sequences, "Ask for fewer.")
        return self.tokens[len(self.tokens) - sequences :, :-1]

    def batches(self, batch: int, steps: int, first: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Batches number ``first … steps − 1``: tokens and the tokens that follow them, (batch, length) each."""
        for step in range(first, steps):
            rows = self.tokens[self._numbers(np.arange(step * batch, (step + 1) * batch))]
            yield rows[:, :-1].copy(), rows[:, 1:].copy()

    def _numbers(self, places: np.ndarray) -> np.ndarray:
        """Which row stands at each place of the endless stream."""
        count = len(self.tokens) - APART
        orders = {epoch: np.random.default_rng((self.seed, epoch)).permutation(count) for epoch in set(places // count)}
        return np.array([orders[place // count][place % count] for place in places])


def text_corpus(
    file: str | Path, tokenizer: PreTrainedTokenizerBase, length: int = 128, seed: int = 0
) -> TextCorpus:
    """The rows of a text file in the tokens of a model.

    Hand it to `labkit.recover` and `labkit.distill`, and its ``calibration()`` to `labkit.prune`. A text shorter than
    what a training asks for is read again: then the held-out loss in the lineage is of rows that were trained on.

    Raises LabkitError for a file that is not there or not UTF-8, and for a text too short for calibration and one row.
    """
    asked = Text(str(file), length)
    found = tokenizer(_text(asked.file), add_special_tokens=False, verbose=False)["input_ids"]
    count = (len(found) - 1) // length
    if count <= APART:
        received = f"{file}, {len(found):,} tokens, which are {max(count, 0)} rows"
        remedy = "Give a longer text, or shorter rows."
        raise LabkitError(f"a text has more than {APART} rows of {length} tokens", received, remedy)
    stream = np.asarray(found, dtype=np.int64)
    rows = stream[np.arange(count)[:, None] * length + np.arange(length + 1)]
    return TextCorpus(hashlib.sha256(stream.tobytes()).hexdigest()[:16], seed, length, rows)


def _text(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        remedy = "Give its path from the folder you are in, or in a study from that of its file."
        raise LabkitError("a text to calibrate and train on is a file in UTF-8", f"{file} ({why})", remedy) from None
