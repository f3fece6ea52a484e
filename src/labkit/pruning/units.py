"""Which heads, neurons and hidden dimensions matter. An importance is one function and one entry in `UNIT_IMPORTANCES`.

Every importance has the same form ``(model, calibration, generator) -> Scores``; the lowest are removed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from labkit.pruning import anatomy, blocks
from labkit.pruning.anatomy import Kept, Sizes
from labkit.pruning.calls import states_in
from labkit.pruning.memory import Portions


@dataclasses.dataclass(frozen=True)
class Scores:
    """Importances, fp64 on the CPU. NaN: the calibration tokens say nothing about it."""

    heads: Tensor  # (layers, heads)
    neurons: Tensor  # (layers, experts, neurons)
    width: Tensor  # (width,)

    @classmethod
    def zeros(cls, sizes: Sizes) -> Scores:
        """Scores to add to."""
        heads = torch.zeros(sizes.layers, sizes.heads, dtype=torch.float64)
        neurons = torch.zeros(sizes.layers, sizes.experts, sizes.neurons, dtype=torch.float64)
        return cls(heads, neurons, torch.zeros(sizes.width, dtype=torch.float64))


@torch.no_grad()
def activation(model: PreTrainedModel, calibration: Tensor | None, generator: torch.Generator) -> Scores:
    """What the units do on calibration tokens (sequences, time). The model must be in eval mode.

    - neuron j: √Σ_s (mean_t |a_stj|)², a the input of the down projection; a token that an expert is not given is a 0,
    - head h: √Σ_s (mean_t ‖z_sth‖₂)², z its slice of the input of the output projection,
    - hidden dimension i: Σ_norms mean_st |y_sti|, y the output of a norm over the hidden dimensions.

    Raises LabkitError for missing or unfit calibration tokens, and for activations that are not finite.
    Source: Muralidharan et al. 2024, *Compact language models* (Minitron, arXiv 2407.14679), section 2.2, with the
    mean over time and the L2 norm over sequences.
    """
    tokens = blocks.check_calibration(model, calibration, "importance 'activation'")
    sizes = anatomy.sizes_of(model)
    scores = Scores.zeros(sizes)
    prefix, layers = blocks.decoder_blocks(model)
    shape: list[int] = []  # (sequences, time) of the micro-batch in the model: some inputs come without their time axis
    routed = torch.zeros(sizes.layers, sizes.experts, dtype=torch.bool)

    def adds_neurons(number: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple) -> None:
            means = args[0].float().abs().reshape(*shape, -1).mean(1)  # (sequences, neurons)
            scores.neurons[number, 0] += means.double().square().sum(0).cpu()

        return hook

    def adds_heads(number: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple) -> None:
            norms = args[0].float().reshape(*shape, sizes.heads, -1).norm(dim=-1)  # (sequences, time, heads)
            scores.heads[number] += norms.mean(1).double().square().sum(0).cpu()

        return hook

    def adds_experts(number: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple) -> None:
            for expert, means in _expert_means(module, *args[:2], shape):
                scores.neurons[number, expert] += means.square().sum(0).cpu()
                routed[number, expert] = True

        return hook

    def adds_width(module: nn.Module, args: tuple, output: Tensor) -> None:
        scores.width.add_(output.float().abs().reshape(-1, sizes.width).sum(0).double().cpu() / tokens.numel())

    def checks(number: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, output: Tensor | tuple) -> None:
            blocks.check_finite(states_in(output), f"{prefix}.{number}")

        return hook

    def places(axes: tuple) -> list[tuple[nn.Module, int]]:
        return [(model.get_submodule(name), number) for name, number in anatomy.modules_of(model, axes).items()]

    down, out = places((anatomy.hidden, anatomy.neurons)), places((anatomy.hidden, anatomy.queries))
    handles = [module.register_forward_pre_hook(adds_neurons(i)) for module, i in down]
    handles += [module.register_forward_pre_hook(adds_heads(i)) for module, i in out]
    handles += [module.register_forward_hook(adds_width) for module, _ in places((anatomy.hidden,))]
    handles += [block.register_forward_hook(checks(i)) for i, block in enumerate(layers)]
    fused = [(module, i) for i, block in enumerate(layers) for module in block.modules() if blocks.is_fused(module)]
    handles += [module.register_forward_pre_hook(adds_experts(i)) for module, i in fused]

    def step(part: slice) -> None:
        shape[:] = tokens[part].shape
        model(input_ids=tokens[part], use_cache=False)

    try:
        totals = [scores.heads, scores.neurons, scores.width]
        Portions(tokens, model.device).each(step, type(model).__name__, totals=totals)
    finally:
        for handle in handles:
            handle.remove()
    if fused:
        scores.neurons[~routed] = float("nan")
    return Scores(scores.heads.sqrt(), scores.neurons.sqrt(), scores.width)


@torch.no_grad()
def magnitude(model: PreTrainedModel, calibration: Tensor | None, generator: torch.Generator) -> Scores:
    """L2 norm of the weights of all matrices that would go with the unit; for a head its group's keys and values too.

    Biases and norms do not count. The calibration tokens are not looked at.
    """
    sizes = anatomy.sizes_of(model)
    scores = Scores.zeros(sizes)
    everything = keep_all(sizes)
    parameters = dict(model.named_parameters())  # a tied matrix counts once
    for name, (number, axes) in anatomy.axes_of(model).items():
        if name not in parameters or len(axes) < 2:
            continue
        squares = parameters[name].detach().double().square().cpu()
        for dim, axis in enumerate(axes):
            if axis in anatomy.BY_WIDTH and squares.shape[dim] == sizes.width:
                scores.width.add_(_sum_to(squares, dim))
            elif axis in anatomy.BY_NEURON:
                by_expert = squares if squares.ndim == 3 else squares[None]
                for expert, matrix in enumerate(by_expert):
                    on_axis = _sum_to(matrix, dim - squares.ndim)  # gates first, then neurons: the same order twice
                    scores.neurons[number, expert] += on_axis.view(-1, sizes.neurons).sum(0)
            elif axis in anatomy.BY_HEAD:
                on_axis = _sum_to(squares, dim)
                for head in range(sizes.heads):
                    alone = dataclasses.replace(everything, heads=torch.tensor([head]))
                    scores.heads[number, head] += on_axis[axis(alone, sizes)].sum()
    return Scores(scores.heads.sqrt(), scores.neurons.sqrt(), scores.width.sqrt())


def random(model: PreTrainedModel, calibration: Tensor | None, generator: torch.Generator) -> Scores:
    """Uniform scores: the control."""
    zeros = Scores.zeros(anatomy.sizes_of(model))
    return Scores(*(torch.rand(x.shape, generator=generator, dtype=x.dtype) for x in dataclasses.astuple(zeros)))


UNIT_IMPORTANCES = (activation, magnitude, random)


def keep_all(sizes: Sizes) -> Kept:
    """Everything a block has."""
    neurons = torch.arange(sizes.neurons).expand(sizes.experts, -1)
    return Kept(torch.arange(sizes.heads), neurons, torch.arange(sizes.width))


def _expert_means(experts: nn.Module, hidden: Tensor, chosen: Tensor, shape: list[int]) -> list[tuple[int, Tensor]]:
    """(expert, mean over time of |neuron| (sequences, neurons) fp64) for each expert that was given a token.

    ``hidden`` (tokens, width) and ``chosen`` (tokens, experts per token) are what the experts are called with. What
    goes into their down projections stays inside their forward pass, and is computed again.
    """
    found = []
    for expert in chosen.unique().tolist():
        token = (chosen == expert).any(dim=1).nonzero().squeeze(1)
        gate, up = nn.functional.linear(hidden[token], experts.gate_up_proj[expert]).chunk(2, dim=-1)
        active = (experts.act_fn(gate) * up).double().abs()
        sums = active.new_zeros(shape[0], active.shape[1]).index_add_(0, token // shape[1], active)
        found.append((expert, sums / shape[1]))
    return found


def _sum_to(squares: Tensor, dim: int) -> Tensor:
    """Sum over every axis but one."""
    return squares.movedim(dim, 0).flatten(1).sum(1)
