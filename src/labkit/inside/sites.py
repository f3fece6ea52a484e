"""Parts of a decoder, and the places in its forward pass where each of them writes."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

from torch import Tensor, nn
from transformers import PreTrainedModel

from labkit.errors import LabkitError, unknown
from labkit.pruning import anatomy, blocks

KINDS = ("head", "attention", "mlp", "layer")
"""Kinds of parts: one head, all heads of a layer, its feed-forward network (or all its experts), both together."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of a decoder; layers and heads count from 0.

    >>> Part("head", 1, 3).name, Part("mlp", 0).name
    ('head 1.3', 'mlp 0')
    """

    kind: str
    layer: int
    head: int | None = None

    @property
    def name(self) -> str:
        return f"{self.kind} {self.layer}" + ("" if self.head is None else f".{self.head}")


Parts = Mapping[str, Sequence[Part]] | Sequence[Part]
"""Parts to be replaced one after another; or name -> parts that are replaced together."""


@dataclasses.dataclass(frozen=True)
class Site:
    """Where a part writes: columns of what a module is called with, or, without columns, what it returns."""

    module: str
    columns: tuple[int, int] | None = None


See = Callable[[Site, Tensor], Tensor | None]
"""Is shown what is written at a site, (..., columns); what it returns is written instead, None leaves it."""


def parts(model: PreTrainedModel, *kinds: str) -> tuple[Part, ...]:
    """Every part of these kinds (default: all `KINDS`), layer by layer.

    Raises LabkitError for another kind, and for an architecture that `labkit.pruning.anatomy` does not describe.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise unknown("kind of part", kind, KINDS)
    sizes, found = anatomy.sizes_of(model), []
    for layer in range(sizes.layers):
        for kind in kinds or KINDS:
            found += [Part(kind, layer, head) for head in (range(sizes.heads) if kind == "head" else [None])]
    return tuple(found)


def chosen(model: PreTrainedModel, asked: Parts | None) -> dict[str, tuple[Part, ...]]:
    """Name -> parts. Raises LabkitError for a part that the model lacks, or a name without any."""
    known = {part.name: part for part in parts(model)}
    if isinstance(asked, str | Part) or asked is not None and not len(asked):
        raise LabkitError("parts are a list of at least one", asked, "Take them from labkit.inside.parts.")
    if not isinstance(asked, Mapping):
        if strings := [each for each in asked or () if not isinstance(each, Part)]:
            raise LabkitError("parts are those of labkit.inside.parts", strings[0], 'Give e.g. [Part("mlp", 0)].')
        asked = {part.name: (part,) for part in (known.values() if asked is None else asked)}
    for name, group in asked.items():
        if not group:
            raise LabkitError(f"{name!r} stands for at least one part", group, "Take them from labkit.inside.parts.")
        for part in group:
            if known.get(part.name) != part:
                raise unknown("part of this model", part.name, known)
    return {name: tuple(group) for name, group in asked.items()}


def sites(model: PreTrainedModel, group: Iterable[Part]) -> list[Site]:
    """Where these parts write, each site once. Where what a part gives passes a norm of its own, it is the norm's."""
    sizes = anatomy.sizes_of(model)
    prefix, _ = blocks.decoder_blocks(model)
    out, down = (
        {layer: name for name, layer in anatomy.modules_of(model, (anatomy.hidden, axis)).items()}
        for axis in (anatomy.queries, anatomy.neurons)
    )
    if sizes.experts > 1:  # their down projections are no module: what all of them return together
        down = {layer: f"{prefix}.{layer}.mlp.experts" for layer in range(sizes.layers)}
    attended, fed = out, down
    if "post_feedforward_layernorm" in anatomy.family_of(model.config).block:  # Gemma 2, OLMo 2
        attended = {layer: f"{prefix}.{layer}.post_attention_layernorm" for layer in range(sizes.layers)}
        fed = {layer: f"{prefix}.{layer}.post_feedforward_layernorm" for layer in range(sizes.layers)}
    found = []
    for part in group:
        if part.kind == "head":
            found.append(Site(out[part.layer], (part.head * sizes.head_size, (part.head + 1) * sizes.head_size)))
        if part.kind in ("attention", "layer"):
            found.append(Site(attended[part.layer]))
        if part.kind in ("mlp", "layer"):
            found.append(Site(fed[part.layer]))
    return list(dict.fromkeys(found))


@contextlib.contextmanager
def seen(model: PreTrainedModel, places: Iterable[Site], see: See) -> Iterator[None]:
    """Meanwhile ``see`` is shown what is written at these sites, in whichever thread the model runs."""
    handles = []
    try:
        for site in places:
            module = model.get_submodule(site.module)
            if site.columns:
                handles.append(module.register_forward_pre_hook(partial(_on_inputs, site, see)))
            else:
                handles.append(module.register_forward_hook(partial(_on_output, site, see)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _on_inputs(site: Site, see: See, module: nn.Module, args: tuple) -> tuple | None:
    written, columns = args[0], slice(*site.columns)
    new = see(site, written[..., columns])
    if new is None:
        return None
    written = written.clone()
    written[..., columns] = new
    return (written, *args[1:])


def _on_output(site: Site, see: See, module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
    new = see(site, output)
    return None if new is None else new.to(output.dtype).expand_as(output)
