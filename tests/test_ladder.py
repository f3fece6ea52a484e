"""A rung's numbers are those of the model it builds."""

from __future__ import annotations

import pytest
import torch

from labkit.abilities import vocabulary
from labkit.errors import LabkitError
from labkit.ladder import HEAD_DIM, Rung, ladder


@pytest.mark.parametrize("rung", [*ladder(), Rung(48, 2)], ids=lambda r: r.name)
def test_params_are_those_of_the_model_outside_its_embeddings(rung):
    model = rung.build()
    embeddings = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert embeddings[0] is not embeddings[1]
    assert sum(p.numel() for p in model.parameters()) - sum(e.numel() for e in embeddings) == rung.params
    assert all(e.shape == (vocabulary.SIZE, rung.width) for e in embeddings)
    assert model.config.num_attention_heads * HEAD_DIM == rung.width
    assert rung.ffn % 8 == 0 and 0 <= rung.ffn - 8 * rung.width / 3 < 8


def test_the_ladder_climbs_in_at_least_six_rungs():
    sizes = [rung.params for rung in ladder()]
    assert sizes == sorted(set(sizes)) and len(sizes) >= 6


def test_a_name_is_parsed_back_into_its_rung():
    assert all(Rung.parse(rung.name) == rung for rung in ladder())


@pytest.mark.parametrize("name", ["64", "x2", "64x", "64x2x1", "-16x1", "64 x 2", ""])
def test_what_is_no_name_of_a_rung(name):
    with pytest.raises(LabkitError, match=rf"a rung is written <width>x<layers>; got '{name}'. Give e.g. 64x2."):
        Rung.parse(name)


@pytest.mark.parametrize(("width", "layers"), [(0, 1), (8, 1), (40, 1), (64, 0), (-16, 1)])
def test_a_size_that_cannot_be_built(width, layers):
    rule = "a rung's width is a multiple of 16 and it has at least one layer"
    with pytest.raises(LabkitError, match=f"{rule}; got '{width}x{layers}'. Give e.g. 64x2."):
        Rung(width, layers)


def test_a_seed_gives_its_weights_and_leaves_the_global_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    a, again, b = Rung(16, 1).build(1), Rung(16, 1).build(1), Rung(16, 1).build(2)
    assert torch.equal(torch.rand(3), expected)
    pairs = list(zip(a.parameters(), again.parameters(), b.parameters(), strict=True))
    assert all(torch.equal(p, q) for p, q, _ in pairs)
    assert not all(torch.equal(p, r) for p, _, r in pairs)


def test_the_learning_rate_falls_with_width_beyond_64():
    assert [Rung(w, 1).learning_rate for w in (16, 64, 128, 256)] == [3e-3, 3e-3, 1.5e-3, 0.75e-3]


def test_a_prediction_depends_on_nothing_that_follows():
    model = Rung(32, 2).build().eval()
    tokens = torch.randint(vocabulary.SIZE, (1, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, part = model(tokens).logits, model(tokens[:, :7]).logits
    torch.testing.assert_close(whole[:, :7], part)
