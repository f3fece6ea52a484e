"""Divergences against hand-computed values, loops in NumPy, TRL's stored values, and autograd on the whole matrix."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit import divergences
from labkit.divergences import Head, chunked, chunked_mean, forward_kl, generalized_jsd, reverse_kl
from labkit.errors import LabkitError
from labkit.records import IGNORE

ORACLE = json.loads((Path(__file__).parent / "data" / "trl-generalized-jsd.json").read_text())
EVERY = [
    forward_kl,
    reverse_kl,
    generalized_jsd,
    functools.partial(generalized_jsd, beta=0.1, temperature=3.0),
    functools.partial(forward_kl, temperature=0.5),
]


def logits(*shape: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_hand(student: torch.Tensor, teacher: torch.Tensor, beta: float, temperature: float) -> np.ndarray:
    """Definition (Agarwal et al. 2023, equation 1), in float64, from probabilities."""
    s, t = (scipy.special.softmax(x.double().numpy() / temperature, axis=-1) for x in (student, teacher))
    kl = lambda p, q: (p * np.log(p / q)).sum(-1)  # noqa: E731
    m = beta * t + (1 - beta) * s
    value = {0: kl(t, s), 1: kl(s, t)}.get(beta, beta * kl(t, m) + (1 - beta) * kl(s, m))
    return temperature**2 * value


# -- values -----------------------------------------------------------------------------------------------------------


def test_two_outcomes_by_hand():
    """t = (¾, ¼) and s = (½, ½): KL(t‖s) = ¾ ln 3/2 + ¼ ln ½, KL(s‖t) = ½ ln 2/3 + ½ ln 2, m = (⅝, ⅜)."""
    student, teacher = torch.zeros(1, 2), torch.tensor([[0.75, 0.25]]).log()
    ln = np.log
    assert forward_kl(student, teacher).item() == pytest.approx(0.75 * ln(1.5) + 0.25 * ln(0.5), abs=1e-6)
    assert reverse_kl(student, teacher).item() == pytest.approx(0.5 * ln(2 / 3) + 0.5 * ln(2), abs=1e-6)
    expected = 0.5 * (0.75 * ln(6 / 5) + 0.25 * ln(2 / 3)) + 0.5 * (0.5 * ln(4 / 5) + 0.5 * ln(4 / 3))
    assert generalized_jsd(student, teacher).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 7.0])
@pytest.mark.parametrize("beta", [0, 0.1, 0.5, 0.9, 1])
def test_values_are_those_of_the_definition(beta, temperature):
    student, teacher = logits(2, 5, 11), logits(2, 5, 11, seed=1)
    ours = generalized_jsd(student, teacher, beta=beta, temperature=temperature)
    np.testing.assert_allclose(
        ours, by_hand(student, teacher, beta, temperature).ravel(), rtol=2e-5, atol=3e-7 * temperature**2
    )


@pytest.mark.parametrize("case", ORACLE["cases"], ids=lambda case: f"beta={case['beta']},T={case['temperature']}")
def test_trl_agrees(case):
    """TRL leaves the factor T² to its caller. Its value is a sum over tokens, divided by their number."""
    student, teacher = (torch.tensor(ORACLE[name]) for name in ("student", "teacher"))
    labels = torch.tensor(ORACLE["labels"])
    ours = generalized_jsd(student, teacher, labels, beta=case["beta"], temperature=case["temperature"])
    assert ours.mean().item() / case["temperature"] ** 2 == pytest.approx(case["value"], rel=1e-5)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 99), beta=st.floats(0.01, 0.99), temperature=st.floats(0.25, 8))
def test_never_negative_zero_for_equals_and_symmetric_about_one_half(seed, beta, temperature):
    options = {"beta": beta, "temperature": temperature}
    a, b = logits(4, 9, seed=seed), logits(4, 9, seed=seed + 100)
    assert (generalized_jsd(a, b, **options) > -1e-4).all()
    torch.testing.assert_close(generalized_jsd(a, a, **options), torch.zeros(4), rtol=0, atol=2e-5 * temperature**2)
    mirrored = generalized_jsd(b, a, beta=1 - beta, temperature=temperature)
    torch.testing.assert_close(generalized_jsd(a, b, **options), mirrored, rtol=1e-3, atol=1e-4)


def test_near_its_ends_the_jsd_is_beta_times_the_kl():
    student, teacher, beta = logits(3, 7).double(), logits(3, 7, seed=1).double(), 1e-3
    near = generalized_jsd(student, teacher, beta=beta) / beta
    torch.testing.assert_close(near, forward_kl(student, teacher), rtol=0.1, atol=0)


def test_the_factor_keeps_the_size_of_gradients_at_high_temperature():
    """Hinton 2015: for large T the soft gradient tends to that of ½·Σ(z_s − z_t)²/V about the means, whatever T."""
    student, teacher = logits(1, 6).requires_grad_(), logits(1, 6, seed=1)
    (gradient,) = torch.autograd.grad(forward_kl(student, teacher, temperature=1000.0).sum(), student)
    centred = lambda x: x - x.mean(-1, keepdim=True)  # noqa: E731
    torch.testing.assert_close(gradient, centred(student) / 6 - centred(teacher) / 6, rtol=0.02, atol=1e-3)


# -- places -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("divergence", EVERY)
def test_unlabelled_places_never_count_even_if_not_finite(divergence):
    student, teacher = logits(2, 6, 11), logits(2, 6, 11, seed=1)
    labels = torch.tensor([[IGNORE, IGNORE, 3, 4, 0, IGNORE], [IGNORE, 5, IGNORE, 6, IGNORE, IGNORE]])
    asked = labels != IGNORE
    expected = torch.stack([divergence(s, t)[0] for s, t in zip(student[asked][:, None], teacher[asked][:, None])])
    student[~asked], teacher[~asked] = float("nan"), float("inf")
    student.requires_grad_()
    values = divergence(student, teacher, labels)
    torch.testing.assert_close(values, expected)
    values.sum().backward()
    assert (student.grad[~asked] == 0).all() and student.grad[asked].isfinite().all()


def test_the_teacher_gets_no_gradient():
    student, teacher = logits(3, 7).requires_grad_(), logits(3, 7, seed=1).requires_grad_()
    generalized_jsd(student, teacher).sum().backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


# -- chunks -----------------------------------------------------------------------------------------------------------


def heads(positions: int = 23, vocab: int = 31) -> tuple[Head, Head, torch.Tensor]:
    student = Head(logits(positions, 8, scale=0.7), logits(vocab, 8, seed=1, scale=0.7), logits(vocab, seed=2, scale=1))
    teacher = Head(logits(positions, 5, seed=3, scale=1), logits(vocab, 5, seed=4, scale=1))
    labels = torch.randint(vocab, (positions,), generator=torch.Generator().manual_seed(5))
    labels[::3] = IGNORE
    return Head(*(x.requires_grad_() for x in student)), teacher, labels


@pytest.mark.parametrize("chunk", [1, 7, 10_000, None])
@pytest.mark.parametrize("divergence", EVERY)
def test_chunks_change_neither_value_nor_gradient(divergence, chunk):
    student, teacher, labels = heads()
    whole = divergence(
        student.hidden @ student.weight.T + student.bias, teacher.hidden @ teacher.weight.T, labels
    ).mean()
    expected = torch.autograd.grad(2.5 * whole, student)
    value = chunked(divergence, student, teacher, labels, chunk=chunk)
    torch.testing.assert_close(value, whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(2.5 * value, student), expected, rtol=1e-4, atol=1e-6)


def test_only_what_needs_a_gradient_gets_one():
    student, teacher, _ = heads()
    frozen = student._replace(weight=student.weight.detach(), bias=None)
    (only,) = torch.autograd.grad(chunked(forward_kl, frozen, teacher, chunk=4), frozen.hidden)
    (expected,) = torch.autograd.grad(
        forward_kl(frozen.hidden @ frozen.weight.T, teacher.hidden @ teacher.weight.T).mean(), frozen.hidden
    )
    torch.testing.assert_close(only, expected, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        assert not chunked(forward_kl, student, teacher, chunk=4).requires_grad


def test_never_more_than_a_chunk_of_logits(monkeypatch):
    """With a vocabulary of 150,000, the logits that exist at once are those of a chunk, whatever the positions."""
    student, teacher = (Head(logits(16, 4, seed=s, scale=1), logits(150_000, 4, seed=s + 1, scale=1)) for s in (0, 2))
    monkeypatch.setattr(divergences, "CHUNK_LOGITS", 1_000_000)
    seen = []

    def watched(s, t):
        seen.append(s.numel())
        assert s.shape == t.shape
        return forward_kl(s, t)

    value = chunked(watched, student, teacher)
    assert max(seen) <= divergences.CHUNK_LOGITS and sum(seen) == 16 * 150_000
    exact = by_hand(student.hidden @ student.weight.T, teacher.hidden @ teacher.weight.T, 0, 1.0).mean()
    assert value.item() == pytest.approx(exact, rel=1e-4)


def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient():
    student, _, labels = heads()
    for divergence in EVERY:
        value = chunked(divergence, student, Head(*student), labels, chunk=6)
        assert abs(value.item()) < 1e-6
        for gradient in torch.autograd.grad(value, student):
            assert gradient.abs().max() < 1e-5


def test_no_labelled_position_is_no_loss():
    student, teacher, labels = heads()
    value = chunked(forward_kl, student, teacher, torch.full_like(labels, IGNORE))
    assert value.item() == 0
    assert torch.autograd.grad(value, student.weight)[0].abs().sum() == 0


def test_any_loss_per_token_can_be_averaged_in_chunks():
    student, _, _ = heads()
    answers = torch.arange(23)
    cross_entropy = functools.partial(torch.nn.functional.cross_entropy, reduction="none")
    value = chunked_mean(cross_entropy, student, answers, chunk=5)
    whole = torch.nn.functional.cross_entropy(student.hidden @ student.weight.T + student.bias, answers)
    torch.testing.assert_close(value, whole)
    torch.testing.assert_close(
        torch.autograd.grad(value, student), torch.autograd.grad(whole, student), rtol=1e-4, atol=1e-6
    )


def test_half_precision_heads():
    student, teacher, labels = heads()
    small = [
        Head(*(x if x is None else x.detach().bfloat16().requires_grad_() for x in head)) for head in (student, teacher)
    ]
    value = chunked(forward_kl, small[0], small[1], labels, chunk=4)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, chunked(forward_kl, student, teacher, labels), rtol=0.05, atol=0)
    assert [g.dtype for g in torch.autograd.grad(value, small[0])] == [torch.bfloat16] * 3


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("divergence", [forward_kl, reverse_kl, generalized_jsd])
def test_a_temperature_is_positive(divergence, temperature):
    rule = rf"a temperature is positive and finite; got {temperature}\. Give e\.g\. 1\.0"
    with pytest.raises(LabkitError, match=rule):
        divergence(logits(1, 3), logits(1, 3), temperature=temperature)


@pytest.mark.parametrize("beta", [-0.01, 1.01, float("nan")])
def test_beta_is_a_share(beta):
    with pytest.raises(LabkitError, match=rf"lies in \[0, 1\]; got {beta}\. Give e\.g\. 0\.5\."):
        generalized_jsd(logits(1, 3), logits(1, 3), beta=beta)


def test_vocabularies_of_different_size_are_refused():
    with pytest.raises(LabkitError, match=r"same shape; got 'student \(1, 3\), teacher \(1, 4\)'\. Use models of"):
        forward_kl(logits(1, 3), logits(1, 4))


def test_logits_of_one_place_want_a_dimension_of_places():
    with pytest.raises(LabkitError, match=r"logits are \(…, vocab\), .* got \(3,\)\. Give logits\[None\]"):
        forward_kl(logits(3), logits(3))
