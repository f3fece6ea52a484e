"""A compression is what a study file says, in the order of the verbs, and is refused before any model is loaded."""

from __future__ import annotations

import pytest
import torch

from labkit.abilities import corpus
from labkit.compression import Compression
from labkit.distillation import Options, distill
from labkit.errors import LabkitError
from labkit.flops import forward_flops_per_token, training_flops_per_token
from labkit.ladder import Rung
from labkit.lineage import lineage
from labkit.pruning import drop_layers, outlier_weighed, prune, sparsity
from labkit.study import Study, studies
from labkit.training import train
from labkit.zoo import skeleton

TOKENS = torch.from_numpy(corpus(0).calibration(8))
MODEL = Rung(32, 2).build().eval()


def test_a_list_stands_for_each_of_its_values():
    table = {"prune": {"criterion": ["magnitude", "wanda"], "sparsity": [0.2, 0.5]}}
    found = [(one.name, one.nominal_sparsity) for one in Compression.expand(table)]
    assert found == [("magnitude", 0.2), ("magnitude", 0.5), ("wanda", 0.2), ("wanda", 0.5)]


@pytest.mark.parametrize(
    ("table", "name", "nominal"),
    [
        ({"prune": {"criterion": "wanda", "sparsity": 0.5}}, "wanda", 0.5),
        ({"prune": {"criterion": "wanda", "pattern": "2:4"}}, "wanda 2:4", 0.5),
        ({"prune": {"criterion": "magnitude", "sparsity": 0.3, "group": "row"}}, "magnitude by row", 0.3),
        (
            {"prune": {"criterion": "wanda", "sparsity": 0.5, "allocation": "outlier-weighed"}},
            "wanda outlier-weighed",
            0.5,
        ),
        ({"prune": {"criterion": "wanda", "sparsity": 0.5, "propagate": False}}, "wanda in one pass", 0.5),
        ({"drop_layers": {"drop": 1}}, "drop-layers 1", 0.0),
        ({"quantize": {"bits": 3}}, "int3", 0.0),
        ({"prune": {"criterion": "wanda", "sparsity": 0.5}, "quantize": {}}, "wanda + int4", 0.5),
        ({"shrink": {"ffn": 0.5, "importance": "random"}}, "shrink ffn 50% by random", 0.0),
        ({"recover": {"method": "lora", "tokens": 200_000}}, "lora 200k", 0.0),
        ({"recover": {}}, "lora 2M", 0.0),
        ({"recover": {"rank": 2, "learning_rate": 1e-3}}, "lora learning_rate 0.001 rank 2 2M", 0.0),
        ({"drop_layers": {"keep": 1, "importance": "random"}}, "keep-layers 1 by random", 0.0),
        ({"train": {"student": "64x2", "tokens": 3_000_000}}, "64x2 scratch 3M", 0.0),
        ({"train": {"student": "64x2", "tokens": 1_500_000_000}}, "64x2 scratch 1500M", 0.0),
        ({"shrink": {"width": 64}, "train": {"tokens": 3_000_000}}, "shrink width 64 + train 3M", 0.0),
        ({"distill": {"student": "64x2", "divergence": "jsd", "tokens": 500_000}}, "64x2 distil jsd 500k", 0.0),
        (
            {"shrink": {"width": 0.5}, "distill": {"tokens": 1_000_000, "on_policy": 0.5}},
            "shrink width 50% + distil forward-kl on_policy 0.5 1M",
            0.0,
        ),
    ],
)
def test_names_and_nominal_sparsity(table, name, nominal):
    one = Compression.parse(table)
    assert (one.name, one.nominal_sparsity) == (name, nominal)


def test_a_chain_is_its_verbs_one_after_the_other():
    chain = Compression.parse({"drop_layers": {"drop": 1}, "prune": {"criterion": "magnitude", "sparsity": 0.5}})
    got = chain.apply(MODEL, TOKENS, corpus(0), seed=3).state_dict()
    expected = drop_layers(prune(MODEL, "magnitude", 0.5), 1, calibration=TOKENS).state_dict()
    assert got.keys() == expected.keys() and all(torch.equal(got[name], expected[name]) for name in got)
    assert chain.name == "magnitude + drop-layers 1"


def test_what_is_relative_is_made_absolute():
    half = Compression.parse({"shrink": {"ffn": 0.5, "importance": "magnitude"}}).apply(MODEL, TOKENS, None, 0)
    assert half.config.intermediate_size == MODEL.config.intermediate_size // 2
    asked = {"criterion": "wanda", "sparsity": 0.5, "allocation": "outlier-weighed"}
    got = Compression.parse({"prune": asked}).apply(MODEL, TOKENS, None, 0).state_dict()
    expected = prune(MODEL, "wanda", outlier_weighed(MODEL, 0.5, TOKENS), calibration=TOKENS).state_dict()
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_recovery_from_the_dense_model_is_told_who_the_teacher_is(monkeypatch):
    told = {}

    def recover(model, corpus, method="lora", tokens=2_000_000, *, teacher=None, seed=0):
        told.update(teacher=teacher, corpus=corpus, seed=seed, tokens=tokens, zeros=sparsity(model))
        return model

    monkeypatch.setattr("labkit.recovery.recover", recover)
    table = {"prune": {"criterion": "magnitude", "sparsity": 0.5}, "recover": {"method": "distil", "tokens": 700}}
    Compression.parse(table).apply(MODEL, TOKENS, "the corpus", seed=3)
    assert told == {"teacher": MODEL, "corpus": "the corpus", "seed": 3, "tokens": 700, "zeros": 0.5}


TOKENS_OF_TWO_BATCHES = 2 * 64 * 48


def _assert_same_weights(got, expected):
    """Up to rounding: a training compiled for any shape of batch adds in another order than one compiled for this one."""
    for one, other in zip(got.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_student_from_scratch_is_a_rung_trained_on_the_corpus_and_never_sees_the_model():
    chain = Compression.parse({"train": {"student": "16x1", "tokens": TOKENS_OF_TWO_BATCHES}})
    got = chain.apply(MODEL, TOKENS, corpus(7), seed=3)
    rung = Rung(16, 1)
    expected = rung.build(3)
    train(expected, corpus(7), TOKENS_OF_TWO_BATCHES, learning_rate=rung.learning_rate)
    _assert_same_weights(got, expected)
    (entry,) = lineage(got)
    assert entry["tokens"] == TOKENS_OF_TWO_BATCHES and entry["flops"] > 0
    assert "pruning" not in chain.modules


def test_a_student_that_is_taught_starts_as_the_one_from_scratch_or_as_what_earlier_steps_left():
    asked = {"divergence": "jsd", "beta": 0.3, "temperature": 2.0, "tokens": TOKENS_OF_TWO_BATCHES}
    got = Compression.parse({"distill": {"student": "16x1", **asked}}).apply(MODEL, TOKENS, corpus(7), seed=3)
    options = Options(beta=0.3, learning_rate=Rung(16, 1).learning_rate, seed=3)
    plain = {"divergence": "jsd", "temperature": 2.0, "tokens": TOKENS_OF_TWO_BATCHES}
    expected = distill(MODEL, Rung(16, 1).build(3), corpus(7), **plain, options=options)
    _assert_same_weights(got, expected)
    assert "pruning" not in Compression.parse({"distill": {"student": "16x1", **asked}}).modules
    chain = Compression.parse({"drop_layers": {"keep": 1}, "distill": asked})
    assert "pruning" in chain.modules
    cut = chain.apply(MODEL, TOKENS, corpus(7), seed=3)
    assert cut.config.num_hidden_layers == 1 and [entry["verb"] for entry in lineage(cut)] == ["drop_layers", "distill"]


def test_what_earlier_steps_left_can_be_trained_without_a_teacher_and_zeros_stay():
    asked = {"tokens": TOKENS_OF_TWO_BATCHES}
    chain = Compression.parse({"prune": {"criterion": "magnitude", "sparsity": 0.5}, "train": asked})
    before = {name: weight.clone() for name, weight in MODEL.state_dict().items()}
    got = chain.apply(MODEL, TOKENS, corpus(7), seed=3)
    expected = prune(MODEL, "magnitude", 0.5)
    train(expected, corpus(7), TOKENS_OF_TWO_BATCHES, learning_rate=Rung(MODEL.config.hidden_size, 1).learning_rate)
    _assert_same_weights(got, expected)
    assert sparsity(got) == 0.5 and "pruning" in chain.modules
    assert [entry["verb"] for entry in lineage(got)] == ["prune", "train"]
    further = Compression.parse({"train": asked})
    assert "pruning" in further.modules  # the model that is given may be sparse
    further.apply(MODEL, TOKENS, corpus(7), seed=3)
    assert all(torch.equal(MODEL.state_dict()[name], weight) for name, weight in before.items())


def test_what_trains_keeps_its_checkpoints_where_the_study_says(monkeypatch, tmp_path):
    told = []
    chain = Compression.parse({"shrink": {"ffn": 8}, "distill": {"tokens": 1000}})
    spy = lambda model, folder=None: told.append(folder) or model  # noqa: E731
    monkeypatch.setattr("labkit.compression.function", lambda verb: spy)
    monkeypatch.setattr("labkit.compression._absolute", lambda *_: {})
    chain.apply(MODEL, TOKENS, corpus(0), 0, tmp_path)
    assert told == [None, tmp_path / "distill"]


def test_random_masks_follow_the_seed():
    one = Compression.parse({"prune": {"criterion": "random", "sparsity": 0.5}})
    a, b, again = (one.apply(MODEL, TOKENS, corpus(0), seed).state_dict() for seed in (0, 1, 0))
    assert any(not torch.equal(a[name], b[name]) for name in a)
    assert all(torch.equal(a[name], again[name]) for name in a)
    assert sparsity(one.apply(MODEL, TOKENS, corpus(0), 0)) == 0.5


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "a compression has at least one verb; got {}"),
        ({"prone": {}}, "known verb of a compression is needed; got 'prone'. Nearest: prune"),
        ({"prune": 0.5}, "prune takes a table of arguments; got 0.5"),
        ({"prune": {"sparcity": 0.5}}, "known argument of prune is needed; got 'sparcity'. Nearest: sparsity"),
        ({"prune": {"seed": 1, "sparsity": 0.5}}, "known argument of prune is needed; got 'seed'"),
        ({"prune": {"criterion": "wonda", "sparsity": 0.5}}, "known criterion is needed; got 'wonda'. Nearest: wanda"),
        ({"prune": {"criterion": "wanda", "sparsity": 1.5}}, "sparsity lies in [0, 1); got 1.5"),
        ({"prune": {"sparsity": 0.5, "propagate": "no"}}, "propagate is True or False; got 'no'"),
        ({"prune": {"sparsity": 0.5, "allocation": "owl"}}, "known allocation is needed; got 'owl'"),
        ({"prune": {"pattern": "2:4", "allocation": "outlier-weighed"}}, "a pattern has one sparsity"),
        ({"prune": {"pattern": "2:4", "group": "row"}}, "a pattern has groups of its own; got \"group='row'\""),
        ({"prune": {"criterion": "magnitude", "sparsity": 0.5, "propagate": False}}, "only what is calibrated can do without propagating; got 'propagate of magnitude'"),
        ({"prune": {"pattern": "2:4"}, "shrink": {"ffn": 0.5}}, "a pattern does not outlast shrink, which is applied after"),
        ({"shrink": {}}, "shrink needs a number of heads, ffn or width; got {}"),
        ({"shrink": {"importance": "magnitude"}}, "shrink needs a number of heads, ffn or width"),
        ({"shrink": {"ffn": 0.5, "importance": "magnitud"}}, "a known importance is needed; got 'magnitud'. Nearest: magni"),
        ({"drop_layers": {"drop": 1, "importance": 3}}, "a known importance is needed; got 3"),
        ({"drop_layers": {"drop": 1, "importance": "activation"}}, "a known importance is needed; got 'activation'"),
        ({"recover": {"method": "full", "rank": 8}}, "a rank is one of lora; got 'rank=8 of full'"),
        ({"train": {"student": 3, "tokens": 9999}}, "a student is the name of a rung; got 3"),
        ({"drop_layers": {"drop": 1, "keep": 1}}, "drop_layers says either drop or keep"),
        ({"quantize": {"bits": 1}}, "bits lie in 2..8; got 1"),
        ({"quantize": {"bit": 4}}, "argument of quantize is needed; got 'bit'"),
        ({"recover": {"method": "lorra"}}, "a known method of recovery is needed; got 'lorra'. Nearest: lora"),
        ({"recover": {"tokens": 2.5e6}}, "the number of tokens is a whole number; got 2500000.0"),
        ({"recover": {"rank": 0}}, "the rank of an adapter is 1 or more; got 0"),
        ({"recover": {"learning_rate": -1}}, "a learning rate is a number above 0; got -1"),
        ({"train": {"student": "64x2"}}, "train says tokens"),
        ({"train": {"student": "64y2", "tokens": 1000}}, "a rung is written"),
        ({"distill": {"student": "64x2"}}, "distill says tokens"),
        ({"train": {"tokens": 1e4}}, "tokens of train is a whole number; got 10000.0"),
        ({"train": {"tokens": "many"}}, "tokens of train is a whole number; got 'many'"),
        ({"distill": {"tokens": 0}}, "tokens of distill are 1 or more; got 0"),
        ({"distill": {"tokens": 1000, "learning_rate": "x"}}, "learning_rate of distill is a number; got 'x'"),
        ({"distill": {"tokens": 1000, "alpha": True}}, "alpha of distill is a number; got True"),
        ({"drop_layers": {"drop": 0}}, "drop of drop_layers is 1 or more; got 0"),
        ({"drop_layers": {"keep": 1.5}}, "keep of drop_layers is a whole number; got 1.5"),
        ({"prune": {"sparsity": 0.5, "group": "x"}}, "a known group is needed; got 'x'"),
        ({"shrink": {"ffn": 2.5}}, "ffn of shrink, with a point, is the share kept; got 2.5"),
        ({"shrink": {"heads": "half"}}, "heads of shrink is a whole number; got 'half'"),
        ({"distill": {"divergence": "jdd", "tokens": 1000}}, "Nearest: jsd"),
        ({"distill": {"temprature": 2.0, "tokens": 1000}}, "Nearest: temperature"),
        ({"distill": {"temperature": 0.0, "tokens": 1000}}, "a temperature is positive"),
        ({"distill": {"divergence": "sequence", "alpha": 0.5, "tokens": 1000}}, "no second term"),
    ],
)
def test_what_is_wrong_is_said_at_once(table, message):
    with pytest.raises(LabkitError) as error:
        list(Compression.expand(table))
    assert message in str(error.value)


def test_the_control_of_equal_flops_costs_what_teaching_costs():
    """Of the study `distillation`, by what the models' own configurations say; a training is whole steps."""
    tokens: dict[str, list[int]] = {"train": [], "distill": []}
    for compression in Study.load("distillation").compressions:
        verb, asked = compression.steps[-1]
        tokens[verb].append(dict(asked)["tokens"])
    teacher, student = Rung(96, 3).build(), Rung(64, 2).build()
    whole = lambda n: n // (64 * 48) * 64 * 48  # noqa: E731
    training = training_flops_per_token(student, 48)
    with_teacher = whole(max(tokens["distill"])) * (training + forward_flops_per_token(teacher, 48))
    assert whole(max(tokens["train"])) * training == pytest.approx(with_teacher, rel=1e-3)
    assert max(tokens["distill"]) in tokens["train"]  # the control of equal tokens


@pytest.mark.parametrize(("table", "message"), [
    ({"drop_layers": {"drop": 2}}, "layers to keep lies in 1..2; got 0"),
    ({"drop_layers": {"keep": 3}}, "layers to keep lies in 1..2; got 3"),
    ({"shrink": {"heads": 9}}, "heads to keep lies in 1.."),
    ({"shrink": {"ffn": 0.001}}, "ffn to keep lies in 1..88; got 0"),
    ({"prune": {"pattern": "3:7"}}, "an N:7 pattern needs matrices whose input width is divisible by 7"),
    ({"prune": {"sparsity": 0.5}, "recover": {"tokens": 64}}, "recover takes at least one batch of 64 × 48 tokens; got 64"),
    ({"train": {"tokens": 3071}}, "train takes at least one batch of 64 × 48 tokens; got 3071"),
    ({"distill": {"student": "16x1", "tokens": 3071}}, "distill takes at least one batch of 64 × 48 tokens; got 3071"),
])  # fmt: skip
def test_what_a_model_has_not_is_said_without_its_weights(table, message):
    (compression,) = Compression.expand(table)
    with pytest.raises(LabkitError) as error:
        compression.check(skeleton(Rung(32, 2).config().to_dict()), length=48)
    assert message in str(error.value)


SHIPPED = ("bytes", "capacity", "distillation", "pruning", "quick", "recovery")


def test_the_compressions_of_shipped_studies_fit_their_models():
    assert {name for name in studies() if Study.load(name).compressions} == {*SHIPPED}
    for name in SHIPPED:
        Study.load(name).check()
