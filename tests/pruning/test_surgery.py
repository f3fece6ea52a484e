"""A model with fewer blocks is a plain model: it runs, is saved and generates like one."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from labkit.errors import LabkitError
from labkit.ladder import Rung
from labkit.pruning import drop_layers, surgery
from labkit.pruning.importance import block_influence

TOKENS = torch.randint(168, (4, 10), generator=torch.Generator().manual_seed(0))


def qwen() -> Qwen2ForCausalLM:
    """Grouped-query attention, biases, tied embeddings, and a list of layer types in the config."""
    config = Qwen2Config(
        vocab_size=168, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, use_sliding_window=True, sliding_window=4, max_window_layers=2,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    return Qwen2ForCausalLM(config).eval()


MODELS = {"llama": Rung(32, 4).build().eval(), "qwen2": qwen()}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(input_ids=TOKENS).logits


@pytest.mark.parametrize("kept", [[0, 1, 2, 3], [0, 3], [2]])
def test_the_blocks_kept_are_run_in_their_order_and_the_others_are_not(model, kept):
    # Independent: a block is also gone if it hands on its input
    skipped = copy.deepcopy(model)
    for i, block in enumerate(skipped.model.layers):
        if i not in kept:
            block.forward = lambda hidden_states, *args, **kwargs: hidden_states
    short = copy.deepcopy(model)
    surgery.keep_layers(short, kept[::-1])
    torch.testing.assert_close(logits(short), logits(skipped))


def test_the_config_follows(model):
    short = drop_layers(model, keep=2, importance="random")
    assert short.config.num_hidden_layers == len(short.model.layers) == 2
    assert [block.self_attn.layer_idx for block in short.model.layers] == [0, 1]
    types = getattr(model.config, "layer_types", None)
    assert types is None or len(short.config.layer_types) == 2


def test_a_saved_short_model_comes_back_with_the_same_logits(model, tmp_path):
    short = drop_layers(model, keep=3, calibration=TOKENS)
    short.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path).eval()), logits(short))


def test_generation_with_a_cache_equals_generation_without(model):
    short = drop_layers(model, keep=2, calibration=TOKENS)
    with_cache, without = (
        short.generate(TOKENS, max_new_tokens=8, do_sample=False, use_cache=use, pad_token_id=0)
        for use in (True, False)
    )
    assert torch.equal(with_cache, without)


def test_the_blocks_of_least_influence_go(model):
    influence = block_influence(model, TOKENS, torch.Generator())
    kept = sorted(influence.argsort(descending=True)[:2].tolist())
    expected = copy.deepcopy(model)
    surgery.keep_layers(expected, kept)
    assert torch.equal(logits(drop_layers(model, keep=2, calibration=TOKENS)), logits(expected))


def test_the_model_given_is_left_as_it_was(model):
    before, config = logits(model), model.config.to_dict()
    model.train()
    short = drop_layers(model, keep=1, calibration=TOKENS)
    assert model.training and short.training
    model.eval()
    assert torch.equal(logits(model), before)
    assert model.config.to_dict() == config


def test_random_layers_depend_on_the_seed():
    model = Rung(16, 8).build().eval()
    same = [logits(drop_layers(model, keep=4, importance="random", seed=1)) for _ in range(2)]
    assert torch.equal(*same)
    assert not torch.equal(same[0], logits(drop_layers(model, keep=4, importance="random", seed=2)))


@pytest.mark.parametrize("keep", [0, -1, 5, 2.0, True])
def test_keeping_what_is_not_there_is_refused(keep):
    with pytest.raises(LabkitError, match=r"layers to keep lies in 1\.\.4; got .*at most 4"):
        drop_layers(MODELS["llama"], keep=keep, importance="random")


def test_an_unknown_importance_is_answered_with_the_nearest():
    with pytest.raises(LabkitError, match="importance is needed; got 'block-influense'. Nearest: block-influence"):
        drop_layers(MODELS["llama"], keep=2, importance="block-influense")


def test_block_influence_without_calibration_is_refused():
    with pytest.raises(LabkitError, match="block influence needs calibration tokens; got None"):
        drop_layers(MODELS["llama"], keep=2)
