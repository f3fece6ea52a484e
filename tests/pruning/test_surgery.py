"""Fewer blocks give a plain model; heads, neurons and hidden dimensions that do nothing are removed without a trace."""

from __future__ import annotations

import copy
import logging
import warnings

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    PreTrainedConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from labkit.errors import LabkitError
from labkit.ladder import Rung
from labkit.pruning import anatomy, blocks, drop_layers, surgery
from labkit.pruning.anatomy import Kept
from labkit.pruning.importance import block_influence
from labkit.pruning.units import keep_all

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


# --- every architecture --------------------------------------------------------------------------------------------


@torch.no_grad()
def logits_on(model, tokens: torch.Tensor) -> torch.Tensor:
    return model(input_ids=tokens).logits


def variant(model, **changes):
    """A fresh random model of the same architecture, its config changed, its biases and norms drawn too."""
    torch.manual_seed(0)
    new = type(model)(type(model.config)(**{**model.config.to_dict(), **changes})).eval()
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return new


def with_six_blocks(decoder):
    """The architecture with the kinds of its two blocks three times."""
    types = getattr(decoder.config, "layer_types", None)
    return variant(decoder, num_hidden_layers=6, **({"layer_types": types * 3} if types else {}))


def test_dropping_layers_of_every_architecture(decoder, tokens, tmp_path):
    deep = with_six_blocks(decoder)
    skipped = copy.deepcopy(deep)
    for i, block in enumerate(blocks.decoder_blocks(skipped)[1]):
        if i not in (0, 3, 4):  # independent: a block is also gone if it hands on its input
            block.register_forward_hook(lambda _, args, out: (args[0], *out[1:]) if isinstance(out, tuple) else args[0])
    short = copy.deepcopy(deep)
    surgery.keep_layers(short, [0, 3, 4])
    torch.testing.assert_close(logits_on(short, tokens), logits_on(skipped, tokens))

    numbers = [
        {module.layer_idx for module in block.modules() if hasattr(module, "layer_idx")}
        for block in blocks.decoder_blocks(short)[1]
    ]
    assert numbers == [{0}, {1}, {2}]
    if getattr(deep.config, "layer_types", None) is not None:
        assert short.config.layer_types == [deep.config.layer_types[i] for i in (0, 3, 4)]

    short.save_pretrained(tmp_path)
    attention = short.config._attn_implementation
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=attention).eval()
    assert torch.equal(logits_on(loaded, tokens), logits_on(short, tokens))
    with_cache, without = (
        loaded.generate(tokens, max_new_tokens=6, do_sample=False, use_cache=use, pad_token_id=0)
        for use in (True, False)
    )
    assert torch.equal(with_cache, without)


def test_attention_scaled_by_its_layer_is_refused():
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, scale_attn_by_inverse_layer_idx=True)
    )
    with pytest.raises(LabkitError, match="layer's number; got 'scale_attn_by_inverse_layer_idx=True'"):
        drop_layers(model, keep=2, importance="random")


@pytest.mark.parametrize(
    ("kind", "received"),
    [
        ("DiffLlama", "layers.1.self_attn.lambda_init, which is 0.4707.* and would be 0.3555"),  # a setting
        ("Bart", "model.decoder.layers.2, which is missing and would be BartDecoderLayer"),  # a module
        ("OlmoHybrid", "what transformers refuses: .*at least one attention layer"),
    ],
)
def test_layers_that_the_config_cannot_state_are_refused(kind, received):
    model = small(kind)
    with pytest.raises(LabkitError, match=f"the config of {kind}ForCausalLM can state which .*; got '.*{received}"):
        surgery.keep_layers(model, (0, 2))


def test_a_wrapped_model_is_looked_at_inside():
    """With adapters it is refused as it is without."""
    adapted = get_peft_model(small("DiffLlama"), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(LabkitError, match="can state which layers are kept; got 'model.layers.1.self_attn.lambda_init"):
        surgery.keep_layers(adapted, (0, 2))
    short = get_peft_model(Rung(16, 3).build(), LoraConfig(target_modules=["q_proj"]))
    surgery.keep_layers(short, (0, 2))
    assert [block.self_attn.layer_idx for block in blocks.decoder_blocks(short)[1]] == [0, 1]


def test_a_model_that_is_not_made_of_its_config_alone_is_refused():
    class Scaled(LlamaForCausalLM):
        def __init__(self, config, scale):
            super().__init__(config)
            self.scale = scale

    with pytest.raises(LabkitError, match="Scaled can state .*what transformers refuses: .*argument: 'scale'"):
        surgery.keep_layers(Scaled(Rung(16, 3).config(), 2.0), (0, 2))


@pytest.mark.parametrize(("even", "odd", "received"), [(None, 4, "4 and would be missing"), ("a", "b", "b and would be a")])
def test_a_setting_that_follows_from_the_number_of_the_layer_is_refused(even, odd, received):
    class EveryOther(LlamaForCausalLM):
        def __init__(self, config):
            super().__init__(config)
            for number, block in enumerate(self.model.layers):
                block.self_attn.window = odd if number % 2 else even

    surgery.keep_layers(EveryOther(Rung(16, 4).config()), (0, 1))
    with pytest.raises(LabkitError, match=f"layers.0.self_attn.window, which is {received} in a model made"):
        surgery.keep_layers(EveryOther(Rung(16, 4).config()), (1, 2))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*deprecated")
def test_a_quantised_model_loses_layers_too():
    model = torch.ao.quantization.quantize_dynamic(Rung(16, 3).build().eval(), {nn.Linear})
    surgery.keep_layers(model, (0, 2))
    assert logits(model).isfinite().all()


def test_lists_of_layers_and_of_their_numbers_follow_the_layers_kept():
    lists = {"layer_kinds": [*"abcd"], "no_rope_layers": (1, 1, 1, 0), "moe_layers": [0, 1, 3], "indexer_types": None}
    others = {"eos_token_id": [1, 2, 3, 4], "mlp_only_layers": [], "cross_attention_layers": [1, 2]}
    config = PreTrainedConfig(num_hidden_layers=4, first_k_dense_replace=3, **lists, **others)
    surgery.keep_layers_of_config(config, (1, 3))
    assert (config.num_hidden_layers, config.layer_kinds, config.no_rope_layers) == (2, ["b", "d"], [1, 0])
    assert (config.moe_layers, config.mlp_only_layers, config.cross_attention_layers) == ([0, 1], [], [0])
    assert (config.first_k_dense_replace, config.eos_token_id, config.indexer_types) == (1, [1, 2, 3, 4], None)


def test_looking_whether_the_config_states_the_layers_draws_nothing_and_says_nothing(monkeypatch):
    model, state = small("DiffLlama"), torch.get_rng_state()
    surgery.keep_layers(model, (0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    said, handler = [], logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda entry: said.append(entry.getMessage()))
    monkeypatch.setattr(logging.getLogger("transformers"), "handlers", [handler])
    bert = BertLMHeadModel(BertConfig(num_hidden_layers=3, hidden_size=32, num_attention_heads=4, vocab_size=64))
    assert len(said) == 1 and "is_decoder" in said[0]  # what transformers has to say of such a model
    surgery.keep_layers(bert, (0, 1))
    assert len(said) == 1


def test_only_numbers_of_layers_are_renumbered():
    model = Rung(16, 3).build().eval()
    for number, block in enumerate(model.model.layers):
        block.mlp.layer_idx, block.mlp.layer_id, block.mlp.layer_number = None, number, number + 7
    surgery.keep_layers(model, (0, 2))
    numbers = [(b.mlp.layer_idx, b.mlp.layer_id, b.mlp.layer_number) for b in model.model.layers]
    assert numbers == [(None, 0, 7), (None, 1, 9)]


def test_what_the_config_did_not_state_before_is_nobodys_fault():
    model = Rung(16, 3).build().eval()
    for block in model.model.layers:
        block.mlp.act_fn = nn.ReLU()
    short = drop_layers(model, keep=2, importance="random")
    assert short.config.num_hidden_layers == 2


def small(kind: str):
    sizes = {"num_hidden_layers": 3, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "head_dim": 8,
             "vocab_size": 64, "d_model": 32, "decoder_layers": 3, "encoder_layers": 3, "is_decoder": True,
             "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}  # fmt: skip
    default = getattr(transformers, f"{kind}Config")()
    sizes = {field: value for field, value in sizes.items() if hasattr(default, field)}
    if kind == "OlmoHybrid":
        sizes["layer_types"] = ["linear_attention", "full_attention", "linear_attention"]
    config = type(default)(**sizes)
    return getattr(transformers, f"{kind}ForCausalLM")(config)


# --- heads, neurons, hidden dimensions -----------------------------------------------------------------------------
# What writes to the hidden dimensions, named by hand: the tables of `anatomy` are what is tested.

OUT = {"gpt2": "attn.c_proj", "gpt-neox": "attention.dense", "opt": "self_attn.out_proj",
       "falcon": "self_attention.dense"}  # fmt: skip
DOWN = {"gpt2": "mlp.c_proj", "gpt-neox": "mlp.dense_4h_to_h", "opt": "fc2", "falcon": "mlp.dense_4h_to_h"}
NO_HEAD_SIZE = ("gpt2", "gpt-neox", "opt", "falcon")
HEADS = ([0, 3], [1, 2])  # of each of two blocks, one from each key-value group


def outputs(decoder, names: dict[str, str], default: str, architecture: str) -> list[list[torch.Tensor]]:
    """For each block its output matrices (outputs, inputs), writable: one, or one for each expert."""
    name = names.get(architecture, default)
    matrices = blocks.matrices(decoder)
    prefix, layers = blocks.decoder_blocks(decoder)
    return [
        [m.weight for n, m in matrices.items() if n.startswith(f"{prefix}.{i}.") and name in n]
        for i in range(len(layers))
    ]


def heads_that_do_nothing(decoder, architecture: str) -> None:
    """Zero what every head writes but those of `HEADS`."""
    size = anatomy.sizes_of(decoder).head_size
    for (out,), heads in zip(outputs(decoder, OUT, "self_attn.o_proj", architecture), HEADS, strict=True):
        for head in {0, 1, 2, 3} - {*heads}:
            out[:, head * size : (head + 1) * size] = 0


def neurons_that_do_nothing(decoder, architecture: str) -> list[torch.Tensor]:
    """Zero what 28 of 48 neurons write, others in every block and expert. Returns those that stay (experts, 20)."""
    generator, stay = torch.Generator().manual_seed(1), []
    default = "mlp.experts.down_proj" if architecture == "mixtral" else "mlp.down_proj"
    for matrices in outputs(decoder, DOWN, default, architecture):
        stay.append([])
        for down in matrices:
            order = torch.randperm(48, generator=generator)
            down[:, order[20:]] = 0
            stay[-1].append(order[:20].sort().values)
    return [torch.stack(kept) for kept in stay]


def width_norms(model) -> list[nn.Module]:
    """Norms over the hidden dimensions: not those inside attention."""
    return [m for n, m in model.named_modules() if "Norm" in type(m).__name__ and not n.endswith(("q_norm", "k_norm"))]


def scale(norm: nn.Module, factor: float) -> None:
    if type(norm).__name__.startswith("Gemma"):
        norm.weight.add_(1).mul_(factor).sub_(1)
    else:
        norm.weight.mul_(factor)


def tiny_epsilon(model) -> None:
    """So that a norm's scale is exactly that of its input."""
    for module in model.modules():
        for name in ("eps", "variance_epsilon"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 1e-12)


def dimensions_that_do_nothing(decoder, architecture: str, stay: torch.Tensor) -> None:
    """Nothing is written to the other hidden dimensions; where norms subtract the mean, the mean is zero already."""
    gone = torch.ones(32, dtype=torch.bool)
    gone[stay] = False

    def clear(written: torch.Tensor) -> None:  # hidden dimensions first
        written[gone] = 0
        if architecture in NO_HEAD_SIZE:
            written[stay] -= written[stay].mean(0)

    down = "mlp.experts.down_proj" if architecture == "mixtral" else "mlp.down_proj"
    for names, default in ((OUT, "self_attn.o_proj"), (DOWN, down)):
        for matrices in outputs(decoder, names, default, architecture):
            for matrix in matrices:
                clear(matrix)
        for name, parameter in decoder.named_parameters():
            if name.endswith(f".{names.get(architecture, default)}.bias"):
                clear(parameter)
    for module in decoder.modules():
        if isinstance(module, nn.Embedding) and module.embedding_dim == 32:
            clear(module.weight.T)
    for norm in width_norms(decoder):
        if getattr(norm, "bias", None) is not None:
            norm.bias[gone] = 0


@torch.no_grad()
def test_neurons_that_write_nothing_go_without_a_trace(decoder, architecture, tokens):
    stay = neurons_that_do_nothing(decoder, architecture)
    full = keep_all(anatomy.sizes_of(decoder))
    small = surgery.keep_units(decoder, [Kept(full.heads, neurons, full.width) for neurons in stay])
    torch.testing.assert_close(logits_on(small, tokens), logits_on(decoder, tokens), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "architecture", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3", "mixtral", "olmo2"], indirect=True
)
@torch.no_grad()
def test_heads_that_write_nothing_go_without_a_trace(decoder, architecture, tokens):
    heads_that_do_nothing(decoder, architecture)
    full = keep_all(anatomy.sizes_of(decoder))
    if architecture == "olmo2":  # its norm is over the queries of all heads: the others must not count in it
        tiny_epsilon(decoder)
        for block, heads in zip(decoder.model.layers, HEADS, strict=True):
            for head in {0, 1, 2, 3} - {*heads}:
                block.self_attn.q_proj.weight[head * 8 : head * 8 + 8] = 0
    small = surgery.keep_units(decoder, [Kept(torch.tensor(heads), full.neurons, full.width) for heads in HEADS])
    if architecture == "olmo2":
        tiny_epsilon(small)
        for block in small.model.layers:
            scale(block.self_attn.q_norm, (4 / 2) ** 0.5)
    torch.testing.assert_close(logits_on(small, tokens), logits_on(decoder, tokens), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_hidden_dimensions_that_hold_nothing_go_without_a_trace_but_for_the_norms_scale(decoder, architecture, tokens):
    # √mean of squares over 32 dimensions, 8 or 16 of them zero, is that over the others times √(24/32) or √(16/32)
    tiny_epsilon(decoder)
    own = architecture not in NO_HEAD_SIZE
    width = 24 if own else 16
    stay = torch.randperm(32, generator=torch.Generator().manual_seed(2))[:width].sort().values
    heads = [[0, 1, 2, 3]] * 2 if own else HEADS  # the others can lose heads and width only together
    if not own:
        heads_that_do_nothing(decoder, architecture)
    dimensions_that_do_nothing(decoder, architecture, stay)
    neurons = keep_all(anatomy.sizes_of(decoder)).neurons
    small = surgery.keep_units(decoder, [Kept(torch.tensor(kept), neurons, stay) for kept in heads])
    tiny_epsilon(small)
    for norm in width_norms(small):
        scale(norm, (32 / width) ** 0.5)
    torch.testing.assert_close(logits_on(small, tokens), logits_on(decoder, tokens), atol=1e-4, rtol=1e-4)


OLD = {"new_decoder_architecture": False, "num_ln_in_parallel_attn": None}
FALCONS = {
    "one group": {**OLD, "multi_query": True},
    "a group to each head": {**OLD, "multi_query": False, "num_kv_heads": 4},
    "one norm": {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1, "bias": True},
    "in series": {**OLD, "multi_query": True, "parallel_attn": False},
}
OPTS = {"projected": {"word_embed_proj_dim": 20}, "post-norm": {"do_layer_norm_before": False}}


@pytest.mark.parametrize(
    ("architecture", "name"),
    [*(("falcon", name) for name in FALCONS), *(("opt", name) for name in OPTS), ("gpt2", "no n_inner")],
    indirect=["architecture"],
)
@torch.no_grad()
def test_variants_of_an_architecture(decoder, architecture, name, tokens, tmp_path):
    decoder = variant(decoder, **{**FALCONS, **OPTS}.get(name, {"n_inner": None}))
    heads_that_do_nothing(decoder, architecture)
    stay = torch.randperm(32, generator=torch.Generator().manual_seed(2))[:16].sort().values
    tiny_epsilon(decoder)
    dimensions_that_do_nothing(decoder, architecture, stay)
    if name == "post-norm":  # what it writes has mean zero too
        for norm in width_norms(decoder):
            norm.weight.fill_(1)
            norm.bias[stay] -= norm.bias[stay].mean()
    if name == "projected":  # it is not the embedding that writes, but the projection after it
        project = decoder.model.decoder.project_in.weight
        project[[i for i in range(32) if i not in stay]] = 0
        project[stay] -= project[stay].mean(0)
    neurons = keep_all(anatomy.sizes_of(decoder)).neurons
    small = surgery.keep_units(decoder, [Kept(torch.tensor(kept), neurons, stay) for kept in HEADS])
    small.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits_on(loaded, tokens), logits_on(small, tokens))
    tiny_epsilon(small)
    for norm in width_norms(small):
        scale(norm, 2**0.5)
    torch.testing.assert_close(logits_on(small, tokens), logits_on(decoder, tokens), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["mistral"], indirect=True)
@torch.no_grad()
def test_whole_groups_that_write_nothing_go_without_a_trace(decoder, tokens):
    decoder = variant(decoder, num_attention_heads=8, num_key_value_heads=4, head_dim=6)
    kept = torch.tensor([2, 3, 6, 7])
    for block in decoder.model.layers:
        for head in (0, 1, 4, 5):
            block.self_attn.o_proj.weight[:, head * 6 : head * 6 + 6] = 0
    full = keep_all(anatomy.sizes_of(decoder))
    small = surgery.keep_units(decoder, [Kept(kept, full.neurons, full.width)] * 2)
    assert (small.config.num_attention_heads, small.config.num_key_value_heads) == (4, 2)
    torch.testing.assert_close(logits_on(small, tokens), logits_on(decoder, tokens), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["opt"], indirect=True)
def test_tensors_that_the_new_config_does_not_build_are_named(decoder):
    # At the width of its embeddings an OPT has no projections
    decoder = variant(decoder, word_embed_proj_dim=16)
    full = keep_all(anatomy.sizes_of(decoder))
    kept = Kept(full.heads[:2], full.neurons, full.width[:16])
    with pytest.raises(LabkitError, match=r"model.decoder.project_in.weight of \(16, 16\) for None"):
        surgery.keep_units(decoder, [kept, kept])


def test_a_scripted_module_in_a_block_is_no_obstacle():
    model = Rung(16, 3).build()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch gives it up
        model.model.layers[0].mlp.act_fn = torch.jit.script(nn.SiLU())
    surgery.keep_layers(model, (0, 2))
    assert len(blocks.decoder_blocks(model)[1]) == 2
