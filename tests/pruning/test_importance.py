"""Importances of blocks against their formulas, token by token."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    LlamaModel,
    LlamaPreTrainedModel,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
)
from transformers.modeling_outputs import CausalLMOutput

from labkit.errors import LabkitError
from labkit.ladder import Rung
from labkit.pruning import drop_layers, importance, memory, surgery, units

TOKENS = torch.randint(168, (5, 8), generator=torch.Generator().manual_seed(0))


def test_block_influence_agrees_with_a_loop_over_tokens(monkeypatch):
    monkeypatch.setitem(memory.MICRO_BATCH_TOKENS, "cpu", 2 * 8)
    model = Rung(32, 3).build().eval()
    inputs, outputs = {}, {}
    for i, block in enumerate(model.model.layers):
        block.register_forward_pre_hook(lambda _, args, i=i: inputs.update({i: args[0]}))
        block.register_forward_hook(lambda _, args, out, i=i: outputs.update({i: out}))
    with torch.no_grad():
        model(input_ids=TOKENS)
    expected = []
    for i in range(3):
        x, y = (h[i].detach().numpy().reshape(-1, 32).astype(np.float64) for h in (inputs, outputs))
        cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(x, y, strict=True)]
        expected.append(1 - np.mean(cosines))
    scores = importance.block_influence(model, TOKENS, torch.Generator())
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_a_block_that_does_nothing_has_no_influence():
    model = Rung(32, 2).build().eval()
    for linear in (model.model.layers[0].self_attn.o_proj, model.model.layers[0].mlp.down_proj):
        linear.weight.data.zero_()
    scores = importance.block_influence(model, TOKENS, torch.Generator())
    assert scores[0] == pytest.approx(0, abs=1e-6)
    assert scores[1] > 1e-4


def test_nan_activations_are_named():
    model = Rung(32, 3).build().eval()
    model.model.layers[2].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(LabkitError, match="NaN or infinity after block model.layers.2"):
        importance.block_influence(model, TOKENS, torch.Generator())


@pytest.mark.parametrize("measure", importance.IMPORTANCES, ids=lambda f: f.__name__)
def test_every_importance_gives_one_score_per_block(measure):
    scores = measure(Rung(32, 3).build().eval(), TOKENS, torch.Generator().manual_seed(0))
    assert scores.shape == (3,)


def mean_loss(model, tokens: torch.Tensor) -> float:
    """Token by token, in NumPy."""
    with torch.no_grad():
        logits = model(input_ids=tokens).logits.numpy().astype(np.float64)
    losses = []
    for row, sequence in zip(logits, tokens.tolist(), strict=True):
        for t, following in enumerate(sequence[1:]):
            losses.append(np.log(np.exp(row[t] - row[t].max()).sum()) + row[t].max() - row[t][following])
    return float(np.mean(losses))


def openai_gpt() -> OpenAIGPTLMHeadModel:
    """Its blocks return lists."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "n_positions": 24, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2}
    return OpenAIGPTLMHeadModel(OpenAIGPTConfig(**sizes)).eval()


def test_loss_is_that_of_the_model_without_the_block(decoder, tokens, monkeypatch):
    monkeypatch.setitem(memory.MICRO_BATCH_TOKENS, "cpu", 3 * 24)
    check_loss(decoder, tokens)


def test_loss_of_blocks_that_return_lists(tokens):
    check_loss(openai_gpt(), tokens)


def check_loss(decoder, tokens: torch.Tensor) -> None:
    dense, expected = mean_loss(decoder, tokens), []
    for i in range(2):
        short = copy.deepcopy(decoder)
        surgery.keep_layers(short, [1 - i])
        expected.append(mean_loss(short, tokens) - dense)
    scores = importance.loss(decoder, tokens, torch.Generator())
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert mean_loss(decoder, tokens) == dense


def test_block_influence_of_every_architecture(decoder, tokens):
    check_block_influence(decoder, tokens)


def test_block_influence_of_blocks_that_return_lists(tokens):
    check_block_influence(openai_gpt(), tokens)


def check_block_influence(decoder, tokens: torch.Tensor) -> None:
    # Independent: transformers' own hidden states, the last of which has gone through the final norm
    with torch.no_grad():
        states = decoder(input_ids=tokens, output_hidden_states=True).hidden_states
    cosine = torch.cosine_similarity(states[0], states[1], dim=-1).mean().item()
    scores = importance.block_influence(decoder, tokens, torch.Generator())
    assert scores[0].item() == pytest.approx(1 - cosine, abs=1e-5)


def test_a_block_that_does_nothing_loses_nothing():
    model = Rung(32, 2).build().eval()
    for linear in (model.model.layers[0].self_attn.o_proj, model.model.layers[0].mlp.down_proj):
        linear.weight.data.zero_()
    assert importance.loss(model, TOKENS, torch.Generator())[0].item() == pytest.approx(0, abs=1e-6)


def test_loss_drops_the_block_that_costs_least():
    model = Rung(32, 3).build(seed=1).eval()
    costs = importance.loss(model, TOKENS, torch.Generator())
    expected = copy.deepcopy(model)
    surgery.keep_layers(expected, sorted(costs.argsort()[1:].tolist()))
    short = drop_layers(model, keep=2, importance="loss", calibration=TOKENS)
    assert mean_loss(short, TOKENS) == mean_loss(expected, TOKENS)


def test_loss_without_a_next_token_is_refused():
    model = Rung(32, 2).build().eval()
    with pytest.raises(LabkitError, match=r"a next-token loss needs sequences of at least 2 tokens; got \(5, 1\)"):
        importance.loss(model, TOKENS[:, :1], torch.Generator())
    assert importance.loss(model, TOKENS[:, :2], torch.Generator()).isfinite().all()  # two are enough
    with pytest.raises(LabkitError, match="importance 'loss' needs calibration tokens; got None"):
        importance.loss(model, None, torch.Generator())


def test_a_loss_that_is_not_finite_is_named():
    model = Rung(32, 2).build().eval()
    model.lm_head.weight.data[0, 0] = float("nan")
    with pytest.raises(LabkitError, match="calibration losses are finite; got 'nan without any change'"):
        importance.loss(model, TOKENS, torch.Generator())


class Own(LlamaPreTrainedModel):
    """Of a user: the head has a name that transformers does not know."""

    def __init__(self, config):
        super().__init__(config)
        self.model = LlamaModel(config)
        self.head = torch.nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, input_ids, **how):
        return CausalLMOutput(logits=self.head(self.model(input_ids, **how).last_hidden_state))


class Last(Own):
    """It foretells what follows the last token only."""

    def forward(self, input_ids, **how):
        return CausalLMOutput(logits=super().forward(input_ids, **how).logits[:, -1:])


@pytest.mark.parametrize("kind", [LlamaModel, LlamaForSequenceClassification, LlamaForTokenClassification, Last])
@pytest.mark.parametrize("labels", [2, TOKENS.shape[1]])
def test_a_model_that_foretells_no_tokens_has_no_such_loss(kind, labels):
    config = Rung(32, 2).build().config
    config.num_labels = labels
    model = kind(config).eval()
    with pytest.raises(LabkitError, match=f"a model that foretells tokens; got '{kind.__name__}'. .*block-influence"):
        importance.loss(model, TOKENS, torch.Generator())
    assert importance.block_influence(model, TOKENS, torch.Generator()).shape == (2,)


def test_a_head_of_any_name_has_such_a_loss():
    model = Own(Rung(32, 2).build().config).eval()
    without = copy.deepcopy(model)
    surgery.keep_layers(without, [1])
    expected = mean_loss(without, TOKENS) - mean_loss(model, TOKENS)
    assert importance.loss(model, TOKENS, torch.Generator())[0].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ["block-influence", "loss"])
def test_layers_of_a_model_with_adapters_at_its_embeddings_can_be_dropped(name):
    model = get_peft_model(Rung(32, 2).build(), LoraConfig(target_modules=["embed_tokens"]))
    assert drop_layers(model, 1, name, calibration=TOKENS).config.num_hidden_layers == 1


# --- memory ----------------------------------------------------------------------------------------------------------


def holds(model, sequences: int) -> list[int]:
    """Make the model one of a device on which ``sequences`` fit: more run out behind all blocks. How many there were."""
    seen = []

    def check(module: torch.nn.Module, args: tuple) -> None:
        seen.append(len(args[0]))
        if len(args[0]) > sequences:
            raise torch.OutOfMemoryError("simulated")

    model.get_output_embeddings().register_forward_pre_hook(check)
    return seen


@pytest.mark.parametrize("measure", [importance.block_influence, importance.loss, units.activation])
def test_memory_that_runs_out_halves_the_micro_batch_and_changes_nothing_else(decoder, tokens, measure):
    expected, seen = measure(decoder, tokens, torch.Generator()), holds(decoder, sequences=3)
    with pytest.warns(UserWarning, match=f"out of memory in {type(decoder).__name__}: on with 2 calibration sequences"):
        found = measure(decoder, tokens, torch.Generator())
    assert seen[:4] == [8, 4, 2, 2]
    for one, other in zip(_tensors(found), _tensors(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def _tensors(scores: torch.Tensor | units.Scores) -> list[torch.Tensor]:
    return [scores.heads, scores.neurons, scores.width] if isinstance(scores, units.Scores) else [scores]


@pytest.mark.parametrize("measure", [importance.block_influence, importance.loss, units.activation])
def test_one_sequence_that_does_not_fit_is_an_error(measure):
    model = Rung(32, 2).build().eval()
    holds(model, sequences=0)
    rule = "one calibration sequence, .* got 'out of memory in LlamaForCausalLM with one sequence of 8 tokens'"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(LabkitError, match=rule):
            measure(model, TOKENS, torch.Generator())
