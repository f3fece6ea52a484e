import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from labkit.errors import LabkitError
from labkit.ladder import Rung
from labkit.lineage import lineage
from labkit.pruning import blocks, prune
from labkit.pruning.ledger import check_masks, masks_of
from labkit.quantization import BITS, quantize
from labkit.storage import BLOCK

MODEL = Rung(48, 2).build(seed=0)  # 48 inputs: a block and a half; 128 of the feed-forward layer: four


def by_hand(weight, bits):
    """One weight after the other, in NumPy."""
    largest, out = 2 ** (bits - 1) - 1, np.zeros_like(weight)
    for row, values in enumerate(weight):
        for begin in range(0, len(values), BLOCK):
            block = values[begin : begin + BLOCK]
            scale = np.float32(np.float16(np.abs(block).max() / np.float32(largest)))
            if scale:
                out[row, begin : begin + BLOCK] = np.clip(np.rint(block / scale), -largest, largest) * scale
    return out


def weights(model):
    return {name: matrix.weight.clone() for name, matrix in blocks.matrices(model).items()}


@pytest.mark.parametrize("bits", BITS)
def test_it_agrees_with_numpy_and_touches_nothing_outside_the_blocks(bits):
    before = {name: p.clone() for name, p in MODEL.state_dict().items()}
    rounded = quantize(MODEL, bits)
    inside = {matrix.key for matrix in blocks.matrices(MODEL).values()}
    for name, value in rounded.state_dict().items():
        if name in inside:
            np.testing.assert_array_equal(value.numpy(), by_hand(before[name].numpy(), bits))
        else:
            assert torch.equal(value, before[name])
    assert all(torch.equal(value, before[name]) for name, value in MODEL.state_dict().items())
    assert lineage(rounded) == ({"verb": "quantize", "bits": bits},) and lineage(MODEL) == ()


@settings(deadline=None, max_examples=20)
@given(bits=st.sampled_from(BITS), seed=st.integers(0, 2**16))
def test_no_weight_moves_by_more_than_half_a_step_and_none_moves_twice(bits, seed):
    model = Rung(32, 1).build(seed)
    once = quantize(model, bits)
    twice = weights(quantize(once, bits))
    for name, weight in weights(model).items():
        blocks_of = weight.abs().split(BLOCK, dim=1)
        largest = torch.cat([block.amax(1, keepdim=True).expand_as(block) for block in blocks_of], 1)
        step = largest / (2 ** (bits - 1) - 1)
        moved = (weights(once)[name] - weight).abs()
        assert (moved <= step * (0.5 + 2**-9)).all()  # 2⁻¹¹ of a scale is lost to half precision, up to 127 steps
        torch.testing.assert_close(twice[name], weights(once)[name], rtol=2**-10, atol=0)


def test_blocks_lie_along_the_inputs_whatever_the_storage():
    """GPT-2 stores (inputs, outputs): an outlier must not coarsen the other outputs of its input."""
    config = GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=40, n_positions=16)
    model = GPT2LMHeadModel(config)
    stored = model.transformer.h[0].mlp.c_fc.weight.detach()
    stored[0, 0] = 100.0
    rounded = quantize(model, 4).transformer.h[0].mlp.c_fc.weight.detach()
    assert (rounded[1:, 0] == 0).all() and rounded[0, 0] == pytest.approx(100, rel=1e-3)
    np.testing.assert_array_equal(rounded.T.numpy(), by_hand(stored.T.numpy(), 4))


def test_zeros_stay_zero_and_the_ledger_takes_the_new_ones():
    pruned = prune(MODEL, "magnitude", 0.5)
    rounded = quantize(pruned, 2)
    check_masks(rounded)
    for name, keep in masks_of(rounded).items():
        assert not (keep & ~masks_of(pruned)[name]).any()


def test_a_block_of_zeros_stays_one():
    model = Rung(32, 1).build(0)
    weight = next(iter(blocks.matrices(model).values())).weight
    weight[0] = 0
    assert (next(iter(blocks.matrices(quantize(model, 3)).values())).weight[0] == 0).all()


@pytest.mark.parametrize("bits", [1, 9, 4.0, "4", None])
def test_bits_out_of_range(bits):
    with pytest.raises(LabkitError, match=r"bits lie in 2..8; got .*Give e.g. 4"):
        quantize(MODEL, bits)


def test_what_cannot_be_quantised_is_named():
    broken = Rung(32, 1).build(0)
    name, matrix = next(iter(blocks.matrices(broken).items()))
    matrix.weight[0, 0] = torch.nan
    with pytest.raises(LabkitError, match=f"weights to be quantised are finite; got '{name}'"):
        quantize(broken, 4)
    already = Rung(32, 1).build(0)
    already.config.quantization_config = {"quant_method": "other"}
    with pytest.raises(LabkitError, match="a model is quantised once; got 'a quantised LlamaForCausalLM'"):
        quantize(already, 4)
    adapted = Rung(32, 1).build(0)
    adapted.model.layers[0].mlp.down_proj.base_layer = torch.nn.Identity()
    with pytest.raises(LabkitError, match="merged before a model is quantised; got 'one at model.layers.0.mlp.down_proj'"):
        quantize(adapted, 4)
