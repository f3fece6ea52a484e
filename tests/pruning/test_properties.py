"""Laws of `labkit.prune`, on models, budgets and orders that Hypothesis draws."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

import labkit as lk
from labkit.pruning import CRITERIA, blocks, sparsegpt

MASK_ONLY = [name for name in CRITERIA if name != "sparsegpt"]
TOKENS = torch.randint(64, (16, 16), generator=torch.Generator().manual_seed(0))

# The same inputs each time: a law that fails in one run of a hundred would be put down to the machine.
few = settings(max_examples=5, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)
sparsities = st.floats(0, 0.95)
groups = st.sampled_from(["row", "layer"])
patterns = st.sampled_from(["1:2", "2:4", "4:8", "3:4"])
asked = st.one_of(
    st.builds(lambda sparsity, group: {"sparsity": sparsity, "group": group}, sparsities, groups),
    st.builds(lambda pattern: {"pattern": pattern}, patterns),
)


def model(seed: int, layers: int = 2, neurons: int = 136) -> LlamaForCausalLM:
    """Random weights, no zeros among them. The neurons are more than the columns SparseGPT takes at a time."""
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=neurons, num_hidden_layers=layers, num_attention_heads=2,
        max_position_embeddings=32, pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(seed)
    built = LlamaForCausalLM(config).eval()
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.3)
    return built


def prune(given: LlamaForCausalLM, criterion: str, **how: object) -> LlamaForCausalLM:
    with warnings.catch_warnings():  # of outputs that lose all their weights
        warnings.simplefilter("ignore")
        return lk.prune(given, criterion, calibration=TOKENS, **how)


def weights(of: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    return {name: matrix.weight.detach() for name, matrix in blocks.matrices(of).items()}


def same(a: LlamaForCausalLM, b: LlamaForCausalLM) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


@pytest.mark.parametrize("criterion", CRITERIA)
@few
@given(seeds, sparsities, groups)
def test_every_group_has_exactly_its_zeros(criterion, seed, sparsity, group):
    """⌊size · sparsity⌋ in each row or matrix; SparseGPT's groups end every 128 columns."""
    pruned = prune(model(seed), criterion, sparsity=sparsity, group=group)
    for weight in weights(pruned).values():
        for part in weight.split(sparsegpt.BLOCK if criterion == "sparsegpt" else weight.shape[1], dim=1):
            members = part if group == "row" else part.reshape(1, -1)
            assert ((members == 0).sum(1) == int(members.shape[1] * sparsity)).all()


@pytest.mark.parametrize("criterion", CRITERIA)
@few
@given(seeds, patterns)
def test_every_m_inputs_have_exactly_n_weights(criterion, seed, pattern):
    n, m = map(int, pattern.split(":"))
    for weight in weights(prune(model(seed), criterion, pattern=pattern)).values():
        assert ((weight != 0).reshape(-1, m).sum(1) == n).all()


@pytest.mark.parametrize("criterion", CRITERIA)
@few
@given(seeds, asked)
def test_pruning_twice_is_pruning_once(criterion, seed, asked):
    """To the last bit, SparseGPT too: what it prunes again is zero, and makes no error to push on."""
    once = prune(model(seed), criterion, **asked)
    assert same(once, prune(once, criterion, seed=1, **asked))


@pytest.mark.parametrize("criterion", CRITERIA)
@few
@given(seeds, patterns, st.sampled_from(CRITERIA))
def test_a_pattern_that_is_met_is_kept_by_every_criterion(criterion, seed, pattern, other):
    once = prune(model(seed, layers=1), other, pattern=pattern)
    assert same(once, prune(once, criterion, pattern=pattern))


@pytest.mark.parametrize("criterion", CRITERIA)
@few
@given(seeds, asked, st.sampled_from([torch.float32, torch.bfloat16, torch.float64]), st.booleans())
def test_only_zeros_are_new_and_the_model_given_stays(criterion, seed, asked, dtype, training):
    """Types and shapes are kept, weights that stay too unless SparseGPT updates them, and all that is no matrix."""
    dense = model(seed).to(dtype).train(training)
    before = copy.deepcopy(dense)
    pruned = prune(dense, criterion, **asked)
    assert same(dense, before) and dense.training == pruned.training == training
    inside = {f"{name}.weight" for name in weights(dense)}
    assert pruned.state_dict().keys() == dense.state_dict().keys()
    for name, tensor in pruned.state_dict().items():
        was = dense.state_dict()[name]
        assert (tensor.dtype, tensor.shape) == (was.dtype, was.shape)
        if criterion != "sparsegpt" or name not in inside:
            stays = tensor != 0 if name in inside else torch.ones_like(tensor, dtype=torch.bool)
            assert torch.equal(tensor[stays], was[stays])
        if name in inside:
            assert not torch.signbit(tensor[tensor == 0]).any()  # a pruned weight is 0, not −0


def renamed(given: LlamaForCausalLM, order: list[int], of: str) -> LlamaForCausalLM:
    """The same function: its neurons, or the channels of its residual stream, in another order."""
    given = copy.deepcopy(given)
    for name, parameter in given.named_parameters():
        last = name.split(".")[-2]
        outputs = {"gate_proj", "up_proj"} if of == "neurons" else {"o_proj", "down_proj"}
        inputs = {"down_proj"} if of == "neurons" else {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"}
        inputs |= set() if of == "neurons" else {"lm_head", "embed_tokens"}
        if last in outputs or (of == "channels" and parameter.ndim == 1):
            parameter.data = parameter.data[order]
        elif last in inputs:
            parameter.data = parameter.data[:, order]
    return given


@pytest.mark.parametrize("of", ["neurons", "channels"])
@pytest.mark.parametrize("criterion", ["magnitude", "wanda"])
@few
@given(seeds, sparsities, groups, st.data())
def test_masks_follow_a_permutation_of_the_inputs(criterion, of, seed, sparsity, group, data):
    """Renaming what a matrix reads renames its mask in every block, and so the weights that are left."""
    dense = model(seed, neurons=24)
    order = data.draw(st.permutations(range(24 if of == "neurons" else 16)))
    pruned = prune(dense, criterion, sparsity=sparsity, group=group)
    assert same(renamed(pruned, order, of), prune(renamed(dense, order, of), criterion, sparsity=sparsity, group=group))


@pytest.mark.parametrize("criterion", ["magnitude", "wanda"])
@few
@given(seeds, st.permutations(range(6)))
def test_patterns_follow_a_permutation_of_whole_groups_of_inputs(criterion, seed, order):
    dense = model(seed, neurons=24)
    neurons = [4 * place + within for place in order for within in range(4)]
    pruned = prune(dense, criterion, pattern="2:4")
    expected = renamed(pruned, neurons, "neurons")
    assert same(expected, prune(renamed(dense, neurons, "neurons"), criterion, pattern="2:4"))


@few
@given(seeds, st.permutations(range(24)), patterns)
def test_sparsegpt_follows_a_permutation_of_the_outputs(seed, order, pattern):
    """Its columns are taken in order, so only rows may change places: those of the neurons' gates and inputs."""
    dense = model(seed, layers=1, neurons=24)
    expected = weights(renamed(prune(dense, "sparsegpt", pattern=pattern), order, "neurons"))
    found = weights(prune(renamed(dense, order, "neurons"), "sparsegpt", pattern=pattern))
    for name in expected:
        if "down_proj" not in name:
            assert torch.equal(found[name] == 0, expected[name] == 0)
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)
