"""What the tables say about every architecture, and what they refuse."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from labkit.errors import LabkitError
from labkit.pruning import anatomy, blocks
from labkit.pruning.anatomy import FAMILIES, Kept, Sizes
from labkit.pruning.units import keep_all

SIZES = Sizes(layers=1, heads=6, groups=3, head_size=2, neurons=4, experts=1, width=5, embedding=5)
KEPT = Kept(torch.tensor([1, 2, 3]), torch.tensor([[0, 3]]), torch.tensor([0, 4]))  # head 1 of group 0, both of group 1


def test_every_axis_is_as_long_as_its_tensor_and_lists_each_position_once(decoder):
    sizes, parameters = anatomy.sizes_of(decoder), dict(decoder.named_parameters(remove_duplicate=False))
    everything = keep_all(sizes)
    described = anatomy.axes_of(decoder)
    assert described.keys() == parameters.keys()
    for name, (_, axes) in described.items():
        shape = parameters[name].shape
        assert len(axes) == len(shape), name
        for axis, length in zip(axes, shape, strict=True):
            if axis is not None:
                positions = axis(everything, sizes).sort(dim=-1).values.view(-1, length)
                assert torch.equal(positions, torch.arange(length).expand_as(positions)), name


def test_every_block_has_one_output_and_the_right_number_of_norms(decoder, architecture):
    found = anatomy.modules_of(decoder, (anatomy.hidden, anatomy.queries))
    assert sorted(found.values()) == [0, 1]
    norms = {n for n, m in decoder.named_modules() if "Norm" in type(m).__name__}
    norms -= {n for n in norms if n.endswith(("q_norm", "k_norm"))}  # not over the hidden dimensions
    assert set(anatomy.modules_of(decoder, (anatomy.hidden,))) == norms
    prefix, _ = blocks.decoder_blocks(decoder)
    for name, number in anatomy.modules_of(decoder, (anatomy.hidden,)).items():
        assert name.startswith(f"{prefix}.{number}.") or number is None


def test_sizes_are_those_of_the_config(decoder, architecture):
    groups = 4 if architecture in ("gpt2", "gpt-neox", "opt") else 2
    head_size, experts = 16 if architecture == "qwen3" else 8, 4 if architecture == "mixtral" else 1
    assert anatomy.sizes_of(decoder) == Sizes(2, 4, groups, head_size, 48, experts, 32, 32)


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        (anatomy.hidden, [0, 4]),
        (anatomy.queries, [2, 3, 4, 5, 6, 7]),
        (anatomy.keys, [0, 1, 2, 3]),
        (anatomy.neurons, [0, 3]),
        (anatomy.gates_neurons, [0, 3, 4, 7]),
        # rows of two: q0…q5, k0 k1 k2, v0 v1 v2
        (anatomy.queries_keys_values, [2, 3, 4, 5, 6, 7, 12, 13, 14, 15, 18, 19, 20, 21]),
        # rows of two: q0 q1 k0 v0, q2 q3 k1 v1, q4 q5 k2 v2
        (anatomy.interleaved, [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]),
    ],
)
def test_positions_by_hand(axis, expected):
    assert axis(KEPT, SIZES).tolist() == expected


def test_experts_keep_their_own_neurons():
    sizes = dataclasses.replace(SIZES, experts=2)
    kept = dataclasses.replace(KEPT, neurons=torch.tensor([[0, 3], [1, 2]]))
    assert anatomy.neurons(kept, sizes).tolist() == [[0, 3], [1, 2]]
    assert anatomy.gates_neurons(kept, sizes).tolist() == [[0, 3, 4, 7], [1, 2, 5, 6]]


def test_projected_embeddings_keep_their_width():
    assert anatomy.embedded(KEPT, dataclasses.replace(SIZES, embedding=3)).tolist() == [0, 1, 2]
    assert anatomy.embedded(KEPT, SIZES).tolist() == [0, 4]


def test_no_architecture_is_described_twice():
    types = [model_type for family in FAMILIES for model_type in family.model_types]
    assert len(types) == len(set(types)) == 12


@pytest.mark.parametrize("architecture", ["llama"], indirect=True)
def test_a_parameter_that_the_table_lacks_is_named(decoder):
    decoder.model.layers[1].mlp.extra = nn.Linear(2, 2)
    message = r"every parameter of Llama is described; got 'model.layers.1.mlp.extra.weight'"
    with pytest.raises(LabkitError, match=message):
        anatomy.axes_of(decoder)
