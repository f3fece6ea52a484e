"""Sampled answers: where they are read back, what they are drawn from, and that a cache changes nothing."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from labkit import divergences
from labkit.abilities import abilities
from labkit.distillation.sampling import fed_back, sample_answers
from labkit.errors import LabkitError
from labkit.ladder import Rung
from labkit.records import IGNORE


def rows(*names: str, n: int = 40, length: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    made = [ability.train(np.arange(n), 0, length) for ability in abilities(*names)]
    return tuple(torch.from_numpy(np.concatenate([getattr(r, part) for r in made])) for part in ("tokens", "labels"))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", ["markov", "repeat", "reverse", "addition"])
def test_rows_that_show_their_answers_feed_them_back(name):
    tokens, labels = rows(name)
    loops = fed_back(tokens, labels)
    followed = torch.nn.functional.pad(labels[:, 1:] != IGNORE, (0, 1)) & (labels != IGNORE)
    assert torch.equal(loops, followed) and loops.any(1).all()
    assert torch.equal(tokens[:, 1:][loops[:, :-1]], labels[loops])


@pytest.mark.parametrize("name", ["recall", "shift", "facts", "chain-2", "state-4", "p-hop-2", "guard"])
def test_rows_of_separate_questions_do_not(name):
    assert not fed_back(*rows(name)).any()


def test_the_last_digit_of_a_sum_is_not_the_first_of_the_next_summand():
    tokens, labels = rows("addition", n=400)
    ends = (labels[:, :-1] != IGNORE) & (labels[:, 1:] == IGNORE) & (labels[:, :-1] == tokens[:, 1:])
    assert ends.any() and not fed_back(tokens, labels)[:, :-1][ends].any()


def test_running_text_is_read_back_from_the_end_of_its_prompt():
    tokens = torch.tensor([[5, 6, 7, 8, 9]])
    labels = torch.tensor([[IGNORE, 7, 8, 9, 3]])
    assert fed_back(tokens, labels).tolist() == [[False, True, True, True, False]]


def test_questions_and_places_stay_and_answers_follow_from_those_before():
    tokens, labels = rows("markov", "repeat", "addition", "recall")
    model = Rung(32, 2).build(seed=3)
    read, drawn = sample_answers(model, tokens, labels, generator=seeded())
    loops = fed_back(tokens, labels)
    assert torch.equal(drawn == IGNORE, labels == IGNORE)
    kept = ~torch.nn.functional.pad(loops[:, :-1], (1, 0))
    assert torch.equal(read[kept], tokens[kept])
    assert torch.equal(read[:, 1:][loops[:, :-1]], drawn[loops])
    assert not torch.equal(drawn, labels)


def test_the_cache_changes_nothing():
    """Greedy in effect (a very low temperature): each answer is the argmax of one whole pass over the rows read."""
    tokens, labels = rows("markov", "addition", "recall", n=6)
    model = Rung(32, 2).build(seed=3)
    read, drawn = sample_answers(model, tokens, labels, generator=seeded(), temperature=1e-4)
    with torch.no_grad():
        best = model(input_ids=read, use_cache=False).logits.argmax(-1)
    asked = labels != IGNORE
    assert (best == drawn)[asked].float().mean() > 0.99  # but for ties within rounding


def test_answers_are_drawn_from_the_softened_distribution():
    """The odds of two tokens are e^(Δ/T): here 1 : 3 at T = 1 and 1 : 9 at T = ½."""

    class Two(torch.nn.Module):
        config = Rung(16, 1).config()

        def forward(self, input_ids, **_):
            logits = torch.log(torch.tensor([1.0, 3.0, 1e9])).expand(*input_ids.shape, 3)
            return SimpleNamespace(logits=logits)

    labels = torch.zeros(200, 50, dtype=torch.long)
    tokens = torch.full_like(labels, 2)
    for temperature, expected in ((1.0, 3 / 4), (0.5, 9 / 10)):
        _, drawn = sample_answers(Two(), tokens, labels, generator=seeded(), temperature=temperature, vocab=2)
        assert drawn.max() == 1  # the third token lies outside the first two
        assert drawn.float().mean().item() == pytest.approx(expected, abs=0.02)


def test_prompts_and_many_rows_cost_no_logits(monkeypatch):
    """Only columns from the first label on have logits, and no more rows at once than a chunk of logits holds."""
    tokens, labels = rows("recall", n=30)
    model, seen = Rung(16, 1).build(), []
    model.lm_head.register_forward_hook(lambda module, args, logits: seen.append(logits.shape))
    expected = sample_answers(model, tokens, labels, generator=seeded(), temperature=1e-4)
    assert seen == [(30, 48 - int((labels != IGNORE).any(0).nonzero()[0]), 168)]
    monkeypatch.setattr(divergences, "CHUNK_LOGITS", 7 * 48 * 168)
    few = sample_answers(model, tokens, labels, generator=seeded(), temperature=1e-4)
    assert [shape[0] for shape in seen[1:]] == [7, 7, 7, 7, 2]
    assert (few[1] == expected[1]).float().mean() > 0.99


def test_the_same_generator_draws_the_same_and_the_mode_is_left_alone():
    tokens, labels = rows("repeat", "shift", n=5)
    model = Rung(16, 1).build().train()
    first, again = (sample_answers(model, tokens, labels, generator=seeded(7))[1] for _ in range(2))
    other = sample_answers(model, tokens, labels, generator=seeded(8))[1]
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert model.training


def test_logits_that_are_not_finite():
    model = Rung(16, 1).build()
    model.lm_head.weight.data[3] = float("nan")
    with pytest.raises(LabkitError, match="samples has finite logits; got 'NaN or infinity'. Look at its weights"):
        sample_answers(model, *rows("shift", n=2), generator=seeded())
