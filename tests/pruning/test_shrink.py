"""A shrunk model is a plain model, has what was asked for, and what is removed is what matters least."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

from labkit.errors import LabkitError
from labkit.ladder import Rung
from labkit.lineage import lineage
from labkit.pruning import anatomy, blocks, ledger, surgery, units
from labkit.pruning.shrinking import keep_best, keep_heads, shrink
from labkit.pruning.units import UNIT_IMPORTANCES, keep_all

NO_HEAD_SIZE = ("gpt2", "gpt-neox", "opt", "falcon")  # width = heads · head size, by their configs
LAYER_NORMS = NO_HEAD_SIZE  # the others have RMS norms, without a bias


@torch.no_grad()
def logits(model, tokens: torch.Tensor) -> torch.Tensor:
    return model(input_ids=tokens).logits


def smaller(model, tokens, **kwargs):
    """Two heads, 20 neurons, and a width that every config can state."""
    sizes = anatomy.sizes_of(model)
    width = 24 if anatomy.family_of(model.config).own_head_size else 2 * sizes.head_size
    return shrink(model, **{"heads": 2, "ffn": 20, "width": width, "calibration": tokens, **kwargs})


def head_by_head(**changes) -> MistralForCausalLM:
    """Four key-value groups of one or more query heads, of width 32."""
    sizes = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 8, "num_key_value_heads": 4, "sliding_window": None, "bos_token_id": None,
        "eos_token_id": None,
    }  # fmt: skip
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**{**sizes, **changes})).eval()


def variant(model, **changes):
    """A fresh random model of the same architecture, its config changed."""
    torch.manual_seed(0)
    return type(model)(type(model.config)(**{**model.config.to_dict(), **changes})).eval()


# --- a plain model -----------------------------------------------------------------------------------------------


def test_saved_it_comes_back_with_the_same_logits(decoder, tokens, tmp_path):
    small = smaller(decoder, tokens)
    small.save_pretrained(tmp_path)
    attention = decoder.config._attn_implementation  # not in config.json; Gemma 2 caps its scores in eager alone
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=attention).eval()
    assert torch.equal(logits(loaded, tokens), logits(small, tokens))


def test_generation_with_a_cache_equals_generation_without(decoder, tokens):
    small = smaller(decoder, tokens)
    with_cache, without = (
        small.generate(tokens, max_new_tokens=6, do_sample=False, use_cache=use, pad_token_id=0)
        for use in (True, False)
    )
    assert torch.equal(with_cache, without)


@pytest.mark.parametrize("importance", [f.__name__ for f in UNIT_IMPORTANCES])
def test_to_the_full_size_it_is_the_same_model(decoder, tokens, importance):
    sizes = anatomy.sizes_of(decoder)
    full = {"heads": sizes.heads, "ffn": sizes.neurons, "width": sizes.width}
    same = shrink(decoder, **full, importance=importance, calibration=tokens)
    assert torch.equal(logits(same, tokens), logits(decoder, tokens))
    before, after = decoder.config.to_dict(), same.config.to_dict()
    after.pop("labkit_lineage")
    assert before == after


def test_the_number_of_parameters_is_the_closed_form(decoder, architecture, tokens):
    d, f, h, g, s = 32, 48, 4, 2, 16 if architecture == "qwen3" else 8  # width, neurons, heads, groups, head size
    if architecture in ("gpt2", "gpt-neox", "opt"):
        g = 4
    experts = 4 if architecture == "mixtral" else 1
    biases = architecture in ("gpt2", "gpt-neox", "opt")
    gated = architecture not in NO_HEAD_SIZE
    norms = {"gemma2": 4, "falcon": 2}.get(architecture, 2)
    vectors = 2 if architecture in LAYER_NORMS else 1
    tied = architecture in ("qwen2", "gemma2", "gpt2", "opt", "falcon")
    positions = {"gpt2": 64, "opt": 66}.get(architecture, 0)

    def count(d: int, f: int, h: int, g: int) -> int:
        attention = 2 * h * s * d + 2 * g * s * d
        if biases:
            attention += (h + 2 * g) * s + d
        if architecture == "qwen2":
            attention += (h + 2 * g) * s
        attention += {"qwen3": 2 * s, "olmo2": (h + g) * s}.get(architecture, 0)
        ffn = experts * (3 if gated else 2) * d * f + (f + d) * biases + (d * experts if experts > 1 else 0)
        return 2 * (attention + ffn + norms * vectors * d) + vectors * d + d * (64 * (1 if tied else 2) + positions)

    assert count(d, f, h, g) == sum(p.numel() for p in decoder.parameters())
    small = smaller(decoder, tokens)
    assert sum(p.numel() for p in small.parameters()) == count(small.config.hidden_size, 20, 2, min(g, 2))


def test_the_model_given_is_left_as_it_was(decoder, tokens):
    before, config = logits(decoder, tokens), decoder.config.to_dict()
    decoder.train()
    decoder.get_input_embeddings().weight.requires_grad_(False)
    random_state = torch.get_rng_state()
    small = smaller(decoder, tokens)
    assert torch.equal(torch.get_rng_state(), random_state)  # nothing is drawn from the global generator
    assert decoder.training and small.training
    frozen = [name for name, p in small.named_parameters() if not p.requires_grad]
    assert frozen == [name for name, p in decoder.named_parameters() if not p.requires_grad] != []
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.zero_()  # no memory is shared
    decoder.eval()
    assert torch.equal(logits(decoder, tokens), before)
    assert decoder.config.to_dict() == config


def test_every_number_type_is_kept():
    model = head_by_head().to(torch.bfloat16)
    model.model.norm.to(torch.float32)
    small = shrink(model, ffn=20, importance="magnitude")
    assert {n: p.dtype for n, p in small.named_parameters()} == {n: p.dtype for n, p in model.named_parameters()}


def test_what_was_asked_is_in_the_lineage(tokens):
    small = shrink(head_by_head(), heads=4, ffn=20, importance="random", seed=3)
    asked = {"heads": 4, "ffn": 20, "width": None, "importance": "random", "seed": 3}
    assert lineage(small) == ({"verb": "shrink", **asked},)


# --- what is removed ---------------------------------------------------------------------------------------------


def test_the_order_of_the_neurons_does_not_matter(decoder, tokens):
    sizes = anatomy.sizes_of(decoder)
    order = torch.stack([torch.randperm(sizes.neurons) for _ in range(sizes.experts)])
    mixed = surgery.keep_units(decoder, [dataclasses.replace(keep_all(sizes), neurons=order)] * sizes.layers)
    torch.testing.assert_close(logits(mixed, tokens), logits(decoder, tokens))
    small, mixed = (shrink(m, ffn=20, calibration=tokens) for m in (decoder, mixed))
    torch.testing.assert_close(logits(mixed, tokens), logits(small, tokens))


@pytest.mark.parametrize("heads", [4, 8, 2, 6])
def test_every_group_keeps_its_best_heads_or_the_best_groups_stay_whole(heads):
    scores = torch.tensor([1.0, 2.0, 9.0, 0.5, 3.0, 4.0, 0.1, 0.2])
    kept = keep_heads(scores, heads, groups=4 if heads != 6 else 1)
    expected = {4: [1, 2, 5, 7], 8: [*range(8)], 2: [2, 3], 6: [0, 1, 2, 3, 4, 5]}
    assert kept.tolist() == expected[heads]


def test_with_a_head_to_each_group_the_groups_are_the_heads(tokens):
    model = head_by_head(num_key_value_heads=8)
    small = shrink(model, heads=3, calibration=tokens)
    best = units.activation(model, tokens, torch.Generator()).heads.argsort(descending=True)[:, :3]
    for block, old, kept in zip(small.model.layers, model.model.layers, best, strict=True):
        rows = torch.cat([torch.arange(4) + 4 * head for head in sorted(kept.tolist())])
        assert torch.equal(block.self_attn.k_proj.weight, old.self_attn.k_proj.weight[rows])
        assert torch.equal(block.self_attn.o_proj.weight, old.self_attn.o_proj.weight[:, rows])
    assert small.config.num_key_value_heads == 3


def test_of_equals_the_first_goes_first():
    assert keep_best(torch.tensor([1.0, 1.0, 2.0, 1.0]), 2).tolist() == [2, 3]


def test_random_units_depend_on_the_seed_alone(tokens):
    model = head_by_head()
    one, same, other = (logits(shrink(model, ffn=20, importance="random", seed=seed), tokens) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_activation_sees_what_the_model_does_in_evaluation(tokens):
    model = head_by_head(attention_dropout=0.5).train()
    one, same = (shrink(model, ffn=20, heads=4, calibration=tokens).eval() for _ in range(2))
    assert torch.equal(logits(one, tokens), logits(same, tokens))
    assert model.training


def test_a_sparse_model_stays_sparse_and_its_ledger_is_written_anew(tokens):
    model = head_by_head()
    for matrix in blocks.matrices(model).values():
        matrix.weight.view(-1)[::3] = 0
    ledger.record_masks(model)
    recorded = copy.deepcopy(model.config.labkit_masks)
    small = shrink(model, heads=4, ffn=20, calibration=tokens)
    ledger.check_masks(small)
    assert small.config.labkit_masks.keys() == recorded.keys()
    for name, matrix in blocks.matrices(small).items():
        zeros = int((matrix.weight == 0).sum())
        assert small.config.labkit_masks[name]["sparsity"] == zeros / matrix.weight.numel() > 0.2
    assert model.config.labkit_masks == recorded
    assert not hasattr(shrink(head_by_head(), ffn=20, importance="random").config, "labkit_masks")


def test_one_neuron_may_be_all_that_stays():
    assert shrink(head_by_head(), ffn=1, importance="random").model.layers[0].mlp.down_proj.in_features == 1


# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, r"needs a number of heads, ffn or width; got None. Give at least one"),
        ({"heads": 9}, r"heads to keep lies in 1\.\.8; got 9. Give a whole number of at most 8"),
        ({"ffn": 0}, r"ffn to keep lies in 1\.\.48; got 0"),
        ({"ffn": 20.0}, r"ffn to keep lies in 1\.\.48; got 20.0"),
        ({"width": True}, r"width to keep lies in 1\.\.32; got True"),
        ({"heads": 6}, r"8 heads in 4 key-value groups keep a multiple of 4, .* a multiple of 2 below that; got 6"),
        ({"heads": 3}, r"a multiple of 2 below that; got 3. Give e.g. heads=4"),
        ({"ffn": 20, "importance": "activations"}, r"importance is needed; got 'activations'. Nearest: activation"),
        ({"ffn": 20}, r"importance 'activation' needs calibration tokens; got None"),
        ({"ffn": 20, "calibration": torch.zeros(2, 3)}, r"calibration tokens are int64 .*; got 'torch.float32"),
    ],
)  # fmt: skip
def test_a_request_that_makes_no_sense_is_refused(asked, message):
    with pytest.raises(LabkitError, match=message):
        shrink(head_by_head(), **asked)


@pytest.mark.parametrize("architecture", NO_HEAD_SIZE, indirect=True)
@pytest.mark.parametrize("asked", [{"heads": 2}, {"width": 24}, {"heads": 2, "width": 24}])
def test_without_a_head_size_in_the_config_heads_and_width_go_together(decoder, asked):
    name = anatomy.family_of(decoder.config).name
    received = f"{asked.get('heads', 4)} heads of size 8 with width {asked.get('width', 32)}"
    fewer = min(asked.get("heads", 4), asked.get("width", 32) // 8)
    remedy = f"Shrink both, e.g. heads={fewer} with width={8 * fewer}"
    message = f"config of {name} has no head size of its own: the width is heads · 8; got '{received}'. {remedy}"
    with pytest.raises(LabkitError, match=message):
        shrink(decoder, **asked, importance="random")


@pytest.mark.parametrize("architecture", ["llama", "gemma2"], indirect=True)
def test_a_width_that_heads_do_not_divide_is_refused_where_the_config_demands_it(decoder):
    name = anatomy.family_of(decoder.config).name
    message = f"{name} demands a width that its number of heads divides; got '4 heads of size 8 with width 30'"
    with pytest.raises(LabkitError, match=message):
        shrink(decoder, width=30, importance="random")


@pytest.mark.parametrize("architecture", ["phi3"], indirect=True)
def test_what_transformers_itself_refuses_is_passed_on(decoder):
    factors = {"short_factor": [1.0] * 4, "long_factor": [1.0] * 4, "rope_type": "longrope", "rope_theta": 1e4}
    model = variant(decoder, rope_parameters=factors, original_max_position_embeddings=32)
    message = "accepts the config of Phi-3; got .2 heads of size 8 with width 32: .*short_factor.* length 8"
    with pytest.raises(LabkitError, match=message):
        shrink(model, heads=2, importance="random")


@pytest.mark.parametrize("architecture", ["falcon"], indirect=True)
def test_heads_with_alibi_are_refused(decoder):
    model = variant(decoder, alibi=True)
    message = "heads of Falcon with ALiBi cannot be removed: the number of a head sets its slope; got '2 heads"
    with pytest.raises(LabkitError, match=message):
        shrink(model, heads=2, width=16, importance="random")


@pytest.mark.parametrize("architecture", ["mixtral"], indirect=True)
def test_an_expert_without_a_token_has_no_scores(decoder, tokens):
    for block in decoder.model.layers:
        block.mlp.gate.weight.data[2] = 0
        block.mlp.gate.weight.data[[0, 1, 3]] += 5 * block.input_layernorm.weight.sign()
    decoder.model.layers[1].mlp.gate.weight.data[:] = torch.tensor([[1.0], [1.0], [0.0], [0.0]])
    with pytest.raises(LabkitError, match=r"calibration tokens reach every expert; got 'none for expert \d of layer"):
        shrink(decoder, ffn=20, calibration=tokens[:1, :2])
    assert shrink(decoder, heads=2, calibration=tokens[:1, :2]).config.num_attention_heads == 2


def test_nan_activations_are_named(tokens):
    model = head_by_head()
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(LabkitError, match="NaN or infinity after block model.layers.1"):
        shrink(model, ffn=20, calibration=tokens)


def test_an_unknown_architecture_is_refused_by_name():
    config = transformers.GPTJConfig(vocab_size=64, n_embd=32, n_layer=1, n_head=2, rotary_dim=8)
    message = "only described architectures can be shrunk; got 'gptj'. Described are llama"
    with pytest.raises(LabkitError, match=message):
        shrink(transformers.GPTJForCausalLM(config), ffn=20, importance="random")


def test_modules_without_parameters_may_be_more_than_the_config_builds():
    model = Rung(32, 2).build().train()
    model.loss, model.model.layers[0].mlp.act_fn = nn.CrossEntropyLoss(), nn.Sequential(nn.SiLU())
    small = shrink(model, ffn=8, importance="random")
    assert small.training and small.config.intermediate_size == 8


@pytest.mark.parametrize("kind", ["Qwen3", "GPT2"])
def test_a_head_that_is_not_tied_although_the_config_says_so_stays(kind, tmp_path):
    """As in checkpoints that hold both."""
    sizes = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {} if kind == "GPT2" else {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}
    model = getattr(transformers, f"{kind}ForCausalLM" if kind != "GPT2" else "GPT2LMHeadModel")(
        getattr(transformers, f"{kind}Config")(**sizes, **more, tie_word_embeddings=True)
    ).eval()
    model.lm_head.weight = nn.Parameter(torch.randn(61, 32, generator=torch.Generator().manual_seed(0)))
    neurons = anatomy.sizes_of(model).neurons
    tokens = torch.arange(61)[None]
    assert torch.equal(shrink(model, ffn=neurons, importance="magnitude")(tokens).logits, model(tokens).logits)
    small = shrink(model, ffn=neurons // 2, importance="magnitude")
    assert torch.equal(small.lm_head.weight, model.lm_head.weight)
    small.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(tokens).logits, small(tokens).logits)


@pytest.mark.parametrize(("dtype", "numbers"), [(torch.float32, 4), (torch.bfloat16, 8)])
@pytest.mark.parametrize("what", ["ffn", "width"])
def test_experts_that_could_not_be_multiplied_at_once_are_refused(dtype, numbers, what):
    model = mixtral().to(dtype)
    rule = f"multiple of 16 bytes, {numbers} numbers in {dtype}; got '{what}={numbers + 2}'. Give {what} as a multiple"
    with pytest.raises(LabkitError, match=rule):
        shrink(model, **{what: numbers + 2}, importance="magnitude")
    assert shrink(model, **{what: 2 * numbers}, importance="magnitude")(torch.arange(61)[None]).logits.isfinite().all()


def test_experts_of_such_a_size_may_stay_as_they_are():
    assert shrink(mixtral(ffn=46), heads=2, importance="magnitude").config.num_attention_heads == 2


def mixtral(experts: int = 4, ffn: int = 48):
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": ffn, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(
        **sizes, **heads, num_local_experts=experts, num_experts_per_tok=min(2, experts)
    )).eval()  # fmt: skip


def test_neurons_of_a_single_expert_are_told_apart():
    model = mixtral(experts=1)
    experts = model.model.layers[0].mlp.experts
    with torch.no_grad():  # the first 24 do by far the most
        experts.gate_up_proj[:, :24] *= 30
        experts.gate_up_proj[:, 48:72] *= 30
    tokens = torch.randint(61, (8, 16), generator=torch.Generator().manual_seed(0))
    small = shrink(model, ffn=24, importance="activation", calibration=tokens)
    assert torch.equal(small.model.layers[0].mlp.experts.down_proj, experts.down_proj[:, :, :24])
