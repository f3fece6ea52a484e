"""Every architecture × every criterion × every pattern: exact zeros, nothing else touched, a model that still runs."""

from __future__ import annotations

import pytest
import torch

from labkit.pruning import CRITERIA, blocks, prune

PATTERNS = {None: (1, 2), "2:4": (2, 4), "4:8": (4, 8)}
UPDATES = {"sparsegpt"}

pytestmark = pytest.mark.filterwarnings("ignore:.*calibration tokens for the|.*have lost all their weights")


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_and_pattern_on_every_architecture(decoder, tokens, criterion, pattern):
    dense = decoder.state_dict()
    pruned = prune(decoder, criterion, None if pattern else 0.5, pattern, tokens)
    n, m = PATTERNS[pattern]
    for name, matrix in blocks.matrices(pruned).items():
        zeros = matrix.weight == 0
        groups = zeros.reshape(-1, m) if pattern else zeros if criterion == "wanda" else zeros.reshape(1, -1)
        assert (groups.sum(1) == groups.shape[1] * (m - n) // m).all(), name
    touched = {matrix.key for matrix in blocks.matrices(pruned).values()}
    for name, tensor in pruned.state_dict().items():
        if name in touched and criterion in UPDATES:
            continue
        kept = tensor != 0 if name in touched else torch.ones_like(tensor, dtype=torch.bool)
        assert torch.equal(tensor[kept], dense[name][kept]), name
    with torch.no_grad():
        logits, before = (model(input_ids=tokens).logits for model in (pruned, decoder))
    assert torch.isfinite(logits).all() and not torch.equal(logits, before)


def test_sparsegpt_disturbs_the_first_outputs_less_than_wanda(decoder, tokens):
    """What the updates are for: on the calibration tokens, the outputs of the first matrix stay closer."""
    name, dense = next(iter(blocks.matrices(decoder).items()))
    errors = {}
    for criterion in ("wanda", "sparsegpt"):
        matrix = blocks.matrices(prune(decoder, criterion, 0.5, calibration=tokens))[name]
        seen = {}
        dense.module.register_forward_pre_hook(lambda _, args, seen=seen: seen.update(x=args[0]))
        with torch.no_grad():
            decoder(input_ids=tokens)
        errors[criterion] = (seen["x"] @ (matrix.weight - dense.weight).T).square().mean()
    assert errors["sparsegpt"] < errors["wanda"]


def test_the_sparse_model_comes_back_from_disk(decoder, tokens, tmp_path):
    pruned = prune(decoder, "sparsegpt", pattern="2:4", calibration=tokens)
    pruned.save_pretrained(tmp_path)
    attention = pruned.config._attn_implementation  # not in the saved config, and other kernels round otherwise
    loaded = type(pruned).from_pretrained(tmp_path, attn_implementation=attention).eval()
    assert blocks.sparsity(loaded) == 0.5
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=tokens).logits, pruned(input_ids=tokens).logits)
