"""Block influence against its formula, token by token."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from labkit.errors import LabkitError
from labkit.ladder import Rung
from labkit.pruning import blocks, importance

TOKENS = torch.randint(168, (5, 8), generator=torch.Generator().manual_seed(0))


def test_block_influence_agrees_with_a_loop_over_tokens(monkeypatch):
    monkeypatch.setattr(blocks, "MICRO_BATCH_TOKENS", 2 * 8)
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
