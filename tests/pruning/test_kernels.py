"""Better kernels of a GPU compute what the modules of transformers do, and are gone afterwards."""

from __future__ import annotations

import importlib

import pytest
import torch
from gpus import SimulatedGPU
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nRMSNorm

from labkit.ladder import Rung
from labkit.pruning import blocks, kernels, masks, prune, sparsegpt, streaming

GPU = torch.device("cuda")


class Attention(TorchFunctionMode):
    """Notes heads of queries, keys and values, and whether they may be shared, of what is asked of PyTorch in the end."""

    def __init__(self) -> None:
        super().__init__()
        self.heads: list[tuple[int, int, int, bool]] = []

    def __torch_function__(self, function: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        if function is F.scaled_dot_product_attention:
            self.heads.append((*(each.shape[-3] for each in args[:3]), (kwargs or {}).get("enable_gqa", False)))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shared_by", [1, 3])
def test_repeated_heads_are_what_several_share(dtype, shared_by):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, heads, 8, 16, generator=generator).to(dtype) for heads in (6, 6 // shared_by, 6 // shared_by)
    )
    with Attention() as attention, kernels.RepeatedHeads():
        found = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True, scale=0.3)
    assert attention.heads == [(6, 6, 6, False)]
    scores = query.double() @ key.double().repeat_interleave(shared_by, 1).mT * 0.3
    scores = scores.masked_fill(torch.ones(8, 8).triu(1).bool(), -torch.inf)
    expected = scores.softmax(-1) @ value.double().repeat_interleave(shared_by, 1)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("shared", [{}, {"enable_gqa": True}], ids=str)
def test_attention_that_is_asked_for_otherwise_is_left_alone(shared):
    query, key, value = torch.randn(3, 1, 2, 4, 8, generator=torch.Generator().manual_seed(0))
    given = query, key, value, torch.ones(4, 4).tril().bool()
    with Attention() as attention, kernels.RepeatedHeads():
        found = F.scaled_dot_product_attention(*given, **shared)
    assert attention.heads == [(2, 2, 2, bool(shared))]
    assert torch.equal(found, F.scaled_dot_product_attention(*given, **shared))


NORMS = {"llama": True, "qwen3": True, "phi3": True, "olmo2": True, "gemma2": False, "t5gemma": False}
"""Architecture -> whether its norm is the weights times x / √(mean x² + ε); Gemma's is (1 + weights) times it."""


@pytest.mark.parametrize(("architecture", "plain"), NORMS.items())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_norms_are_known_by_what_they_compute(architecture, plain, dtype):
    module = importlib.import_module(f"transformers.models.{architecture}.modeling_{architecture}")
    kind = next(vars(module)[name] for name in dir(module) if name.endswith("RMSNorm"))
    assert kernels._is_rms_norm(kind) == plain
    if plain:
        generator = torch.Generator().manual_seed(0)
        norm, hidden = kind(32, eps=0.01).to(dtype), torch.randn(7, 32, generator=generator).to(dtype)
        nn.init.normal_(norm.weight, generator=generator)
        exact = hidden.double() / (hidden.double().square().mean(-1, keepdim=True) + 0.01).sqrt() * norm.weight.double()
        for found in (kernels.rms_norm(norm, hidden), norm(hidden)):
            torch.testing.assert_close(found.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=0)


def test_norms_that_cannot_be_made_alone_are_left_alone():
    class OddRMSNorm(nn.Module):
        def __init__(self, config) -> None:
            self.width = config.width

    class PickyRMSNorm(nn.Module):
        def __init__(self, width: int) -> None:
            raise ValueError(width)

    assert not any(map(kernels._is_rms_norm, (OddRMSNorm, PickyRMSNorm, nn.LayerNorm)))


@pytest.mark.parametrize("norm", [nn.RMSNorm(8, elementwise_affine=False), Gemma3nRMSNorm(8, with_scale=False)], ids=str)
def test_norms_without_weights_are_left_alone(norm):
    """Others of their class have some."""
    assert kernels._is_rms_norm(type(norm))
    hidden = torch.linspace(-1, 2, 16).view(2, 8)
    with kernels.better(nn.Sequential(norm, nn.Linear(8, 8)), GPU):
        assert "forward" not in vars(norm)
        torch.testing.assert_close(norm(hidden), hidden / hidden.square().mean(-1, keepdim=True).sqrt())


@torch.no_grad()
def test_every_architecture_gives_the_same_with_them_and_is_the_same_after_them(decoder, tokens, monkeypatch):
    """On the CPU, told that it were a GPU."""
    _, layers = blocks.decoder_blocks(decoder)
    whole = decoder(input_ids=tokens, use_cache=False).logits
    for layer in layers:
        with kernels.better(layer, torch.device("cpu")):
            assert not any("forward" in vars(module) for module in layer.modules())

        def forward(*args: object, call=layer.forward, layer=layer, **kwargs: object) -> object:
            with kernels.better(layer, GPU):
                return call(*args, **kwargs)

        monkeypatch.setattr(layer, "forward", forward)
    torch.testing.assert_close(decoder(input_ids=tokens, use_cache=False).logits, whole, rtol=1e-4, atol=1e-5)
    assert not any("forward" in vars(module) for layer in layers for module in layer.modules() if module is not layer)


def test_a_walk_uses_them_on_a_gpu_alone(monkeypatch):
    """Two norms in each of two blocks, whose keys two heads share."""
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=None,
    )  # fmt: skip
    model, tokens, used, rms_norm = LlamaForCausalLM(config).eval(), torch.arange(64)[None], [], kernels.rms_norm
    monkeypatch.setattr(kernels, "rms_norm", lambda norm, hidden: used.append(norm) or rms_norm(norm, hidden))
    with Attention() as attention:
        list(streaming.walk(model, tokens))
    assert not used and {*attention.heads} == {(4, 2, 2, True)}
    with SimulatedGPU(), Attention() as attention:
        model, tokens = model.to(GPU), tokens.to(GPU)
        list(streaming.walk(model, tokens))
    assert {*attention.heads[1:]} == {(4, 4, 4, False)}  # the first, of eight tokens, tells what a block returns
    assert {*used} == {module for module in model.model.layers.modules() if type(module).__name__ == "LlamaRMSNorm"}


def test_a_forward_that_somebody_has_put_there_stays():
    class Norm(nn.RMSNorm):
        pass

    block = nn.ModuleDict({"one": nn.RMSNorm(4), "other": nn.RMSNorm(4)})
    block["one"].forward = own = lambda hidden: hidden
    with pytest.raises(KeyError), kernels.better(block, GPU):
        assert block["one"].forward is own and "forward" in vars(block["other"])
        raise KeyError
    assert block["one"].forward is own and "forward" not in vars(block["other"])


def test_half_precision_keeps_the_attention_that_shares_heads(monkeypatch):
    """Its fused kernels know them."""
    inside = []
    monkeypatch.setattr(kernels.RepeatedHeads, "__enter__", lambda self: inside.append(self))
    monkeypatch.setattr(kernels.RepeatedHeads, "__exit__", lambda *_: None)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        with kernels.better(nn.Linear(2, 2, dtype=dtype), GPU):
            assert len(inside) == 1


SWEEPS = {
    "0.5": (masks.Keep(0.5), None),
    "0.3 of a row": (masks.Keep(0.3, "row"), None),
    "2:4": (masks.Keep(pattern=(2, 4)), 4),
    "8:32": (masks.Keep(pattern=(8, 32)), 32),
}


@pytest.mark.parametrize("asked", SWEEPS)
def test_what_a_gpu_repeats_is_what_it_was_launched_to_do(gpu, asked):
    """To the bit, with other numbers in every block and matrix."""
    keep, m = SWEEPS[asked]
    recorded = kernels.Recorded(sparsegpt.sweep_columns)
    generator = torch.Generator().manual_seed(0)
    for outputs in (24, masks.GROUPS_TO_SELECT_IN, 24):
        x = torch.randn(900, 672, generator=generator)
        weight = torch.randn(outputs, 672, generator=generator)
        weight[:, ::5] = 0
        factor = sparsegpt.inverse_factor((x.T @ x).to("cuda"), "w")
        given = weight.to("cuda"), factor, torch.zeros(672, dtype=torch.bool, device="cuda"), keep, m
        expected = sparsegpt.prune_columns(*given)
        assert torch.equal(sparsegpt.prune_columns(*given, recorded).cpu(), expected.cpu())
    shapes = {shape for ((shape, *_), *_), repeat in recorded.known.items() if repeat}
    assert shapes == {(24, 128), (masks.GROUPS_TO_SELECT_IN, 128), (24, 32)}
    if isinstance(gpu, SimulatedGPU):
        assert gpu.recordings == 3 and gpu.replays == 4 + 4 + 5 + 1  # of 5 blocks and a narrower one each


def test_sparsegpt_is_recorded_on_a_gpu(gpu, monkeypatch):
    recorded = []
    model = Rung(32, 2).build().to("cuda").eval()
    tokens = torch.randint(168, (16, 12), generator=torch.Generator().manual_seed(0))
    with monkeypatch.context() as patch:  # undone before the simulated GPU, which has patched it too, goes
        patch.setattr(kernels, "record", lambda *asked, record=kernels.record: recorded.append(1) or record(*asked))
        prune(model, "sparsegpt", 0.5, calibration=tokens)
    assert recorded


def doubled(x: torch.Tensor, times: int) -> torch.Tensor:
    return 2 * x * times


def test_with_other_settings_what_was_recorded_is_dropped(gpu):
    recorded = kernels.Recorded(doubled)
    for times in (3, 4, 3):
        for number in range(4):
            given = torch.full((1 + number % 2,), float(number), device="cuda")
            assert recorded(given, times).tolist() == (1 + number % 2) * [2 * number * times]
        assert len(recorded.known) == 2


def test_numbers_of_another_type_are_recorded_apart(gpu):
    recorded = kernels.Recorded(doubled)
    for number in (1, 2, 3, 1.5, 2.5, 3.5):
        assert recorded(torch.tensor(number, device="cuda"), 1).item() == 2 * number


def test_a_recording_that_does_not_fit_is_not_made(gpu, monkeypatch):
    def record(function, arguments):
        raise torch.OutOfMemoryError("no memory")

    recorded = kernels.Recorded(doubled)
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "record", record)
        assert [recorded(torch.tensor(number, device="cuda"), 1).item() for number in range(4)] == [0, 2, 4, 6]


def test_on_a_cpu_nothing_is_recorded():
    recorded = kernels.Recorded(torch.add)
    for number in range(3):
        assert recorded(torch.tensor(number), torch.tensor(1)) == number + 1
    assert not recorded.known


def test_what_a_simulated_gpu_puts_in_their_place_goes_with_it():
    record = kernels.record
    with SimulatedGPU():
        assert kernels.record != record
    assert kernels.record is record and record.__module__ == kernels.__name__
