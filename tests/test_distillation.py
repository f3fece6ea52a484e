"""Distillation as a whole: what must be equal, what it writes down, and what it refuses."""

from __future__ import annotations

import copy
import dataclasses
import warnings

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config

from labkit import forward, training
from labkit.abilities import Corpus, abilities
from labkit.distillation import DIVERGENCES, Options, TeacherCache, bodies, distill, losses
from labkit.divergences import forward_kl
from labkit.errors import Failure, LabkitError
from labkit.flops import forward_flops_per_token, training_flops_per_token
from labkit.ladder import Rung
from labkit.lineage import lineage

CORPUS = Corpus(abilities("recall", "repeat", "addition"), seed=0, length=24)
BATCH, STEPS = 4, 6
TOKENS = BATCH * STEPS * CORPUS.length
QUICK = Options(batch=BATCH, learning_rate=1e-2)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No compiling (it takes longer than these trainings), a look at the loss every 3 steps, a checkpoint at each."""
    monkeypatch.setattr(forward, "compiled", lambda module: module)
    monkeypatch.setattr(training, "LOG_EVERY", 3)
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1)


def teacher():
    return Rung(32, 2).build(seed=1).eval()


def student():
    return Rung(16, 2).build(seed=2)


def run(divergence="forward-kl", a=None, b=None, tokens=TOKENS, options=QUICK, **more):
    more = {"alpha": 0.5, **more} if divergence == "hidden-state" else more
    return distill(a or teacher(), b or student(), CORPUS, divergence, tokens, options=options, **more)


def changed(**options):
    return dataclasses.replace(QUICK, **options)


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def close(a, b, atol: float = 1e-6) -> None:
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=atol, msg=name)


# -- what must be equal -----------------------------------------------------------------------------------------------


def test_it_is_the_training_loop_with_the_divergence_as_its_loss():
    """The same weights, up to rounding, as `train` with whole logits of both models."""
    mentor, by_hand = teacher(), student()

    def loss(model, tokens, labels):
        with torch.no_grad():
            target = mentor(tokens).logits
        return forward_kl(model(tokens).logits, target, labels, temperature=2.0).mean()

    training.train(by_hand, CORPUS, TOKENS, batch=BATCH, learning_rate=1e-2, loss=loss)
    close(run(temperature=2.0), by_hand, atol=2e-5)


def test_teacher_and_student_may_be_of_two_architectures():
    """GPT-2 teaches Gemma 2, whose head is tied and whose logits are capped: as with whole logits, up to rounding."""
    torch.manual_seed(3)
    wide = {"vocab_size": 168, "bos_token_id": None, "eos_token_id": None}
    mentor = AutoModelForCausalLM.from_config(GPT2Config(**wide, n_embd=16, n_layer=2, n_head=2)).eval()
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8}
    config = Gemma2Config(**wide, **sizes, num_key_value_heads=1, pad_token_id=0, final_logit_softcapping=2.0)
    young = AutoModelForCausalLM.from_config(config)
    by_hand = copy.deepcopy(young)

    def loss(model, tokens, labels):
        with torch.no_grad():
            target = mentor(tokens).logits
        return forward_kl(model(tokens).logits, target, labels).mean()

    training.train(by_hand, CORPUS, TOKENS, batch=BATCH, learning_rate=1e-3, loss=loss)
    close(run(a=mentor, b=young, options=changed(learning_rate=1e-3)), by_hand, atol=2e-5)


def test_on_policy_zero_is_exactly_off_policy(monkeypatch):
    plain = run("jsd")
    assert same(plain, run("jsd", options=changed(on_policy=0.0, seed=99)))

    def sampled(*_, **__):
        raise AssertionError("the student was asked to sample")

    monkeypatch.setattr(losses, "sample_answers", sampled)
    assert same(plain, run("jsd", options=changed(on_policy=0.0)))
    with pytest.raises(AssertionError, match="asked to sample"):
        run("jsd", options=changed(on_policy=1.0))


@pytest.mark.parametrize("divergence", ["forward-kl", "reverse-kl", "jsd"])
def test_a_student_equal_to_its_teacher_has_nothing_to_learn(divergence, monkeypatch):
    """Only weight decay moves it; without it, and with gradients that are rounding alone, Adam must not be asked."""
    norms = []
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *_: norms.append(gradient_norm(self)))
    twin = run(divergence, a=teacher(), b=teacher())
    assert same(twin, teacher()) and len(norms) == STEPS
    assert max(norms) < 1e-5


def gradient_norm(optimizer) -> float:
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return torch.stack([g.norm() for g in gradients]).max().item()


def test_sequence_level_sees_the_teachers_samples_alone(monkeypatch):
    """Two teachers that write the same text teach the same, whatever their logits are."""
    texts = [run("sequence"), run("sequence", options=changed(seed=5))]
    assert not same(*texts)
    stream = losses.Stream("", CORPUS, 168, 0)
    parts = bodies.Body(teacher(), 168), bodies.Body(student(), 168), stream
    losses.SequenceLoss(*parts, 1.0)
    by_hand = student()
    training.train(by_hand, stream, TOKENS, batch=BATCH, learning_rate=1e-2)
    close(texts[0], by_hand, atol=2e-5)


def test_a_cache_of_all_tokens_is_the_teacher_itself(tmp_path):
    cache = TeacherCache.make(teacher(), CORPUS, TOKENS, tmp_path, k=168, batch=BATCH)
    for divergence, temperature in (("forward-kl", 1.0), ("jsd", 2.0)):
        live = run(divergence, temperature=temperature, alpha=0.7)
        close(run(divergence, temperature=temperature, alpha=0.7, options=changed(cache=cache)), live, atol=2e-5)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_it_learns_and_leaves_teacher_and_student_as_they_were(divergence):
    mentor, young = teacher().train(), student()
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in (mentor, young)]
    new = run(divergence, a=mentor, b=young, options=changed(on_policy=0.5 * (divergence == "jsd")))
    for model, kept in zip((mentor, young), before, strict=True):
        assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items())
        assert all(p.grad is None for p in model.parameters())
    assert mentor.training and not new.training
    assert set(new.state_dict()) == set(young.state_dict())  # no projection stays behind
    assert not same(new, young) and lineage(young) == ()


@pytest.mark.parametrize("divergence", ["forward-kl", "reverse-kl", "jsd", "hidden-state"])
def test_the_student_comes_nearer_to_its_teacher(divergence):
    mentor = teacher()
    mentor.lm_head.weight.data *= 40  # a fresh teacher is nearly uniform: there would be little to learn
    tokens, labels = (torch.from_numpy(x) for x in CORPUS.rows(np.arange(10_000, 10_050)))

    def apart(model):
        with torch.no_grad():
            if divergence == "hidden-state":  # α = ½: its cross-entropy must fall
                return training.answers_only(forward.Forward(model.eval(), compile=False), tokens, labels).item()
            return forward_kl(model.eval()(tokens).logits, mentor(tokens).logits, labels).mean().item()

    new = run(divergence, a=mentor, tokens=60 * BATCH * CORPUS.length)
    assert apart(new) < 0.95 * apart(student())


@pytest.mark.parametrize(("divergence", "on_policy"), [("forward-kl", 0.5), ("sequence", 0.0), ("hidden-state", 0.0)])
def test_a_killed_distillation_resumes_and_ends_with_the_same_weights(tmp_path, monkeypatch, divergence, on_policy):
    options = changed(on_policy=on_policy)
    undisturbed = run(divergence, options=options)
    batches = losses.Stream.batches

    def cut(self, batch, steps, first=0):
        for rows in batches(self, batch, steps, first):
            if self.step == 4:
                raise KeyboardInterrupt
            yield rows

    monkeypatch.setattr(losses.Stream, "batches", cut)
    with pytest.raises(KeyboardInterrupt):
        run(divergence, options=options, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]
    monkeypatch.setattr(losses.Stream, "batches", batches)
    with pytest.raises(LabkitError, match="a checkpoint is resumed by the training it is of"):
        run(divergence, a=Rung(32, 2).build(seed=8), options=options, folder=tmp_path)
    close(run(divergence, options=options, folder=tmp_path), undisturbed)
    assert not list(tmp_path.iterdir())


# -- vocabularies and masks -------------------------------------------------------------------------------------------


def padded(model, rows: int = 24):
    """The same model with rows of padding at the end of its embeddings, whose logits would win every comparison."""
    size = model.config.vocab_size
    model.resize_token_embeddings(size + rows, mean_resizing=False)
    model.lm_head.weight.data[size:] = 50.0 * model.lm_head.weight.data[:rows].abs().max()
    return model


def test_vocabularies_that_differ_are_refused_with_both_sizes():
    rule = (
        r"one vocabulary; got '192 tokens in the teacher, 168 in the student'\. If .*padded_vocabulary=True.*first 168"
    )
    with pytest.raises(LabkitError, match=rule):
        run(a=padded(teacher()))
    with pytest.raises(LabkitError, match=r"got '168 tokens .*, 2168 in the student'\. Use models of one tokenizer\."):
        run(b=padded(student(), 2000))
    with pytest.raises(LabkitError, match="2168 in the student"):
        run(b=padded(student(), 2000), options=changed(padded_vocabulary=True))


@pytest.mark.parametrize("divergence", ["forward-kl", "sequence"])
def test_padding_rows_change_nothing_and_are_not_trained(divergence):
    options, plain = changed(padded_vocabulary=True), run(divergence)
    close(run(divergence, a=padded(teacher()), options=options), plain, atol=2e-5)
    young = padded(student())
    new = run(divergence, b=young, options=options)
    close(plain.model.layers, new.model.layers, atol=2e-5)
    torch.testing.assert_close(new.lm_head.weight[:168], plain.lm_head.weight, rtol=0, atol=2e-5)
    assert torch.equal(new.lm_head.weight[168:], young.lm_head.weight[168:])


def test_a_teacher_smaller_than_its_student_is_allowed_and_said():
    with pytest.warns(UserWarning, match=r"teacher \(\d[\d,]+ non-embedding parameters\) is smaller than the"):
        run(a=student(), b=teacher())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run()


def test_zeros_of_a_pruned_student_stay_zero():
    from labkit.pruning import prune

    young = prune(student(), "magnitude", 0.5)
    new = run(b=young)
    for (name, a), b in zip(young.named_parameters(), new.parameters(), strict=True):
        if "proj" in name:
            assert (b[a == 0] == 0).all() and (b != a).any(), name
    assert [entry["verb"] for entry in lineage(new)] == ["prune", "distill"]


# -- what it writes down ----------------------------------------------------------------------------------------------


def test_the_lineage_holds_what_was_asked_and_what_it_cost():
    options = changed(on_policy=0.5, beta=0.3, seed=4)
    mentor, new = teacher(), run("jsd", temperature=2.0, alpha=0.9, options=options)
    (entry,) = lineage(new)
    wanted = {
        "verb": "distill",
        "divergence": "jsd",
        "temperature": 2.0,
        "alpha": 0.9,
        "beta": 0.3,
        "on_policy": 0.5,
        "seed": 4,
    }
    assert entry.items() >= wanted.items()
    assert entry["teacher"] == bodies.digest(mentor) and entry["tokens"] == TOKENS and entry["cached"] is None
    assert entry["training_flops"] == TOKENS * training_flops_per_token(new, CORPUS.length)
    assert entry["teacher_flops"] == TOKENS * forward_flops_per_token(mentor, CORPUS.length)
    own = losses.on_policy_steps(0.5, 4, np.arange(STEPS)).sum()
    assert 0 < own < STEPS
    assert entry["sampling_flops"] == own * BATCH * CORPUS.length * forward_flops_per_token(new, CORPUS.length)
    assert entry["flops"] == entry["training_flops"] + entry["teacher_flops"] + entry["sampling_flops"]


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("divergence", "more", "options", "message"),
    [
        ("forward_kl", {}, {}, r"a known divergence is needed; got 'forward_kl'\. Nearest: forward-kl"),
        ("forward-kl", {"temperature": 0}, {}, r"a temperature is positive and finite; got 0\."),
        ("sequence", {"temperature": -1}, {}, r"a temperature is positive and finite; got -1\."),
        ("jsd", {}, {"beta": 1.5}, r"beta, the teacher's share of the mixture, lies in \[0, 1\]; got 1\.5\."),
        ("jsd", {"alpha": -0.1}, {}, r"alpha, the teacher's share of the loss, lies in \[0, 1\]; got -0\.1\."),
        ("jsd", {}, {"on_policy": 2}, r"on_policy lies in \[0, 1\]; got 2\."),
        ("sequence", {"alpha": 0.5}, {}, r"no second term; got 'alpha 0\.5'\. Leave alpha at 1"),
        ("hidden-state", {"alpha": 1}, {}, r"leave the output head untrained; got 'alpha 1'\. Give alpha below 1"),
        ("sequence", {}, {"on_policy": 0.5}, r"on_policy goes with .*, jsd; got 'sequence'\. Leave on_policy"),
        ("jsd", {}, {"hidden_every": 2}, r"hidden_every goes with hidden-state; got 'jsd'"),
        ("hidden-state", {}, {"hidden_every": 1}, r"got 'k = 1'\. Give a k from 2 to 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked(tmp_path, divergence, more, options, message):
    young = Rung(16, 1).build(seed=2)
    with pytest.raises(LabkitError, match=message):
        run(divergence, b=young, folder=tmp_path, options=changed(**options), **more)
    assert not list(tmp_path.iterdir()) and lineage(young) == () and same(young, Rung(16, 1).build(seed=2))


def test_fewer_tokens_than_a_batch():
    with pytest.raises(LabkitError, match="a training takes at least one batch of 4 × 24 tokens; got 10"):
        run(tokens=10)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_teacher_that_is_not_finite_is_named_with_the_step(tmp_path, divergence):
    mentor, young = teacher(), student()
    mentor.model.norm.weight.data[3] = float("nan")
    with pytest.raises(Failure, match="teacher's output is finite; got 'NaN or infinity at step 0'. Look at its"):
        run(divergence, a=mentor, b=young, folder=tmp_path)
    assert not list(tmp_path.iterdir()) and same(young, student())


def test_the_step_at_which_a_teacher_fails(monkeypatch):
    tell = losses.Loss.tell
    late = lambda self: float("nan") if self.stream.step >= 4 else 1  # noqa: E731
    monkeypatch.setattr(losses.Loss, "tell", lambda self, *asked: tell(self, *asked) * late(self))
    with pytest.raises(Failure, match="NaN or infinity at step 4"):
        run()


def test_a_student_that_diverges_is_not_blamed_on_the_teacher():
    with pytest.raises(LabkitError, match="the loss and its gradient must stay finite"):
        young = student()
        young.model.norm.weight.data[3] = float("nan")
        run(b=young)


def test_a_cache_of_another_teacher_corpus_or_training_is_refused(tmp_path):
    cache = TeacherCache.make(teacher(), CORPUS, TOKENS, tmp_path, k=4, batch=BATCH)
    options = changed(cache=cache)
    run(options=options)
    for more, named in (
        ({"a": Rung(32, 2).build(seed=8)}, "teacher"),
        ({"tokens": TOKENS * 2}, "steps 6, not 12"),
        ({"options": changed(cache=cache, batch=2)}, "batch 4, not 2"),
    ):
        with pytest.raises(LabkitError, match=f"a cache is of this teacher and this training; got .*{named}"):
            run(**{"options": options, **more})


def test_models_on_two_devices():
    with pytest.raises(LabkitError, match="are on one device; got 'teacher on cpu, student on meta'"):
        run(b=student().to("meta"))
