"""Training a student on what a teacher says: its logits, text or hidden states, or its view of the student's text."""

from __future__ import annotations

import copy
import dataclasses
import functools
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from labkit import divergences, extension
from labkit.distillation import losses
from labkit.distillation.bodies import Body, digest, vocabulary
from labkit.distillation.cache import TeacherCache, identity
from labkit.distillation.sampling import fed_back, sample_answers
from labkit.errors import Failure, LabkitError, unknown
from labkit.flops import forward_flops_per_token, non_embedding_params
from labkit.lineage import record
from labkit.training import Training, train

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from labkit.abilities import Corpus

__all__ = ["DIVERGENCES", "Options", "TeacherCache", "check_distill", "distill", "fed_back", "sample_answers"]

LOGITS = ("forward-kl", "reverse-kl", "jsd")
DIVERGENCES = (*LOGITS, "sequence", "hidden-state")
"""The divergences of labkit itself; `distill` knows those added by `labkit.extension` too, as ones of logits."""

PADDING = 1024  # most rows by which one of two vocabularies may be the other one padded


@dataclasses.dataclass(frozen=True)
class Options:
    """What is rarely changed.

    Attributes
    ----------
    beta: the teacher's share of the mixture in the JSD, 0..1; 0 and 1 are the forward and the reverse KL.
    on_policy: fraction of batches, 0..1, in which the student first gives its own answers (GKD); 0 is off-policy.
    hidden_every: match every k-th layer of the teacher; by default as many as the student has layers.
    cache: what the teacher says, asked beforehand; instead of running it in every off-policy batch.
    padded_vocabulary: the vocabularies differ by padding rows at the end, and the shared tokens alone are compared.
    batch, learning_rate: of the training; rows of `corpus.length` tokens.
    seed: of sampled answers, of the choice of on-policy batches, and of the projections.
    """

    beta: float = 0.5
    on_policy: float = 0.0
    hidden_every: int | None = None
    cache: TeacherCache | None = None
    padded_vocabulary: bool = False
    batch: int = 64
    learning_rate: float = 2e-3
    seed: int = 0


def distill(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    corpus: Corpus,
    divergence: str = "forward-kl",
    tokens: int = 4_000_000,
    *,
    temperature: float = 1.0,
    alpha: float = 1.0,
    folder: Path | str | None = None,
    options: Options = Options(),
) -> PreTrainedModel:
    """A copy of ``student``, trained on what ``teacher`` says where the corpus has labels. Both stay as they are.

    It is trained in the type of its own weights: bring a student in half precision to float32 first, or small steps are
    lost in rounding. It comes back in evaluation mode.

    A student can be fresh (``Rung.build``), made from the teacher's layers (`drop_layers`), or pruned: zeros stay zero.

    Parameters
    ----------
    teacher, student
        Causal language models of one vocabulary, on one device.
    corpus
        `labkit.corpus()`, or anything with ``length`` and ``batches(batch, steps, first)``; labels stand at the place
        they are asked. For running text: rows whose labels are the next tokens, `IGNORE` over prompt and padding.
    divergence
        ``forward-kl``, ``reverse-kl``, ``jsd``: α · T²·divergence(teacher, student) + (1 − α) · cross-entropy with the
        labels, softened by the temperature T (`labkit.divergences`).
        ``sequence``: cross-entropy with answers sampled from the teacher at T, and nothing else: α is 1.
        ``hidden-state``: α · MSE of projected hidden states + (1 − α) · cross-entropy; α < 1, for the head to learn.
    tokens, folder
        As in `labkit.training.train`: with a folder, a killed distillation resumes.

    Where the student (on-policy) or the teacher (``sequence``) samples, its answer takes the place of the label, and is
    read back only in rows that feed their answers back; see `labkit.distillation.sampling.sample_answers`.

    The lineage of the result holds what was asked and what it cost: FLOPs of training, of the teacher (once per token
    shown, whether now or into the cache), and of the student's sampling.

    Raises LabkitError for vocabularies that differ, a temperature ≤ 0, α, β or on_policy outside [0, 1], options that
    do not go together, a cache of another teacher or training, and a teacher that is not finite, with the step. Warns
    if the teacher is smaller than the student.
    """
    check_distill(divergence, temperature, alpha, options)
    vocab = _shared_vocabulary(teacher, student, options.padded_vocabulary)
    _compare(teacher, student)
    steps = tokens // (options.batch * corpus.length)
    weights = digest(teacher)
    if options.cache is not None and steps:
        options.cache.check(identity(teacher, corpus, options.batch, steps, vocab))
    asked = {
        "teacher": weights,
        "divergence": divergence,
        "temperature": temperature,
        "alpha": alpha,
        **{f.name: getattr(options, f.name) for f in dataclasses.fields(options) if f.name != "cache"},
        "cached": None if options.cache is None else options.cache.identity["k"],
    }
    stream = losses.Stream(f"{corpus!r} {asked}", corpus, vocab, options.seed)
    new, was_training = copy.deepcopy(student), teacher.training
    teacher.eval()
    try:
        loss = _loss(teacher, new, stream, asked, options)
        try:
            done = train(
                new, stream, tokens, batch=options.batch, learning_rate=options.learning_rate, loss=loss, folder=folder,
                label=f"distill {divergence}",
            )  # fmt: skip
        except LabkitError as error:
            if loss.failed is None:
                raise
            remedy = "Look at its weights and dtype."
            raise Failure("the teacher's output is finite", f"NaN or infinity at step {loss.failed}", remedy) from error
    finally:
        teacher.train(was_training)
    if hasattr(new, losses.PROJECTIONS):
        delattr(new, losses.PROJECTIONS)
    record(
        new, "distill", **asked, tokens=done.tokens, seconds=done.seconds, **_flops(teacher, new, corpus, done, options)
    )
    return new


def _loss(
    teacher: PreTrainedModel, student: PreTrainedModel, stream: losses.Stream, asked: dict, options: Options
) -> losses.Loss:
    parts = Body(teacher, stream.vocab), Body(student, stream.vocab), stream
    temperature, alpha = asked["temperature"], asked["alpha"]
    if asked["divergence"] == "sequence":
        return losses.SequenceLoss(*parts, temperature)
    if asked["divergence"] == "hidden-state":
        ours, theirs = (m.config.get_text_config() for m in (student, teacher))
        pairs = losses.layer_pairs(ours.num_hidden_layers, theirs.num_hidden_layers, options.hidden_every)
        losses.add_projections(student, (ours.hidden_size, theirs.hidden_size), len(pairs), options.seed)
        return losses.HiddenLoss(*parts, alpha, pairs)
    known = {
        "forward-kl": divergences.forward_kl,
        "reverse-kl": divergences.reverse_kl,
        "jsd": functools.partial(divergences.generalized_jsd, beta=options.beta),
        **extension.added("divergence"),
    }
    function = known[asked["divergence"]]
    soft = functools.partial(function, temperature=temperature)
    return losses.SoftLoss(*parts, soft, alpha, options.on_policy, options.cache)


def _flops(
    teacher: PreTrainedModel, student: PreTrainedModel, corpus: Corpus, done: Training, options: Options
) -> dict[str, float]:
    """Nominal operations: of the student's training, of the teacher's forward passes, of the student's sampling."""
    own = losses.on_policy_steps(options.on_policy, options.seed, np.arange(done.steps)).sum()
    asked = float(forward_flops_per_token(teacher, corpus.length) * done.tokens)
    sampled = float(forward_flops_per_token(student, corpus.length) * own * options.batch * corpus.length)
    return {
        "flops": done.flops + asked + sampled,
        "training_flops": done.flops,
        "teacher_flops": asked,
        "sampling_flops": sampled,
    }


def check_distill(
    divergence: str = "forward-kl", temperature: float = 1.0, alpha: float = 1.0, options: Options = Options()
) -> None:
    """Raise the LabkitError that `distill` would raise for these, before any model is loaded."""
    soft = (*LOGITS, *extension.added("divergence", taken=DIVERGENCES))
    if divergence not in (*DIVERGENCES, *soft):
        raise unknown("divergence", divergence, dict.fromkeys((*DIVERGENCES, *soft)))
    divergences.check_temperature(temperature)
    divergences.check_beta(options.beta)
    for name, value in (("alpha, the teacher's share of the loss,", alpha), ("on_policy", options.on_policy)):
        if not 0 <= value <= 1:
            raise LabkitError(f"{name} lies in [0, 1]", value, "Give a fraction.")
    if divergence == "sequence" and alpha != 1:
        remedy = "Leave alpha at 1: who sees the teacher's text alone has no other labels."
        raise LabkitError("sequence distillation has no second term", f"alpha {alpha}", remedy)
    if divergence == "hidden-state" and alpha == 1:
        remedy = "Give alpha below 1, e.g. 0.5, so that the cross-entropy trains the head."
        raise LabkitError("hidden states alone leave the output head untrained", f"alpha {alpha}", remedy)
    for name, allowed in (("on_policy", soft), ("cache", soft), ("hidden_every", ("hidden-state",))):
        if getattr(options, name) and divergence not in allowed:
            remedy = f"Leave {name} out, or choose another divergence."
            raise LabkitError(f"{name} goes with {', '.join(allowed)}", divergence, remedy)


def _shared_vocabulary(teacher: PreTrainedModel, student: PreTrainedModel, padded: bool) -> int:
    """How many tokens both know, from the first on."""
    sizes = vocabulary(teacher), vocabulary(student)
    apart = max(sizes) - min(sizes)
    if apart == 0 or (padded and apart <= PADDING):
        return min(sizes)
    remedy = "Use models of one tokenizer."
    if apart <= PADDING:
        remedy = (
            "If both have one tokenizer and the larger is padded at the end, say Options(padded_vocabulary=True): "
            f"the first {min(sizes)} tokens are compared, and no other row of the heads is trained."
        )
    received = f"{sizes[0]} tokens in the teacher, {sizes[1]} in the student"
    raise LabkitError("teacher and student have one vocabulary", received, remedy)


def _compare(teacher: PreTrainedModel, student: PreTrainedModel) -> None:
    if teacher.device != student.device:
        received = f"teacher on {teacher.device}, student on {student.device}"
        raise LabkitError("teacher and student are on one device", received, "Move one of them.")
    sizes = [non_embedding_params(model) for model in (teacher, student)]
    if sizes[0] < sizes[1]:
        message = f"the teacher ({sizes[0]:,} non-embedding parameters) is smaller than the student ({sizes[1]:,})"
        warnings.warn(message, stacklevel=3)
