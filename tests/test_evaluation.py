"""Batched scores equal scores one item at a time, and a recomputation in NumPy."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pandas
import pytest
import scipy.special
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from labkit import records
from labkit.abilities import Ability, Items, abilities
from labkit.errors import LabkitError
from labkit.evaluation import COLUMNS, evaluate
from labkit.ladder import Rung
from labkit.records import IGNORE

MODEL = Rung(32, 2).build()
for parameter in MODEL.parameters():
    parameter.data *= 5  # far from a uniform guess


@dataclasses.dataclass(frozen=True)
class Echo(Ability):
    """Items of many lengths, with answers of 1 to 3 tokens: [7 tokens] -> the first of them again."""

    vocabulary: int = 168

    @property
    def name(self) -> str:
        return f"echo-{self.vocabulary}"

    def sample(self, n: int, seed: int, length: int = 48, first: int = 0) -> Items:
        rng = np.random.default_rng(seed)
        lengths = rng.integers(5, 9, n)
        tokens, labels = rng.integers(1, self.vocabulary, (n, 8)), np.full((n, 8), IGNORE)
        for row, (end, answer) in enumerate(zip(lengths, rng.integers(1, 4, n), strict=True)):
            labels[row, end - answer : end] = tokens[row, :answer]
            tokens[row, end:] = 0
        return Items(self.name, tokens, labels, lengths, 100 + np.arange(n), np.full(n, 10.0))


def scores(model, suite, **kwargs) -> pandas.DataFrame:
    return evaluate(model, suite, progress=False, **kwargs)


def test_one_row_per_item_and_metric_in_the_columns_of_the_records():
    frame = scores(MODEL, (Echo(), *abilities("recall", "addition")), n=6)
    assert tuple(frame.columns) == COLUMNS
    assert set(COLUMNS) <= set(records.columns(records.ItemRow))
    assert not frame.duplicated(["ability", "metric", "item"]).any()
    assert set(frame[frame.ability == "echo-168"].item) == set(range(100, 106))
    for ability in abilities("recall", "addition"):
        assert set(frame[frame.ability == ability.name].metric) == set(ability.metrics)
    assert frame.value.dtype == frame.chance.dtype == np.float64


def test_batches_equal_one_item_at_a_time():
    together = scores(MODEL, (Echo(),), n=40)
    alone = scores(MODEL, (Echo(),), n=40, batch_tokens=1)
    pandas.testing.assert_frame_equal(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", [MODEL, GPT2LMHeadModel(GPT2Config(vocab_size=168, n_embd=32, n_layer=1, n_head=2))])
def test_scores_agree_with_numpy_on_the_raw_logits_of_padded_rows(model):
    """Padding on the right cannot be seen by a causal model: another way to the same logits."""
    model.eval()
    items = Echo().sample(30, seed=3)
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(items.tokens)).logits.double().numpy()
    p = scipy.special.softmax(logits, axis=-1)
    asked = items.labels != IGNORE
    of_label = np.take_along_axis(p, items.labels.clip(0)[..., None], -1)[..., 0]
    right = logits.argmax(-1) == items.labels
    mean = lambda x: np.where(asked, x, 0).sum(1) / asked.sum(1)  # noqa: E731
    brier = ((p - np.eye(168)[items.labels.clip(0)]) ** 2).sum(-1)
    expected = {
        "exact_match": mean(right) == 1, "token_accuracy": mean(right),
        "nll_nats": mean(-np.log(of_label)), "brier": mean(brier),
    }  # fmt: skip
    frame = scores(model, (Echo(),), n=30, seed=3)
    for metric, values in expected.items():
        np.testing.assert_allclose(frame[frame.metric == metric].value, values, rtol=1e-4, atol=1e-5)


def tiny(model, config, **sizes):
    """A random model with labkit's vocabulary, far from a uniform guess."""
    common = {"vocab_size": 168, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
              "num_attention_heads": 2, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = model(config(**common, **sizes))
    for parameter in built.parameters():
        parameter.data *= 3
    return built


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "model",
    [
        MODEL,
        tiny(GPTNeoXForCausalLM, GPTNeoXConfig),
        tiny(Qwen3ForCausalLM, Qwen3Config, head_dim=16, num_key_value_heads=1),
        tiny(MixtralForCausalLM, MixtralConfig, num_key_value_heads=1, num_local_experts=4),
    ],
    ids=lambda model: type(model).__name__,
)
def test_values_are_those_of_one_plain_forward_an_item(model, two_threads):
    """No batches, no threads, no short tail, the softmax in double precision: the same numbers, item by item."""
    frame = scores(model, (Echo(),), n=24, batch_tokens=16).pivot(index="item", columns="metric", values="value")
    items = Echo().sample(24, seed=0)
    model.eval()
    for row, end in enumerate(items.lengths):
        tokens, labels = (torch.from_numpy(x[row, :end]) for x in (items.tokens, items.labels))
        with torch.no_grad():
            logp = model(input_ids=tokens[None]).logits[0].double().log_softmax(-1)[labels != IGNORE]
        labels = labels[labels != IGNORE]
        right = (logp.argmax(-1) == labels).double()
        expected = {
            "exact_match": right.prod(),
            "token_accuracy": right.mean(),
            "nll_nats": torch.nn.functional.nll_loss(logp, labels),
            "brier": (logp.exp() - torch.eye(168)[labels]).square().sum(-1).mean(),
        }
        for metric, value in expected.items():
            assert frame.loc[items.index[row], metric] == pytest.approx(value.item(), rel=1e-6, abs=1e-6), metric


def test_threads_change_neither_rows_nor_their_order_nor_the_setting_of_torch(two_threads):
    suite = (Echo(), *abilities("recall", "repeat"))
    seen = set()
    hook = MODEL.register_forward_pre_hook(
        lambda *_: seen.add((threading.current_thread().name, torch.get_num_threads()))
    )
    try:
        together = scores(MODEL, suite, n=40, batch_tokens=32)
        # each worker has one of torch's threads, and the caller waits
        assert {threads for _, threads in seen} == {1}
        assert threading.current_thread().name not in {name for name, _ in seen}
        seen.clear()
        with torch.autocast("cpu", enabled=True):
            scores(MODEL, suite, n=3, batch_tokens=32)
        assert seen == {(threading.current_thread().name, 2)}  # autocast is known to the caller's thread alone
    finally:
        hook.remove()
    assert torch.get_num_threads() == 2
    new = []
    thread = threading.Thread(target=lambda: new.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert new == [2]
    torch.set_num_threads(1)
    alone = scores(MODEL, suite, n=40, batch_tokens=32)
    pandas.testing.assert_frame_equal(together, alone, rtol=1e-6, atol=1e-6)


def test_an_error_in_a_worker_reaches_the_caller_and_leaves_everything_as_it_was(two_threads):
    model = Rung(32, 2).build().train()
    model.lm_head.weight.data[0, 0] = float("nan")
    with pytest.raises(LabkitError, match="logits are finite; got \"NaN or infinity on ability 'echo-168'\""):
        scores(model, (Echo(), *abilities("recall")), n=20, batch_tokens=16)
    assert torch.get_num_threads() == 2
    assert model.training


def test_the_order_of_the_suite_changes_nothing_but_the_order_of_rows():
    suite = (Echo(), *abilities("recall", "repeat"))
    key = ["ability", "metric", "item"]
    forth, back = (scores(MODEL, s, n=8).sort_values(key, ignore_index=True) for s in (suite, suite[::-1]))
    pandas.testing.assert_frame_equal(forth, back)


def test_the_items_follow_the_seed():
    first, again, other = (scores(MODEL, (Echo(),), n=8, seed=seed) for seed in (1, 1, 2))
    pandas.testing.assert_frame_equal(first, again)
    assert not first.value.equals(other.value)


def test_a_model_that_knows_nothing_scores_chance_on_nats():
    """All logits equal: ln V nats whatever is asked."""
    model = Rung(32, 2).build()
    model.lm_head.weight.data.zero_()
    frame = scores(model, (Echo(),), n=5)
    np.testing.assert_allclose(frame[frame.metric == "nll_nats"].value, np.log(168), rtol=1e-6)
    np.testing.assert_allclose(frame[frame.metric == "nll_nats"].chance, np.log(10))


@pytest.mark.parametrize("training", [True, False])
def test_the_model_keeps_its_mode_and_dropout_is_off(training):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=168, n_embd=32, n_layer=1, n_head=2, resid_pdrop=0.5)).train(training)
    pandas.testing.assert_frame_equal(scores(model, (Echo(),), n=5), scores(model, (Echo(),), n=5))
    assert model.training is training


@pytest.mark.parametrize("wrong", [{"n": 0}, {"n": -3}, {"n": 2.5}, {"batch_tokens": 0}], ids=str)
def test_nothing_to_score_is_refused(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(LabkitError, match=f"{name} is a whole number of at least 1; got {value}"):
        scores(MODEL, (Echo(),), **wrong)


def test_an_ability_named_twice_is_refused():
    with pytest.raises(LabkitError, match="names every ability once; got 'echo-168'"):
        scores(MODEL, (Echo(), *abilities("recall"), Echo()))


@pytest.mark.parametrize("suite", [(), ("recall",)], ids=str)
def test_what_is_no_ability_is_refused(suite):
    with pytest.raises(LabkitError, match=r"a sequence of abilities; got .* labkit.abilities\(\)"):
        scores(MODEL, suite)


def test_a_vocabulary_that_is_too_small_is_refused():
    with pytest.raises(LabkitError, match="every token of ability 'echo-500'; got 'token 4.., vocabulary of 168'"):
        scores(MODEL, (Echo(vocabulary=500),), n=50)


def test_an_unknown_metric_is_answered_with_the_nearest():
    class Odd(Echo):
        metrics = ("nll_nat",)

    with pytest.raises(LabkitError, match="known metric is needed; got 'nll_nat'. Nearest: nll_nats"):
        scores(MODEL, (Odd(),), n=2)


def test_a_broken_model_is_refused_by_the_name_of_the_ability():
    model = Rung(32, 2).build()
    model.lm_head.weight.data[0, 0] = float("nan")
    with pytest.raises(LabkitError, match="logits are finite; got \"NaN or infinity on ability 'echo-168'\""):
        scores(model, (Echo(),), n=2)


def test_a_further_metric_is_asked_of_every_ability_and_has_no_chance():
    suite = abilities()
    rows = evaluate(Rung(16, 1).build(), suite, n=4, progress=False, metrics=("answer_given",))
    more = rows[rows["metric"] == "answer_given"]
    assert set(more["ability"]) == {ability.name for ability in suite} and more["chance"].isna().all()
    plain = evaluate(Rung(16, 1).build(), suite, n=4, progress=False)
    pandas.testing.assert_frame_equal(rows[rows["metric"] != "answer_given"].reset_index(drop=True), plain)
    with pytest.raises(LabkitError, match="a known metric is needed; got 'answer_gave'. Nearest: answer_given"):
        evaluate(Rung(16, 1).build(), suite, n=4, progress=False, metrics=("answer_gave",))
