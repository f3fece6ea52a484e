"""Nominal floating-point operations, in one place, so that every budget is counted by the same code.

Nominal means "what the shapes say": zeros of a mask are counted as work, because dense kernels do them.
"""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

TRAINING_PASSES = 3
"""A training step costs three forwards: the backward computes one gradient for the inputs and one for the weights."""


def non_embedding_params(model: PreTrainedModel) -> int:
    """Parameters outside the token and position embeddings and the output head, zeros included."""
    return sum(p.numel() for p in _inner(model))


def _inner(model: PreTrainedModel) -> list[nn.Parameter]:
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    head = model.get_output_embeddings()
    embeddings |= {id(p) for p in head.parameters()} if head is not None else set()
    return [p for p in model.parameters() if id(p) not in embeddings]


def forward_flops_per_token(model: PreTrainedModel, time: int) -> int:
    """FLOPs of one token's forward pass in a sequence of ``time`` tokens: 2·N + 2·L·T·a + 2·d·V.

    N are the non-embedding parameters, L the layers, T = ``time``, a the attention width (heads × head size, equal to
    the hidden width d in a plain Llama), V the vocabulary. The attention term is causal: half of the square
    4·L·T·a that a kernel without a causal shortcut executes.
    Source: Kaplan et al. 2020, equation 2.2, with the output head added, which small models cannot neglect.
    """
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    attention = 2 * config.num_hidden_layers * time * heads * head_size
    return 2 * non_embedding_params(model) + attention + 2 * config.hidden_size * config.vocab_size


def training_flops_per_token(model: PreTrainedModel, time: int) -> int:
    """FLOPs per token of one training step: three times the forward pass, less 2 for every weight that is frozen.

    A frozen weight has no gradient of its own, but the gradient of its inputs goes on to what lies below: training
    adapters beside frozen matrices costs two thirds of training the matrices, not next to nothing. (That the lowest
    trained layer need not pass a gradient on is not counted.)
    """
    frozen = sum(p.numel() for p in _inner(model) if not p.requires_grad)
    head = model.get_output_embeddings()
    if head is not None and not head.weight.requires_grad:
        frozen += head.weight.numel()
    return TRAINING_PASSES * forward_flops_per_token(model, time) - 2 * frozen
