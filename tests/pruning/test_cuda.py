"""On a GPU: the same masks, blocks that visit it one at a time, memory that runs out, patterns that it can use.

All but the patterns also on a simulated one, so that a machine without sees where tensors lie and what they take.
"""

from __future__ import annotations

import copy
import re
import warnings

import pytest
import torch
from gpus import RealGPU, SimulatedGPU, needs_a_gpu
from torch.sparse import to_sparse_semi_structured
from transformers import LlamaConfig, LlamaForCausalLM

from labkit.errors import LabkitError
from labkit.pruning import CRITERIA, Options, blocks, engine, masks, memory, prune, sparsegpt, sparsity
from labkit.pruning.moments import Hessian, Norms

DEVICE = "cuda"
LEND = Options(device=DEVICE)
LENGTH = 64


def built(width: int = 128, layers: int = 3) -> LlamaForCausalLM:
    """A random model on the CPU."""
    config = LlamaConfig(
        vocab_size=64, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=LENGTH, pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def tokens(sequences: int) -> torch.Tensor:
    return torch.randint(64, (sequences, LENGTH), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("asked", [{"sparsity": 0.5}, {"pattern": "2:4"}], ids=str)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_masks_are_those_of_the_cpu_and_the_model_stays_there(gpu, criterion, asked):
    """Exactly where nothing is calibrated; rounding may tip a choice between scores that are nearly equal."""
    model = built()
    here = blocks.matrices(prune(model, criterion, calibration=tokens(32), **asked))
    lent = prune(model, criterion, calibration=tokens(32), options=LEND, **asked)
    assert {parameter.device.type for parameter in lent.parameters()} == {"cpu"}
    assert sparsity(lent) == 0.5
    there = blocks.matrices(prune(copy.deepcopy(model).to(DEVICE), criterion, calibration=tokens(32), **asked))
    tipped = {"random": 0.0, "magnitude": 0.0, "wanda": 1e-3, "sparsegpt": 2e-2}[criterion]
    for name, matrix in blocks.matrices(lent).items():
        for other in (here[name].weight, there[name].weight.cpu()):
            assert ((matrix.weight == 0) != (other == 0)).float().mean() <= tipped, name


@pytest.mark.parametrize("sparsity", [0.3, 0.5])
@pytest.mark.parametrize("group", masks.GROUPS)
@pytest.mark.parametrize("shape", [(32, 500), (masks.GROUPS_TO_SELECT_IN, masks.SORTED_SCORES + 1)], ids=str)
def test_of_equals_the_first_go_there_too(gpu, shape, group, sparsity):
    scores = torch.randint(0, 7, shape, generator=torch.Generator().manual_seed(0)).float()
    keep = masks.keep_highest(scores.to(DEVICE), sparsity, group)
    assert torch.equal(keep.cpu(), masks.keep_highest(scores, sparsity, group))


def test_groups_too_wide_to_be_sorted_are_pruned_all_the_same(gpu, monkeypatch):
    """Selecting waits for the GPU, which a recording cannot."""
    asked = {"pattern": "8:32", "calibration": tokens(4)}
    expected = prune(built(layers=1), "sparsegpt", **asked)
    monkeypatch.setattr(masks, "SORTED_SCORES", 16)
    monkeypatch.setattr(masks, "GROUPS_TO_SELECT_IN", 1)
    found = prune(built(layers=1), "sparsegpt", options=LEND, **asked)
    assert nearly_the_same_masks(found, expected)


def nearly_the_same_masks(one: LlamaForCausalLM, other: LlamaForCausalLM) -> bool:
    """Rounding may tip a choice between scores that are nearly equal."""
    pairs = zip(blocks.matrices(one).values(), blocks.matrices(other).values(), strict=True)
    return all(((a.weight == 0) != (b.weight == 0)).float().mean() <= 1e-3 for a, b in pairs)


def one_micro_batch(gpu: RealGPU | SimulatedGPU, model: LlamaForCausalLM, sequences: int) -> int:
    """Bytes that one block takes with it, the block included."""
    block, width = copy.deepcopy(model.model.layers[0]), model.config.hidden_size

    @torch.no_grad()
    def work() -> None:
        hidden = torch.zeros(sequences, LENGTH, width, device=DEVICE)
        positions = model.model.rotary_emb(hidden.cpu(), torch.arange(LENGTH)[None])
        block.to(DEVICE)(hidden, position_embeddings=tuple(x.to(DEVICE) for x in positions))

    return gpu.most(work)


@pytest.mark.parametrize(("criterion", "statistic"), [("wanda", Norms), ("sparsegpt", Hessian)])
def test_memory_is_a_block_its_statistics_and_one_micro_batch(gpu, criterion, statistic):
    """The model is many times as large, and so are all its activations. A GPU brings the next ones while it computes.

    For SparseGPT also what a GPU has recorded: arguments and results for 128 columns of each shape of matrix.
    """
    model, sequences = built(width=512, layers=4), memory.micro_batch(LENGTH, torch.device(DEVICE))
    gpu.most(lambda: prune(model, criterion, 0.5, calibration=tokens(4), options=LEND))  # workspaces that stay
    inputs = 3 * [512] + [3 * 512]
    statistics = sum(4 * (size if statistic is Norms else size**2) for size in inputs)
    columns = sparsegpt.BLOCK
    if statistic is Hessian:
        statistics += sum(columns * (13 * outputs + 4 * columns) for outputs in (256, 512, 3 * 512))
    grown = gpu.most(lambda: prune(model, criterion, 0.5, calibration=tokens(8 * sequences), options=LEND))
    real = isinstance(gpu, RealGPU)
    rounded = 1.05 if real else 1.002  # an allocator's blocks; masks and positions
    following = 4 * sequences * LENGTH * 512 if real else 0
    assert grown <= statistics + following + rounded * one_micro_batch(gpu, model, sequences)


def test_memory_that_runs_out_halves_the_micro_batch_and_changes_nothing_else(gpu):
    model, sequences = built(width=512, layers=2), memory.micro_batch(LENGTH, torch.device(DEVICE))
    expected = prune(model, "wanda", 0.5, calibration=tokens(sequences), options=LEND)
    with gpu.at_most(one_micro_batch(gpu, model, sequences) // 2):
        with pytest.warns(UserWarning, match=r"out of memory in model\.layers\.0: on with \d+ calibration sequences"):
            found = prune(model, "wanda", 0.5, calibration=tokens(sequences), options=LEND)
    assert nearly_the_same_masks(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_activations_of_a_model_on_the_gpu_take_one_micro_batch_of_it(gpu, dtype):
    model = built(width=512, layers=2).to(dtype)
    few, many = (count * memory.micro_batch(LENGTH, torch.device(DEVICE)) for count in (2, 16))
    there = copy.deepcopy(model).to(DEVICE)
    prune(there, "wanda", 0.5, calibration=tokens(4))  # workspaces that stay
    grown = [gpu.most(lambda n=n: prune(there, "wanda", 0.5, calibration=tokens(n))) for n in (few, many)]
    activations = dtype.itemsize * (many - few) * LENGTH * model.config.hidden_size
    assert grown[1] - grown[0] < 0.1 * activations


@needs_a_gpu
@torch.no_grad()
@pytest.mark.parametrize("criterion", CRITERIA)
def test_two_of_four_is_a_pattern_that_the_gpu_multiplies(criterion):
    model = built().half().to(DEVICE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch calls its sparse tensors a beta
        for matrix in blocks.matrices(prune(model, criterion, pattern="2:4", calibration=tokens(32))).values():
            x = torch.randn(64, matrix.weight.shape[1], device=DEVICE, dtype=torch.float16)
            dense = torch.nn.functional.linear(x, matrix.weight)
            found = torch.nn.functional.linear(x, to_sparse_semi_structured(matrix.weight))
            assert (found - dense).float().norm() < 0.01 * dense.float().norm()


@pytest.mark.parametrize("there", [False, True], ids=["lent", "there"])
@pytest.mark.parametrize(("criterion", "propagate"), [("wanda", True), ("wanda", False), ("sparsegpt", True)])
def test_any_amount_of_memory_gives_the_same_masks_or_an_error(criterion, propagate, there, monkeypatch):
    """Wherever it runs out: what is counted is counted once, what is moved comes back. Only a simulated GPU is exact."""
    monkeypatch.setitem(memory.MICRO_BATCH_TOKENS, "cuda", 8 * LENGTH)
    monkeypatch.setitem(engine.SCORES, "cuda", 2**12)
    model, answers = built(width=64, layers=2), set()
    how = {"calibration": tokens(40), "options": Options(propagate=propagate, device=None if there else DEVICE)}
    with SimulatedGPU() as gpu:
        model = model.to(DEVICE if there else "cpu")
        found = []
        most = gpu.most(lambda: found.append(prune(model, criterion, 0.5, **how)))
        expected, before = found.pop().cpu(), gpu.allocated
        for share in torch.arange(0.02, 1.0, 0.07).tolist():
            with warnings.catch_warnings(record=True) as warned, gpu.at_most(int(share * most)):
                warnings.simplefilter("always")
                try:
                    found = prune(model, criterion, 0.5, **how).cpu()
                except LabkitError as error:
                    assert re.search(r"fit into the device's memory; got 'out of memory in ", str(error))
                    answers.add("error")
                else:
                    assert nearly_the_same_masks(found, expected)
                    answers |= {str(warning.message).split(": ")[-1] for warning in warned}
            assert gpu.allocated == before
    assert answers >= {"error", "on with 4 calibration sequences at a time"}
