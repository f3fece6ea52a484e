"""Blocks and their matrices are found in any decoder; what cannot be pruned is named."""

from __future__ import annotations

import warnings
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from labkit.errors import LabkitError
from labkit.ladder import Rung
from labkit.pruning import blocks

TOKENS = torch.randint(1, 168, (6, 12), generator=torch.Generator().manual_seed(0))


def mixtral() -> MixtralForCausalLM:
    config = MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=4,
    )  # fmt: skip
    return MixtralForCausalLM(config)


def test_matrices_are_those_of_the_blocks_and_nothing_else():
    found = blocks.matrices(Rung(32, 2).build())
    assert len(found) == 2 * 7
    assert next(iter(found)) == "model.layers.0.self_attn.q_proj"
    assert not any("embed" in name or "head" in name for name in found)


def test_a_matrix_of_another_kind_is_named_with_its_class_and_the_reason():
    model = Rung(32, 1).build()
    model.model.layers[0].positions = nn.Embedding(4, 4)
    with pytest.raises(LabkitError, match="be pruned; got 'model.layers.0.positions, a Embedding: its matrices are"):
        blocks.matrices(model)


def test_a_depthwise_convolution_is_no_matrix_and_another_is():
    model = Rung(32, 1).build()
    found = list(blocks.matrices(model))
    model.model.layers[0].depthwise = nn.Conv1d(4, 4, 3, groups=4)
    model.model.layers[0].offsets = nn.ParameterList([torch.zeros(1, 4)])  # nor is one number for each channel
    assert list(blocks.matrices(model)) == found
    model.model.layers[0].mixing = nn.Conv1d(4, 4, 3, groups=2)
    with pytest.raises(LabkitError, match="be pruned; got 'model.layers.0.mixing, a Conv1d: its matrices are"):
        blocks.matrices(model)


def test_a_packed_matrix_is_named():
    model = Rung(32, 1).build()
    model.model.layers[0].packed = nn.ParameterList([nn.Parameter(torch.zeros(8, 1).byte(), requires_grad=False)])
    with pytest.raises(LabkitError, match="be pruned; got 'model.layers.0.packed, a ParameterList: its matrices are"):
        blocks.matrices(model)


def test_experts_in_another_layout_are_named():
    model = mixtral()
    model.model.layers[0].mlp.experts.scale = nn.Parameter(torch.ones(4, 2))
    with pytest.raises(LabkitError, match=r"got 'model.layers.0.mlp.(gate|experts), a Mixtral\w+: its matrices are"):
        blocks.matrices(model)


def test_a_module_in_which_pytorch_would_quantise_but_did_not_is_no_obstacle():
    model = Rung(32, 1).build()
    found = list(blocks.matrices(model))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch moves it to another package
        model.model.layers[0].add = torch.ao.nn.quantized.FloatFunctional()
    assert list(blocks.matrices(model)) == found


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRUCell, nn.Linear])
def test_what_pytorch_has_quantised_is_named(kind):
    model = Rung(32, 1).build()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch moves it to another package
        inside = torch.ao.quantization.quantize_dynamic(nn.Sequential(kind(32, 32)), {kind}, dtype=torch.qint8)
    model.model.layers[0].more = inside
    with pytest.raises(LabkitError, match=rf"got 'model\.layers\.0\.more\.0, a .*{kind.__name__}: it is quantised'"):
        blocks.matrices(model)


def test_weights_that_are_not_floating_point_are_refused():
    model = Rung(32, 1).build()
    linear = model.model.layers[0].mlp.up_proj
    linear.weight = nn.Parameter(linear.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(LabkitError, match="up_proj, a Linear: its weights are torch.int8, not floating point"):
        blocks.matrices(model)


def test_a_matrix_is_a_writable_view_outputs_by_inputs_of_its_stored_tensor(decoder):
    state = decoder.state_dict()
    for matrix in blocks.matrices(decoder).values():
        before = state[matrix.key].count_nonzero()
        matrix.weight[0].zero_()
        assert matrix.weight.shape[1] in (32, 48, 64) and matrix.weight.shape[1] == inputs_of(matrix)
        assert before - state[matrix.key].count_nonzero() == matrix.weight.shape[1]


def inputs_of(matrix: blocks.Matrix) -> int:
    """By how its module multiplies."""
    if matrix.expert is not None:
        return getattr(matrix.module, {"gate_up_proj": "hidden_dim", "down_proj": "intermediate_dim"}[matrix.parameter])
    return getattr(matrix.module, "in_features", None) or matrix.module.nx


def test_every_parameter_of_the_blocks_with_two_dimensions_is_a_matrix_but_for_the_router(decoder):
    inside = {
        f"{prefix}.{name}"
        for prefix, block in [blocks.decoder_blocks(decoder)]
        for name, parameter in block.named_parameters()
        if parameter.ndim > 1
    }
    assert inside - {matrix.key for matrix in blocks.matrices(decoder).values()} == {
        name for name in inside if name.endswith(".mlp.gate.weight")
    }


@pytest.mark.parametrize(("model", "received"), [("gpt2", "gpt2"), (torch.nn.Linear(2, 2), "Linear")])
def test_what_is_no_model_is_refused(model, received):
    with pytest.raises(LabkitError, match=f"a model is one of transformers; got '{received}'. Load it first"):
        blocks.decoder_blocks(model)


@pytest.mark.parametrize("device", ["gpu", "meta", 3.5, "cuda:99"])
def test_a_device_that_cannot_compute_is_refused(device):
    with pytest.raises(LabkitError, match=f"PyTorch can compute on here; got '{device}'. Leave it out, or say \"cpu\""):
        blocks.check_device(device)


@pytest.mark.parametrize("seed", [1.5, "1", None, True])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(LabkitError, match=f"a seed is a whole number; got {seed!r}"):
        blocks.seeded(seed)


def test_a_model_without_blocks_is_refused():
    model = Rung(32, 2).build()
    model.config.num_hidden_layers = 5
    with pytest.raises(LabkitError, match="one torch.nn.ModuleList; got 'LlamaForCausalLM with no list of 5 blocks'"):
        blocks.decoder_blocks(model)


def test_a_model_with_the_parts_of_its_blocks_in_several_lists_is_refused():
    model = Rung(32, 2).build()
    model.model.rotations = nn.ModuleList(nn.Identity() for _ in range(2))  # what holds nothing is no part
    assert blocks.decoder_blocks(model)[0] == "model.layers"
    model.model.networks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
    with pytest.raises(LabkitError, match="one torch.nn.ModuleList; got 'LlamaForCausalLM with model.layers, model.net"):
        blocks.decoder_blocks(model)


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (None, "wanda needs calibration tokens; got None"),
        ([[1, 2]], "are a torch.Tensor; got 'list'"),
        (TOKENS.float(), r"int64 with shape \(sequences, time\); got 'torch.float32 \(6, 12\)'"),
        (TOKENS[0], r"int64 with shape \(sequences, time\); got 'torch.int64 \(12,\)'"),
        (TOKENS[:0], r"int64 with shape \(sequences, time\); got 'torch.int64 \(0, 12\)'"),
        (TOKENS.new_tensor([[3, 168]]), r"lie in the vocabulary, 0\.\.167; got 'tokens 3\.\.168'"),
        (TOKENS.new_tensor([[5, 0], [3, 4]]), "are never padded; got 'the padding token 0 in 1 of 2 sequences'"),
        (TOKENS.to("meta"), "are a torch.Tensor; got 'torch.strided on meta'"),
        (TOKENS.to_sparse(), "are a torch.Tensor; got 'torch.sparse_coo on cpu'"),
        (TOKENS.new_tensor([[-1, 3]]), r"lie in the vocabulary, 0\.\.167; got 'tokens -1\.\.3'"),
    ],
)
def test_unfit_calibration_is_refused(calibration, message):
    with pytest.raises(LabkitError, match=f"{message}.*never padded"):
        blocks.check_calibration(Rung(32, 1).build(), calibration, "wanda")


@pytest.mark.parametrize(("start", "end", "row", "padded"), [
    (5, 5, [5, 5, 5, 3, 4], True), (5, 5, [3, 4, 5, 5, 5], True), (5, [7, 5], [3, 4, 5, 5, 5], True), (5, 5, [5, 5, 5], True),
    (5, 5, [5, 5, 3, 5, 5], False), (5, 5, [3, 5, 5, 5, 4], False), (5, 5, [5], False),
    (None, 5, [3, 4, 5, 5, 5], True), (None, 5, [3, 4, 5, 5], False), (None, None, [5, 5, 5, 5], False),
    (8, 5, [3, 4, 5, 5], True), (8, 5, [5, 5, 3, 4], True), (8, 5, [5, 3, 4, 5], False), (8, 5, [8, 8, 8, 3], False),
])  # fmt: skip
def test_where_no_padding_is_named_ends_of_text_at_either_end_are_if_more_than_stand_between_two(start, end, row, padded):
    model = Rung(32, 1).build()
    model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id = None, start, end
    check_padding(model, row, padded)


@pytest.mark.parametrize(("start", "end", "row", "padded"), [
    (None, None, [3, 5, 4], True), (8, 7, [3, 5, 4], True),
    (8, 5, [5, 3, 5], False), (8, 5, [3, 5, 5, 4], True), (5, 7, [5, 3, 5], False), (5, [7], [3, 5, 5, 4], True),
    (5, 5, [3, 5, 5, 4], False), (5, 5, [3, 5, 5, 5, 4], True), (5, [5, 7], [3, 5, 5, 4], False),
    (None, 5, [3, 5, 5, 4], False), (None, 5, [3, 5, 5, 5, 4], True), (5, None, [3, 5, 5, 5, 4], True),
    (5, None, [3, 5, 5, 4], False), (5, 5, [5], False),
])  # fmt: skip
def test_a_named_padding_token_is_padding_but_for_as_many_as_stand_between_two_texts(start, end, row, padded):
    model = Rung(32, 1).build()
    model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id = 5, start, end
    check_padding(model, row, padded)


def check_padding(model, row, padded):
    refused = pytest.raises(LabkitError, match="padding token 5 in 1 of 64 sequences") if padded else nullcontext()
    with refused:
        blocks.check_calibration(model, torch.cat([TOKENS.new_tensor([row]), 9 + TOKENS.new_zeros(63, len(row))]), "wanda")


@pytest.mark.parametrize("pad", [None, 5])
def test_texts_that_begin_and_end_with_one_token_may_be_cut_anywhere(pad):
    """Packed one behind the other: somewhere two of them begin a sequence, and end one."""
    model = Rung(32, 1).build()
    model.config.pad_token_id = pad
    model.config.bos_token_id = model.config.eos_token_id = 5
    packed = torch.tensor([token for length in range(1, 30) for token in (5, *range(6, 6 + length), 5)])
    for length in (3, 7, 16):
        cut = packed.unfold(0, length, 1)
        assert (cut[:, :2] == 5).all(1).any() and (cut[:, -2:] == 5).all(1).any()
        blocks.check_calibration(model, cut, "wanda")


def test_a_model_that_reads_no_tokens_or_a_second_text_is_not_calibrated():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2))
    vit = ViTForImageClassification(ViTConfig(**sizes, image_size=32, patch_size=8))
    for model in (vit, t5, CLIPModel(CLIPConfig(text_config=sizes, vision_config=sizes))):
        rule = f"wanda needs a model that reads tokens and nothing else; got '{type(model).__name__}'"
        with pytest.raises(LabkitError, match=rule):
            blocks.check_calibration(model, TOKENS, "wanda")


def test_embeddings_of_any_class_are_a_vocabulary():
    class Own(nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.weight = weight

        def forward(self, tokens):
            return nn.functional.embedding(tokens, self.weight)

    model = Rung(32, 1).build()
    expected = model(TOKENS).logits
    model.set_input_embeddings(Own(model.get_input_embeddings().weight))
    assert torch.equal(model(TOKENS).logits, expected)
    with pytest.raises(LabkitError, match=r"lie in the vocabulary, 0\.\.167"):
        blocks.check_calibration(model, TOKENS + 150, "wanda")


def test_sequences_past_the_context_of_a_model_are_refused():
    """GPT-2 has no positions beyond; with rotations there are, but no model was trained on them."""
    gpt2 = GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=128)
    for model in (Rung(32, 1).build(), GPT2LMHeadModel(gpt2)):
        blocks.check_calibration(model, TOKENS.new_ones(1, 128), "wanda")
        with pytest.raises(LabkitError, match="no longer than the model's context, 128 tokens; got '129 tokens'"):
            blocks.check_calibration(model, TOKENS.new_ones(1, 129), "wanda")


@pytest.mark.parametrize(("tokens", "warned"), [(blocks.FEW_TOKENS - 1, 1), (blocks.FEW_TOKENS, 0)])
def test_few_calibration_tokens_are_warned_of(tokens, warned):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        blocks.check_calibration(Rung(32, 1).build(), TOKENS.new_ones(1, tokens), "wanda")
    assert [str(w.message).partition(":")[0] for w in caught] == warned * [f"{tokens} calibration tokens for wanda"]


def test_blocks_without_any_matrix_are_refused():
    model = Rung(32, 1).build()
    model.model.layers[0] = nn.LayerNorm(32)
    with pytest.raises(LabkitError, match=r"got 'model\.layers, a ModuleList: there is no matrix in it'"):
        blocks.matrices(model)


def test_sparsity_is_the_share_of_zeros_in_the_matrices():
    model = Rung(32, 1).build()
    assert blocks.sparsity(model) == 0
    for linear in blocks.matrices(model).values():
        linear.weight.data[: len(linear.weight) // 4] = 0
    assert blocks.sparsity(model) == pytest.approx(0.25)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", blocks.DTYPES)
def test_finite_is_what_isfinite_says(dtype, bad):
    values = torch.randn(3, 70, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert blocks.finite(values)
    values[1, 65] = bad
    assert not blocks.finite(values)


def test_evaluating_leaves_every_module_in_its_mode():
    model = Rung(32, 2).build().train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    with pytest.raises(KeyError), blocks.evaluating(model):
        assert not any(module.training for module in model.modules())
        raise KeyError
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 2**70])
def test_a_seed_of_more_than_64_bits_is_refused(seed):
    with pytest.raises(LabkitError, match="a seed has 64 bits; got"):
        blocks.seeded(seed)
    blocks.seeded(max(-(2**63), min(seed, 2**64 - 1)))
