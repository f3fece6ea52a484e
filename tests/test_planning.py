"""What is foretold is what running it then shows: tokens, FLOPs, parameters and memory; the grid and what is done of it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import ExaoneMoeConfig, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from labkit.abilities import abilities, corpus
from labkit.compression import Compression
from labkit.errors import LabkitError
from labkit.flops import forward_flops_per_token
from labkit.ladder import Rung
from labkit.pairs import GIB
from labkit.planning import TRAINING_BYTES, _compressed, _rate, foretell, prompt_tokens
from labkit.pruning import blocks
from labkit.study import CALIBRATION_SEQUENCES, Study
from labkit.zoo import load, skeleton

DENSE = "ladder/32x2/seed-0"


def study(*compressions: dict, items: int = 5) -> Study:
    parsed = tuple(Compression.parse(each) for each in compressions)
    return Study("s", "?", (DENSE, "ladder/32x2/seed-1"), (DENSE,), parsed, abilities=("facts", "recall"), items=items)


def test_the_grid_and_what_is_done_of_it(tmp_path):
    plan = study({"prune": {"criterion": "magnitude", "sparsity": 0.5}})
    assert [(line.compression, line.runs, line.here) for line in foretell(plan)] == [("dense", 2, 0), ("magnitude", 1, 0)]
    plan.run(tmp_path / "rows", progress=False)
    assert [line.here for line in foretell(plan, tmp_path / "rows")] == [2, 1]


def test_tokens_and_flops_are_those_of_the_items():
    (dense, trained) = foretell(study({"recover": {"method": "distil", "tokens": 10_000}}))
    asked = sum(int(ability.sample(5, 0).lengths.sum()) for ability in abilities("facts", "recall"))
    each = forward_flops_per_token(load(DENSE), corpus().length)
    assert dense.asked_tokens == trained.asked_tokens == asked and (dense.trained_tokens, trained.trained_tokens) == (0, 10_000)
    assert dense.flops == asked * each
    calibration = CALIBRATION_SEQUENCES * corpus().length
    assert trained.flops == (asked + calibration + 10_000 * (3 + 1)) * each  # the student thrice, its teacher once


@pytest.mark.parametrize(
    "steps",
    [
        {"drop_layers": {"drop": 1, "importance": "random"}},
        {"shrink": {"ffn": 0.5, "importance": "random"}},
        {"shrink": {"heads": 0.5, "importance": "random"}},
        {"train": {"student": "16x1", "tokens": 4000}},
    ],
)
def test_the_shape_foretold_is_that_of_the_model_made(steps):
    compression = Compression.parse(steps)
    made = compression.apply(load(DENSE), torch.from_numpy(corpus().calibration(8)), corpus(7), 0)
    shape = _compressed(skeleton(Rung(32, 2).config().to_dict()), compression)
    assert sum(p.numel() for p in shape.parameters()) == sum(p.numel() for p in made.parameters())


def test_the_shape_foretold_of_layers_of_several_kinds():
    """A list of the kinds of all layers, in two fields of the config, has as many entries as layers are left."""
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "head_dim": 8}
    dense = skeleton(ExaoneMoeConfig(**sizes, num_experts=4, num_experts_per_tok=2).to_dict())
    short = _compressed(dense, Compression.parse({"drop_layers": {"keep": 3}}))
    config = short.config
    assert config.num_hidden_layers == len(config.layer_types) == len(config.mlp_layer_types) == len(short.model.layers) == 3


def test_memory_is_weights_activations_and_what_training_keeps():
    dense, trained = foretell(study({"recover": {"method": "full", "tokens": 10_000}}))
    weights = 4 * sum(p.numel() for p in load(DENSE).parameters())
    assert (dense.weight_bytes, dense.training_bytes) == (weights, 0)
    assert trained.weight_bytes == 2 * weights and trained.training_bytes == TRAINING_BYTES * weights // 4
    assert trained.memory_bytes == trained.weight_bytes + trained.activation_bytes + trained.training_bytes


def test_activations_of_training_cover_what_autograd_saves():
    (_, trained) = foretell(study({"recover": {"method": "full", "tokens": 10_000}}))
    model, saved = Rung(32, 2).build(), {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.zeros(64, corpus().length, dtype=torch.long), use_cache=False).logits.log_softmax(-1).sum()
    assert 0.5 < trained.activation_bytes / sum(saved.values()) < 2


def test_tokens_of_prompts_are_about_those_that_the_model_reads_and_at_most_those_it_writes(monkeypatch):
    from labkit.prompts import ask
    from labkit.reader import Reader

    words = Tokenizer(models.WordLevel({"?": 0, "<s>": 1}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    seen = {"read": 0, "limit": 0}

    def encoded(self, texts):
        read = [*dict.fromkeys(context for context, _ in texts), *(option for _, option in texts)]
        seen["read"] += sum(map(len, self.tokens(read)))
        return [([0], self.tokens([option])[0]) for _, option in texts]

    def written(self, prompts, limits, *rest):
        seen["read"] += sum(map(len, self.tokens(prompts)))
        seen["limit"] += sum(limits)
        return [""] * len(prompts)

    monkeypatch.setattr(Reader, "encode", encoded), monkeypatch.setattr(Reader, "write", written)
    monkeypatch.setattr("labkit.prompts._tells_apart", lambda *_: None)  # a tokenizer of one word, but it counts them
    suite = abilities("recall", "reverse")
    model = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1))
    ask(model, PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="<s>"), suite, 6, progress=False)
    read, limit = prompt_tokens(Study("s", "?", (DENSE,), prompts=("recall", "reverse"), items=6))
    assert read == pytest.approx(seen["read"], rel=0.01) and limit == seen["limit"]
    assert prompt_tokens(study()) == (0, 0)


def test_a_large_model_is_foretold_without_its_weights():
    config = Rung(64, 2).config().to_dict() | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    config |= {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "dtype": "bfloat16"}
    shape = skeleton(config)
    assert sum(p.numel() for p in shape.parameters()) == 8_030_261_248  # as Llama 3.1 8B reports
    assert {p.device.type for p in shape.parameters()} == {"meta"} and 14 < 2 * 8_030_261_248 / GIB < 15


def test_what_cannot_be_told_apart_or_has_no_config_is_said_before_it_is_foretold(tmp_path):
    with pytest.raises(LabkitError, match="the runs of a study differ"):
        foretell(study({"train": {"student": "16x1", "tokens": 6144}}, {"train": {"student": "16x1", "tokens": 6500}}))
    with pytest.raises(LabkitError, match="the folder of a model holds a config.json"):
        foretell(Study("s", "?", (str(tmp_path),)))


@pytest.mark.parametrize(("steps", "loading", "message"), [
    ({"drop_layers": {"drop": 2}}, {}, "layers to keep lies in 1..2; got 0"),
    ({"shrink": {"heads": 9}}, {}, "heads to keep lies in 1..2; got 9"),
    ({"prune": {"sparsity": 0.5}}, {"dtype": "float99"}, "a known dtype is needed; got 'float99'"),
])  # fmt: skip
def test_what_a_run_would_refuse_is_refused_before_it_is_foretold(steps, loading, message):
    asked = dataclasses.replace(study(steps), loading=loading)
    with pytest.raises(LabkitError, match=message):
        foretell(asked)


def test_doses_are_told_apart():
    lines = foretell(study({"prune": {"sparsity": 0.3}}, {"prune": {"sparsity": 0.5}}))
    assert [(line.compression, line.sparsity) for line in lines] == [("dense", 0.0), ("wanda", 0.3), ("wanda", 0.5)]


def test_memory_is_of_the_type_that_is_loaded_and_of_the_adapters_that_train():
    plain, lora = foretell(study({"recover": {"tokens": 10_000}}))
    double = foretell(dataclasses.replace(study(), loading={"dtype": "float64"}))[0]
    assert double.weight_bytes == 2 * plain.weight_bytes
    matrices = blocks.matrices(load(DENSE)).values()
    assert lora.training_bytes == TRAINING_BYTES * 8 * sum(sum(matrix.weight.shape) for matrix in matrices)


def test_rows_longer_than_a_batch_are_timed_one_by_one():
    assert _rate(skeleton(Rung(16, 1).config().to_dict()), 4096) > 0
