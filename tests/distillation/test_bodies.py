"""Body and head together are the model, for architectures that finish their logits in their own ways."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GPT2Config, GraniteConfig

from labkit import forward
from labkit.distillation.bodies import Body, digest, vocabulary
from labkit.errors import LabkitError
from labkit.ladder import Rung

SMALL = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
CONFIGS = {
    "llama": Rung(16, 2).config(),
    "gpt2, tied": GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=None),
    "gemma2, soft cap": Gemma2Config(**SMALL, final_logit_softcapping=0.05),
    "cohere, scaled": CohereConfig(**SMALL, logit_scale=0.3),
    "granite, scaled": GraniteConfig(**SMALL, logits_scaling=7.0),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(forward, "compiled", lambda module: module)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_hidden_states_head_and_finish_are_the_logits(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    body, tokens = Body(model, 30), torch.randint(30, (2, 7))
    with torch.no_grad():
        hidden = body.hidden(tokens, torch.arange(14)).unflatten(0, (2, 7))
        ours = body.finish(torch.nn.functional.linear(*body.head(hidden)))
        torch.testing.assert_close(ours, model(tokens).logits[..., :30])
        torch.testing.assert_close(body.layers(tokens)[-1], hidden)
        assert len(body.layers(tokens)) == config.num_hidden_layers + 1
    assert vocabulary(model) == config.vocab_size


def test_a_model_that_does_more_is_refused_and_its_mode_left_alone(monkeypatch):
    model = Rung(16, 1).build().train()
    forward = type(model).forward

    def shifted(self, *args, **options):
        out = forward(self, *args, **options)
        out.logits = out.logits + 1
        return out

    monkeypatch.setattr(type(model), "forward", shifted)
    rule = "a model's logits are its output head times its last hidden states; got 'LlamaForCausalLM'"
    with pytest.raises(LabkitError, match=rule):
        Body(model, 168)
    assert model.training


def test_a_digest_sees_every_weight_and_nothing_else():
    model, same = Rung(16, 1).build(seed=1), Rung(16, 1).build(seed=1).train()
    assert digest(model) == digest(same)
    seen = {digest(model)}
    for parameter in same.parameters():
        parameter.data.view(-1)[-1] += 1
        seen.add(digest(same))
    assert len(seen) == 1 + len(list(model.parameters()))
    assert digest(model.bfloat16()) not in seen
