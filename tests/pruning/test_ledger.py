"""The ledger: zeros survive what they must survive, and whatever touches them is named and counted."""

from __future__ import annotations

import copy
import hashlib
import json

import numpy as np
import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from labkit import quantize
from labkit.errors import LabkitError
from labkit.ladder import Rung
from labkit.pruning import blocks, drop_layers, ledger, outlier_weighed, prune, shrink
from labkit.zoo import load

NAME = "model.layers.0.self_attn.q_proj"
MOVED = "the zeros of a pruned model stay where they were recorded; got"


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=16))


def mixtral():
    torch.manual_seed(0)
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, num_local_experts=3, num_experts_per_tok=2,
        )
    )  # fmt: skip


def gpt_oss():
    """Experts whose matrices are stored turned, (experts, inputs, outputs), with biases."""
    torch.manual_seed(0)
    return GptOssForCausalLM(
        GptOssConfig(
            vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, num_local_experts=3, num_experts_per_tok=2,
        )
    )  # fmt: skip


def odd():
    """Its matrices have sizes that 8 does not divide."""
    sizes = {"hidden_size": 6, "intermediate_size": 5, "num_hidden_layers": 2, "num_attention_heads": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, **sizes))


def pruned(build=lambda: Rung(16, 2).build(), sparsity=0.5):
    """Half of every matrix of the blocks is zero, where a generator says, and the ledger is written."""
    model, generator = build().eval(), torch.Generator().manual_seed(1)
    for matrix in blocks.matrices(model).values():
        matrix.weight.masked_fill_(torch.rand(matrix.weight.shape, generator=generator) < sparsity, 0)
    ledger.record_masks(model)
    return model


def zeros(model):
    return {name: (matrix.weight == 0) for name, matrix in blocks.matrices(model).items()}


@pytest.mark.parametrize("build", [lambda: Rung(16, 2).build(), gpt2, mixtral, gpt_oss, odd])
def test_an_entry_is_the_share_shape_and_hash_of_the_zeros_packed_to_bits(build):
    model = pruned(build)
    written = model.config.labkit_masks
    assert written == json.loads(json.dumps(written))
    for name, zero in zeros(model).items():
        array = zero.numpy()
        packed = np.packbits(np.ascontiguousarray(array)).tobytes()
        expected = {"sparsity": array.mean(), "shape": list(array.shape), "sha256": hashlib.sha256(packed).hexdigest()}
        assert written[name] == expected
        assert torch.equal(ledger.masks_of(model)[name], ~zero)
    ledger.check_masks(model)


@pytest.mark.parametrize("build", [lambda: Rung(16, 2).build(), gpt2, odd])
def test_an_entry_made_on_a_gpu_is_the_same(gpu, build):
    model = pruned(build)
    written = model.config.labkit_masks
    ledger.record_masks(model.to("cuda"))
    assert model.config.labkit_masks == written
    ledger.check_masks(model)


def test_matrices_without_zeros_are_left_out_and_a_dense_model_has_no_ledger():
    model = Rung(16, 2).build()
    ledger.record_masks(model)
    assert not hasattr(model.config, "labkit_masks")
    assert ledger.masks_of(model) == {}
    ledger.check_masks(model)
    blocks.matrices(model)[NAME].weight[0, 0] = 0
    ledger.record_masks(model)
    assert list(model.config.labkit_masks) == [NAME]
    blocks.matrices(model)[NAME].weight[0, 0] = 1
    ledger.record_masks(model)  # recorded anew, it is dense again
    assert not hasattr(model.config, "labkit_masks")


@pytest.mark.parametrize("build", [lambda: Rung(16, 2).build(), gpt2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_zeros_survive_saving_loading_and_a_change_of_precision(tmp_path, build, dtype):
    model = pruned(build).to(dtype)
    ledger.check_masks(model)
    model.save_pretrained(tmp_path)
    loaded = load(str(tmp_path))
    assert loaded.dtype == dtype and loaded.config.labkit_masks == model.config.labkit_masks
    for name, zero in zeros(model).items():
        assert torch.equal(zeros(loaded)[name], zero)


def test_float16_underflow_is_counted_and_bfloat16_has_none():
    model = pruned()
    weight = blocks.matrices(model)[NAME].weight
    kept = (weight != 0).nonzero()[:3]
    weight[tuple(kept.T)] = 1e-9
    ledger.check_masks(copy.deepcopy(model).to(torch.bfloat16))
    half = model.to(torch.float16)
    recorded = round(half.config.labkit_masks[NAME]["sparsity"] * 256)
    with pytest.raises(LabkitError, match=f"{MOVED} '{NAME}: 3 zeros more than the {recorded} recorded'.*record_masks"):
        ledger.check_masks(half)
    ledger.record_masks(half)  # what the message offers
    ledger.check_masks(half)


def test_zeros_that_are_gone_are_counted_by_matrix_when_the_model_is_loaded(tmp_path):
    model = pruned()
    weight = blocks.matrices(model)[NAME].weight
    places = (weight == 0).nonzero()
    weight[tuple(places[:5].T)] = 0.1
    blocks.matrices(model)["model.layers.1.mlp.up_proj"].weight.fill_(1.0)
    model.save_pretrained(tmp_path)
    message = f"{MOVED} '{NAME}: 5 of {len(places)} zeros are zero no longer, and 1 further matrices differ'. Set them"
    with pytest.raises(LabkitError, match=message):
        load(str(tmp_path))


def test_zeros_that_moved_are_found():
    model = pruned()
    weight = blocks.matrices(model)[NAME].weight
    weight.copy_(weight.flip(0))
    with pytest.raises(LabkitError, match=rf"'{NAME}: its \d+ zeros stand elsewhere'"):
        ledger.check_masks(model)


def test_minus_zero_is_zero():
    model = pruned()
    blocks.matrices(model)[NAME].weight.neg_()
    ledger.check_masks(model)


@pytest.mark.parametrize("look", [ledger.check_masks, ledger.masks_of, ledger.hold])
def test_a_mask_for_another_model(look):
    recorded = pruned().config.labkit_masks
    wider, shorter = Rung(32, 2).build(), Rung(16, 1).build()
    wider.config.labkit_masks = shorter.config.labkit_masks = recorded
    message = "a mask belongs to the model it was made for; got '{}'. Load the weights with the config"
    with pytest.raises(LabkitError, match=message.format(f"{NAME} of 16x16, but 32x32")):
        look(wider)
    other = r"model\.layers\.1\.self_attn\.q_proj of 16x16, but no such matrix"
    with pytest.raises(LabkitError, match=message.format(other)):
        look(shorter)


@pytest.mark.parametrize("entry", [
    {}, None, "x", {"shape": [16, 16], "sha256": "a"}, {"sparsity": 0.5, "shape": 5, "sha256": "a"},
    {"sparsity": "x", "shape": [16, 16], "sha256": "a"}, {"sparsity": 0.5, "shape": [16, 16], "sha256": None},
])  # fmt: skip
def test_what_is_no_entry_of_a_ledger_is_named(entry):
    model = pruned()
    model.config.labkit_masks[NAME] = entry
    with pytest.raises(LabkitError, match=f"has sparsity, shape and sha256 of each matrix; got 'another {NAME}'"):
        ledger.check_masks(model)


def test_an_entry_that_another_program_has_written_is_the_same():
    model = pruned()
    blocks.matrices(model)[NAME].weight.data.zero_()
    ledger.record_masks(model)
    model.config.labkit_masks[NAME]["sparsity"] = 1  # as JSON of others has 1.0
    ledger.check_masks(model)


@pytest.mark.parametrize("masks", [[], 0, ["masks"], "masks"])
def test_what_is_no_ledger_is_named(masks):
    model = pruned()
    model.config.labkit_masks = masks
    with pytest.raises(LabkitError, match="has sparsity, shape and sha256 of each matrix; got 'another labkit_masks'"):
        ledger.check_masks(model)


def test_a_compiled_model_is_not_one_of_other_matrices():
    with pytest.raises(LabkitError, match="a model is given before it is compiled"):
        ledger.check_masks(torch.compile(pruned()))


def flat():
    """All its parameters are views of one tensor."""
    model = Rung(16, 2).build()
    whole = torch.cat([p.detach().flatten() for p in model.parameters()])
    parts = whole.split([p.numel() for p in model.parameters()])
    for parameter, part in zip(model.parameters(), parts, strict=True):
        parameter.data = part.view_as(parameter)
    return model


@pytest.mark.parametrize("build", [lambda: Rung(16, 2).build(), gpt2, mixtral, gpt_oss, flat])
@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_held_gradients_are_the_masked_ones_and_zeros_survive_every_step(build, optimizer):
    model = pruned(build)
    before, held = zeros(model), ledger.hold(model)
    steps = optimizer(model.parameters(), lr=0.05, weight_decay=0.1)
    for number in range(3):
        tokens = torch.randint(0, 40, (4, 12), generator=torch.Generator().manual_seed(number))
        model(input_ids=tokens, labels=tokens).loss.backward()
        raw = {name: p.grad.clone() for name, p in model.named_parameters()}
        held()
        for name, matrix in blocks.matrices(model).items():
            parameter = getattr(matrix.module, matrix.parameter)
            grad, free = parameter.grad, raw[matrix.key]
            if matrix.expert is not None:
                grad, free = grad[matrix.expert], free[matrix.expert]
            turned = build is gpt2 or (build is gpt_oss and matrix.expert is not None)
            keep = ~before[name].T if turned else ~before[name]
            torch.testing.assert_close(grad, free * keep, rtol=0, atol=0, msg=name)
        steps.step()
        steps.zero_grad()
        assert all(torch.equal(zero, before[name]) for name, zero in zeros(model).items())
    held.settle()


def test_a_weight_that_training_sets_to_zero_is_taken_into_the_ledger():
    model = pruned()
    held = ledger.hold(model)
    weight = blocks.matrices(model)[NAME].weight
    weight[tuple((weight != 0).nonzero()[0])] = 0
    held.settle()
    ledger.check_masks(model)
    assert model.config.labkit_masks[NAME]["sparsity"] == (weight == 0).float().mean().item()


def test_a_step_without_the_masks_is_a_violation_with_the_exact_count():
    model = pruned()
    held = ledger.hold(model)
    weight = blocks.matrices(model)[NAME].weight
    gone, new = (weight == 0).nonzero()[:4], (weight != 0).nonzero()[:7]
    weight[tuple(gone.T)], weight[tuple(new.T)] = 1, 0
    with pytest.raises(LabkitError, match=rf"'{NAME}: 4 of \d+ zeros are zero no longer'"):
        held.settle()


def test_training_on_from_zeros_that_are_not_the_recorded_ones_is_refused():
    model = pruned()
    blocks.matrices(model)[NAME].weight.fill_(1)
    with pytest.raises(LabkitError, match=MOVED):
        ledger.hold(model)


def test_frozen_and_dense_models_hold_nothing():
    assert ledger.hold(Rung(16, 1).build()).gradients == ()
    assert ledger.hold(pruned().requires_grad_(False)).gradients == ()


WORK = {
    "prune": lambda model, tokens: prune(model, "magnitude", 0.3),
    "drop_layers": lambda model, tokens: drop_layers(model, 1, "random"),
    "shrink": lambda model, tokens: shrink(model, ffn=24, importance="random"),
    "outlier_weighed": lambda model, tokens: outlier_weighed(model, 0.5, tokens),
    "quantize": lambda model, tokens: quantize(model),
}


@pytest.mark.parametrize("verb", WORK)
def test_whatever_is_done_next_does_not_take_filled_zeros_for_weights(verb):
    """Else the ledger that is then written anew would hide them."""
    model, tokens = pruned(lambda: Rung(32, 2).build()), torch.ones(16, 12, dtype=torch.int64)
    WORK[verb](model, tokens)  # nothing is wrong yet
    weight = blocks.matrices(model)[NAME].weight
    count = int((weight == 0).sum())
    weight[weight == 0] = torch.cat([torch.ones(5), torch.zeros(count - 5)])
    with pytest.raises(LabkitError, match=f"{MOVED} '{NAME}: 5 of {count} zeros are zero no longer'"):
        WORK[verb](model, tokens)
