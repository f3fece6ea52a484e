"""A decoder that provably copies, built by hand, and small random decoders of several architectures."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from labkit.abilities import vocabulary

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
ARCHITECTURES = {  # prefix of the class in transformers -> sizes
    "Llama": {**SIZES, "num_key_value_heads": 2},
    "Mixtral": {**SIZES, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
    "GPT2": {"vocab_size": 64, "n_embd": 32, "n_inner": 48, "n_layer": 2, "n_head": 4},
    "GPTNeoX": SIZES,
    "Gemma2": {**SIZES, "num_key_value_heads": 2, "head_dim": 8},  # what a part gives passes a norm of its own
    "Olmo2": {**SIZES, "num_key_value_heads": 2},
    "Falcon": {**SIZES, "ffn_hidden_size": 48, "new_decoder_architecture": True, "num_kv_heads": 2,
               "attn_implementation": "eager"},
}


@pytest.fixture(params=ARCHITECTURES)
def decoder(request: pytest.FixtureRequest) -> PreTrainedModel:
    """Two layers, four heads; biases are drawn too, for those at zero hide mistakes. In training mode, with dropout."""
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, "initializer_range": 0.2}
    config = getattr(transformers, f"{request.param}Config")(**ARCHITECTURES[request.param], **ends)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.train()


@pytest.fixture
def tokens() -> torch.Tensor:
    """(3, 10) int64 in the vocabulary of every ``decoder``."""
    return torch.randint(64, (3, 10), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def copier() -> PreTrainedModel:
    """Two attention layers of one head that copy, with all of labkit's tokens; its feed-forward networks write zero.

    A hidden state is [token | token before | place | answer], one-hot each. Head 0.0 looks at the place before and
    writes its token into the second slot. Head 1.0 looks where that slot holds the token at hand, so at what followed
    it last time, and writes the token found there into the fourth, which the output head reads.
    """
    size, time, sure = vocabulary.SIZE, 48, 30.0
    width = 3 * size + time
    config = GPT2Config(
        vocab_size=size, n_positions=time, n_embd=width, n_inner=8, n_layer=2, n_head=1, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    token, before, place = (torch.arange(n) + start for n, start in ((size, 0), (size, size), (time, 2 * size)))
    answer = torch.arange(size) + 2 * size + time
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ln_" not in name:
                parameter.zero_()
        model.transformer.wte.weight[token, token] = 1
        model.transformer.wpe.weight[torch.arange(time), place] = 1
        first, second = (block.attn for block in model.transformer.h)
        # c_attn.weight is (inputs, queries | keys | values); a layer norm makes a one of about √(width / 2)
        first.c_attn.weight[place[1:], place[:-1]] = sure
        first.c_attn.weight[place, width + place] = 1
        first.c_attn.weight[token, 2 * width + before] = 1
        second.c_attn.weight[token, before] = sure
        second.c_attn.weight[before, width + before] = 1
        second.c_attn.weight[token, 2 * width + answer] = 1
        for attention in (first, second):
            attention.c_proj.weight.copy_(torch.eye(width))
        model.lm_head.weight[torch.arange(size), answer] = 1
    return model
