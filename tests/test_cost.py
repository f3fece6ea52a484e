"""Sizes exactly; times only by their laws (never by how fast this machine is)."""

from __future__ import annotations

import re
import sys

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from labkit.cost import cost
from labkit.errors import LabkitError
from labkit.flops import forward_flops_per_token
from labkit.ladder import Rung

cost_module = sys.modules["labkit.cost"]  # `labkit.cost` itself is the function


@pytest.fixture
def model():
    return Rung(16, 1).build()


def test_sizes_are_counted_exactly(model):
    model = model.to(torch.bfloat16)
    total = sum(p.numel() for p in model.parameters())
    model.lm_head.weight.data.zero_()
    measured = cost(model, batch=2, length=16, repeats=1)
    assert measured.parameters == total
    assert measured.nonzero_parameters == total - 168 * 16 - 16  # the head, and the padding token's embedding
    assert measured.weight_bytes == 2 * total
    assert measured.forward_flops == 2 * 16 * forward_flops_per_token(model, 16)


def test_times_agree_with_each_other(model):
    measured = cost(model, batch=2, length=16, repeats=5)
    assert 0 < measured.latency_ms <= measured.latency_p95_ms
    assert measured.throughput_tokens_per_s * measured.latency_ms / 1e3 == pytest.approx(2 * 16)
    assert measured.peak_memory_mib is None and measured.energy_j is None
    assert measured.device.startswith("cpu")


def test_the_model_keeps_its_mode(model):
    assert cost(model.train(), length=4, repeats=1) and model.training
    assert cost(model.eval(), length=4, repeats=1) and not model.training


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"length": -1}, {"repeats": 0}], ids=str)
def test_nothing_to_measure_is_refused(model, wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(LabkitError, match=f"{name} is at least 1; got {value}"):
        cost(model, **wrong)


def test_text_and_html_show_every_field_rounded():
    shown = cost_module.Cost("cpu <1>", 1, 128, 1_234_567, 1_000, 4_938_268, 10**9, 1.23456, 2.0, 123456.7, None, None)
    assert "parameters=1,234,567" in repr(shown)
    assert "latency_ms=1.23," in repr(shown)
    assert "throughput_tokens_per_s=123,457" in repr(shown)
    assert "energy_j=None" in repr(shown)
    html = shown._repr_html_()
    assert html.count("<tr>") == len(re.findall(r"\w+=", repr(shown))) == 12
    assert "cpu &lt;1&gt;" in html


def test_energy_per_call_is_what_the_counter_rose_by():
    """A device that takes 3 J per call and nothing when idle."""
    calls = []
    joules = cost_module._energy_per_call(lambda: calls.append(1), lambda: 3.0 * len(calls), window_s=0.01)
    assert joules == pytest.approx(3.0)


def test_a_length_beyond_a_table_of_places_is_refused(model):
    table = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=1, n_positions=8))
    with pytest.raises(LabkitError, match="a length is one that the model has places for; got 'length=9'"):
        cost(table, length=9, repeats=1)
    assert cost(model, length=model.config.max_position_embeddings + 1, repeats=1).length > 128  # rotary ones have no table
