"""Answers at some places are the rows of the whole forward pass, and so are their gradients."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, LlamaForCausalLM, Qwen2Config

from labkit.forward import Forward, asked_places
from labkit.ladder import Rung
from labkit.records import IGNORE

SMALL = {
    "vocab_size": 40, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
CONFIGS = {
    "rung": Rung(32, 1).config(),
    "grouped queries and biases": LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True),
    "stretched positions, tied": LlamaConfig(
        **SMALL, tie_word_embeddings=True, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    ),
    "another class": Qwen2Config(**SMALL),
    "without logits_to_keep": GPT2Config(
        vocab_size=40, n_embd=16, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=None
    ),
}


def asked() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(40, (3, 9), generator=generator)
    labels = torch.where(torch.rand(3, 9, generator=generator) < 0.4, tokens, IGNORE)
    labels[:, :2] = IGNORE
    return tokens, labels


def build(config, **options):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, **options).eval()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_answers_and_their_gradients_are_those_of_the_whole_model(config, attention):
    model, (tokens, labels) = build(config, attn_implementation=attention), asked()
    forward, places = Forward(model, compile=False), asked_places(labels)
    assert (forward._narrow is not None) == (type(model) is LlamaForCausalLM and attention == "sdpa")
    ours, theirs = forward.logits_at(tokens, places), model(tokens).logits[labels != IGNORE]
    torch.testing.assert_close(ours, theirs)
    hidden = model.base_model(tokens).last_hidden_state[labels != IGNORE]
    torch.testing.assert_close(forward.hidden_at(tokens, places), hidden)
    parameters = list(model.parameters())
    by_ours, by_theirs = (torch.autograd.grad(logits.square().sum(), parameters) for logits in (ours, theirs))
    torch.testing.assert_close(by_ours, by_theirs, rtol=1e-4, atol=1e-6)


def test_compiled_it_is_the_same_for_any_number_of_places():
    model, (tokens, labels) = Rung(16, 2).build(seed=1), asked()
    forward = Forward(model)
    for count in (5, 9, 3):
        places = asked_places(labels)[:count]
        expected = model(tokens).logits.flatten(0, 1)[places]
        torch.testing.assert_close(forward.logits_at(tokens, places), expected, rtol=1e-4, atol=1e-5)


def hooked(model):
    model.model.layers[-1].mlp.register_forward_hook(lambda module, given, out: out + 1)


def heads_off(model):
    model.model.layers[-1].self_attn.o_proj.register_forward_pre_hook(lambda module, given: (0 * given[0],))


def dropout(model):
    model.config.attention_dropout = 0.5


@pytest.mark.parametrize("change", [hooked, heads_off, dropout])
def test_what_is_done_to_a_model_from_outside_is_done_to_all_places(change):
    model, (tokens, labels) = Rung(16, 2).build(), asked()
    change(model.eval())
    forward = Forward(model, compile=False)
    assert forward._narrow is None
    torch.testing.assert_close(forward.logits_at(tokens, asked_places(labels)), model(tokens).logits[labels != IGNORE])


def test_no_place_is_no_row():
    tokens, _ = asked()
    for config in CONFIGS.values():
        model = build(config)
        rows = Forward(model, compile=False).logits_at(tokens, torch.empty(0, dtype=torch.long))
        assert rows.shape == (0, model.config.vocab_size)
