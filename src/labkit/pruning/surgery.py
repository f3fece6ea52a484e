"""Making models physically smaller: fewer decoder blocks, or smaller tensors in each."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterator, Sequence
from numbers import Integral

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.utils import logging

from labkit.errors import LabkitError
from labkit.pruning import anatomy, blocks
from labkit.pruning.anatomy import Kept, Sizes

LISTS = re.compile("layer|types")
"""In the name of every list of a config that has an entry for each layer."""

LISTS_OF_NUMBERS = ("moe_layers", "mlp_only_layers", "attn_layer_indices", "cross_attention_layers")
"""Fields of a config that list the numbers of some layers."""

FIRST_LAYERS = ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index")
"""Fields of a config that tell how many of the first layers have no experts."""

NUMBERS = ("layer_idx", "layer_id", "layer_number")
"""Attributes in which a module holds the number of its layer."""


def check_keep(model: PreTrainedModel, keep: int) -> None:
    """Raise LabkitError unless ``keep`` is a whole number of layers from 1 to as many as the model has."""
    layers = len(blocks.decoder_blocks(model)[1])
    if isinstance(keep, bool) or not isinstance(keep, Integral) or not 1 <= keep <= layers:
        rule = f"the number of layers to keep lies in 1..{layers}"
        raise LabkitError(rule, keep, f"Give a whole number of at most {layers}.")


def keep_layers(model: PreTrainedModel, kept: Sequence[int]) -> None:
    """Keep the decoder blocks with these numbers, in their order in the model; in place, the config is brought in line.

    ``layer_idx`` of what remains is renumbered: it is where a layer finds its keys and values in the cache.
    Raises LabkitError where a model made of the config would be another one, as what a layer is like may follow from
    its number, and for a GPT-2 whose attention is scaled by it. The model is of no use then.
    """
    kept = sorted(kept)
    config = model.config.get_text_config()
    if getattr(config, "scale_attn_by_inverse_layer_idx", False):
        rule = "layers can be dropped where attention does not depend on the layer's number"
        raise LabkitError(rule, "scale_attn_by_inverse_layer_idx=True", "Use a GPT-2 without it.")
    name, old = blocks.decoder_blocks(model)
    before = {what for _, what, *_ in _unstated(model)}
    new = nn.ModuleList(old[i] for i in kept)
    new.training = old.training
    model.set_submodule(name, new)
    for number, block in enumerate(new):
        for module in block.modules():
            for attribute in NUMBERS:
                if vars(module).get(attribute) == kept[number]:
                    setattr(module, attribute, number)
            if vars(module).get("num_hidden_layers") == len(old):
                module.num_hidden_layers = len(new)
    keep_layers_of_config(config, kept)
    for where, what, is_now, would_be in _unstated(model):
        if what not in before:
            raise _cannot_state(model, f"{where}, which is {is_now} and would be {would_be} in a model made of it")


def keep_layers_of_config(config: PreTrainedConfig, kept: Sequence[int]) -> None:
    """Bring a config, of text, in line with the layers kept, by their numbers in rising order: how many there are, what
    it lists of each layer, e.g. ``layer_types``, and how many first ones or which differ. In place; whether that states
    them all is for `keep_layers` to see.
    """
    layers = config.num_hidden_layers
    for field, value in dict(vars(config)).items():
        if field in LISTS_OF_NUMBERS and value is not None:
            setattr(config, field, [kept.index(i) for i in value if i in kept])
        elif field in FIRST_LAYERS and value is not None:
            setattr(config, field, sum(i < value for i in kept))
        elif isinstance(value, list | tuple) and len(value) == layers and LISTS.search(field):
            setattr(config, field, [value[i] for i in kept])
    config.num_hidden_layers = len(kept)


def _unstated(model: PreTrainedModel) -> Iterator[tuple[str, str, object, object]]:
    """Where the model differs from one that transformers makes of its config as saved: (the name of a tensor, a module,
    or a setting of a module; the same without numbers; how it is in the model; how it is in the other).

    Raises LabkitError if none can be made of the config.
    """
    if hasattr(model, "get_base_model"):  # what peft wraps around it is not in the config
        model = model.get_base_model()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what there is to say was said when the model was made
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            other = type(model)(type(model.config).from_dict(model.config.to_dict()))
    except Exception as error:  # huggingface_hub's errors share no base but this
        raise _cannot_state(model, f"what transformers refuses: {_reason(error)}") from error
    finally:
        logging.set_verbosity(verbosity)
    prefix, _ = blocks.decoder_blocks(model)
    here, there = (_inside(each, prefix) for each in (model, other))
    for where in sorted(here.keys() | there.keys()):
        if here.get(where) != there.get(where):
            yield where, re.sub(r"\d+", "", where), here.get(where, "missing"), there.get(where, "missing")


def _inside(model: PreTrainedModel, prefix: str) -> dict[str, object]:
    """By name the shapes of a model's tensors, the classes of its modules, and the settings of those in its blocks, the
    list ``prefix``: numbers, texts and truth values.
    """
    state, modules = model.state_dict(keep_vars=True), dict(model.named_modules())
    inside = {name: tuple(tensor.shape) for name, tensor in state.items() if isinstance(tensor, Tensor)}
    inside |= {name: type(module).__name__ for name, module in modules.items()}
    for name in (name for name in modules if name.startswith(f"{prefix}.")):
        settings = {key: value for key, value in vars(modules[name]).items() if key != "training"}
        inside |= {f"{name}.{key}": value for key, value in settings.items() if isinstance(value, int | float | str)}
    return inside


def _cannot_state(model: PreTrainedModel, received: str) -> LabkitError:
    return LabkitError(
        f"the config of {type(model).__name__} can state which layers are kept",
        received,
        "Keep all layers, or use an architecture whose layers are alike.",
    )


@torch.no_grad()
def keep_units(model: PreTrainedModel, kept: Sequence[Kept]) -> PreTrainedModel:
    """A new model of the same class that has only these heads, neurons and hidden dimensions, block by block.

    ``kept`` names, for each block, what stays of it; the width is the same in all of them. transformers builds the new
    model from the new config, so that whatever it derives from sizes is right, and takes every tensor strictly.
    Raises LabkitError where the config cannot state the new sizes.
    """
    sizes = anatomy.sizes_of(model)
    after = _sizes_after(sizes, kept[0])
    config = check_units(model, kept[0])
    if (head := model.get_output_embeddings()) is not None:  # what is tied in the config may not be in the weights
        config.tie_word_embeddings = head.weight is model.get_input_embeddings().weight
    tensors = {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, (number, axes) in anatomy.axes_of(model).items():
        tensors[name] = _sliced(parameters[name].detach(), axes, kept[number or 0], sizes)
    if anatomy.family_of(config).root_width_embeddings:
        _keep_embedding_scale(model, tensors, (sizes.width / after.width) ** 0.5)
    with no_init_weights(), torch.device(model.device):
        new = type(model)(config)
    expected = {name: tuple(p.shape) for name, p in new.named_parameters(remove_duplicate=False)}
    if wrong := [name for name in tensors.keys() | expected if shape_of(tensors, name) != expected.get(name)]:
        name = min(wrong)
        raise LabkitError(
            "the config builds a model with the tensors that are kept",
            f"{name} of {shape_of(tensors, name)} for {expected.get(name)}",
            "Keep other numbers of heads, neurons or hidden dimensions.",
        )
    new.load_state_dict(tensors, strict=False, assign=True)  # persistent buffers, if any, are the new model's own
    new.tie_weights()
    for name, parameter in new.named_parameters():
        parameter.requires_grad_(parameters[name].requires_grad)
    new.generation_config = copy.deepcopy(model.generation_config)
    blocks.follow_modes(new, model)
    return new


def check_units(model: PreTrainedModel, kept: Kept) -> PreTrainedConfig:
    """The config of what stays. Raises LabkitError where the architecture's config cannot state it."""
    sizes = anatomy.sizes_of(model)
    return resized(model.config, sizes, _sizes_after(sizes, kept))


def resized(config: PreTrainedConfig, sizes: Sizes, after: Sizes) -> PreTrainedConfig:
    """A copy of the config with the sizes ``after`` in place of ``sizes``, as far as they differ.

    Raises LabkitError, with the architecture and the reason, where the config cannot state them.
    """
    family, new = anatomy.family_of(config), copy.deepcopy(config)
    wanted = f"{after.heads} heads of size {after.head_size} with width {after.width}"
    if not family.own_head_size and after.width != after.heads * after.head_size:
        fewer = max(1, min(after.heads, after.width // after.head_size))
        raise LabkitError(
            f"the config of {family.name} has no head size of its own: the width is heads · {after.head_size}",
            wanted,
            f"Shrink both, e.g. heads={fewer} with width={fewer * after.head_size}.",
        )
    if family.heads_divide_width and after.width % after.heads:
        raise LabkitError(
            f"the config of {family.name} demands a width that its number of heads divides",
            wanted,
            "Keep another number of heads, or another width.",
        )
    if getattr(config, "alibi", False) and after.heads != sizes.heads:
        raise LabkitError(
            f"heads of {family.name} with ALiBi cannot be removed: the number of a head sets its slope",
            wanted,
            "Keep all heads.",
        )
    if after.neurons != sizes.neurons:
        setattr(new, family.neurons, after.neurons)
    if (after.heads, after.width) != (sizes.heads, sizes.width):
        new.num_attention_heads, new.hidden_size = after.heads, after.width
        if sizes.neurons == after.neurons:
            setattr(new, family.neurons, after.neurons)  # GPT-2 left it out: it would follow the width
        if family.groups is not None:
            shared = after.groups if getattr(config, family.groups) == sizes.groups else after.heads
            setattr(new, family.groups, shared)  # Falcon's multi-query attention does not look at its field
        if family.own_head_size:
            new.head_dim = after.head_size
        if sizes.embedding == sizes.width and hasattr(config, "word_embed_proj_dim"):
            new.word_embed_proj_dim = after.width
    try:
        type(new).from_dict(new.to_dict())
    except Exception as error:  # huggingface_hub's errors share no base but this
        rule, received = f"transformers accepts the config of {family.name}", f"{wanted}: {_reason(error)}"
        raise LabkitError(rule, received, "Keep other numbers of heads or hidden dimensions.") from error
    return new


def _reason(error: Exception) -> str:
    """The last line of what it says: the others name who looked."""
    return (str(error) or type(error).__name__).strip().splitlines()[-1].strip()


def shape_of(tensors: dict[str, Tensor], name: str) -> tuple[int, ...] | None:
    """The shape of a tensor, None if there is none."""
    return tuple(tensors[name].shape) if name in tensors else None


def _sizes_after(sizes: Sizes, kept: Kept) -> Sizes:
    width = len(kept.width)
    return dataclasses.replace(
        sizes,
        heads=len(kept.heads),
        groups=len(anatomy.groups_of(kept, sizes)),
        neurons=kept.neurons.shape[1],
        width=width,
        embedding=width if sizes.embedding == sizes.width else sizes.embedding,
    )


def _sliced(tensor: Tensor, axes: Sequence[anatomy.Axis | None], kept: Kept, sizes: Sizes) -> Tensor:
    """A copy of what stays of a tensor, its axes running over ``axes``."""
    for dim, axis in enumerate(axes):
        if axis is None:
            continue
        positions = axis(kept, sizes).to(tensor.device)
        if positions.ndim == 2:  # each expert keeps its own
            tensor = torch.stack([t.index_select(dim - 1, p) for t, p in zip(tensor, positions, strict=True)])
        else:
            tensor = tensor.index_select(dim, positions)
    return tensor.clone()


def _keep_embedding_scale(model: PreTrainedModel, tensors: dict[str, Tensor], factor: float) -> None:
    """Undo that a smaller width also means embeddings multiplied by a smaller √width.

    The embeddings grow by ``factor``; where the output head shares them, its input, the last norm, shrinks by it.
    A norm of Gemma multiplies by 1 + weight.
    """
    embedding, head, norm = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
    tensors[embedding] = tensors[embedding] * factor
    if model.get_output_embeddings().weight is model.get_input_embeddings().weight:
        tensors[head] = tensors[embedding]
        tensors[norm] = (1 + tensors[norm]) / factor - 1
