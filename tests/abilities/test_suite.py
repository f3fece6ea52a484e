"""Laws that hold for every ability of the suite."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from labkit.abilities import Ability, Addition, Chain, Draws, Facts, PHop, State, abilities, draw
from labkit.abilities import vocabulary as V
from labkit.abilities.vocabulary import spell
from labkit.errors import LabkitError
from labkit.records import BRIER, EXACT_MATCH, IGNORE, METRICS, NLL_NATS, TOKEN_ACCURACY

SUITE = abilities()
OTHERS = (Addition(digits=2), Addition(digits=4), Facts(count=4096), PHop(hops=8), State(group="a5"), Chain(width=3))
every = pytest.mark.parametrize("ability", SUITE, ids=lambda a: a.name)
every_and_others = pytest.mark.parametrize("ability", SUITE + OTHERS, ids=repr)


def test_names_are_distinct_and_a_part_of_the_suite_keeps_its_order():
    names = [ability.name for ability in SUITE]
    assert len(set(names)) == len(names) >= 11
    assert [a.name for a in abilities("shift", "markov", "recall")] == ["markov", "recall", "shift"]


def test_an_unknown_ability_is_answered_with_the_nearest_and_all():
    message = "a known ability is needed; got 'recal'. Nearest: recall.*All: markov, repeat, reverse, recall"
    with pytest.raises(LabkitError, match=message):
        abilities("recal")


@every
def test_an_item_is_the_same_alone_and_among_many(ability):
    many, one = ability.sample(40, seed=3), ability.sample(1, seed=3, first=17)
    width = int(one.lengths[0])
    assert one.index.tolist() == [17] and one.tokens.shape == (1, width)
    for field in ("tokens", "labels"):
        np.testing.assert_array_equal(getattr(many, field)[17, :width], getattr(one, field)[0])
    assert many.options[17] == one.options[0]


@every
def test_a_training_row_is_the_same_alone_and_among_many(ability):
    many, one = ability.train(np.arange(40), 3, 48), ability.train(np.array([17]), 3, 48)
    np.testing.assert_array_equal(many.tokens[17:18], one.tokens)
    np.testing.assert_array_equal(many.labels[17:18], one.labels)


@every
def test_seeds_and_the_two_sides_give_different_rows(ability):
    index = np.arange(200)
    rows = [ability.train(index, 0, 48).tokens, ability.train(index, 1, 48).tokens]
    rows.append(ability.rows(_test_draws(ability, index), 48, test=True).tokens)
    same = [(a == b).all(axis=1).mean() for a, b in ((rows[0], rows[1]), (rows[0], rows[2]), (rows[1], rows[2]))]
    assert max(same) < 0.02


def _test_draws(ability: Ability, index: np.ndarray) -> Draws:
    return Draws(f"{ability.name}/test/0", index)


@every_and_others
def test_tokens_and_labels_lie_in_the_vocabulary(ability):
    for made in (ability.train(np.arange(500), 0, 48), ability.sample(500, 0)):
        assert made.tokens.dtype == made.labels.dtype == np.int64
        assert made.tokens.shape == made.labels.shape
        assert made.tokens.min() >= 0 and made.tokens.max() < V.SIZE
        asked = made.labels[made.labels != IGNORE]
        assert asked.min() >= 0 and asked.max() < V.SIZE and not np.isin(asked, [V.PAD, *V.TASKS, *V.HOPS]).any()


@every_and_others
def test_an_item_is_one_unbroken_answer_at_the_end_of_its_row(ability):
    items = ability.sample(300, seed=0)
    place, asked = np.arange(items.tokens.shape[1]), items.labels != IGNORE
    last = np.where(asked, place, -1).max(axis=1)
    first = np.where(asked, place, 10**6).min(axis=1)
    np.testing.assert_array_equal(last, items.lengths - 1)
    np.testing.assert_array_equal(asked.sum(axis=1), last - first + 1)
    assert items.tokens.shape[1] == items.lengths.max()
    assert (items.tokens[place >= items.lengths[:, None]] == V.PAD).all()


@every
def test_items_are_training_rows_cut_after_the_first_answer(ability):
    items = ability.sample(50, seed=0)
    whole = ability.rows(_test_draws(ability, items.index), 48, test=True)
    for k, length in enumerate(items.lengths):
        np.testing.assert_array_equal(items.tokens[k, :length], whole.tokens[k, :length])
        asked = items.labels[k] != IGNORE
        np.testing.assert_array_equal(items.labels[k, asked], whole.labels[k, : len(asked)][asked])


@pytest.mark.parametrize("name", ["recall", "shift", "facts", "chain-1", "chain-2", "chain-3", "guard"])
def test_answers_are_never_fed_back(name):
    """What follows a question is the next question: where it happens to equal the answer, it does so by accident."""
    (ability,) = abilities(name)
    rows = ability.train(np.arange(3000), 0, 48)
    follows = rows.tokens[:, 1:][rows.labels[:, :-1] != IGNORE]
    answers = rows.labels[:, :-1][rows.labels[:, :-1] != IGNORE]
    chance = 1 / 5 if name == "shift" else 0.0  # only in shift do questions and answers share their tokens
    assert (follows == answers).mean() <= 1.1 * chance


@pytest.mark.parametrize("name", ["shift", "facts", "state-4"])
def test_where_few_items_exist_each_is_asked_once(name):
    (ability,) = abilities(name)
    items = ability.sample(10_000, seed=0)
    assert len(items) == ability.space < 10_000
    assert len(np.unique(items.tokens, axis=0)) == ability.space
    assert len(ability.sample(10, seed=0, first=ability.space - 3)) == 3


@every
@pytest.mark.parametrize("n", [0, -3])
def test_at_least_one_item(ability, n):
    with pytest.raises(LabkitError, match=rf"at least one item is needed; got {n}\. Give n ≥ 1"):
        ability.sample(n, seed=0)


@every_and_others
def test_a_row_too_short_for_an_answer_is_refused_and_no_other(ability):
    outcomes = []
    for length in range(1, 49):
        try:
            items = ability.sample(100, seed=0, length=length)
            assert (items.labels != IGNORE).any(axis=1).all()
            assert not np.isin(items.labels, V.TASKS).any()
            outcomes.append(True)
        except LabkitError as error:
            assert f"a row of {ability.name} holds" in str(error) and "Give a larger length" in str(error)
            outcomes.append(False)
    assert not outcomes[0] and outcomes[-1]
    assert outcomes == sorted(outcomes)


def _guess(name: str, tokens: np.ndarray, rng: np.random.Generator) -> list[int]:
    """The answer of a guesser who reads the context as text, but lacks the ability."""
    words = spell(tokens).split()
    if name == "recall":
        return [rng.choice(tokens[2:-1:2])]
    if name == "shift":
        return [rng.choice(sorted({*V.DIGITS[:7]} - {tokens[2], tokens[4]}))]
    if name == "facts":
        return [rng.choice(V.VALUES)]
    if name.startswith("state"):
        return [rng.choice(V.SYMBOLS[:6])]
    if name.startswith("chain"):
        hops, start = int(words[-2][1:]), words[-1][0]
        kind = "ABCD"["ABCD".index(start) + hops]
        return [rng.choice(sorted({int(t) for t, word in zip(tokens, words, strict=True) if word.startswith(kind)}))]
    if name == "guard":
        return [V.REFUSE]
    if name == "addition":
        return [*rng.choice(V.DIGITS, 3), rng.choice(V.DIGITS[:2])]
    if name == "reverse":
        size = words.index("|") - 1
        return list(rng.choice(tokens[1 : size + 1], size))
    if name == "repeat":
        string = sorted({int(t) for t in tokens[1:]})
        return list(rng.choice(string, len(string) - 1))
    raise AssertionError(name)


@pytest.mark.parametrize("name", [a.name for a in SUITE if a.name not in {"markov", "p-hop-2"}])
def test_chance_is_what_the_described_guesser_scores(name):
    (ability,) = abilities(name)
    items, rng = ability.sample(4000, seed=1), np.random.default_rng(0)
    right, exact = [], []
    for tokens, labels, length in zip(items.tokens, items.labels, items.lengths, strict=True):
        answer = labels[labels != IGNORE]
        hits = np.asarray(_guess(name, tokens[:length], rng)) == answer
        right.append(hits.mean())
        exact.append(hits.all())
    for metric, seen in ((TOKEN_ACCURACY, right), (EXACT_MATCH, exact)):
        expected = ability.chance(metric, items)
        assert expected.shape == (len(items),)
        spread = max(np.std(seen), np.sqrt(expected.mean())) / np.sqrt(len(items))
        assert abs(np.mean(seen) - expected.mean()) < 4 * spread


@every
def test_chance_is_consistent_over_metrics(ability):
    """A probability for accuracies; nll ≥ −ln(token accuracy of the most likely guess); Brier within [0, 1]."""
    items = ability.sample(50, seed=0)
    chance = {metric: ability.chance(metric, items) for metric in ability.metrics}
    assert set(ability.metrics) <= set(METRICS)
    assert (chance[NLL_NATS] >= -np.log(chance[TOKEN_ACCURACY]) - 1e-12).all()
    assert ((chance[BRIER] > 0) & (chance[BRIER] < 1)).all()
    if EXACT_MATCH in chance:
        assert (chance[EXACT_MATCH] <= chance[TOKEN_ACCURACY] + 1e-12).all()


@pytest.mark.parametrize("name", ["recall", "shift", "facts", "chain-2", "state-4"])
def test_answers_are_as_varied_as_the_chance_level_says(name):
    """No answer is more frequent than another: a guesser who knows the frequencies gains nothing."""
    (ability,) = abilities(name)
    labels = ability.sample(6000, seed=2).labels
    counts = np.unique(labels[labels != IGNORE], return_counts=True)[1]
    assert scipy.stats.chisquare(counts).pvalue > 1e-4 or ability.space is not None
    assert counts.max() < 1.8 * counts.mean()


def test_a_drawing_is_a_row_over_its_labels():
    (ability,) = abilities("recall")
    rows = ability.train([5], 0, 20)
    assert draw(ability, length=20, index=5) == f"{spell(rows.tokens[0])}\n{spell(rows.labels[0])}"
