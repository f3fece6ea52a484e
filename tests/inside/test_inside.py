"""Taking parts out and putting them in: agrees with edited weights, and finds a circuit built by hand."""

from __future__ import annotations

import copy

import pandas as pd
import pytest
import torch

from labkit.abilities import Recall, Repeat, abilities, vocabulary
from labkit.errors import LabkitError
from labkit.evaluation import evaluate
from labkit.inside import DONOR, INTACT, Part, ablate, effects, parts, patch
from labkit.ladder import Rung

SUITE = abilities("recall", "facts")
COLUMNS = ["ability", "metric", "item", "value", "chance"]


@pytest.fixture(scope="module")
def model():
    return Rung(32, 2).build(seed=1)


@pytest.fixture
def reference() -> torch.Tensor:
    return torch.randint(1, vocabulary.SIZE, (4, 20), generator=torch.Generator().manual_seed(0))


def of(rows: pd.DataFrame, part: str) -> pd.DataFrame:
    return rows[rows["part"] == part][COLUMNS].reset_index(drop=True)


def close(rows: pd.DataFrame, expected: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(rows, expected, rtol=1e-4, atol=1e-5)


def exact(rows: pd.DataFrame) -> pd.Series:
    """Mean exact match by (part, ability)."""
    return rows[rows["metric"] == "exact_match"].groupby(["part", "ability"])["value"].mean()


# --- taking out ------------------------------------------------------------------------------------------------------


def test_a_mean_head_is_zero_columns_and_a_bias(model, reference):
    """The mean is taken here by a hook of this test's own; the edited model has no hook at all."""
    written = []
    projection = model.model.layers[1].self_attn.o_proj
    handle = projection.register_forward_pre_hook(lambda _, args: written.append(args[0][..., 16:32]))
    with torch.no_grad():
        model(input_ids=reference)
    handle.remove()
    edited = copy.deepcopy(model)
    projection = edited.model.layers[1].self_attn.o_proj
    with torch.no_grad():
        bias = projection.weight[:, 16:32] @ written[0].mean((0, 1))
        projection.weight[:, 16:32] = 0
    projection.bias = torch.nn.Parameter(bias)
    rows = ablate(model, SUITE, reference, [Part("head", 1, 1)], n=16)
    close(of(rows, "head 1.1"), evaluate(edited, SUITE, n=16, progress=False))
    close(of(rows, INTACT), evaluate(model, SUITE, n=16, progress=False))


def test_a_mean_mlp_writes_its_mean(model, reference):
    found = []
    handle = model.model.layers[0].mlp.register_forward_hook(lambda *x: found.append(x[2]))
    with torch.no_grad():
        model(input_ids=reference)
    handle.remove()
    edited = copy.deepcopy(model)
    down = edited.model.layers[0].mlp.down_proj
    torch.nn.init.zeros_(down.weight)
    down.bias = torch.nn.Parameter(found[0].mean((0, 1)))
    rows = ablate(model, SUITE, reference, parts(model, "mlp"), n=16)
    close(of(rows, "mlp 0"), evaluate(edited, SUITE, n=16, progress=False))


def test_what_a_reference_of_one_token_says_is_put_back(model):
    """Over one place the mean is what is written there, so on that very token nothing changes."""
    token = torch.tensor([[7]])

    class Alone(Repeat):
        def sample(self, n, seed, length=48, first=0):
            items = super().sample(1, seed)
            items.tokens[:, 0] = 7
            return type(items)(items.ability, items.tokens[:, :1], items.tokens[:, :1], items.lengths * 0 + 1,
                               items.index, items.options)  # fmt: skip

    rows = ablate(model, [Alone()], token, n=1)
    values = rows[rows["metric"] == "nll_nats"].set_index("part")["value"]
    assert values.to_dict() == pytest.approx(dict.fromkeys(values.index, values[INTACT]), rel=1e-5)
    assert ablate(model, [Alone()], how="zero", n=1)["value"].nunique() > 4  # taken out entirely, it does


def test_rows_say_where_a_part_is(model, reference):
    both = {"two heads": parts(model, "head")[:2], "across": [Part("mlp", 0), Part("mlp", 1)]}
    rows = ablate(model, SUITE, reference, both, n=2).drop_duplicates("part").set_index("part")
    assert list(rows.index) == [INTACT, "two heads", "across"]
    assert rows["layer"].fillna(-1).to_list() == [-1, 0, -1] and rows["head"].isna().all()
    one = ablate(model, SUITE, reference, [Part("head", 1, 0)], n=2).drop_duplicates("part").set_index("part")
    assert one.loc["head 1.0", ["layer", "head"]].to_list() == [1, 0]


@pytest.mark.parametrize("threads", [1, 2])
def test_batches_side_by_side_get_their_own_activations(model, reference, threads):
    """`evaluate` runs as many batches at once as torch has threads; one with another's activations would differ."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        donor = Rung(32, 2).build(seed=2)
        everything = {"all": [*parts(model, "layer")]}
        same = copy.deepcopy(donor)
        same.model.layers = copy.deepcopy(model.model.layers)  # embeddings and head are the donor's
        rows = patch(same, donor, abilities("repeat", "recall"), everything, n=256)
        assert not of(rows, INTACT).equals(of(rows, DONOR))
        close(of(rows, "all"), of(rows, DONOR))
    finally:
        torch.set_num_threads(before)


def test_both_models_are_left_as_they_are(model, reference):
    donor = Rung(32, 2).build(seed=2).train()
    before = evaluate(donor, SUITE, n=4, progress=False)
    patch(donor, copy.deepcopy(donor), SUITE, n=4)
    ablate(donor, SUITE, reference, n=4)
    assert donor.training and evaluate(donor, SUITE, n=4, progress=False).equals(before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in donor.modules())


# --- the circuit of the decoder built by hand -----------------------------------------------------------------------


def test_the_copying_circuit_is_found_by_taking_it_apart(copier):
    reference = torch.randint(1, vocabulary.SIZE, (4, 40), generator=torch.Generator().manual_seed(0))
    rows = exact(ablate(copier, [Repeat(), Recall()], reference, parts(copier, "head", "mlp"), n=16))
    for ability in ("repeat", "recall"):
        assert rows[INTACT, ability] == rows["mlp 0", ability] == rows["mlp 1", ability] == 1
        assert rows["head 0.0", ability] <= 0.25 and rows["head 1.0", ability] <= 0.25


def test_a_broken_head_is_mended_by_its_own_part_or_a_later_one(copier):
    broken = copy.deepcopy(copier)
    torch.nn.init.zeros_(broken.transformer.h[0].attn.c_attn.weight)  # the head that looks one place back
    found = effects(patch(broken, copier, [Repeat(), Recall()], parts(copier, "head", "mlp"), n=16))
    share = found[found["metric"] == "exact_match"].set_index(["part", "ability"])["share"]
    for ability in ("repeat", "recall"):
        assert share[DONOR, ability] == share["head 0.0", ability] == share["head 1.0", ability] == 1
        assert share["mlp 0", ability] == share["mlp 1", ability] == 0


# --- errors ----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_done_is_refused(model, reference):
    with pytest.raises(LabkitError, match="a known way of taking out is needed; got 'means'. Nearest: mean."):
        ablate(model, SUITE, reference, how="means")
    with pytest.raises(LabkitError, match="mean ablation needs calibration tokens; got None. Give int64 tokens"):
        ablate(model, SUITE)
    with pytest.raises(LabkitError, match=r"a known part of this model is needed; got 'mlp 2'"):
        ablate(model, SUITE, reference, [Part("mlp", 2)])
    rule = r"same architecture, layers, heads, head size, width and device, here \('llama', 2, .*got \('llama', 1, 1, 16, 16, 'cpu'\)"
    with pytest.raises(LabkitError, match=rule):
        patch(model, Rung(16, 1).build(), SUITE)


def test_a_donor_is_another_model_of_the_same_architecture(model):
    with pytest.raises(LabkitError, match="a donor is another model"):
        patch(model, model, SUITE)
