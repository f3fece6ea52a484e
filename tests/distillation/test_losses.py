"""Losses against their definitions, written with whole logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from labkit import forward
from labkit.abilities import Corpus, abilities
from labkit.distillation import losses
from labkit.distillation.bodies import Body
from labkit.distillation.losses import HiddenLoss, SequenceLoss, SoftLoss, Stream, layer_pairs, on_policy_steps
from labkit.distillation.sampling import sample_answers
from labkit.divergences import forward_kl
from labkit.errors import LabkitError
from labkit.ladder import Rung
from labkit.records import IGNORE

CORPUS = Corpus(abilities("recall", "addition", "repeat"), seed=0, length=24)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(forward, "compiled", lambda module: module)


@pytest.fixture
def parts():
    return Body(Rung(32, 2).build(seed=1).eval(), 168), Body(Rung(16, 2).build(seed=2), 168), Stream("", CORPUS, 168, 0)


def first(stream):
    return tuple(torch.from_numpy(x) for x in next(iter(stream.batches(6, 40))))


def whole(body, tokens, labels):
    """Logits (places, vocab) at the labelled places."""
    return body.model(tokens).logits[labels != IGNORE]


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_soft_and_hard_labels_are_mixed_by_alpha(parts, alpha):
    teacher, student, stream = parts
    tokens, labels = first(stream)
    value = SoftLoss(*parts, forward_kl, alpha)(None, tokens, labels)
    s, t = (whole(body, tokens, labels) for body in (student, teacher))
    expected = alpha * forward_kl(s, t).mean() + (1 - alpha) * F.cross_entropy(s, labels[labels != IGNORE])
    torch.testing.assert_close(value, expected)
    gradients = [torch.autograd.grad(x, student.model.parameters()) for x in (value, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)
    assert all(p.grad is None for p in teacher.model.parameters())


def test_on_policy_both_look_at_what_the_student_wrote(parts, monkeypatch):
    teacher, student, stream = parts
    given, written = first(stream), []

    def watched(*args, **options):
        written.append((args, sample_answers(*args, **options)))
        return written[-1][1]

    monkeypatch.setattr(losses, "sample_answers", watched)
    value = SoftLoss(*parts, forward_kl, 0.3, on_policy=1.0)(None, *given)
    ((model, *rows), (tokens, labels)) = written[0]
    assert model is student.model and torch.equal(rows[0], given[0])
    assert not torch.equal(tokens, given[0])
    s, t = (whole(body, tokens, labels) for body in (student, teacher))
    torch.testing.assert_close(value, forward_kl(s, t).mean())  # α counts as 1: the corpus' labels no longer fit


def test_the_steps_that_are_on_policy():
    steps = np.arange(4000)
    chosen = on_policy_steps(0.3, 0, steps)
    assert chosen.mean() == pytest.approx(0.3, abs=0.03)
    assert (chosen[1000:1010] == on_policy_steps(0.3, 0, steps[1000:1010])).all()
    assert not on_policy_steps(0.0, 0, steps).any() and on_policy_steps(1.0, 0, steps).all()
    assert (chosen <= on_policy_steps(0.6, 0, steps)).all() and (chosen != on_policy_steps(0.3, 1, steps)).any()


def test_padding_and_prompts_never_count(parts):
    teacher, student, stream = parts
    tokens, labels = first(stream)
    padded = F.pad(tokens, (0, 5)), F.pad(labels, (0, 5), value=IGNORE)
    for loss in (SoftLoss(*parts, forward_kl, 0.5), hidden(parts)):
        torch.testing.assert_close(loss(None, *padded), loss(None, tokens, labels))
    nothing = torch.full_like(labels, IGNORE)
    for loss in (SoftLoss(*parts, forward_kl, 0.5), hidden(parts)):
        assert loss(None, tokens, nothing).item() == 0


def hidden(parts, alpha=0.4):
    losses.add_projections(parts[1].model, (16, 32), 1, seed=0)
    return HiddenLoss(*parts, alpha, ((2, 2),))


def test_hidden_states_are_compared_after_a_learned_projection(parts):
    teacher, student, stream = parts
    loss = hidden(parts)
    tokens, labels = first(stream)
    value = loss(None, tokens, labels)
    asked = labels != IGNORE
    projection = student.model.distillation_projections[0]
    ours, theirs = (b.model(tokens, output_hidden_states=True).hidden_states[2][asked] for b in (student, teacher))
    hard = F.cross_entropy(whole(student, tokens, labels), labels[asked])
    torch.testing.assert_close(value, 0.4 * F.mse_loss(projection(ours), theirs) + 0.6 * hard)
    value.backward()
    assert projection.weight.grad.abs().sum() > 0 and projection.weight in set(student.model.parameters())


@pytest.mark.parametrize(
    ("student", "teacher", "every", "pairs"),
    [
        (2, 4, None, ((1, 2), (2, 4))),
        (4, 4, None, ((1, 1), (2, 2), (3, 3), (4, 4))),
        (4, 12, 6, ((2, 6), (4, 12))),
        (4, 2, None, ((2, 1), (4, 2))),
        (1, 3, None, ((1, 3),)),
    ],
)
def test_every_kth_layer_of_the_teacher(student, teacher, every, pairs):
    assert layer_pairs(student, teacher, every) == pairs


@pytest.mark.parametrize("every", [0, 1, 5])
def test_more_teacher_layers_than_the_student_has(every):
    with pytest.raises(
        LabkitError, match=rf"4 teacher layers .* 2 student layers; got 'k = {every}'\. Give a k from 2 to 4"
    ):
        layer_pairs(2, 4, every)


def test_a_sequence_loss_trains_on_the_teachers_text_alone(parts):
    """The batch holds the teacher's answers; the loss is their cross-entropy and asks the teacher nothing more."""
    teacher, student, stream = parts
    loss = SequenceLoss(*parts, 1.0)
    tokens, labels = first(stream)
    given = tuple(torch.from_numpy(x) for x in next(iter(CORPUS.batches(6, 40))))
    assert torch.equal(labels == IGNORE, given[1] == IGNORE) and not torch.equal(labels, given[1])
    teacher.model.lm_head.weight.data.fill_(float("nan"))
    torch.testing.assert_close(
        loss(None, tokens, labels), F.cross_entropy(whole(student, tokens, labels), labels[labels != IGNORE])
    )


@pytest.mark.parametrize("begin", [1, 16, 37])
def test_a_resumed_stream_brings_the_same_rows(parts, begin):
    stream = parts[2]
    SequenceLoss(*parts, 1.0)
    all_of_it = list(stream.batches(2, 40))
    steps = []
    for (tokens, labels), expected in zip(stream.batches(2, 40, begin), all_of_it[begin:], strict=True):
        steps.append(stream.step)
        assert (tokens == expected[0]).all() and (labels == expected[1]).all()
    assert steps == list(range(begin, 40))


def test_a_plain_stream_is_the_corpus():
    stream = Stream("", CORPUS, 168, 0)
    for ours, theirs in zip(stream.batches(3, 9, 2), CORPUS.batches(3, 9, 2), strict=True):
        assert all((a == b).all() for a, b in zip(ours, theirs, strict=True))
    assert stream.step == 8 and stream.length == 24


def test_a_token_outside_the_vocabulary_is_named():
    with pytest.raises(LabkitError, match=r"every token of the corpus; got 'token \d+ at step 0, vocabulary of 20'"):
        next(iter(Stream("", CORPUS, 20, 0).batches(2, 3)))
