"""A compression is what a study file says, in the order of the verbs, and is refused before any model is loaded."""

from __future__ import annotations

import pytest
import torch

from labkit.abilities import corpus
from labkit.compression import Compression
from labkit.errors import LabkitError
from labkit.ladder import Rung
from labkit.pruning import drop_layers, outlier_weighed, prune, sparsity

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
        ({"drop_layers": {"drop": 1}}, "drop-layers 1", 0.0),
        ({"shrink": {"ffn": 0.5, "importance": "random"}}, "shrink ffn 50% by random", 0.0),
        ({"recover": {"method": "lora", "tokens": 200_000}}, "lora 200k", 0.0),
        ({"recover": {}}, "lora 2M", 0.0),
        ({"drop_layers": {"keep": 1, "importance": "random"}}, "keep-layers 1 by random", 0.0),
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
    table = {"prune": {"criterion": "magnitude", "sparsity": 0.5}, "recover": {"method": "distil", "tokens": 7}}
    Compression.parse(table).apply(MODEL, TOKENS, "the corpus", seed=3)
    assert told == {"teacher": MODEL, "corpus": "the corpus", "seed": 3, "tokens": 7, "zeros": 0.5}


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
        ({"prune": {"sparsity": 0.5, "allocation": "owl"}}, "known allocation is needed; got 'owl'"),
        ({"prune": {"pattern": "2:4", "allocation": "outlier-weighed"}}, "a pattern has one sparsity"),
        ({"drop_layers": {"drop": 1, "keep": 1}}, "drop_layers says either drop or keep"),
    ],
)
def test_what_is_wrong_is_said_at_once(table, message):
    with pytest.raises(LabkitError) as error:
        list(Compression.expand(table))
    assert message in str(error.value)
