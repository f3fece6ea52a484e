"""One training loop: what it optimises, what it writes, and that neither kills nor NaN cost more than they must."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import re
from collections.abc import Callable

import numpy as np
import pytest
import scipy.special
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from labkit import forward, training
from labkit.abilities import Corpus, abilities
from labkit.errors import Failure, LabkitError
from labkit.flops import training_flops_per_token
from labkit.ladder import Rung
from labkit.pruning import blocks, ledger
from labkit.records import IGNORE

CORPUS = Corpus(abilities("recall", "shift"), seed=0, length=24)
BATCH, STEPS = 4, 12
TOKENS = BATCH * STEPS * CORPUS.length


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No compiling (it takes longer than these trainings), a look at the loss every 3 steps, a checkpoint at each."""
    monkeypatch.setattr(forward, "compiled", lambda module: module)
    monkeypatch.setattr(training, "LOG_EVERY", 3)
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1)


def model():
    return Rung(16, 1).build(seed=0)


def train(student, tokens=TOKENS, **options):
    return training.train(student, CORPUS, tokens, **{"batch": BATCH, "learning_rate": 1e-2, **options})


def failing(step: int, how: Callable[[torch.Tensor], torch.Tensor]) -> training.Loss:
    """`answers_only`, but `how(loss)` at one step, counted from the first call."""
    calls = itertools.count()

    def loss(*batch):
        value = training.answers_only(*batch)
        return how(value) if next(calls) == step else value

    return loss


def test_the_loss_is_the_mean_cross_entropy_of_the_answers():
    student = model().eval()
    tokens, labels = next(CORPUS.batches(BATCH, 1))
    with torch.no_grad():
        logits = student(torch.from_numpy(tokens)).logits.double().numpy()
        whole = forward.Forward(student, compile=False)
        ours = training.answers_only(whole, torch.from_numpy(tokens), torch.from_numpy(labels)).item()
    asked = labels != IGNORE
    logp = scipy.special.log_softmax(logits, axis=-1)[asked]
    assert ours == pytest.approx(-logp[np.arange(asked.sum()), labels[asked]].mean(), rel=1e-5)


def test_it_learns_and_counts_what_it_cost():
    student = model()
    done = train(student, TOKENS + 5)
    assert (done.steps, done.tokens) == (STEPS, TOKENS)
    assert done.flops == TOKENS * training_flops_per_token(student, CORPUS.length)
    assert done.seconds > 0
    assert [step for step, _ in done.loss_nats] == [3, 6, 9, 12]
    assert done.loss_nats[-1][1] < done.loss_nats[0][1]
    assert not student.training


def test_the_reported_loss_is_the_mean_since_the_last_report():
    seen = []

    def watched(m, tokens, labels):
        loss = training.answers_only(m, tokens, labels)
        seen.append(loss.item())
        return loss

    done = train(model(), loss=watched)
    expected = np.array(seen).reshape(-1, 3).mean(axis=1)
    np.testing.assert_allclose([loss for _, loss in done.loss_nats], expected, rtol=1e-5)


class Kill(Exception):
    pass


@pytest.mark.parametrize("step", [1, 4, 11])
def test_a_killed_training_resumes_and_ends_with_the_same_weights(tmp_path, step):
    whole, first, second = model(), model(), Rung(16, 1).build(seed=9)
    undisturbed = train(whole)

    def kill(loss):
        raise Kill

    with pytest.raises(Kill):
        train(first, folder=tmp_path, loss=failing(step, kill))
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ([f"step-{step // 3 * 3:08d}"] if step >= 3 else [])
    if not kept:
        second = model()  # nothing was kept: it begins anew
    resumed = train(second, folder=tmp_path)
    for (name, a), b in zip(whole.state_dict().items(), second.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6, msg=name)
    assert resumed.loss_nats == pytest.approx(np.array(undisturbed.loss_nats), abs=1e-6)
    assert (resumed.tokens, resumed.flops) == (undisturbed.tokens, undisturbed.flops)
    assert not list(tmp_path.iterdir())  # the checkpoint goes when the training is done


def test_a_checkpoint_is_safetensors_and_json_and_whole(tmp_path):
    def kill(loss):
        raise Kill

    (tmp_path / ".partial").mkdir()  # what a kill in the middle of writing leaves
    (tmp_path / ".partial" / "model.safetensors").write_bytes(b"half")
    with pytest.raises(Kill):
        train(model(), folder=tmp_path, loss=failing(7, kill))
    (folder,) = tmp_path.iterdir()
    assert sorted(p.name for p in folder.iterdir()) == ["model.safetensors", "optimizer.safetensors", "state.json"]
    state = json.loads((folder / "state.json").read_text())
    assert state["step"] == 6 and [step for step, _ in state["history"]] == [3, 6]
    assert set(load_file(folder / "model.safetensors")) == set(model().state_dict())
    moments = load_file(folder / "optimizer.safetensors")
    assert {key.split(".")[1] for key in moments} == {"step", "exp_avg", "exp_avg_sq"}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_training_and_the_last_good_checkpoint_loads(tmp_path, bad):
    with pytest.raises(Failure) as caught:
        train(model(), folder=tmp_path, loss=failing(7, lambda loss: loss * bad))
    message = str(caught.value)
    assert re.match("the loss and its gradient must stay finite; got '(nan|inf) at step 7'.", message)
    assert f"The last good checkpoint is step-00000006 in {tmp_path}; lower the learning rate" in message
    student = model()
    student.load_state_dict(load_file(tmp_path / "step-00000006" / "model.safetensors"))
    assert all(p.isfinite().all() for p in student.parameters())
    assert train(student, folder=tmp_path).steps == STEPS


def test_a_gradient_that_is_not_finite_stops_the_training_before_it_is_saved(tmp_path):
    def spoil(loss):
        return loss + 0 * torch.sqrt(loss - loss)  # finite, but its gradient is 0 · ∞

    with pytest.raises(LabkitError, match="got 'nan at step 5'.*step-00000003"):
        train(model(), folder=tmp_path, loss=failing(5, spoil))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


def test_a_loss_that_is_not_finite_without_a_folder():
    with pytest.raises(LabkitError, match="No checkpoint was kept; lower the learning rate"):
        train(model(), loss=failing(0, lambda loss: loss * float("nan")))


@pytest.mark.parametrize("tokens", [0, BATCH * CORPUS.length - 1])
def test_fewer_tokens_than_a_batch(tokens):
    rule = rf"a training takes at least one batch of {BATCH} × {CORPUS.length} tokens; got {tokens}\. Raise tokens\."
    with pytest.raises(LabkitError, match=rule):
        train(model(), tokens)


def test_weight_decay_is_on_the_matrices_of_the_blocks_alone():
    student = model()
    groups = training._optimizer(student, 1e-3).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decay) == len(list(student.parameters()))
    for name, p in student.named_parameters():
        assert decay[id(p)] == (0.1 if "proj" in name else 0.0), name


def test_the_learning_rate_warms_up_and_falls_over_the_last_two_fifths(monkeypatch):
    rates, make = [], training._optimizer

    def watched(student, rate):
        optimizer = make(student, rate)
        optimizer.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
        return optimizer

    monkeypatch.setattr(training, "_optimizer", watched)
    steps = 300
    training.train(model(), Corpus(abilities("shift"), length=8), steps * 8, batch=1, learning_rate=0.01)
    expected = [0.01 * min(1, (s + 1) / 100, (steps - s) / (0.4 * steps)) for s in range(steps)]
    np.testing.assert_allclose(rates, expected)
    assert rates[99] == rates[180] == 0.01 and 0 < rates[-1] < 1e-4


def test_frozen_parameters_stay_as_they_were():
    student = model()
    student.get_input_embeddings().requires_grad_(False)
    before = student.get_input_embeddings().weight.clone()
    train(student)
    assert torch.equal(student.get_input_embeddings().weight, before)


def halved(student):
    """The model with every second input of its matrices dropped, and written in its ledger."""
    for matrix in blocks.matrices(student).values():
        matrix.weight[:, ::2] = 0
    ledger.record_masks(student)
    return student


def test_pruned_weights_train_as_those_of_a_model_that_computes_with_masked_weights():
    """Independent: plain AdamW on a dense W whose matrices are W * M in the forward pass, where W starts at anything."""
    ours, reference = halved(model()), halved(model())
    train(ours)

    masks = {matrix.key: matrix.weight != 0 for matrix in blocks.matrices(reference).values()}
    free = {name: p.detach().clone().requires_grad_() for name, p in reference.named_parameters()}
    for name, mask in masks.items():
        free[name].data[~mask] = 7.0  # must not matter
    decayed = [name for name in free if "proj" in name]
    optimizer = torch.optim.AdamW(
        [
            {"params": [free[n] for n in decayed]},
            {"params": [free[n] for n in free if n not in decayed], "weight_decay": 0},
        ],
        betas=(0.9, 0.98),
        weight_decay=0.1,
    )
    for step, (tokens, labels) in enumerate(CORPUS.batches(BATCH, STEPS)):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * min(1, (step + 1) / 100, (STEPS - step) / (0.4 * STEPS))
        weights = {name: w * masks[name] if name in masks else w for name, w in free.items()}
        logits = torch.func.functional_call(reference, weights, (torch.from_numpy(tokens),)).logits
        answers = labels[asked := labels != IGNORE]
        loss = torch.nn.functional.cross_entropy(logits[torch.from_numpy(asked)], torch.from_numpy(answers))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(free.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    for name, p in ours.named_parameters():
        expected = free[name] * masks[name] if name in masks else free[name]
        torch.testing.assert_close(p, expected, rtol=1e-4, atol=1e-5, msg=name)
        if name in masks:
            assert (p[~masks[name]] == 0).all() and (p[masks[name]] != 0).all()


def test_zeros_that_a_loss_brings_back_stop_the_training_and_leave_the_checkpoint(tmp_path):
    student = halved(model())

    def meddling(m, tokens, labels):
        student.model.layers[0].mlp.up_proj.weight.data[0, 0] = 1.0
        return training.answers_only(m, tokens, labels)

    with pytest.raises(LabkitError, match=r"got 'model.layers.0.mlp.up_proj: 1 of \d+ zeros are zero no longer'"):
        train(student, folder=tmp_path, loss=meddling)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000009"]


OTHERS = [
    ({"label": "another"}, "label training, not another"),
    ({"tokens": 2 * TOKENS}, f"steps {STEPS}, not {2 * STEPS}"),
    ({"batch": 2, "tokens": TOKENS // 2}, f"batch {BATCH}, not 2"),
    ({"learning_rate": 2e-2}, "learning rate 0.01, not 0.02"),
    ({"corpus": Corpus(abilities("recall", "shift"), seed=1, length=24)}, r"corpus [0-9a-f]{16}, not [0-9a-f]{16}"),
    ({"model": Rung(32, 1)}, r"model [0-9a-f]{16}, not [0-9a-f]{16}"),
    ({"mask": True}, r"masks [0-9a-f]{16}, not [0-9a-f]{16}"),
]


@pytest.mark.parametrize(("other", "differs"), OTHERS, ids=[next(iter(o)) for o, _ in OTHERS])
def test_a_checkpoint_of_another_training_is_not_resumed(tmp_path, other, differs):
    def kill(loss):
        raise Kill

    with pytest.raises(Kill):
        train(model(), folder=tmp_path, loss=failing(4, kill))
    student = other.pop("model").build() if "model" in other else model()
    student = halved(student) if other.pop("mask", False) else student
    before = copy.deepcopy(student.state_dict())
    options = {"batch": BATCH, "learning_rate": 1e-2, "folder": tmp_path, "tokens": TOKENS, "corpus": CORPUS, **other}
    rule = "a checkpoint is resumed by the training it is of"
    with pytest.raises(LabkitError, match=f"{rule}; got '{tmp_path}/step-00000003: {differs}'. Give a folder of its own"):
        training.train(student, options.pop("corpus"), options.pop("tokens"), **options)
    assert all(torch.equal(before[name], w) for name, w in student.state_dict().items())
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


def test_a_corpus_is_recognised_by_what_it_is_not_by_where_it_lies():
    @dataclasses.dataclass
    class Texts:
        tokenizer: object
        seed: int = 0
        length: int = 24

    asked = {"label": "a"}
    one, same, other = (training._identity(model(), Texts(object(), seed), asked) for seed in (0, 0, 1))
    assert one == same != other


def test_the_progress_bar_is_closed_when_training_raises(monkeypatch):
    bars = []

    class Bar(training.tqdm):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            bars.append(self)

        def close(self):
            self.was_closed = True
            super().close()

    monkeypatch.setattr(training, "tqdm", Bar)
    with pytest.raises(LabkitError):
        train(model(), loss=failing(0, lambda loss: loss * float("nan")))
    assert bars[0].was_closed


def test_a_model_with_tied_embeddings_is_kept_and_resumed(tmp_path):
    def build():
        torch.manual_seed(0)
        shape = {"n_embd": 16, "n_layer": 1, "n_head": 2, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
        return GPT2LMHeadModel(GPT2Config(vocab_size=256, n_positions=CORPUS.length, **shape))

    def kill(loss):
        raise Kill

    whole, second = build(), build()
    train(whole)
    with pytest.raises(Kill):
        train(build(), folder=tmp_path, loss=failing(7, kill))
    train(second, folder=tmp_path)
    assert second.lm_head.weight is second.transformer.wte.weight
    for (name, a), b in zip(whole.state_dict().items(), second.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6, msg=name)


def test_a_peft_model_trains_its_adapters_alone():
    base = halved(model())
    before = {name: p.clone() for name, p in base.named_parameters()}
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))
    train(adapted)
    for name, p in adapted.named_parameters():
        if "lora_" in name:
            assert p.abs().sum() > 0, name  # B begins at zero
        else:
            assert torch.equal(p, before[name.removeprefix("base_model.model.").replace(".base_layer", "")]), name
