"""What a student is trained on: one class for each kind of signal, called by the training loop as ``loss(model, …)``.

The forward pass the loop hands in is not used: a loss reads through `Body`, which knows the head as well.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from labkit.abilities import Draws
from labkit.distillation.bodies import Body
from labkit.distillation.cache import TeacherCache, bucketed
from labkit.distillation.sampling import sample_answers
from labkit.divergences import chunked_mean
from labkit.errors import LabkitError
from labkit.forward import asked_places
from labkit.records import IGNORE

if TYPE_CHECKING:
    from labkit.abilities import Corpus

PROJECTIONS = "distillation_projections"
"""Submodule of a student while it learns hidden states: so the optimiser and the checkpoints hold it."""

GROUP = 16
"""Batches that a teacher samples answers for at once."""

Rewrite = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(tokens, labels) → (tokens, labels), (rows, time) each."""

_cross_entropy = functools.partial(F.cross_entropy, reduction="none")


@dataclasses.dataclass
class Stream:
    """A corpus whose current step is known, whose tokens are checked against the vocabulary, and may be rewritten."""

    identity: str  # what a checkpoint is recognised by
    corpus: Corpus = dataclasses.field(repr=False)
    vocab: int = dataclasses.field(repr=False)
    seed: int = dataclasses.field(repr=False)
    step: int = dataclasses.field(default=0, repr=False)
    rewrite: Rewrite | None = dataclasses.field(default=None, repr=False)

    @property
    def length(self) -> int:
        return self.corpus.length

    def batches(self, batch: int, steps: int, first: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """As of a corpus. Groups to rewrite begin at multiples of `GROUP`, so that resuming draws the same."""
        size = 1 if self.rewrite is None else GROUP
        begin = first - first % size
        rows = self.corpus.batches(batch, steps, begin)
        while group := list(itertools.islice(rows, size)):
            self.step = begin
            tokens, labels = (np.concatenate(x) if len(group) > 1 else x[0] for x in zip(*group, strict=True))
            self._check(tokens, labels)
            if self.rewrite is not None:
                tokens, labels = self.rewrite(tokens, labels)
            for self.step in range(max(begin, first), begin + len(group)):
                part = slice((self.step - begin) * batch, (self.step - begin + 1) * batch)
                yield tokens[part], labels[part]
            begin += len(group)

    def _check(self, tokens: np.ndarray, labels: np.ndarray) -> None:
        largest = int(max(tokens.max(), labels.max()))
        if largest >= self.vocab:
            received = f"token {largest} at step {self.step}, vocabulary of {self.vocab}"
            raise LabkitError(
                "the models' vocabulary holds every token of the corpus", received, "Use a corpus made for it."
            )

    def generator(self, device: torch.device) -> torch.Generator:
        """Random numbers of the current step alone, so that a resumed training draws the same."""
        seed = int(Draws(f"distillation/answers/{self.seed}", np.array([self.step])).bits(1)[0, 0] >> np.uint64(1))
        return torch.Generator(device).manual_seed(seed)


def on_policy_steps(fraction: float, seed: int, steps: np.ndarray) -> np.ndarray:
    """Which of these steps (n,) are on-policy: each with probability ``fraction``, addressed by its number."""
    return Draws(f"distillation/policy/{seed}", steps).uniform(1)[:, 0] < fraction


@dataclasses.dataclass
class Loss:
    """A teacher, a student and the stream they read; remembers the first step at which the teacher was not finite."""

    teacher: Body
    student: Body
    stream: Stream
    _bad: Tensor | None = dataclasses.field(default=None, init=False)

    @property
    def failed(self) -> int | None:
        """First step with a teacher output that is not finite; None if there was none."""
        return None if self._bad is None or self._bad < 0 else int(self._bad)

    def watch(self, output: Tensor) -> None:
        """Look at a teacher's output without waiting for the device."""
        bad = ~output.sum(dtype=torch.float32).isfinite()
        before = torch.full_like(bad, -1, dtype=torch.long) if self._bad is None else self._bad
        self._bad = torch.where(bad & (before < 0), self.stream.step, before)

    def tell(self, tokens: Tensor, places: Tensor) -> Tensor:
        """The teacher's hidden states (places, width)."""
        with torch.no_grad():
            return self.teacher.hidden(tokens, places)


@dataclasses.dataclass
class SoftLoss(Loss):
    """α · divergence + (1 − α) · cross-entropy with the corpus' labels, mean over labelled places.

    On an on-policy step the student first answers itself, and both look at the rows that result. The corpus' labels no
    longer fit those rows: there α counts as 1.
    """

    divergence: Callable[[Tensor, Tensor], Tensor]
    alpha: float
    on_policy: float = 0.0
    cache: TeacherCache | None = None

    def __call__(self, model: nn.Module, tokens: Tensor, labels: Tensor) -> Tensor:
        alpha, cache = self.alpha, self.cache
        if self.on_policy and on_policy_steps(self.on_policy, self.stream.seed, np.array([self.stream.step]))[0]:
            generator = self.stream.generator(tokens.device)
            tokens, labels = sample_answers(
                self.student.model, tokens, labels, generator=generator, vocab=self.student.vocab
            )
            alpha, cache = 1.0, None
        places = asked_places(labels)
        head, answers = self.student.head(self.student.hidden(tokens, places)), labels.flatten()[places]
        if cache is None:
            return chunked_mean(functools.partial(self._live, alpha), head, answers, self.tell(tokens, places))
        targets = [x.to(tokens.device) for x in cache.targets(self.stream.step)]
        return chunked_mean(functools.partial(self._cached, alpha), head, answers, *targets)

    def _live(self, alpha: float, logits: Tensor, answers: Tensor, told: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.teacher.finish(F.linear(*self.teacher.head(told)))
            self.watch(target)
        logits = self.student.finish(logits)
        return self._mix(alpha, self.divergence(logits, target), logits, answers)

    def _cached(self, alpha: float, logits: Tensor, answers: Tensor, top: Tensor, scores: Tensor) -> Tensor:
        logits = self.student.finish(logits)
        return self._mix(alpha, self.divergence(bucketed(logits, top), scores), logits, answers)

    def _mix(self, alpha: float, soft: Tensor, logits: Tensor, answers: Tensor) -> Tensor:
        if alpha == 1:
            return soft
        return alpha * soft + (1 - alpha) * _cross_entropy(logits.float(), answers)


@dataclasses.dataclass
class SequenceLoss(Loss):
    """Cross-entropy with answers the teacher sampled: what an outsider sees who reads its text and no more.

    It samples for `GROUP` batches at once: one token for many rows costs hardly more than one for few.
    """

    temperature: float

    def __post_init__(self) -> None:
        self.stream.rewrite = self._answer

    def __call__(self, model: nn.Module, tokens: Tensor, labels: Tensor) -> Tensor:
        places = asked_places(labels)
        return _against(self.student, self.student.hidden(tokens, places), labels.flatten()[places])

    def _answer(self, tokens: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        device = self.teacher.model.device
        tokens, labels = (torch.from_numpy(x).to(device) for x in (tokens, labels))
        try:
            drawn = sample_answers(
                self.teacher.model, tokens, labels, generator=self.stream.generator(device),
                temperature=self.temperature, vocab=self.teacher.vocab,
            )  # fmt: skip
        except LabkitError:
            self.watch(torch.full((1,), torch.nan))
            raise
        return tuple(x.cpu().numpy() for x in drawn)


@dataclasses.dataclass
class HiddenLoss(Loss):
    """α · MSE(W_j · student layer, teacher layer) + (1 − α) · cross-entropy with the corpus' labels.

    The MSE is the mean over labelled places, teacher dimensions and pairs of layers; each pair has a learned W_j.
    Source: Jiao et al. 2020 (TinyBERT), equation 8.
    """

    alpha: float
    pairs: tuple[tuple[int, int], ...]  # (layer of the student, layer of the teacher), both from 1

    def __call__(self, model: nn.Module, tokens: Tensor, labels: Tensor) -> Tensor:
        asked = labels != IGNORE
        with torch.no_grad():
            theirs = self.teacher.layers(tokens)
        self.watch(theirs[-1])
        ours = self.student.layers(tokens)
        total = ours[0].new_zeros((), dtype=torch.float32)
        for (mine, its), projection in zip(self.pairs, getattr(self.student.model, PROJECTIONS), strict=True):
            apart = projection(ours[mine][asked]).float() - theirs[its][asked].float()
            total = total + apart.square().sum() / max(apart.numel(), 1)
        return self.alpha * total / len(self.pairs) + (1 - self.alpha) * _against(self.student, ours[-1][asked], labels[asked])


def _against(student: Body, hidden: Tensor, answers: Tensor) -> Tensor:
    """Mean cross-entropy with the answers (n,), for hidden states (n, width)."""
    loss = lambda logits, answers: _cross_entropy(student.finish(logits).float(), answers)  # noqa: E731
    return chunked_mean(loss, student.head(hidden), answers)


def layer_pairs(student: int, teacher: int, every: int | None) -> tuple[tuple[int, int], ...]:
    """(student layer, teacher layer), from 1: each ``every``-th teacher layer beside a student layer of the same depth.

    By default the least spacing for which the student has enough layers. Raises LabkitError for any other that it has
    not enough layers for, or that is larger than the teacher is deep.

    >>> layer_pairs(student=2, teacher=4, every=None)
    ((1, 2), (2, 4))
    """
    every = -(-teacher // student) if every is None else every
    if not 1 <= every <= teacher or teacher // every > student:
        rule = f"every k-th of {teacher} teacher layers is matched by one of {student} student layers"
        raise LabkitError(rule, f"k = {every}", f"Give a k from {-(-teacher // student)} to {teacher}.")
    count = teacher // every
    return tuple((round((j + 1) * student / count), (j + 1) * every) for j in range(count))


def add_projections(student: nn.Module, widths: tuple[int, int], count: int, seed: int) -> None:
    """Give the student ``count`` learned maps from its width to the teacher's, the same for the same seed."""
    like = next(student.parameters())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        maps = nn.ModuleList(nn.Linear(*widths, bias=False) for _ in range(count))
    student.add_module(PROJECTIONS, maps.to(like.device, like.dtype))
