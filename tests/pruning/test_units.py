"""Importances of heads, neurons and hidden dimensions against their formulas, in NumPy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from labkit.errors import LabkitError
from labkit.pruning import anatomy, blocks, memory, surgery, units
from labkit.pruning.units import UNIT_IMPORTANCES, keep_all

# Named by hand: the tables of `anatomy` are what is tested
OUT = {"gpt2": "attn.c_proj", "gpt-neox": "attention.dense", "opt": "self_attn.out_proj",
       "falcon": "self_attention.dense"}  # fmt: skip
DOWN = {"gpt2": "mlp.c_proj", "gpt-neox": "mlp.dense_4h_to_h", "opt": "fc2", "falcon": "mlp.dense_4h_to_h"}
EXPERTS, TIME = "mlp.experts", 24


@torch.no_grad()
def seen(model, names: list[str], tokens: torch.Tensor, output: bool = False) -> list[np.ndarray]:
    """What goes into (or comes out of) the modules, one sequence at a time: (sequences, time, features) each."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}

    def note(name: str):
        def hook(module, args, out):
            value = out if output else args[0]
            found[name].append(value.numpy().astype(np.float64).reshape(TIME, -1))

        return hook

    handles = [model.get_submodule(name).register_forward_hook(note(name)) for name in names]
    for sequence in tokens:
        model(input_ids=sequence[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return [np.stack(found[name]) for name in names]


@pytest.fixture
def scores(decoder, tokens, monkeypatch):
    monkeypatch.setitem(memory.MICRO_BATCH_TOKENS, "cpu", 3 * TIME)  # 8 sequences: 3, 3 and 2
    return units.activation(decoder, tokens, torch.Generator())


def test_heads_by_what_reaches_the_output_projection(decoder, architecture, tokens, scores):
    prefix, _ = blocks.decoder_blocks(decoder)
    for layer, name in enumerate(f"{prefix}.{i}.{OUT.get(architecture, 'self_attn.o_proj')}" for i in range(2)):
        (inputs,) = seen(decoder, [name], tokens)
        size = inputs.shape[-1] // 4
        for head in range(4):
            total = 0.0
            for sequence in inputs[:, :, head * size : (head + 1) * size]:
                total += np.mean([np.sqrt(np.sum(token**2)) for token in sequence]) ** 2
            assert scores.heads[layer, head].item() == pytest.approx(np.sqrt(total), rel=1e-5)


def test_neurons_by_what_reaches_the_down_projection(decoder, architecture, tokens, scores):
    prefix, _ = blocks.decoder_blocks(decoder)
    for layer in range(2):
        if architecture == "mixtral":
            expected = experts_by_hand(decoder, layer, tokens)
        else:
            (inputs,) = seen(decoder, [f"{prefix}.{layer}.{DOWN.get(architecture, 'mlp.down_proj')}"], tokens)
            expected = np.sqrt((np.abs(inputs).mean(1) ** 2).sum(0))[None]
        np.testing.assert_allclose(scores.neurons[layer], expected, rtol=1e-4, atol=1e-7)


def experts_by_hand(decoder, layer: int, tokens: torch.Tensor) -> np.ndarray:
    """(experts, neurons), from the input of the router on, token by token."""
    moe = decoder.model.layers[layer].mlp
    gate_up, router = (x.detach().numpy().astype(np.float64) for x in (moe.experts.gate_up_proj, moe.gate.weight))
    (inputs,) = seen(decoder, [f"model.layers.{layer}.mlp"], tokens)
    totals = np.zeros((4, 48))
    for sequence in inputs:
        sums = np.zeros((4, 48))
        for token in sequence:
            for expert in np.argsort(router @ token)[-2:]:
                gate, up = np.split(gate_up[expert] @ token, 2)
                sums[expert] += np.abs(gate / (1 + np.exp(-gate)) * up)
        totals += (sums / TIME) ** 2
    return np.sqrt(totals)


def test_hidden_dimensions_by_what_leaves_the_norms(decoder, tokens, scores):
    norms = [n for n, m in decoder.named_modules() if "Norm" in type(m).__name__]
    norms = [n for n in norms if not n.endswith(("q_norm", "k_norm"))]  # those are not over the hidden dimensions
    expected = sum(np.abs(outputs).mean((0, 1)) for outputs in seen(decoder, norms, tokens, output=True))
    np.testing.assert_allclose(scores.width, expected, rtol=1e-5)


def squares_of(model) -> float:
    return sum(p.double().square().sum().item() for p in model.parameters() if p.ndim > 1)


def test_magnitude_is_what_the_matrices_lose_with_a_neuron(decoder, architecture):
    sizes = anatomy.sizes_of(decoder)
    scores = units.magnitude(decoder, None, torch.Generator())
    full, before = keep_all(sizes), squares_of(decoder)
    without = dataclasses.replace(full, neurons=torch.arange(47).expand(sizes.experts, -1))  # not the last, anywhere
    lost = before - squares_of(surgery.keep_units(decoder, [without] * 2))
    assert scores.neurons[:, :, 47].square().sum().item() == pytest.approx(lost, rel=1e-6)


@pytest.mark.parametrize("architecture", ["llama", "gpt-neox", "gpt2", "phi3", "falcon"], indirect=True)
def test_magnitude_of_heads_and_dimensions_by_hand(decoder, architecture):
    scores = units.magnitude(decoder, None, torch.Generator())
    arrays = {name: p.detach().numpy().astype(np.float64) for name, p in decoder.named_parameters()}
    if architecture == "llama":
        q, k, v, o = (arrays[f"model.layers.1.self_attn.{x}_proj.weight"] for x in "qkvo")
        q, k, v = q.reshape(4, 8, 32), k.reshape(2, 8, 32), v.reshape(2, 8, 32)
    elif architecture == "gpt-neox":
        fused, o = (arrays[f"gpt_neox.layers.1.attention.{x}.weight"] for x in ("query_key_value", "dense"))
        q, k, v = fused.reshape(4, 3, 8, 32).transpose(1, 0, 2, 3)
    elif architecture == "gpt2":
        fused, o = (arrays[f"transformer.h.1.attn.{x}.weight"].T for x in ("c_attn", "c_proj"))
        q, k, v = fused.reshape(3, 4, 8, 32)
    elif architecture == "phi3":
        fused, o = (arrays[f"model.layers.1.self_attn.{x}_proj.weight"] for x in ("qkv", "o"))
        q, k, v = (x.reshape(-1, 8, 32) for x in np.split(fused, [32, 48]))
    else:
        fused, o = (arrays[f"transformer.h.1.self_attention.{x}.weight"] for x in ("query_key_value", "dense"))
        grouped = fused.reshape(2, 4, 8, 32)
        q, k, v = grouped[:, :2].reshape(4, 8, 32), grouped[:, 2], grouped[:, 3]
    for head in range(4):
        group = head * len(k) // 4
        parts = (q[head], k[group], v[group], o[:, head * 8 : head * 8 + 8])
        expected = np.sqrt(sum(np.sum(part**2) for part in parts))
        assert scores.heads[1, head].item() == pytest.approx(expected, rel=1e-6)
    # Hidden dimension 3: every matrix has one axis of width 32, o and what is square (out first) two
    if architecture == "llama":
        total = sum(np.sum(arrays[n][:, 3] ** 2) for n in ("model.embed_tokens.weight", "lm_head.weight"))
        for i in range(2):
            block = f"model.layers.{i}."
            readers = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
            total += sum(np.sum(arrays[f"{block}{n}.weight"][:, 3] ** 2) for n in readers)
            total += sum(np.sum(arrays[f"{block}{n}.weight"][3] ** 2) for n in ("self_attn.o_proj", "mlp.down_proj"))
        assert scores.width[3].item() == pytest.approx(np.sqrt(total), rel=1e-6)


def test_every_importance_scores_every_unit(decoder, tokens):
    sizes = anatomy.sizes_of(decoder)
    for measure in UNIT_IMPORTANCES:
        scores = measure(decoder, tokens, torch.Generator().manual_seed(0))
        shapes = (2, sizes.heads), (2, sizes.experts, sizes.neurons), (sizes.width,)
        for values, shape in zip((scores.heads, scores.neurons, scores.width), shapes, strict=True):
            assert values.shape == shape and values.dtype == torch.float64
            assert (values >= 0).all() and (values > 0).double().mean() > 0.9, measure.__name__  # a ReLU may be silent


@pytest.mark.parametrize("architecture", ["llama"], indirect=True)
def test_activation_without_calibration_is_refused(decoder):
    with pytest.raises(LabkitError, match="importance 'activation' needs calibration tokens; got None"):
        units.activation(decoder, None, torch.Generator())
