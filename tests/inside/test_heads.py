"""Patterns are the model's own attention; scores agree with counting by hand, and with a head that provably copies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Lfm2Config, MambaConfig

from labkit.abilities import Recall, Repeat, Reverse
from labkit.errors import LabkitError
from labkit.inside import heads as module
from labkit.inside.estimates import looks, ranking
from labkit.inside.heads import SCORES, attention, head_scores, targets
from labkit.inside.sites import Part, seen, sites
from labkit.ladder import Rung
from labkit.pruning.blocks import evaluating

# --- patterns --------------------------------------------------------------------------------------------------------


def test_rows_sum_to_one_and_never_look_ahead(decoder, tokens):
    pattern = attention(decoder, tokens)
    assert pattern.shape == (2, 4, 3, 10, 10)
    torch.testing.assert_close(pattern.sum(-1), torch.ones(2, 4, 3, 10))
    assert (pattern.triu(1) == 0).all()


def test_the_pattern_mixes_the_values_that_a_head_writes(tokens):
    """What the faster kernel writes for each head is our pattern times its values."""
    model = Rung(64, 2).build()
    pattern, found = attention(model, tokens), {}
    places = [site for head in range(4) for site in sites(model, [Part("head", 1, head)])]
    values = model.model.layers[1].self_attn.v_proj.register_forward_hook(lambda *x: found.update(values=x[2]))
    with seen(model, places, found.setdefault), evaluating(model), torch.no_grad():
        model(input_ids=tokens)
    values.remove()
    for head, site in enumerate(places):
        torch.testing.assert_close(pattern[1, head] @ found["values"][..., 16 * head : 16 * head + 16], found[site])


def test_the_model_is_left_as_it_was(decoder, tokens):
    kernel = decoder.config._attn_implementation
    attention(decoder, tokens)
    assert decoder.config._attn_implementation == kernel and decoder.training
    with pytest.raises(IndexError):
        attention(decoder, tokens + 64)
    assert decoder.config._attn_implementation == kernel and decoder.training


def test_a_model_that_gives_no_attention_is_refused(tokens, monkeypatch):
    model = Rung(16, 1).build()
    monkeypatch.setattr(type(model), "forward", lambda *_, **__: torch.nn.Module())
    monkeypatch.setattr(torch.nn.Module, "attentions", (None,), raising=False)
    with pytest.raises(LabkitError, match="attention is read from a model that gives it; got 'LlamaForCausalLM'. Use"):
        attention(model, tokens)


def test_a_kernel_that_cannot_be_changed_is_refused(decoder, tokens):
    """Falcon, asked for its attention under "sdpa", gives one without the causal mask."""
    if decoder.config.model_type == "falcon":
        decoder.config._attn_implementation_internal = "sdpa"
        with pytest.raises(LabkitError, match="computes it in the plain way; got \"FalconForCausalLM with 'sdpa', which"):
            attention(decoder, tokens)


# --- targets ---------------------------------------------------------------------------------------------------------


def by_hand(row: list[int], score: str, t: int) -> int | None:
    """The place looked at from t, by a search backwards."""
    if score == "previous token":
        return t - 1 if t else None
    for p in range(t - 1, -1, -1):
        if row[p] == row[t]:
            target = p + {"induction": 1, "duplicate token": 0, "backward": -1}[score]
            return target if 0 <= target < t else None
    return None


@pytest.mark.parametrize("score", SCORES)
def test_targets_agree_with_a_search(score):
    tokens = torch.randint(4, (20, 12), generator=torch.Generator().manual_seed(1))
    target, exists = targets(tokens, score)
    for row, places, has in zip(tokens.tolist(), target.tolist(), exists.tolist(), strict=True):
        expected = [by_hand(row, score, t) for t in range(len(row))]
        assert [place if there else None for place, there in zip(places, has, strict=True)] == expected


def test_scores_of_a_pattern_written_by_hand(monkeypatch):
    """a b a b: from the second a, ¼ to the place before, ½ to what followed a; from the second b ⅛ and ⅜."""
    pattern = torch.tensor([[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.125, 0.5, 0.375, 0], [0.25, 0.125, 0.375, 0.25]])
    monkeypatch.setattr(module, "attention", lambda *_: pattern[None, None, None])
    rows = head_scores(None, torch.tensor([[5, 6, 5, 6]])).set_index("score")
    told = {"previous token": (0.5 + 0.5 + 0.375) / 3, "induction": (0.5 + 0.375) / 2,
            "duplicate token": (0.125 + 0.125) / 2, "backward": 0.25}  # fmt: skip
    assert rows["value"].to_dict() == pytest.approx(told)
    even = {"previous token": (1 / 2 + 1 / 3 + 1 / 4) / 3, "induction": (1 / 3 + 1 / 4) / 2,
            "duplicate token": (1 / 3 + 1 / 4) / 2, "backward": 1 / 4}  # fmt: skip
    assert rows["even"].to_dict() == pytest.approx(even)
    asked = head_scores(None, torch.tensor([[5, 6, 5, 6]]), np.array([[0, 0, 1, 0]], dtype=bool)).set_index("score")
    assert asked["value"].to_dict() == pytest.approx({"previous token": 0.5, "induction": 0.5, "duplicate token": 0.125})
    # no "backward": nothing stands before the first a


def test_a_head_that_looks_evenly_scores_even(tokens):
    model = Rung(16, 1).build()
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight.zero_()
    rows = head_scores(model, tokens % 4)
    np.testing.assert_allclose(rows["value"], rows["even"], rtol=1e-5)


@pytest.mark.parametrize("ability", [Repeat(), Recall()])
def test_heads_that_provably_copy(copier, ability):
    items = ability.sample(8, seed=0)
    used = np.arange(items.tokens.shape[1]) < items.lengths[:, None]
    told = looks(head_scores(copier, items.tokens, used)).set_index(["part", "score"])["value"]
    assert told["head 0.0", "previous token"] > 0.99 and told["head 1.0", "induction"] > 0.99
    assert told["head 0.0", "induction"] < 0.01 or ability.name == "recall"  # there p + 1 is the place before
    assert next(iter(ranking(head_scores(copier, items.tokens, used), "induction"))) == Part("head", 1, 0)


def test_writing_backwards_asks_for_what_stood_before():
    items = Reverse().sample(4, seed=0)
    target, exists = targets(torch.from_numpy(items.tokens), "backward")
    for row, label, place, has in zip(items.tokens, items.labels, target, exists, strict=True):
        told = [(row[p], x) for x, p, h in zip(label, place, has, strict=True) if x >= 0 and h]
        assert len(told) >= 5 and all(found == wanted for found, wanted in told)


def test_micro_batches_give_the_same_rows(tokens, monkeypatch):
    model = Rung(32, 2).build()
    whole = head_scores(model, tokens % 5)
    monkeypatch.setitem(module.memory.MICRO_BATCH_TOKENS, "cpu", 10)
    parts = head_scores(model, tokens % 5)
    keys = ["score", "part", "item"]
    whole, parts = (rows.sort_values(keys, ignore_index=True) for rows in (whole, parts))
    assert whole[keys].equals(parts[keys])
    np.testing.assert_allclose(whole["value"], parts["value"], rtol=1e-5)


def test_other_tokens_are_refused():
    with pytest.raises(LabkitError, match=r"tokens are int64 \(sequences, time\).*got 'torch.float32 \(3,\), places"):
        head_scores(None, torch.zeros(3))
    with pytest.raises(LabkitError, match=r"places of the same shape; got 'torch.int64 \(1, 2\), places \(1, 3\)'"):
        head_scores(None, torch.zeros(1, 2, dtype=torch.int64), np.ones((1, 3), dtype=bool))


def test_layers_without_attention_and_tokens_without_a_batch_are_refused():
    kinds = ["conv", "full_attention"]
    hybrid = Lfm2Config(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                        num_key_value_heads=2, layer_types=kinds)  # fmt: skip
    state = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4)
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    for config in (hybrid, state):
        with pytest.raises(LabkitError, match="attention is read from a model"):
            attention(AutoModelForCausalLM.from_config(config), tokens)
    for wrong in (tokens[0], tokens.numpy()):
        with pytest.raises(LabkitError, match="tokens are a tensor"):
            attention(Rung(32, 2).build(), wrong)
    with pytest.raises(LabkitError, match="places asked have something before them"):
        head_scores(Rung(32, 2).build(), tokens, torch.zeros(1, 4, dtype=torch.bool))
