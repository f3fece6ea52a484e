"""Where heads, neurons and hidden dimensions sit: one description per architecture family of transformers.

A family names every module of a decoder and what the module's axes run over, outputs first, as in ``(outputs, inputs)``
of a linear layer; a norm has one axis. What an axis runs over is a function that lists, for what stays of a block, the
positions that stay on the axis. Everything else follows: which slices a head owns, what must shrink together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from labkit.errors import LabkitError
from labkit.pruning import blocks


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How many of what a decoder has, in every layer alike."""

    layers: int
    heads: int  # query heads
    groups: int  # key-value heads; each serves heads / groups query heads that follow each other
    head_size: int
    neurons: int  # of the feed-forward network, or of each expert
    experts: int  # 1 without experts
    width: int  # the hidden size
    embedding: int  # width of the token embeddings: OPT may project them to the hidden size


@dataclasses.dataclass(frozen=True)
class Kept:
    """What stays of one block, as sorted int64 numbers. With a group's last query head its key-value head goes too."""

    heads: Tensor  # (heads,)
    neurons: Tensor  # (experts, neurons)
    width: Tensor  # (width,)


Axis = Callable[[Kept, Sizes], Tensor]
"""(what stays, sizes before) -> the positions (positions,) that stay on an axis; (experts, positions) with experts."""


def hidden(kept: Kept, sizes: Sizes) -> Tensor:
    """The hidden dimensions."""
    return kept.width


def embedded(kept: Kept, sizes: Sizes) -> Tensor:
    """The dimensions of the token embeddings: the hidden ones, unless the model projects them."""
    return kept.width if sizes.embedding == sizes.width else torch.arange(sizes.embedding)


def queries(kept: Kept, sizes: Sizes) -> Tensor:
    """Query head by query head, ``head_size`` each. Also the inputs of the output projection."""
    return _slots(kept.heads, sizes)


def keys(kept: Kept, sizes: Sizes) -> Tensor:
    """Key heads or value heads, ``head_size`` each."""
    return _slots(groups_of(kept, sizes), sizes)


def queries_keys_values(kept: Kept, sizes: Sizes) -> Tensor:
    """One matrix: all queries, then all keys, then all values."""
    groups = groups_of(kept, sizes)
    return _slots(torch.cat([kept.heads, sizes.heads + groups, sizes.heads + sizes.groups + groups]), sizes)


def interleaved(kept: Kept, sizes: Sizes) -> Tensor:
    """One matrix, group by group: the queries of the group, its key, its value."""
    each, groups = sizes.heads // sizes.groups, groups_of(kept, sizes)
    slots = kept.heads // each * (each + 2) + kept.heads % each
    first = groups * (each + 2) + each
    return _slots(torch.cat([slots, first, first + 1]).sort().values, sizes)


def neurons(kept: Kept, sizes: Sizes) -> Tensor:
    """The neurons of the feed-forward network."""
    return _of_experts(kept.neurons)


def gates_neurons(kept: Kept, sizes: Sizes) -> Tensor:
    """One matrix: the gates of all neurons, then the neurons."""
    return _of_experts(torch.cat([kept.neurons, kept.neurons + sizes.neurons], dim=1))


def groups_of(kept: Kept, sizes: Sizes) -> Tensor:
    """(groups,) the key-value heads that still serve a query head."""
    return torch.unique(kept.heads // (sizes.heads // sizes.groups))


def _slots(numbers: Tensor, sizes: Sizes) -> Tensor:
    """Every position of the heads with these numbers."""
    return (numbers[:, None] * sizes.head_size + torch.arange(sizes.head_size)).flatten()


def _of_experts(numbers: Tensor) -> Tensor:
    return numbers[0] if len(numbers) == 1 else numbers


BY_HEAD = (queries, keys, queries_keys_values, interleaved)
BY_NEURON = (neurons, gates_neurons)
BY_WIDTH = (hidden, embedded)

Table = Mapping[str, tuple[Axis | None, ...]]
"""Module, or parameter that no module of torch holds -> what its axes run over; None where nothing is ever removed."""

ATTENTION: Table = {
    "self_attn.q_proj": (queries, hidden),
    "self_attn.k_proj": (keys, hidden),
    "self_attn.v_proj": (keys, hidden),
    "self_attn.o_proj": (hidden, queries),
}
GATED: Table = {
    "mlp.gate_proj": (neurons, hidden),
    "mlp.up_proj": (neurons, hidden),
    "mlp.down_proj": (hidden, neurons),
}
PRE_NORMS: Table = {"input_layernorm": (hidden,), "post_attention_layernorm": (hidden,)}
FOUR_H: Table = {"mlp.dense_h_to_4h": (neurons, hidden), "mlp.dense_4h_to_h": (hidden, neurons)}
AROUND: Table = {"model.embed_tokens": (None, hidden), "model.norm": (hidden,), "lm_head": (None, hidden)}
QWEN3_NORMS: Table = {"self_attn.q_norm": (None,), "self_attn.k_norm": (None,)}  # within a head
OLMO2_NORMS: Table = {"self_attn.q_norm": (queries,), "self_attn.k_norm": (keys,)}  # over all heads together
POST_NORMS: Table = {"post_attention_layernorm": (hidden,), "post_feedforward_layernorm": (hidden,)}


@dataclasses.dataclass(frozen=True)
class Family:
    """One architecture family: its modules, and what its config can and cannot state."""

    name: str
    model_types: tuple[str, ...]  # ``config.model_type``
    block: Table  # names inside a decoder block
    around: Table = dataclasses.field(default_factory=lambda: AROUND)  # names of everything else
    neurons: str = "intermediate_size"  # the config's field
    groups: str | None = "num_key_value_heads"  # the config's field; None where every query head has its own
    own_head_size: bool = True  # False: the config's head size is hidden size / heads, and nothing else
    heads_divide_width: bool = False  # the config demands it, whatever its head size
    root_width_embeddings: bool = False  # embeddings are multiplied by √width


FAMILIES = (
    Family("Llama", ("llama",), {**ATTENTION, **GATED, **PRE_NORMS}, heads_divide_width=True),
    Family("Mistral, Qwen2", ("mistral", "qwen2"), {**ATTENTION, **GATED, **PRE_NORMS}),
    Family("Qwen3", ("qwen3",), {**ATTENTION, **QWEN3_NORMS, **GATED, **PRE_NORMS}),
    Family("OLMo 2", ("olmo2",), {**ATTENTION, **OLMO2_NORMS, **GATED, **POST_NORMS}),
    Family(
        "Gemma 2",
        ("gemma2",),
        {**ATTENTION, **GATED, **PRE_NORMS, **POST_NORMS, "pre_feedforward_layernorm": (hidden,)},
        heads_divide_width=True,
        root_width_embeddings=True,
    ),
    Family(
        "Mixtral",
        ("mixtral",),
        {
            **ATTENTION,
            **PRE_NORMS,
            "mlp.gate": (None, hidden),
            "mlp.experts.gate_up_proj": (None, gates_neurons, hidden),
            "mlp.experts.down_proj": (None, hidden, neurons),
        },
    ),
    Family(
        "Phi-3",
        ("phi3",),
        {
            "self_attn.qkv_proj": (queries_keys_values, hidden),
            "self_attn.o_proj": (hidden, queries),
            "mlp.gate_up_proj": (gates_neurons, hidden),
            "mlp.down_proj": (hidden, neurons),
            **PRE_NORMS,
        },
    ),
    Family(
        "GPT-2",
        ("gpt2",),
        {
            "attn.c_attn": (queries_keys_values, hidden),
            "attn.c_proj": (hidden, queries),
            "mlp.c_fc": (neurons, hidden),
            "mlp.c_proj": (hidden, neurons),
            "ln_1": (hidden,),
            "ln_2": (hidden,),
        },
        {
            "transformer.wte": (None, hidden),
            "transformer.wpe": (None, hidden),
            "transformer.ln_f": (hidden,),
            "lm_head": (None, hidden),
        },
        neurons="n_inner",
        groups=None,
        own_head_size=False,
    ),
    Family(
        "GPT-NeoX",
        ("gpt_neox",),
        {"attention.query_key_value": (interleaved, hidden), "attention.dense": (hidden, queries), **FOUR_H}
        | PRE_NORMS,
        {
            "gpt_neox.embed_in": (None, hidden),
            "gpt_neox.final_layer_norm": (hidden,),
            "lm_head": (None, hidden),
            "embed_out": (None, hidden),
        },
        groups=None,
        own_head_size=False,
    ),
    Family(
        "OPT",
        ("opt",),
        {
            **{name: axes for name, axes in ATTENTION.items() if name != "self_attn.o_proj"},
            "self_attn.out_proj": (hidden, queries),
            "self_attn_layer_norm": (hidden,),
            "fc1": (neurons, hidden),
            "fc2": (hidden, neurons),
            "final_layer_norm": (hidden,),
        },
        {
            "model.decoder.embed_tokens": (None, embedded),
            "model.decoder.embed_positions": (None, hidden),
            "model.decoder.project_in": (hidden, embedded),
            "model.decoder.project_out": (embedded, hidden),
            "model.decoder.final_layer_norm": (hidden,),
            "lm_head": (None, embedded),
        },
        neurons="ffn_dim",
        groups=None,
        own_head_size=False,
    ),
    Family(
        "Falcon",
        ("falcon",),
        {
            "self_attention.query_key_value": (interleaved, hidden),
            "self_attention.dense": (hidden, queries),
            **FOUR_H,
            **PRE_NORMS,
            "ln_attn": (hidden,),
            "ln_mlp": (hidden,),
        },
        {"transformer.word_embeddings": (None, hidden), "transformer.ln_f": (hidden,), "lm_head": (None, hidden)},
        neurons="ffn_hidden_size",
        groups="num_kv_heads",
        own_head_size=False,
    ),
)
"""Every architecture that `shrink` knows."""


def family_of(config: PreTrainedConfig) -> Family:
    """The family of a config. Raises LabkitError, with the list of those that are described, for any other."""
    for family in FAMILIES:
        if config.model_type in family.model_types:
            return family
    known = ", ".join(model_type for family in FAMILIES for model_type in family.model_types)
    raise LabkitError(
        "only described architectures can be shrunk",
        config.model_type,
        f"Described are {known}; prune and drop_layers take others too.",
    )


def sizes_of(model: PreTrainedModel) -> Sizes:
    """How many of what the model has, by its config. Raises LabkitError for an unknown architecture."""
    config, family = model.config, family_of(model.config)
    heads = config.num_attention_heads
    groups = heads if family.groups is None else getattr(config, family.groups)
    if family.name == "Falcon" and config.multi_query and not config.new_decoder_architecture:
        groups = 1
    return Sizes(
        layers=config.num_hidden_layers,
        heads=heads,
        groups=groups,
        head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
        neurons=getattr(config, family.neurons) or 4 * config.hidden_size,  # GPT-2's n_inner may be left out
        experts=getattr(config, "num_local_experts", 1),
        width=config.hidden_size,
        embedding=getattr(config, "word_embed_proj_dim", config.hidden_size),
    )


def axes_of(model: PreTrainedModel) -> dict[str, tuple[int | None, tuple[Axis | None, ...]]]:
    """Parameter -> number of its block (None outside the blocks) and what the axes of its tensor, as stored, run over.

    Raises LabkitError, with the name, for a parameter that the architecture's description lacks.
    """
    family = family_of(model.config)
    prefix, _ = blocks.decoder_blocks(model)
    found = {}
    for name, _ in model.named_parameters(remove_duplicate=False):
        number, table, inside = None, family.around, name
        if name.startswith(f"{prefix}."):
            digits, _, inside = name.removeprefix(f"{prefix}.").partition(".")
            number, table = int(digits), family.block
        module, _, kind = inside.rpartition(".")
        axes = table.get(inside) or table.get(module)
        if axes is None:
            raise LabkitError(
                f"every parameter of {family.name} is described", name, "Use a model without additions to its class."
            )
        if kind == "bias":
            axes = axes[:1]
        elif isinstance(model.get_submodule(name.rpartition(".")[0]), Conv1D):  # stores (inputs, outputs)
            axes = axes[::-1]
        found[name] = number, axes
    return found


def modules_of(model: PreTrainedModel, axes: tuple[Axis, ...]) -> dict[str, int | None]:
    """Names of the modules whose (outputs, inputs) run over ``axes``, and the number of the block each is in."""
    family = family_of(model.config)
    prefix, layers = blocks.decoder_blocks(model)
    names = {f"{prefix}.{i}.{name}": i for i in range(len(layers)) for name, a in family.block.items() if a == axes}
    names |= {name: None for name, a in family.around.items() if a == axes}
    present = {name for name, _ in model.named_modules()}
    return {name: number for name, number in names.items() if name in present}
