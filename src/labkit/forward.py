"""A model's forward pass, whole or for those places alone where something is asked."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer, LlamaModel, apply_rotary_pos_emb

from labkit.records import IGNORE


def asked_places(labels: Tensor) -> Tensor:
    """(batch, time) labels -> (n,) int64: the places batch · time + t that have one, in their order."""
    return (labels.flatten() != IGNORE).nonzero()[:, 0]


class Forward:
    """The forward pass of a causal language model.

    Called, it is the model itself. `hidden_at` and `logits_at` answer at some places only: there the last
    block of a Llama lets no other place through its output projection, feed-forward layer and norm, nor any model
    through its output head. The rows are the same either way, up to rounding.

    Parameters
    ----------
    model
        Read as it is at each call, its training mode included.
    compile
        Compile it where this machine can (`compiled`).
    """

    def __init__(self, model: PreTrainedModel, compile: bool = True) -> None:
        wrap = compiled if compile else lambda module: module
        self.model, self._compiled = model, compile
        self._whole, self._body = wrap(model), wrap(model.base_model)
        self._narrow = wrap(_Narrow(model.base_model)) if _is_plain_llama(model) else None
        # A head that sees another number of places every time would be compiled again and again
        self._keeps = not compile and "logits_to_keep" in inspect.signature(model.forward).parameters

    def __call__(self, *tokens: Tensor, **inputs: Any) -> Any:
        return self._whole(*tokens, **inputs)

    def body(self, **inputs: Any) -> Any:
        """All but the output head."""
        return self._body(**inputs)

    def hidden_at(self, tokens: Tensor, places: Tensor) -> Tensor:
        """(batch, time) tokens, (n,) places as of `asked_places` -> (n, width): what the output head reads."""
        if self._narrow is None:
            return self._body(input_ids=tokens, use_cache=False).last_hidden_state.flatten(0, 1)[places]
        if self._compiled:
            torch._dynamo.maybe_mark_dynamic(places, 0)  # once for any number of them
        return self._narrow(tokens, places)

    def logits_at(self, tokens: Tensor, places: Tensor) -> Tensor:
        """(batch, time) tokens, (n,) places -> (n, vocab)."""
        if self._narrow is not None:
            return self.model.lm_head(self.hidden_at(tokens, places))
        time = tokens.shape[1]
        kept = time - int((places % time).min()) if self._keeps and len(places) else time
        logits = self._whole(
            input_ids=tokens, use_cache=False, **{"logits_to_keep": kept} if self._keeps else {}
        ).logits
        return logits[places // time, places % time - time]  # from the end: a model may keep more than it was asked to


def compiled(module: nn.Module) -> Callable:
    """The module, compiled where this machine can (a C++ compiler for the CPU, Triton for CUDA).

    Small models are bound by memory traffic between operations, which compiling fuses: about 1.7× on one core.
    """
    if next(module.parameters()).device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        return module
    return torch.compile(module)


def _is_plain_llama(model: PreTrainedModel) -> bool:
    """Whether `_Narrow` is this model: nothing of another class, hooked, dropped out, or spread over devices."""
    if type(model) is not LlamaForCausalLM or type(model.model) is not LlamaModel or hasattr(model, "hf_device_map"):
        return False
    last, config = model.model.layers[-1], model.config
    return (
        (type(last), type(last.self_attn)) == (LlamaDecoderLayer, LlamaAttention)
        and config._attn_implementation == "sdpa"  # others make their causal mask from an argument
        and config.attention_dropout == 0
        and not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    )


class _Narrow(nn.Module):
    """`LlamaModel.forward`, whose last block goes on after its attention with the places asked alone."""

    def __init__(self, body: LlamaModel) -> None:
        super().__init__()
        self.llama = body

    def forward(self, tokens: Tensor, places: Tensor) -> Tensor:
        hidden = self.llama.embed_tokens(tokens)
        rotary = self.llama.rotary_emb(hidden, position_ids=torch.arange(tokens.shape[1], device=tokens.device)[None])
        *blocks, last = self.llama.layers
        for block in blocks:
            hidden = block(hidden, position_embeddings=rotary)  # without a mask it is causal
        seen = _attend(last.self_attn, last.input_layernorm(hidden), rotary).flatten(0, 1)[places]
        hidden = hidden.flatten(0, 1)[places] + last.self_attn.o_proj(seen)
        hidden = hidden + last.mlp(last.post_attention_layernorm(hidden))
        return self.llama.norm(hidden)


def _attend(attention: LlamaAttention, hidden: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """What each place sees of those before it, (batch, time, heads · head_dim), not yet projected."""
    shape = (*hidden.shape[:2], -1, attention.head_dim)
    projections = attention.q_proj, attention.k_proj, attention.v_proj
    query, key, value = (projection(hidden).view(shape).transpose(1, 2) for projection in projections)
    query, key = apply_rotary_pos_emb(query, key, *rotary)
    groups = attention.num_key_value_groups > 1
    seen = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=attention.scaling, enable_gqa=groups)
    return seen.transpose(1, 2).flatten(2)
