"""Small random decoders of every architecture that pruning is tested on, as fixtures.

A test that asks for ``decoder`` is run once for each architecture, with a fresh model it may change. Every model has
two blocks of width 32, four heads (two key-value heads where the architecture can share them), a feed-forward width of
48, a vocabulary of 64 and no dropout. Biases and norms are drawn too: a model with every bias at zero hides mistakes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache

import pytest
import torch
import transformers
from gpus import RealGPU, SimulatedGPU, needs_a_gpu
from transformers import PreTrainedModel

from labkit.pruning import engine, memory

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "initializer_range": 0.2, "bos_token_id": None, "eos_token_id": None,
    "pad_token_id": None,
}  # fmt: skip
GROUPED = {**SIZES, "num_key_value_heads": 2}

ARCHITECTURES: dict[str, tuple[str, dict]] = {  # name -> prefix of its config's class in transformers, fields
    "llama": ("Llama", GROUPED),
    "mistral": ("Mistral", {**GROUPED, "sliding_window": 4}),
    "qwen2": ("Qwen2", {**GROUPED, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1,
                        "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {**GROUPED, "head_dim": 16}),
    "gemma2": ("Gemma2", {**GROUPED, "head_dim": 8, "sliding_window": 4, "attn_implementation": "eager"}),
    "phi3": ("Phi3", GROUPED),
    "gpt2": ("GPT2", {
        "vocab_size": 64, "n_embd": 32, "n_inner": 48, "n_layer": 2, "n_head": 4, "n_positions": 64, "resid_pdrop": 0,
        "embd_pdrop": 0, "attn_pdrop": 0, "initializer_range": 0.2, "bos_token_id": None,
        "eos_token_id": None,
    }),
    "gpt-neox": ("GPTNeoX", SIZES),
    "opt": ("OPT", {**{k: v for k, v in SIZES.items() if k != "intermediate_size"}, "ffn_dim": 48,
                    "word_embed_proj_dim": 32, "dropout": 0, "do_layer_norm_before": True}),
    "falcon": ("Falcon", {**GROUPED, "ffn_hidden_size": 48, "new_decoder_architecture": True, "num_kv_heads": 2,
                          "alibi": False}),
    "mixtral": ("Mixtral", {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "olmo2": ("Olmo2", GROUPED),
}  # fmt: skip


@cache
def _built(name: str) -> PreTrainedModel:
    prefix, sizes = ARCHITECTURES[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{prefix}Config")(**sizes)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    """The name, once for each."""
    return request.param


@pytest.fixture
def decoder(architecture: str) -> PreTrainedModel:
    """A fresh model of the architecture, in eval mode."""
    return copy.deepcopy(_built(architecture))


@pytest.fixture(params=[pytest.param("real", marks=needs_a_gpu), "simulated"])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[RealGPU | SimulatedGPU]:
    """What measures and limits the memory of the device ``"cuda"``: the one that is there, and one that is not."""
    if request.param == "real":
        yield RealGPU()
        return
    # A CPU does the work: an eighth of the tokens, and of the scores what is as little beside them.
    monkeypatch.setitem(memory.MICRO_BATCH_TOKENS, "cuda", 1024)
    monkeypatch.setitem(engine.SCORES, "cuda", 2**16)
    with SimulatedGPU() as simulated:
        yield simulated


@pytest.fixture
def tokens() -> torch.Tensor:
    """Calibration tokens (8 sequences, 24) in the vocabulary of every ``decoder``, with every token in use."""
    return torch.randint(64, (8, 24), generator=torch.Generator().manual_seed(0))
