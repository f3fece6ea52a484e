"""Blocks are found in any decoder, and walking over them gives what a plain forward pass gives."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

from labkit.errors import LabkitError
from labkit.ladder import Rung
from labkit.pruning import blocks

TOKENS = torch.randint(168, (6, 12), generator=torch.Generator().manual_seed(0))


def gemma() -> Gemma2ForCausalLM:
    """Its blocks take turns between a sliding window and full attention, so each is called with its own mask."""
    config = Gemma2Config(
        vocab_size=168, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, sliding_window=4, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    return Gemma2ForCausalLM(config).eval()


def test_matrices_are_those_of_the_blocks_and_nothing_else():
    found = blocks.matrices(Rung(32, 2).build())
    assert len(found) == 2 * 7
    assert next(iter(found)) == "model.layers.0.self_attn.q_proj"
    assert not any("embed" in name or "head" in name for name in found)


@pytest.mark.parametrize("model", [Rung(32, 3).build().eval(), gemma()], ids=["llama", "gemma2"])
def test_walking_without_a_change_gives_the_norms_of_a_plain_forward_pass(model, monkeypatch):
    monkeypatch.setattr(blocks, "MICRO_BATCH_TOKENS", 4 * 12)  # 6 sequences: a part of 4, a rest of 2
    inputs: dict[str, torch.Tensor] = {}
    handles = [
        linear.register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0].detach()}))
        for name, linear in blocks.matrices(model).items()
    ]
    with torch.no_grad():
        model(input_ids=TOKENS, use_cache=False)
    for handle in handles:
        handle.remove()
    walked = {name: norms for step in blocks.walk(model, TOKENS) for name, norms in step.items()}
    assert list(walked) == [name for name in walked if name in inputs] and len(walked) == len(inputs)
    for name, norms in walked.items():
        assert norms.dtype == torch.float32
        torch.testing.assert_close(norms, inputs[name].flatten(0, 1).norm(dim=0), rtol=1e-4, atol=1e-6)


def test_the_next_block_sees_what_was_done_to_the_last():
    model = Rung(32, 2).build().eval()
    steps = blocks.walk(model, TOKENS)
    next(steps)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.zero_()
    changed = next(steps)["model.layers.1.self_attn.q_proj"]
    fresh = list(blocks.walk(model, TOKENS))[1]["model.layers.1.self_attn.q_proj"]
    torch.testing.assert_close(changed, fresh)


def test_walking_leaves_no_hook_behind():
    model = Rung(32, 1).build().eval()
    list(blocks.walk(model, TOKENS))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_block_that_gives_nan_is_named():
    model = Rung(32, 3).build().eval()
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(LabkitError, match="activations are finite; got 'NaN or infinity after block model.layers.1'"):
        list(blocks.walk(model, TOKENS))


def test_a_matrix_that_calibration_never_reaches_is_named():
    model = Rung(32, 1).build().eval()
    model.model.layers[0].expert = nn.Linear(4, 4)
    with pytest.raises(LabkitError, match="every matrix takes part .* got 'model.layers.0.expert'"):
        list(blocks.walk(model, TOKENS))


def test_matrices_of_another_kind_are_named():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=168, n_embd=32, n_layer=1, n_head=2))
    with pytest.raises(LabkitError, match="only matrices in torch.nn.Linear .*'transformer.h.0.attn.c_attn, a Conv1D'"):
        blocks.matrices(model)


def test_a_model_without_blocks_is_refused():
    model = Rung(32, 2).build()
    model.config.num_hidden_layers = 5
    with pytest.raises(LabkitError, match="one torch.nn.ModuleList; got 'LlamaForCausalLM without a list of 5 blocks'"):
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
        (TOKENS.new_tensor([[-1, 3]]), r"lie in the vocabulary, 0\.\.167; got 'tokens -1\.\.3'"),
    ],
)
def test_unfit_calibration_is_refused(calibration, message):
    with pytest.raises(LabkitError, match=f"{message}.*never padded"):
        blocks.check_calibration(Rung(32, 1).build(), calibration, "wanda")


def test_sparsity_is_the_share_of_zeros_in_the_matrices():
    model = Rung(32, 1).build()
    assert blocks.sparsity(model) == 0
    for linear in blocks.matrices(model).values():
        linear.weight.data[: len(linear.weight) // 4] = 0
    assert blocks.sparsity(model) == pytest.approx(0.25)
