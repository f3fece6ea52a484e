"""Recovery: training a compressed model a little more, to see which abilities come back and for how many tokens.

All methods go through the one training loop, keep pruned weights at zero, and write what they cost into the lineage.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import partial
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from labkit import training
from labkit.abilities import Corpus
from labkit.divergences import forward_kl
from labkit.errors import LabkitError, unknown, warn, whole
from labkit.flops import forward_flops_per_token
from labkit.forward import Forward, asked_places
from labkit.lineage import record
from labkit.pruning import blocks, engine, ledger
from labkit.records import IGNORE

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

METHODS = ("lora", "full", "distil")
BATCH = 64
HELD_OUT = 16  # batches on which a recovery is measured
SPARSE = 0.05  # zeros of a model from which on it is one that somebody pruned
RATE, LORA_RATE = 1e-3, 5e-3  # peak learning rates up to width 64; beyond, they fall as 1/width, as on the ladder


@torch.inference_mode(False)
@torch.enable_grad()
def recover(
    model: PreTrainedModel,
    corpus: Corpus,
    method: str = "lora",
    tokens: int = 2_000_000,
    *,
    rank: int = 8,
    teacher: PreTrainedModel | None = None,
    learning_rate: float | None = None,
    seed: int = 0,
    folder: Path | str | None = None,
) -> PreTrainedModel:
    """A copy of the model, trained for about ``tokens`` tokens; recorded zeros stay zero. The one given is untouched.

    What `prune` makes zero is recorded. Of a model that was pruned elsewhere, call
    `labkit.pruning.ledger.record_masks` first: without, its zeros are trained as any weights, with a warning.

    An uncompressed model may be given too: it is the control, "uncompressed, but trained on for as long".

    Parameters
    ----------
    corpus
        What to train on: a `labkit.abilities.Corpus`, or anything with ``length`` and ``batches(batch, steps, first)``.
    method
        ``"lora"``: low-rank adapters W + 2·B·A on every matrix of the decoder blocks (Hu et al. 2021), through `peft`.
        They are dense: they are merged into W, and the mask is put back on, which can cost more than was recovered.
        ``"full"``: all weights, in float32, pruned ones held at zero.
        ``"distil"``: as full, but on KL(teacher ‖ student) of the answers instead of the answers themselves.
    rank
        Of the adapters, ≥ 1; only ``"lora"`` looks at it.
    teacher
        For ``"distil"`` the model to learn from, as a rule the uncompressed parent; others do not look at it.
    learning_rate
        Peak; by default 1e-3 (``"lora"``: 5e-3) up to width 64, falling as 1/width beyond. A training of fewer than
        165 steps of 64 rows does not reach it (`labkit.training.train`): the rate rises over 100 steps.
    seed
        Of the adapters' first values and of dropout, if the model has it; nothing else is drawn here. Data is drawn by
        the corpus, so a second run of ``"full"`` or ``"distil"`` without dropout and with another seed is the same run:
        to repeat it, give a corpus of another seed.
    folder
        Where a killed recovery resumes from, of the same model, corpus and teacher; other dropout is drawn then.

    The lineage gets tokens, flops (the teacher's included), seconds (with those that compiling the model takes, half a
    minute or more, which short recoveries are spared by ``torch.compiler.set_stance("force_eager")``), and the mean
    loss of answers in nats on rows no recovery trains on: ``loss_before_nats`` and ``loss_after_nats``; for ``"lora"``
    also ``loss_adapter_nats`` (before merging) and ``loss_merged_nats`` (merged, zeros destroyed). One that is not finite
    afterwards is None, with a warning. Held-out rows of a corpus that is not labkit's are the batches after those it
    trained on.

    Raises LabkitError for an unknown method; what is no model; a model that is quantised, compiled or offloaded, or with
    adapters that are not merged; zeros that are not those recorded; tokens or a seed that are no whole number; a rank
    below 1; a learning rate that is not above 0; fewer tokens than one batch; a corpus that gives other batches than it
    is asked for, or tokens outside the vocabulary; no teacher, or one of another vocabulary; a loss that is not finite
    before; matrices that peft cannot adapt; a folder that is a file; and whatever `labkit.training.train` raises. Warns
    of a model of `labkit.quantize`, whose grid its weights leave, and of zeros that are not recorded.
    """
    check_recover(method, tokens, rank, learning_rate)
    tokens, rank, seed = int(tokens), int(rank), blocks.check_seed(seed)
    engine.check_plain(model, "recovered")
    engine.warn_of_grid(model, method)
    if not hasattr(model.config, ledger.FIELD) and (zeros := blocks.sparsity(model)) >= SPARSE:
        warn(f"{zeros:.0%} of the weights are 0 but nothing records them, so they are trained: see record_masks of pruning.ledger")
    if method == "distil":
        _check_teacher(model, teacher)
    if folder is not None and Path(folder).is_file():
        raise LabkitError("checkpoints are kept in a folder", f"{folder}, a file", "Give another name.")
    rows = _Rows(corpus, model.get_input_embeddings().weight.shape[0])
    held_out = list(_held_out(rows, tokens))
    if folder is not None:  # shapes alone do not tell two models apart
        models = (model, teacher) if method == "distil" else (model,)
        rows.identity += "".join(engine.fingerprint(each.state_dict()) for each in models)
    new = copy.deepcopy(model)
    draws = partial(_drawn, seed, new.device)
    if learning_rate is None:
        width = model.config.get_text_config().hidden_size
        learning_rate = (LORA_RATE if method == "lora" else RATE) * min(1.0, 64 / width)
    asked = {"method": method, "learning_rate": learning_rate, "seed": seed}
    losses = {"loss_before_nats": mean_loss(new, held_out)}
    if not math.isfinite(losses["loss_before_nats"]):
        raise LabkitError("the loss of a model is finite", losses["loss_before_nats"], blocks.MAKE_FINITE)
    label = f"recover {method}"
    options = {"batch": BATCH, "learning_rate": learning_rate, "folder": folder}
    if method == "lora":
        asked["rank"] = rank
        label += f" rank {rank} seed {seed}"
        train = lambda m: draws(training.train, m, rows, tokens, label=label, **options)  # noqa: E731
        new, done, more = _lora(new, rank, seed, held_out, train)
        losses |= more
    else:
        run = {"loss": training.answers_only} if method == "full" else {"loss": _Distilled(teacher, new.device)}
        done = _in_float32(new, lambda m: draws(training.train, m, rows, tokens, label=label, **options, **run))
    flops = done.flops
    if method == "distil":
        flops += float(forward_flops_per_token(teacher, corpus.length) * done.tokens)
    for ours, theirs in zip(new.parameters(), model.parameters(), strict=True):
        ours.requires_grad_(theirs.requires_grad)
    if ledger.masks_of(new):
        ledger.record_masks(new)  # going back to a narrow type can add zeros, never take any away
    losses["loss_after_nats"] = mean_loss(new, held_out)
    if overflown := [name for name, loss in losses.items() if not math.isfinite(loss)]:
        warn(f"not finite in {new.dtype}: {', '.join(overflown)}")
        losses |= dict.fromkeys(overflown)
    record(new, "recover", **asked, tokens=done.tokens, flops=flops, seconds=done.seconds, **losses)
    blocks.follow_modes(new, model)
    return new


def check_recover(
    method: str = "lora", tokens: int = 2_000_000, rank: int = 8, learning_rate: float | None = None
) -> None:
    """Raise the LabkitError that `recover` would raise for these, before any model is loaded."""
    if method not in METHODS:
        raise unknown("method of recovery", method, METHODS)
    if whole("the number of tokens", tokens, 2_000_000) < BATCH:
        raise LabkitError(f"a recovery takes at least one batch of {BATCH} rows", tokens, "Raise tokens.")
    if method == "lora" and whole("the rank of an adapter", rank, 8) < 1:
        raise LabkitError("the rank of an adapter is 1 or more", rank, "Give e.g. rank=8.")
    number = isinstance(learning_rate, Real) and not isinstance(learning_rate, bool)
    if learning_rate is not None and not (number and 0 < learning_rate < math.inf):
        raise LabkitError("a learning rate is a number above 0", learning_rate, f"Leave it out, or give e.g. {RATE}.")


@torch.no_grad()
def mean_loss(model: PreTrainedModel, batches: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Mean cross-entropy, in nats, over all answers of (tokens, labels) batches, without autocast.

    Raises LabkitError if there are none.
    """
    device, total, count = next(model.parameters()).device, 0.0, 0
    with blocks.evaluating(model):
        for tokens, labels in batches:
            tokens, labels = (torch.from_numpy(x).to(device) for x in (tokens, labels))
            logits = model(input_ids=tokens, use_cache=False).logits
            total += F.cross_entropy(logits[labels != IGNORE].float(), labels[labels != IGNORE], reduction="sum").item()
            count += int((labels != IGNORE).sum())
    if not count:
        raise LabkitError("rows ask for something", f"{len(batches)} batches without a label", "Label some places.")
    return total / count


@dataclasses.dataclass
class _Rows:
    """A corpus whose batches are looked at before they are used."""

    corpus: Corpus = dataclasses.field(repr=False)
    vocabulary: int = dataclasses.field(repr=False)
    identity: str = ""  # what a checkpoint is recognised by

    def __post_init__(self) -> None:
        if not (hasattr(self.corpus, "length") and hasattr(self.corpus, "batches")):
            remedy = "Give labkit.corpus(), or an object with length and batches(batch, steps, first)."
            raise LabkitError("a corpus has a length and gives batches", type(self.corpus).__name__, remedy)
        self.identity = repr(self.corpus)

    @property
    def length(self) -> int:
        return self.corpus.length

    def batches(self, batch: int, steps: int, first: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """As of a corpus. Raises LabkitError for batches of another shape, fewer of them, or tokens that are unknown."""
        given = first
        for given, (tokens, labels) in enumerate(self.corpus.batches(batch, steps, first), start=first + 1):
            if not tokens.shape == labels.shape == (batch, self.length):
                received = f"tokens {tokens.shape} and labels {labels.shape} at step {given - 1}"
                raise LabkitError(f"batches of a corpus are {(batch, self.length)}", received, "Give whole batches.")
            low, high = int(tokens.min()), int(max(tokens.max(), labels.max()))
            if low < 0 or high >= self.vocabulary:
                received = f"tokens {low}..{high} at step {given - 1}"
                rule = f"tokens and labels lie in the model's vocabulary, 0..{self.vocabulary - 1}"
                raise LabkitError(rule, received, "Use a corpus made for the model.")
            yield tokens, labels
        if given != steps:
            remedy = f"Ask for fewer tokens: those held out are {HELD_OUT} batches more."
            raise LabkitError("a corpus gives as many batches as it is asked for", f"{given} of {steps}", remedy)


def _held_out(rows: _Rows, tokens: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches no recovery trains on. Of our own corpus: a stream apart, late, with all abilities."""
    if isinstance(rows.corpus, Corpus):
        apart = dataclasses.replace(rows.corpus, seed=rows.corpus.seed + 2_000_000)  # + 1_000_000 is calibration
        return _Rows(apart, rows.vocabulary).batches(BATCH, 100 * HELD_OUT, 99 * HELD_OUT)
    trained = max(tokens // (BATCH * rows.length), 1)
    return rows.batches(BATCH, trained + HELD_OUT, trained)


def _check_teacher(model: PreTrainedModel, teacher: PreTrainedModel | None) -> None:
    if teacher is None:
        raise LabkitError("distillation needs a teacher", None, "Give teacher=, as a rule the uncompressed parent.")
    blocks.check_model(teacher)
    mine, its = (m.config.get_text_config().vocab_size for m in (model, teacher))
    if mine != its:
        received = f"a student with {mine} tokens and a teacher with {its}"
        raise LabkitError("student and teacher share a vocabulary", received, "Distil from the model's own parent.")


class _Distilled:
    """The loss KL(teacher ‖ student), in nats, mean over the answers. The teacher is copied if it is elsewhere."""

    def __init__(self, teacher: PreTrainedModel, device: torch.device) -> None:
        same = next(teacher.parameters()).device == device and not teacher.training
        self.teacher = Forward(teacher if same else copy.deepcopy(teacher).to(device).eval())

    def __call__(self, student: Forward, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        places = asked_places(labels)
        with torch.no_grad():
            target = self.teacher.logits_at(tokens, places)
        return forward_kl(student.logits_at(tokens, places), target).mean()


def _in_float32(model: PreTrainedModel, train: Callable[..., training.Training]) -> training.Training:
    """Train all weights in float32: steps of Adam are smaller than what half precision can add. In place."""
    dtypes = {parameter: parameter.dtype for parameter in model.parameters()}
    for parameter in dtypes:
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    done = train(model)
    for parameter, dtype in dtypes.items():
        parameter.data = parameter.data.to(dtype)
        parameter.grad = None
    return done


def _drawn(seed: int, device: torch.device, function: Callable[..., Any], *given: object, **how: object) -> Any:
    """What the function returns, with all that it draws on the CPU and the device drawn by the seed. The generators of
    PyTorch are left where they were, and other GPUs' are not touched.
    """
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators += torch.cuda.default_generators[device.index : device.index + 1]
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        return function(*given, **how)
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


# -- low-rank adapters --------------------------------------------------------------------------------------------------


def _lora(
    model: PreTrainedModel, rank: int, seed: int, rows: list, train: Callable[..., training.Training]
) -> tuple[PreTrainedModel, training.Training, dict[str, float]]:
    """The model with trained adapters merged under its mask, what training cost, and the loss on the way."""
    masks = ledger.masks_of(model)
    adapted = _adapted(model, rank, seed)
    done = train(adapted)
    losses = {"loss_adapter_nats": mean_loss(adapted, rows)}
    merged = adapted.merge_and_unload()
    losses["loss_merged_nats"] = mean_loss(merged, rows)
    weights = blocks.matrices(merged)
    for name, keep in masks.items():
        weights[name].weight.masked_fill_(~keep, 0)
    return merged, done, losses


def _adapted(model: PreTrainedModel, rank: int, seed: int) -> PeftModel:
    """The model, in place, with an adapter beside every matrix of its blocks, scaled by 2; all else is frozen."""
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    found = blocks.matrices(model).values()
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        target_modules=[m.name for m in found if m.expert is None],
        target_parameters=sorted({m.key for m in found if m.expert is not None}) or None,
        fan_in_fan_out=any(isinstance(m.module, Conv1D) for m in found),
    )
    try:
        return _drawn(seed, torch.device("cpu"), get_peft_model, model, config)  # there, whatever the model is on
    except (ValueError, RuntimeError) as error:
        remedy = "Use method='full' or method='distil'."
        received = f"{type(model).__name__} ({error})"
        raise LabkitError("peft can adapt every matrix of the blocks", received, remedy) from error
