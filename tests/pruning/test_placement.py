"""Whatever the architecture and the way of pruning: on a GPU, or lent one, a model gives what it gives on the CPU."""

from __future__ import annotations

import copy

import pytest
import torch

from labkit import forward
from labkit.abilities import Corpus, abilities
from labkit.errors import LabkitError
from labkit.ladder import Rung
from labkit.pruning import IMPORTANCES, Options, blocks, drop_layers, ledger, outlier_weighed, prune, shrink
from labkit.recovery import METHODS, recover

pytestmark = pytest.mark.filterwarnings("ignore:.*calibration tokens for the|.*have lost all their weights")

DEVICE = "cuda"


@pytest.fixture
def decoder(gpu, decoder):
    if decoder.config.model_type == "mixtral":
        decoder.set_experts_implementation("eager")  # others ask the driver which GPU it is
    return decoder


def devices(model) -> set[str]:
    return {tensor.device.type for tensor in (*model.parameters(), *model.buffers())}


@pytest.mark.parametrize("criterion", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("there", [False, True], ids=["lent", "there"])
def test_masks_of_every_architecture(decoder, tokens, criterion, there):
    """Rounding may tip a choice between scores that are nearly equal; zeros are found again where the model is."""
    here = prune(decoder, criterion, 0.5, calibration=tokens)
    dense = decoder.to(DEVICE) if there else decoder
    found = prune(dense, criterion, 0.5, calibration=tokens, options=Options(device=None if there else DEVICE))
    assert devices(found) == {DEVICE if there else "cpu"}
    ledger.check_masks(found)
    for expected, matrix in zip(blocks.matrices(here).values(), blocks.matrices(found.cpu()).values(), strict=True):
        assert ((expected.weight == 0) != (matrix.weight == 0)).float().mean() <= 0.02, matrix.name


def ways(model, tokens):
    """Way -> what it makes of the model."""
    yield "outliers", lambda: outlier_weighed(model, 0.5, tokens)
    for importance in (score.__name__.replace("_", "-") for score in IMPORTANCES):
        yield f"layers {importance}", lambda by=importance: drop_layers(model, 1, by, tokens)
    for importance in ("activation", "magnitude", "random"):
        yield (
            f"units {importance}",
            lambda by=importance: shrink(model, width=24, heads=2, ffn=24, importance=by, calibration=tokens),
        )


@torch.no_grad()
def test_smaller_models_of_every_architecture(decoder, tokens):
    """The same numbers, or the same error: not every architecture can be cut in every way."""
    there = copy.deepcopy(decoder).to(DEVICE)
    for (way, on_the_cpu), (_, on_the_gpu) in zip(ways(decoder, tokens), ways(there, tokens), strict=True):
        try:
            expected = on_the_cpu()
        except LabkitError as error:
            with pytest.raises(LabkitError) as raised:
                on_the_gpu()
            assert str(raised.value) == str(error), way
            continue
        found = on_the_gpu()
        if way == "outliers":
            assert found == pytest.approx(expected, abs=1e-3)
            continue
        assert devices(found) == {DEVICE}, way
        logits = found(input_ids=tokens.to(DEVICE), use_cache=False).logits.cpu()
        torch.testing.assert_close(logits, expected(input_ids=tokens, use_cache=False).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore:CUDA is not available")  # so training is not in bfloat16
@pytest.mark.parametrize("method", METHODS)
def test_a_sparse_model_is_recovered_where_it_is(gpu, monkeypatch, method):
    monkeypatch.setattr(forward, "compiled", lambda module: module)  # it takes longer than the training
    corpus, dense = Corpus(abilities("recall", "shift"), seed=0, length=24), Rung(16, 2).build(seed=3).to(DEVICE)
    sparse = prune(dense, "magnitude", 0.5)
    found = recover(sparse, corpus, method, tokens=4 * 64 * corpus.length, teacher=dense)
    assert devices(found) == {DEVICE}
    ledger.check_masks(found)
    before, after = (next(iter(blocks.matrices(model).values())).weight.cpu() for model in (sparse, found))
    assert not torch.equal(before, after)
