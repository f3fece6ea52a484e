"""Counts against the parameters of the ladder and PyTorch's own counter."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM as Auto
from transformers import Ernie4_5_MoeConfig, Gemma4TextConfig, GPT2Config, GPT2LMHeadModel, GptOssConfig, MixtralConfig, Qwen2MoeConfig, RwkvConfig

from labkit import flops
from labkit.ladder import Rung


@pytest.mark.parametrize("rung", [Rung(16, 1), Rung(64, 2)])
def test_non_embedding_parameters_are_those_of_the_rung(rung):
    assert flops.non_embedding_params(rung.build()) == rung.params


def test_tied_and_position_embeddings_are_not_counted():
    d, layers = 32, 2
    model = GPT2LMHeadModel(GPT2Config(vocab_size=168, n_embd=d, n_layer=layers, n_head=2, n_positions=64))
    assert flops.non_embedding_params(model) == layers * (12 * d * d + 13 * d) + 2 * d


@pytest.mark.parametrize("time", [16, 128])
def test_forward_agrees_with_pytorch_up_to_norms(time):
    """PyTorch counts matrix products only, and attention as a full square: 2·L·T·d more per token than causal.

    We count norm weights with the other parameters: 2·(2·L + 1)·d, under 1 % here.
    """
    model = Rung(64, 2).build().eval()
    model.set_attn_implementation("eager")  # the counter does not know the fused kernel of the CPU
    tokens = torch.zeros(2, time, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=tokens, use_cache=False)
    causal_saving = 2 * 2 * time * 64
    ours = tokens.numel() * (flops.forward_flops_per_token(model, time) + causal_saving)
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_training_costs_three_forwards():
    model = Rung(16, 1).build()
    assert flops.training_flops_per_token(model, 48) == 3 * flops.forward_flops_per_token(model, 48)


SHAPE = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
SHAPE |= {"num_key_value_heads": 2, "num_experts_per_tok": 2}
MIXTURES = [
    MixtralConfig(**SHAPE, num_local_experts=8),
    GptOssConfig(**SHAPE, num_local_experts=8, head_dim=16),
    Ernie4_5_MoeConfig(**SHAPE, moe_num_experts=8, moe_intermediate_size=32, moe_num_shared_experts=2),
    Qwen2MoeConfig(**SHAPE, num_experts=8, moe_intermediate_size=32, shared_expert_intermediate_size=32),
]


@pytest.mark.parametrize("config", MIXTURES, ids=lambda config: config.model_type)
def test_of_experts_those_are_counted_that_a_token_is_routed_to(config):
    """As PyTorch counts what is run, up to norms and biases, and attention as a full square."""
    model, time = Auto.from_config(config).eval(), 32
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")  # nor products in groups
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.randint(64, (1, time)), use_cache=False)
    causal_saving = 2 * 2 * time * 4 * 16
    ours = time * (flops.forward_flops_per_token(model, time) + causal_saving)
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.03)
    before, step = flops.training_flops_per_token(model, time), flops.forward_flops_per_token(model, time)
    assert before == 3 * step - 2 * sum(p.numel() for p in model.parameters() if not p.requires_grad)  # biases of a router
    experts = [p for name, p in model.named_parameters() if ".experts." in name]
    for parameter in experts:
        parameter.requires_grad_(False)
    assert flops.training_flops_per_token(model, time) == before - 2 * sum(p.numel() for p in experts) * 2 // 8


def test_layers_that_differ_and_layers_without_attention_are_counted():
    """RWKV has no heads, and Gemma 4 has wider ones in every few layers: what it was trained for must not be lost."""
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}
    state = Auto.from_config(RwkvConfig(**sizes, attention_hidden_size=32, intermediate_size=48, context_length=32))
    assert flops.forward_flops_per_token(state, 8) == flops.forward_flops_per_token(state, 16)
    config = Gemma4TextConfig(**sizes, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, head_dim=8, global_head_dim=16,
                              vocab_size_per_layer_input=64, hidden_size_per_layer_input=8,
                              layer_types=["sliding_attention", "full_attention"], num_kv_shared_layers=0)  # fmt: skip
    mixed = Auto.from_config(config)
    assert flops.forward_flops_per_token(mixed, 16) - flops.forward_flops_per_token(mixed, 8) == 2 * 8 * 4 * (8 + 16)
