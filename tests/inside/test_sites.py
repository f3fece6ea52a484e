"""What is seen at a site is what the part writes, in every architecture; the model goes on with what is put there."""

from __future__ import annotations

import copy
import re

import pytest
import torch

from labkit.errors import LabkitError
from labkit.inside.sites import KINDS, Part, chosen, parts, seen, sites
from labkit.ladder import Rung
from labkit.pruning import blocks, surgery
from labkit.pruning.blocks import evaluating


def logits(model, tokens) -> torch.Tensor:
    with torch.no_grad(), evaluating(model):
        return model(input_ids=tokens, use_cache=False).logits


def replaced(model, tokens, group, by) -> torch.Tensor:
    with seen(model, sites(model, group), by):
        return logits(model, tokens)


def test_every_part_once():
    names = [part.name for part in parts(Rung(32, 2).build())]
    assert names == ["head 0.0", "head 0.1", "attention 0", "mlp 0", "layer 0",
                     "head 1.0", "head 1.1", "attention 1", "mlp 1", "layer 1"]  # fmt: skip
    assert [part.name for part in parts(Rung(32, 2).build(), "mlp")] == ["mlp 0", "mlp 1"]


def test_what_is_put_back_changes_nothing(decoder, tokens):
    before = logits(decoder, tokens)
    for part in parts(decoder):
        after = replaced(decoder, tokens, [part], lambda _, written: written.clone())
        assert torch.equal(after, before), part.name
    assert decoder.training and torch.equal(logits(decoder, tokens), before)  # no hook is left


def test_heads_together_are_the_attention(decoder, tokens):
    """What they write, each in its columns, is all that goes into the output projection."""
    written = {}
    heads = [part for part in parts(decoder, "head") if part.layer == 1]
    with seen(decoder, [*sites(decoder, heads), *sites(decoder, [Part("attention", 1)])], written.setdefault):
        logits(decoder, tokens)
    *slices, whole = written.values()
    projection = decoder.get_submodule(sites(decoder, heads)[0].module)
    with torch.no_grad():
        added, after = projection(torch.cat(slices, dim=-1)), decoder.get_submodule(sites(decoder, [Part("attention", 1)])[0].module)
    torch.testing.assert_close(added if after is projection else after(added), whole)  # where it passes a norm of its own


def test_a_layer_that_writes_nothing_is_one_that_is_not_there(decoder, tokens):
    """Agrees with the surgery of `drop_layers`, which knows nothing of hooks."""
    for layer in range(2):
        after = replaced(decoder, tokens, [Part("layer", layer)], lambda _, written: torch.zeros_like(written))
        short = copy.deepcopy(decoder)
        surgery.keep_layers(short, [1 - layer])
        torch.testing.assert_close(after, logits(short, tokens))


def test_a_head_without_output_is_one_whose_columns_are_zero(decoder, tokens):
    """Agrees with zeros in the output projection, whose rows or columns belong to the head."""
    (site,) = sites(decoder, [Part("head", 1, 2)])
    after = replaced(decoder, tokens, [Part("head", 1, 2)], lambda _, written: torch.zeros_like(written))
    weight = decoder.get_submodule(site.module).weight
    with torch.no_grad():
        inputs = weight if decoder.config.model_type == "gpt2" else weight.T  # GPT-2 stores (inputs, outputs)
        inputs[16:24] = 0
    torch.testing.assert_close(after, logits(decoder, tokens))


def test_hooks_go_even_when_something_fails(decoder, tokens):
    before = logits(decoder, tokens)
    with pytest.raises(ZeroDivisionError), seen(decoder, sites(decoder, parts(decoder)), lambda *_: 1 / 0):
        logits(decoder, tokens)
    assert torch.equal(logits(decoder, tokens), before)


def test_names_stand_for_parts_one_or_several():
    model = Rung(32, 1).build()
    heads = parts(model, "head")
    assert chosen(model, heads) == {"head 0.0": (heads[0],), "head 0.1": (heads[1],)}
    assert chosen(model, {"both": heads}) == {"both": heads}
    assert list(chosen(model, None)) == [part.name for part in parts(model)]
    assert sites(model, [Part("layer", 0), Part("mlp", 0)]) == sites(model, [Part("layer", 0)])  # each place once


def test_what_the_model_lacks_is_refused():
    model = Rung(32, 1).build()
    with pytest.raises(LabkitError, match=re.escape("a known kind of part is needed; got 'heads'. Nearest: head.")):
        parts(model, "heads")
    with pytest.raises(LabkitError, match=r"a known part of this model is needed; got 'head 0\.2'\. Nearest: head 0\."):
        chosen(model, [Part("head", 0, 2)])
    with pytest.raises(LabkitError, match="'copying' stands for at least one part; got \\(\\). Take them from"):
        chosen(model, {"copying": ()})
    assert KINDS == ("head", "attention", "mlp", "layer")


def test_what_a_part_writes_is_what_it_adds_to_the_stream(decoder, tokens):
    """The stream behind the last block is the embeddings and what all parts wrote."""
    if decoder.config.model_type in ("falcon", "gpt_neox"):
        pytest.skip("attention and feed-forward network read the same stream, and write into it together")
    written, stream = [], []
    prefix, layers = blocks.decoder_blocks(decoder)
    handles = [layers[0].register_forward_pre_hook(lambda _, args, kw: stream.append(args[0] if args else kw["hidden_states"]), with_kwargs=True),
               layers[-1].register_forward_hook(lambda *x: stream.append(x[2][0] if isinstance(x[2], tuple) else x[2]))]  # fmt: skip
    with seen(decoder.eval(), sites(decoder, parts(decoder, "attention", "mlp")), lambda _, what: written.append(what)):
        logits(decoder, tokens)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(stream[0] + sum(part.reshape(stream[0].shape) for part in written), stream[-1])


@pytest.mark.parametrize("asked", ["mlp", ["mlp 0"], [], Part("mlp", 0)])
def test_parts_that_are_none_are_refused(asked):
    with pytest.raises(LabkitError, match="labkit.inside.parts"):
        chosen(Rung(32, 2).build(), asked)


def test_every_module_has_its_own_mode_again():
    model = Rung(32, 2).build().eval()
    model.model.layers[1].mlp.train()
    before = [module.training for module in model.modules()]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == before and any(before)
