"""The teacher's answers to a whole training, asked once: the k most likely tokens and the mass of all the others."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from labkit import divergences
from labkit.distillation.bodies import Body, digest, vocabulary
from labkit.errors import Failure, LabkitError
from labkit.flops import forward_flops_per_token
from labkit.forward import asked_places

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from labkit.abilities import Corpus

MANIFEST = "cache.json"
SHARD_BYTES = 2**26  # about what one shard holds, if every place of a batch is asked


class Targets(NamedTuple):
    """What a cache knows of a batch's labelled places, in their order."""

    top: Tensor  # (places, k) int32: the teacher's most likely tokens
    scores: Tensor  # (places, k + 1) float32: their log-probabilities, and that of all other tokens together


@dataclasses.dataclass(frozen=True)
class TeacherCache:
    """Top-k log-probabilities at temperature 1 for every labelled place of a training, in safetensors shards.

    All other tokens are one bucket: student and teacher are compared on k + 1 outcomes. With k = vocabulary there is no
    bucket and every divergence is exact, at any temperature. Below, at temperature 1 a divergence is a lower bound of
    the exact one that grows with k (data processing inequality); at other temperatures it is that of the two
    distributions over k + 1 outcomes, each softened.

    Attributes
    ----------
    folder: where the shards lie.
    identity: what was asked of whom: hashes of the teacher's weights and of the corpus, k, batch, steps, vocabulary.
    """

    folder: Path
    identity: dict[str, object]

    @classmethod
    def make(
        cls,
        teacher: PreTrainedModel,
        corpus: Corpus,
        tokens: int,
        folder: Path | str,
        *,
        k: int = 32,
        batch: int = 64,
        vocab: int | None = None,
    ) -> TeacherCache:
        """Ask the teacher all that a `distill` of as many tokens and the same batch needs; resumes where it stopped.

        A shard appears under its name only when it is whole. ``vocab`` is the shared prefix of two vocabularies, where
        they differ by padding. Raises LabkitError for k outside 1..vocabulary, less than a batch of tokens, a teacher
        whose logits are not finite (with the step), and a folder that holds another cache.
        """
        vocab = vocab or vocabulary(teacher)
        if not 1 <= k <= vocab:
            raise LabkitError(f"k, the tokens kept of each distribution, lies in 1..{vocab}", k, "Give e.g. 32.")
        steps = tokens // (batch * corpus.length)
        if steps < 1:
            raise LabkitError(
                f"a cache holds at least one batch of {batch} × {corpus.length} tokens", tokens, "Raise tokens."
            )
        folder = Path(folder)
        cache = cls(folder, identity(teacher, corpus, batch, steps, vocab) | {"k": k})
        if (folder / MANIFEST).exists():
            cls.open(folder).check(cache.identity)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            _atomically(folder / MANIFEST, lambda path: path.write_text(json.dumps(cache.identity, indent=1)))
        cache._fill(teacher, corpus, vocab)
        return cache

    @classmethod
    def open(cls, folder: Path | str) -> TeacherCache:
        """The cache in a folder. Raises LabkitError if there is none."""
        path = Path(folder) / MANIFEST
        try:
            return cls(Path(folder), json.loads(path.read_text()))
        except (OSError, ValueError) as error:
            remedy = "Make one with TeacherCache.make."
            raise LabkitError(f"a cache of a teacher holds a {MANIFEST}", f"{folder} ({error})", remedy) from None

    @property
    def bytes_per_place(self) -> int:
        """Size on disk of one labelled place (one "token" of teacher output): 4·k for tokens, 4·(k + 1) for scores."""
        return 4 * self.identity["k"] + 4 * self._outcomes

    def check(self, wanted: dict[str, object]) -> None:
        """Raise LabkitError unless the cache answers what is wanted (a dict like `identity`), with each difference."""
        other = [
            f"{key} {self.identity.get(key)}, not {value}"
            for key, value in wanted.items()
            if self.identity.get(key) != value
        ]
        if other:
            received = f"{self.folder}: {'; '.join(other)}"
            raise LabkitError(
                "a cache is of this teacher and this training", received, "Make a cache for it in another folder."
            )

    def targets(self, step: int) -> Targets:
        """What the teacher said to batch number ``step``. Raises LabkitError for a shard that is missing or foreign."""
        number, inside = divmod(step, self._shard_steps)
        path = self._shard(number)
        try:
            with safe_open(path, "pt") as shard:
                if (shard.metadata() or {}).get("identity") != self._hash:
                    raise LabkitError("a shard belongs to its cache", str(path), "Remove it, and make the cache again.")
                ends = shard.get_tensor("ends").tolist()
                part = slice(ends[inside - 1] if inside else 0, ends[inside])
                return Targets(shard.get_slice("top")[part], shard.get_slice("scores")[part])
        except (OSError, SafetensorError, IndexError) as error:
            remedy = "Finish it with TeacherCache.make, which adds what is missing."
            raise LabkitError("a cache holds every step of its training", f"{path}: {error}", remedy) from error

    @property
    def _outcomes(self) -> int:
        return min(self.identity["k"] + 1, self.identity["vocabulary"])

    @property
    def _hash(self) -> str:
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()

    @property
    def _shard_steps(self) -> int:
        of_step = self.identity["batch"] * self.identity["length"] * self.bytes_per_place
        return max(1, min(SHARD_BYTES // of_step, self.identity["steps"]))

    def _shard(self, number: int) -> Path:
        return self.folder / f"shard-{number:06d}.safetensors"

    def _fill(self, teacher: PreTrainedModel, corpus: Corpus, vocab: int) -> None:
        batch, steps, each = self.identity["batch"], self.identity["steps"], self._shard_steps
        missing = [n for n in range(-(-steps // each)) if not self._shard(n).exists()]
        was_training = teacher.training
        teacher.eval()
        try:
            body = Body(teacher, vocab)
            for number in tqdm(missing, desc="cache the teacher", unit="shard", disable=not missing):
                first, last = number * each, min((number + 1) * each, steps)
                found: list[Targets] = []
                # `batches` is asked for all steps: what a step shows may depend on how far the training has come
                for step, (tokens, labels) in zip(range(first, last), corpus.batches(batch, steps, first)):
                    found.append(self._ask(body, torch.from_numpy(tokens), torch.from_numpy(labels), step))
                shard = {name: torch.cat([getattr(t, name) for t in found]) for name in Targets._fields}
                shard["ends"] = torch.tensor([len(t.top) for t in found]).cumsum(0)
                _atomically(self._shard(number), lambda path: save_file(shard, path, {"identity": self._hash}))
        finally:
            teacher.train(was_training)

    @torch.no_grad()
    def _ask(self, body: Body, tokens: Tensor, labels: Tensor, step: int) -> Targets:
        device = body.model.device
        hidden = body.hidden(tokens.to(device), asked_places(labels.to(device)))
        parts = []
        for some in hidden.split(max(1, divergences.CHUNK_LOGITS // body.vocab)):
            logits = body.finish(F.linear(*body.head(some))).float()
            if not logits.isfinite().all():
                remedy = "Look at its weights and dtype; the shards before this step are kept."
                raise Failure("the teacher's logits are finite", f"NaN or infinity at step {step}", remedy)
            top = logits.topk(self.identity["k"]).indices
            parts.append(Targets(top.int().cpu(), bucketed(logits, top).cpu()))
        return Targets(*(torch.cat(part) for part in zip(*parts, strict=True))) if parts else self._nothing()

    def _nothing(self) -> Targets:
        return Targets(torch.empty(0, self.identity["k"], dtype=torch.int32), torch.empty(0, self._outcomes))


def bucketed(logits: Tensor, top: Tensor) -> Tensor:
    """Log-probabilities of the tokens ``top`` (places, k), then that of all others together, unless there is none."""
    scores, top = logits.float().log_softmax(-1), top.long()
    kept = scores.gather(-1, top)
    if top.shape[-1] == scores.shape[-1]:
        return kept
    rest = scores.scatter(-1, top, -torch.inf).logsumexp(-1, keepdim=True)  # no 1 − Σ, which cancels
    return torch.cat([kept, rest], -1)


def identity(teacher: PreTrainedModel, corpus: Corpus, batch: int, steps: int, vocab: int) -> dict[str, object]:
    """What a cache's content depends on. The temperature is not in it: any can be used later."""
    return {
        "teacher": digest(teacher),
        "corpus": _corpus_hash(corpus, batch, steps),
        "batch": batch,
        "length": corpus.length,
        "steps": steps,
        "vocabulary": vocab,
        "teacher flops": float(forward_flops_per_token(teacher, corpus.length) * steps * batch * corpus.length),
    }


def _corpus_hash(corpus: Corpus, batch: int, steps: int) -> str:
    """SHA-256 of the tokens and labels of the first and the last batch, which all rows are drawn like."""
    found = hashlib.sha256()
    for step in sorted({0, steps - 1}):
        rows: Iterator = corpus.batches(batch, steps, step)
        for array in next(iter(rows)):
            found.update(array.tobytes())
    return found.hexdigest()


def _atomically(path: Path, write) -> None:
    """``write(partial path)``, then rename: a reader sees the whole file or none."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
