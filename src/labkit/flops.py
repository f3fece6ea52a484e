"""Nominal floating-point operations, in one place, so that every budget is counted by the same code.

Nominal means "what the shapes say": zeros of a mask are counted as work, because dense kernels do them.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
"""What configs call the number of experts that a router chooses from."""

TRAINING_PASSES = 3
"""A training step costs three forwards: the backward computes one gradient for the inputs and one for the weights."""


def non_embedding_params(model: PreTrainedModel) -> int:
    """Parameters outside the token and position embeddings and the output head, zeros included."""
    return sum(p.numel() for p in _inner(model))


def _inner(model: PreTrainedModel) -> dict[nn.Parameter, str]:
    """Parameter -> name."""
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    head = model.get_output_embeddings()
    embeddings |= {id(p) for p in head.parameters()} if head is not None else set()
    return {p: name for name, p in model.named_parameters() if id(p) not in embeddings}


def _active(model: PreTrainedModel, parameters: Mapping[nn.Parameter, str]) -> int:
    """How many of these one token is multiplied with: of the experts it is routed to, not of all."""
    config = model.config.get_text_config()
    chosen = getattr(config, "num_experts_per_tok", None)
    experts = next(filter(None, (getattr(config, name, None) for name in EXPERTS)), None)
    if not chosen or not experts:
        return sum(p.numel() for p in parameters)
    return sum(p.numel() * (chosen if ".experts." in name else experts) for p, name in parameters.items()) // experts


def forward_flops_per_token(model: PreTrainedModel, time: int) -> int:
    """FLOPs of one token's forward pass in a sequence of ``time`` tokens: 2·N + 2·L·T·a + 2·d·V.

    N are the non-embedding parameters (of experts those that a token is routed to), L the layers, T = ``time``, a the
    attention width (heads × head size, equal to the hidden width d in a plain Llama), V the vocabulary. The attention
    term is causal: half of the square 4·L·T·a that a kernel without a causal shortcut executes.
    Source: Kaplan et al. 2020, equation 2.2, with the output head added, which small models cannot neglect.
    """
    config = model.config.get_text_config()
    layers = getattr(config, "per_layer_config", None) or {}  # where they differ, as in Gemma 4
    attention = 2 * time * sum(_attention_width(layers[i] if layers else config) for i in range(config.num_hidden_layers))
    return 2 * _active(model, _inner(model)) + attention + 2 * config.hidden_size * config.vocab_size


def _attention_width(config: PreTrainedConfig) -> int:
    """Heads × head size of a layer; 0 where there is no attention."""
    heads = getattr(config, "num_attention_heads", None)
    return heads * (getattr(config, "head_dim", None) or config.hidden_size // heads) if heads else 0


def training_flops_per_token(model: PreTrainedModel, time: int) -> int:
    """FLOPs per token of one training step: three times the forward pass, less 2 for every weight that is frozen.

    A frozen weight has no gradient of its own, but the gradient of its inputs goes on to what lies below: training
    adapters beside frozen matrices costs two thirds of training the matrices, not next to nothing. (That the lowest
    trained layer need not pass a gradient on is not counted.)
    """
    frozen = _active(model, {p: name for p, name in _inner(model).items() if not p.requires_grad})
    head = model.get_output_embeddings()
    if head is not None and not head.weight.requires_grad:
        frozen += head.weight.numel()
    return TRAINING_PASSES * forward_flops_per_token(model, time) - 2 * frozen
