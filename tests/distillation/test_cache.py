"""The teacher asked once: exact where it keeps everything, a lower bound elsewhere, and never another's."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from safetensors import safe_open

from labkit import forward
from labkit.abilities import Corpus, abilities
from labkit.distillation import cache as module
from labkit.distillation.cache import TeacherCache, bucketed
from labkit.divergences import forward_kl, generalized_jsd, reverse_kl
from labkit.errors import Failure, LabkitError
from labkit.ladder import Rung
from labkit.records import IGNORE

CORPUS = Corpus(abilities("recall", "addition"), seed=0, length=24)
BATCH, STEPS, V = 4, 6, 168
TOKENS = BATCH * STEPS * CORPUS.length


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No compiling, and two steps to a shard."""
    monkeypatch.setattr(forward, "compiled", lambda module: module)
    monkeypatch.setattr(module, "SHARD_BYTES", 2 * BATCH * CORPUS.length * (8 * 5 + 4))


def make(folder, teacher=None, corpus=CORPUS, tokens=TOKENS, **options):
    return TeacherCache.make(
        teacher or Rung(16, 1).build(seed=1), corpus, tokens, folder, **{"k": 5, "batch": BATCH, **options}
    )


def shards(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix == ".safetensors")


def test_it_holds_the_most_likely_tokens_and_the_mass_of_the_others(tmp_path):
    teacher = Rung(16, 1).build(seed=1)
    cache = make(tmp_path, teacher)
    for step, (tokens, labels) in enumerate(CORPUS.batches(BATCH, STEPS)):
        with torch.no_grad():
            logits = teacher(torch.from_numpy(tokens)).logits[torch.from_numpy(labels) != IGNORE].double()
        p = np.sort(logits.softmax(-1).numpy())[:, ::-1]
        top, scores = cache.targets(step)
        assert top.shape == (len(p), 5) and top.dtype == torch.int32
        np.testing.assert_allclose(scores[:, :5].exp(), p[:, :5], rtol=1e-4)
        np.testing.assert_allclose(scores[:, 5].exp(), p[:, 5:].sum(1), rtol=1e-4)
        assert torch.equal(logits.gather(1, top.long()).argmax(1), torch.zeros(len(p), dtype=torch.long))


def test_the_size_it_states_is_the_size_it_has(tmp_path):
    cache = make(tmp_path)
    places = sum((labels != IGNORE).sum() for _, labels in CORPUS.batches(BATCH, STEPS))
    assert cache.bytes_per_place == 4 * 5 + 4 * 6
    held = 0
    for name in shards(tmp_path):
        with safe_open(tmp_path / name, "pt") as shard:
            held += sum(shard.get_tensor(part).nbytes for part in ("top", "scores"))
    assert held == places * cache.bytes_per_place


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(
    "divergence", [forward_kl, reverse_kl, generalized_jsd, functools.partial(generalized_jsd, beta=0.1)]
)
def test_all_tokens_kept_is_exact(divergence, temperature):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (2 * torch.randn(9, 13, generator=generator) for _ in range(2))
    top = teacher.topk(13).indices
    ours = divergence(bucketed(student, top), bucketed(teacher, top), temperature=temperature)
    torch.testing.assert_close(ours, divergence(student, teacher, temperature=temperature), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("divergence", [forward_kl, reverse_kl, generalized_jsd])
def test_fewer_tokens_give_a_lower_bound_that_grows_with_them(divergence):
    """Data processing: merging outcomes cannot make two distributions easier to tell apart."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (2 * torch.randn(50, 13, generator=generator) for _ in range(2))
    order = teacher.argsort(-1, descending=True)
    values = torch.stack(
        [divergence(bucketed(student, order[:, :k]), bucketed(teacher, order[:, :k])) for k in range(1, 14)]
    )
    assert (values.diff(dim=0) > -1e-5).all()
    assert values[0].mean() < 0.9 * values[-1].mean()


def test_a_tail_too_small_for_one_minus_the_rest():
    logits = torch.tensor([[40.0, 0.0, 0.0, 0.0]])
    assert bucketed(logits, torch.tensor([[0]]))[0, 1].item() == pytest.approx(np.log(3) - 40, rel=1e-5)


def test_a_killed_making_resumes_and_a_shard_is_whole_or_absent(tmp_path, monkeypatch):
    whole, calls = make(tmp_path / "whole"), []
    monkeypatch.setattr(TeacherCache, "_ask", killed_at(3, TeacherCache._ask, calls))
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "killed")
    assert shards(tmp_path / "killed") == ["shard-000000.safetensors"]
    with pytest.raises(LabkitError, match=r"holds every step of its training; got .*shard-000001.*Finish it"):
        TeacherCache.open(tmp_path / "killed").targets(2)
    calls.clear()
    monkeypatch.setattr(TeacherCache, "_ask", killed_at(99, TeacherCache._ask.__wrapped__, calls))
    resumed = make(tmp_path / "killed")
    assert calls == [2, 3, 4, 5]  # what was whole is not asked again
    assert not list((tmp_path / "killed").glob(".*"))
    for step in range(STEPS):
        for a, b in zip(whole.targets(step), resumed.targets(step), strict=True):
            assert torch.equal(a, b)


def killed_at(step, ask, calls):
    def asked(self, body, tokens, labels, number):
        if number == step:
            raise KeyboardInterrupt
        calls.append(number)
        return ask(self, body, tokens, labels, number)

    asked.__wrapped__ = ask
    return asked


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"teacher": Rung(16, 1).build(seed=2)}, "teacher"),
        ({"corpus": Corpus(CORPUS.abilities, seed=1, length=24)}, "corpus"),
        ({"tokens": TOKENS // 2}, "steps"),
        ({"k": 6}, "k 5, not 6"),
        ({"batch": 2}, "batch 4, not 2"),
    ],
)
def test_a_folder_with_another_cache_is_refused_and_left_as_it_is(tmp_path, change, named):
    make(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(LabkitError, match=rf"is of this teacher and this training; got .*{named}.*another folder"):
        make(tmp_path, **change)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_shard_of_another_cache_is_refused(tmp_path):
    cache = make(tmp_path / "mine")
    make(tmp_path / "other", teacher=Rung(16, 1).build(seed=2))
    (tmp_path / "other" / "shard-000001.safetensors").replace(tmp_path / "mine" / "shard-000001.safetensors")
    cache.targets(0)
    with pytest.raises(LabkitError, match=r"a shard belongs to its cache; got .*shard-000001.*make the cache again"):
        cache.targets(2)


def test_a_shard_cut_short_is_refused(tmp_path):
    cache = make(tmp_path)
    path = tmp_path / "shard-000000.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(LabkitError, match="a cache holds every step of its training"):
        cache.targets(0)


def test_a_folder_without_a_cache(tmp_path):
    with pytest.raises(LabkitError, match=r"holds a cache\.json; got .*Make one with TeacherCache\.make"):
        TeacherCache.open(tmp_path)


def test_a_teacher_that_is_not_finite_leaves_no_shard(tmp_path):
    teacher = Rung(16, 1).build(seed=1)
    teacher.lm_head.weight.data[7] = float("nan")
    with pytest.raises(Failure, match="the teacher's logits are finite; got 'NaN or infinity at step 0'"):
        make(tmp_path, teacher)
    assert shards(tmp_path) == [] and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("k", [0, V + 1])
def test_k_lies_within_the_vocabulary(tmp_path, k):
    with pytest.raises(LabkitError, match=rf"k, the tokens kept of each distribution, lies in 1\.\.{V}; got {k}\."):
        make(tmp_path, k=k)
    assert not list(tmp_path.iterdir())


def test_less_than_a_batch(tmp_path):
    with pytest.raises(LabkitError, match=r"at least one batch of 4 × 24 tokens; got 95\. Raise tokens\."):
        make(tmp_path, tokens=95)
