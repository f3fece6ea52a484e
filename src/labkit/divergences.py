"""How far a student's next-token distribution is from its teacher's: one number per token, or a mean in chunks.

Every divergence has the form ``(student, teacher, labels=None, *, temperature=1.0) -> values``:

- ``student``, ``teacher`` (…, vocab): finite logits, unscaled; the teacher gets no gradient,
- ``labels`` (…): where given, only places whose label is not `IGNORE` are looked at, in their order,
- ``values`` (places,) float32, in nats, 0..∞, times temperature² so that gradients keep their size (Hinton 2015).

`chunked` is their mean without ever holding logits of all positions, for either model.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from labkit.errors import LabkitError
from labkit.records import IGNORE

CHUNK_LOGITS = 2**22
"""Logits of one model held at once: 16 MiB in float32, 27 positions at a vocabulary of 150,000. More is no faster."""


def forward_kl(student: Tensor, teacher: Tensor, labels: Tensor | None = None, *, temperature: float = 1.0) -> Tensor:
    """KL(t ‖ s) = Σ_v t·(ln t − ln s): the student must cover all that the teacher finds likely."""
    return _between(student, teacher, labels, 0.0, temperature)


def reverse_kl(student: Tensor, teacher: Tensor, labels: Tensor | None = None, *, temperature: float = 1.0) -> Tensor:
    """KL(s ‖ t): the student must avoid all that the teacher finds unlikely (Gu et al. 2023)."""
    return _between(student, teacher, labels, 1.0, temperature)


def generalized_jsd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None = None,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
) -> Tensor:
    """β·KL(t ‖ m) + (1 − β)·KL(s ‖ m) with m = β·t + (1 − β)·s, for β in (0, 1); symmetric at ½.

    β = 0 and β = 1 stand for the forward and the reverse KL, as in the literature. The scale jumps there: near the
    ends the divergence tends to β·KL(t ‖ s) and to (1 − β)·KL(s ‖ t), which vanish. Source: Agarwal et al. 2023 (GKD),
    equation 1.
    Raises LabkitError for β outside [0, 1].
    """
    check_beta(beta)
    return _between(student, teacher, labels, beta, temperature)


class Head(NamedTuple):
    """Logits that are not multiplied out yet: hidden (positions, width) · weight (vocab, width)ᵀ + bias (vocab,)."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None


def chunked(
    divergence: Callable[[Tensor, Tensor], Tensor],
    student: Head,
    teacher: Head,
    labels: Tensor | None = None,
    *,
    chunk: int | None = None,
) -> Tensor:
    """Mean of a divergence over the labelled positions (all, without ``labels`` (positions,)); 0 where there is none.

    ``divergence`` is one of this module, with its temperature bound by `functools.partial`. The gradient reaches the
    student's hidden states, weight and bias. ``chunk`` positions are worked on at once (see `CHUNK_LOGITS`): it
    changes memory, never the value beyond rounding.
    """
    hidden = teacher.hidden.detach()
    if labels is not None:
        asked = labels != IGNORE
        student, hidden = student._replace(hidden=student.hidden[asked]), hidden[asked]

    def loss(logits: Tensor, hidden: Tensor) -> Tensor:
        with torch.no_grad():
            target = F.linear(hidden, teacher.weight, teacher.bias)
        return divergence(logits, target)

    return chunked_mean(loss, student, hidden, chunk=chunk)


def chunked_mean(
    token_loss: Callable[..., Tensor], student: Head, *targets: Tensor, chunk: int | None = None
) -> Tensor:
    """Mean over all positions of ``token_loss(logits (n, vocab), *targets[n places]) -> (n,)``, n positions at a time.

    The gradient by the logits is taken chunk by chunk during the forward pass, and kept only as what it means for the
    hidden states and the weight. A second pass over the chunks, as in checkpointing, is not needed.
    """
    return _ChunkedMean.apply(token_loss, chunk or _positions(student.weight), *student, *targets)


class _ChunkedMean(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        token_loss: Callable,
        chunk: int,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *targets: Tensor,
    ) -> Tensor:
        wanted = ctx.needs_input_grad[2:5]
        grads = [torch.zeros_like(x) if want else None for x, want in zip((hidden, weight, bias), wanted, strict=True)]
        total = torch.zeros((), device=hidden.device)
        count = max(len(hidden), 1)
        for begin in range(0, len(hidden), chunk):
            part = slice(begin, begin + chunk)
            logits = F.linear(hidden[part], weight, bias).requires_grad_(any(wanted))
            with torch.set_grad_enabled(any(wanted)):
                loss = token_loss(logits, *(x[part] for x in targets)).sum() / count
            total += loss.detach()
            if any(wanted):
                (by_logits,) = torch.autograd.grad(loss, logits)
                _add_gradients(grads, part, by_logits, hidden[part], weight)
        ctx.save_for_backward(*(g for g in grads if g is not None))
        ctx.wanted = wanted
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple:
        saved = iter(ctx.saved_tensors)
        grads = [next(saved) * upstream if want else None for want in ctx.wanted]
        return None, None, *grads, *[None] * (len(ctx.needs_input_grad) - 5)


def _add_gradients(grads: list[Tensor | None], part: slice, by_logits: Tensor, hidden: Tensor, weight: Tensor) -> None:
    """Chain rule through logits = hidden·weightᵀ + bias, for one chunk; added in place."""
    by_hidden, by_weight, by_bias = grads
    if by_hidden is not None:
        by_hidden[part] = by_logits @ weight.to(by_logits.dtype)
    if by_weight is not None:
        if by_weight.dtype == by_logits.dtype == hidden.dtype:
            by_weight.addmm_(by_logits.T, hidden)  # without a second tensor of the weight's size
        else:
            by_weight += by_logits.T @ hidden.to(by_logits.dtype)
    if by_bias is not None:
        by_bias += by_logits.sum(0)


def _positions(weight: Tensor) -> int:
    return max(1, CHUNK_LOGITS // len(weight))


def check_temperature(temperature: float) -> None:
    """Raise LabkitError unless 0 < temperature < ∞."""
    if not 0 < temperature < math.inf:
        raise LabkitError(
            "a temperature is positive and finite", temperature, "Give e.g. 1.0, or 2.0 for softer targets."
        )


def check_beta(beta: float) -> None:
    """Raise LabkitError unless 0 ≤ β ≤ 1."""
    if not 0 <= beta <= 1:
        raise LabkitError("beta, the teacher's share of the mixture, lies in [0, 1]", beta, "Give e.g. 0.5.")


def _between(student: Tensor, teacher: Tensor, labels: Tensor | None, beta: float, temperature: float) -> Tensor:
    check_temperature(temperature)
    if student.shape != teacher.shape:
        received = f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}"
        raise LabkitError(
            "student and teacher have logits of the same shape", received, "Use models of one vocabulary."
        )
    if student.ndim < 2:
        remedy = "Give logits[None] for a single place."
        raise LabkitError("logits are (…, vocab), with at least one dimension of places", tuple(student.shape), remedy)
    if labels is not None:
        # Selected before the softmax: what stands at unlabelled places must not matter, even if it is not finite.
        student, teacher = student[labels != IGNORE], teacher[labels != IGNORE]
    return _Divergence.apply(student.flatten(0, -2), teacher.flatten(0, -2).detach(), beta, temperature)


class _Divergence(torch.autograd.Function):
    """Value and gradient in one go, from the same two softmaxes: a third of the memory traffic of autograd's own way.

    With u = logits / T: ∂KL(t‖s)/∂u = s − t, ∂KL(s‖t)/∂u = s·(ln s − ln t − KL(s‖t)), and
    ∂JSD/∂u = (1 − β)·s·(ln s − ln m − KL(s‖m)).
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, beta: float, temperature: float) -> Tensor:
        ln_s, ln_t = (_log_softmax(x, temperature) for x in (student, teacher))
        values, gradient = {0: _forward_kl, 1: _reverse_kl}.get(beta, functools.partial(_jsd, beta))(ln_s, ln_t)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(gradient.mul_(temperature).to(student.dtype))
        return values * temperature**2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[:, None].to(gradient.dtype), None, None, None


# Each: ln s, ln t (places, vocab), which it may overwrite -> values (places,), gradient (places, vocab).


def _forward_kl(ln_s: Tensor, ln_t: Tensor) -> tuple[Tensor, Tensor]:
    t = ln_t.exp()
    values = _dot(t, ln_t.sub_(ln_s))
    return values, ln_s.exp_().sub_(t)


def _reverse_kl(ln_s: Tensor, ln_t: Tensor) -> tuple[Tensor, Tensor]:
    s, apart = ln_s.exp(), ln_s.sub_(ln_t)
    values = _dot(s, apart)
    return values, apart.sub_(values[:, None]).mul_(s)


def _jsd(beta: float, ln_s: Tensor, ln_t: Tensor) -> tuple[Tensor, Tensor]:
    s, t = ln_s.exp(), ln_t.exp()
    ln_m = (s * (1 - beta)).add_(t, alpha=beta)  # probabilities are mixed, not their logarithms
    ln_m.clamp_min_(torch.finfo(ln_m.dtype).tiny).log_()  # where both are nil, nothing is added: not 0 · ∞
    of_t, apart = _dot(t, ln_t.sub_(ln_m)), ln_s.sub_(ln_m)
    of_s = _dot(s, apart)
    return beta * of_t + (1 - beta) * of_s, apart.sub_(of_s[:, None]).mul_(s).mul_(1 - beta)


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    """float32, in memory of its own."""
    return (logits.float() if temperature == 1 else logits.float() / temperature).log_softmax(-1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(places, vocab) twice -> (places,): the sum of products, without holding the products."""
    return torch.linalg.vecdot(a, b)
