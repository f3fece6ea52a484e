"""Abilities in words: the text says all that the answer needs, and a model that knows the answers is seen to."""

from __future__ import annotations

import dataclasses
import itertools
import re
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import labkit as lk
from labkit.abilities import Addition, Chain, Guard, PHop, Recall, Repeat, Reverse, Shift, State, abilities
from labkit.abilities import vocabulary as V
from labkit.errors import LabkitError
from labkit.evaluation import COLUMNS, evaluate
from labkit.ladder import Rung
from labkit.prompts import OWN, TEMPLATES, WORDINGS, Question, Template, ask, askable, own_tokenizer, prompt
from labkit.prompts.sensitivity import sensitivity
from labkit.prompts.wording import questions, wording
from labkit.records import IGNORE

ASKABLE = [ability for ability in (*abilities(), State(steps=3, group="a5"), PHop(hops=4)) if askable(ability)]
IDS = [ability.name for ability in ASKABLE]
MODEL = Rung(32, 2).build()
for parameter in MODEL.parameters():
    parameter.data *= 5
TEXT_MODEL = GPT2LMHeadModel(GPT2Config(vocab_size=168, n_positions=4096, n_embd=16, n_layer=1, n_head=2))


def asked(ability, n: int = 20, seed: int = 3) -> list[Question]:
    items = ability.sample(n, seed)
    place = items.labels != IGNORE
    answers = [labels[mask] for labels, mask in zip(items.labels, place, strict=True)]
    return questions(ability, items.tokens, place.argmax(axis=1), answers)


def solve(ability, text: str) -> str:
    """The answer, found from the words of a question alone."""
    words = re.findall(r"\w+", text)
    if isinstance(ability, Addition):
        return str(sum(map(int, words)))
    if isinstance(ability, Repeat):
        return " ".join(words)
    if isinstance(ability, Reverse):
        return " ".join(reversed(words))
    if isinstance(ability, Recall):
        return dict(re.findall(r"(\w+) has (\w+)", text))[re.search(r"does (\w+) have\?", text)[1]]
    if isinstance(ability, Shift):
        (x, y), *_ = re.findall(r"(\d) gives (\d)", text)
        return str((int(re.search(r"does (\d) give\?", text)[1]) + int(y) - int(x)) % 7)
    if isinstance(ability, Chain):
        links = dict(re.findall(r"(\w+) leads to (\w+)", text))
        here, steps = re.search(r"from (\w+) in (\d) step", text).groups()
        for _ in range(int(steps)):
            here = links[here]
        return here
    if isinstance(ability, Guard):
        box = re.search(r"in box (\d+)\?", text)[1]
        return "REFUSE" if int(box) % 2 == 0 else dict(re.findall(r"Box (\d+) holds (\w+)", text))[box]
    if isinstance(ability, State):
        place = {ball: ball for ball in range(1, len(words[1]) + 1)}
        for move in words[1:]:
            place = {ball: int(move[at - 1]) for ball, at in place.items()}
        return "".join(str(place[ball]) for ball in sorted(place))
    letters, hops = text.split(".")[0].split(), int(re.search(r"after (\d+) hop", text)[1])
    here = len(letters) - 1
    for _ in range(hops):
        here = max(i for i in range(here) if letters[i] == letters[here]) + 1
    return letters[here]


# --- wording -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ability", ASKABLE, ids=IDS)
def test_the_words_of_a_question_tell_its_answer(ability):
    for question in asked(ability):
        assert question.say(question.answer, own=False) == solve(ability, question.text(own=False))


@pytest.mark.parametrize("ability", ASKABLE, ids=IDS)
def test_candidates_are_different_words_and_the_right_one_stands_first(ability):
    for question in asked(ability):
        said = [question.say(answer, own=False) for answer in question.candidates]
        assert question.candidates[0] == question.answer
        assert len(set(said)) == len(said) >= 4


def test_every_word_says_one_token():
    from labkit.prompts.wording import SAID

    said = [SAID[token] for token in (*V.DIGITS, *V.LETTERS, *V.SYMBOLS, *V.VALUES[:16])]
    assert len(set(said)) == len(said)
    assert all(re.fullmatch(r"\w+", word) for word in said)


def test_what_only_training_tells_cannot_be_asked_in_words():
    facts, markov = abilities("facts"), abilities("markov")
    with pytest.raises(LabkitError, match="a question tells its answer; got 'facts, learnt in training alone'"):
        ask(MODEL, own_tokenizer(), facts, progress=False)
    for templates in (TEMPLATES, (OWN,)):
        with pytest.raises(LabkitError, match="a question in text has a right answer; got 'markov'"):
            ask(MODEL, own_tokenizer(), markov, templates=templates, progress=False)
    assert {a.name for a in abilities()} - {a.name for a in abilities() if askable(a)} == {"facts", "markov"}


def test_an_ability_of_ones_own_is_asked_by_a_wording_of_ones_own(monkeypatch):
    class Twice(Recall):
        name = "twice"

    class Odd(lk.abilities()[0].__class__.__mro__[1]):
        name = "odd"

    assert wording(Twice()) is WORDINGS[Recall]
    with pytest.raises(LabkitError, match="in text by its wording; got 'odd'. Add one to labkit.prompts.WORDINGS"):
        wording(Odd())
    monkeypatch.setitem(WORDINGS, Odd, WORDINGS[Recall])
    assert wording(Odd()) is WORDINGS[Recall]


# --- prompts -------------------------------------------------------------------------------------------------------


def texts_of(monkeypatch, suite, **settings) -> list[str]:
    """The prompts that `ask` writes, those of an item once."""
    seen: list[str] = []
    from labkit.reader import Reader

    encode = Reader.encode
    monkeypatch.setattr(Reader, "encode", lambda self, texts: seen.extend(c for c, _ in texts) or encode(self, texts))
    ask(TEXT_MODEL, letter_tokenizer(), suite, progress=False, **settings)
    return list(dict.fromkeys(seen))


def letter_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """One token for each letter: any text of ours, in fewer tokens than our vocabulary has."""
    letters = [chr(start + i) for start in (65, 97) for i in range(26)]
    alphabet = sorted({*" \n!,.:;=>?+-|'…", *"0123456789", *letters, *"àáâãäå"})
    spelled = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    spelled.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=spelled, **special)


def test_a_prompt_drawn():
    question, example = asked(Addition(), 2, seed=0)
    assert prompt(TEMPLATES[0], question, [example]) == [
        "Add the two numbers.\n\nQ: 545 + 837\nA:", "1382", "Q: 754 + 583\nA:",
    ]  # fmt: skip


def test_examples_come_from_the_training_side_and_are_the_same_for_every_template(monkeypatch):
    prompts = texts_of(monkeypatch, [Addition()], n=12, shots=2)
    from labkit.abilities.addition import held_out

    sums = [re.findall(r"(\d+) \+ (\d+)", text) for text in prompts]
    assert len(sums) == 3 * 12
    assert all(len(each) == 3 for each in sums)
    for *examples, question in sums:
        assert not any(held_out(int(a), int(b)) for a, b in examples)
        assert held_out(*map(int, question))
    by_template = [sums[i : i + 12] for i in (0, 12, 24)]
    assert by_template[0] == by_template[1] == by_template[2]


def test_no_example_is_the_item_asked(monkeypatch):
    """Strings of two out of 32 letters would meet among 40 · 30 examples; a space of two items leaves none to show."""

    @dataclasses.dataclass(frozen=True)
    class Pair(Reverse):
        shortest: int = 2
        longest: int = 2

    for text in texts_of(monkeypatch, [Pair()], n=40, shots=30, templates=TEMPLATES[2:]):
        *examples, question = [line.split(" =>")[0] for line in text.split("\n")]
        assert len(examples) == 30
        assert question not in examples


def test_more_items_change_no_prompt_and_neither_do_other_abilities(monkeypatch):
    few = texts_of(monkeypatch, [Recall()], n=3)
    with monkeypatch.context() as patch:
        many = texts_of(patch, [Shift(), Recall()], n=5)
    assert set(few) <= set(many)


# --- scores --------------------------------------------------------------------------------------------------------


def test_in_its_own_words_a_model_scores_what_it_scores_in_tokens():
    """Ours, of the shipped ladder or not, under the own template: the same items, right and wrong alike."""
    model = lk.load("ladder/32x2/seed-0")
    suite = [ability for ability in abilities() if askable(ability, own=True)]
    text = ask(model, own_tokenizer(), n=12, templates=(OWN,), progress=False)
    tokens = evaluate(model, suite, n=12, progress=False)
    key = ["ability", "item", "value", "chance"]
    ours, theirs = (rows[rows.metric == "exact_match"][key].reset_index(drop=True) for rows in (text, tokens))
    pd.testing.assert_frame_equal(ours, theirs)
    assert 0 < ours.value.mean() < 1


def test_log_likelihoods_of_single_tokens_are_those_of_the_model():
    """−ln of the share among the candidates, from the logits of one plain pass."""
    rows = ask(MODEL, own_tokenizer(), [Recall()], n=8, templates=(OWN,), progress=False)
    for question, (_, row) in zip(asked(Recall(), 8, seed=0), rows[rows.metric == "nll_nats"].iterrows(), strict=True):
        with torch.no_grad():
            logits = MODEL(input_ids=torch.tensor([question.context])).logits[0, -1]
        offered = logits[[candidate[0] for candidate in question.candidates]]
        assert row.value == pytest.approx(-offered.log_softmax(-1)[0].item(), abs=1e-4)
        assert row.chance == pytest.approx(np.log(8))


def test_a_model_that_says_the_answer_is_right_by_both_measures(monkeypatch):
    """Words are tokens, and the head of a model without attention finds the answer to the last word of the question."""
    echo = Template("echo", "", "{question}", "\n")
    question = lambda ability, context: f"key{context[-1] - V.LETTERS.start}"  # noqa: E731
    monkeypatch.setitem(WORDINGS, Recall, dataclasses.replace(WORDINGS[Recall], question=question))
    items = asked(Recall(), 6, seed=0)
    told = {one.text(False): one.say(one.answer, False) for one in items}
    fitting = [number for number, one in enumerate(items) if told[one.text(False)] == one.say(one.answer, False)]
    words = ["<unk>", *(f"key{i}" for i in range(32)), "\n", *values()]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    pairs = {vocabulary[key]: vocabulary[answer] for key, answer in told.items()}
    pairs |= {vocabulary[answer]: vocabulary["\n"] for answer in values()}
    model, tokenizer = table(pairs, len(vocabulary)), word_tokenizer(vocabulary)
    rows = ask(model, tokenizer, [Recall()], n=6, shots=0, templates=(echo,), progress=False)
    for metric in ("exact_match", "choice_accuracy"):
        assert rows[rows.metric == metric].value.to_numpy()[fitting].tolist() == [1.0] * len(fitting)
    assert rows[rows.metric == "nll_nats"].value.to_numpy()[fitting].max() < 1e-3
    none = ask(table({}, len(vocabulary)), tokenizer, [Recall()], n=6, shots=0, templates=(echo,), progress=False)
    means = none.groupby("metric")[["value", "chance"]].mean()
    assert means.value["exact_match"] == 0
    for metric in ("choice_accuracy", "nll_nats"):  # all candidates alike: a tie is a guess
        assert means.value[metric] == pytest.approx(means.chance[metric], abs=1e-5)


def values() -> list[str]:
    from labkit.prompts.wording import SAID

    return [SAID[token] for token in V.VALUES[:16]]


def word_tokenizer(vocabulary: dict[str, int]) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")


def table(pairs: dict[int, int], size: int) -> GPT2LMHeadModel:
    """GPT-2 without attention that says ``pairs[token]`` after each token, and where there is none, anything."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=size, n_embd=size, n_layer=1, n_head=1, tie_word_embeddings=False))
    for weights in model.parameters():
        weights.data.zero_()
    model.transformer.ln_f.weight.data.fill_(1)
    model.transformer.wte.weight.data = torch.eye(size)
    for token, answer in pairs.items():
        model.lm_head.weight.data[answer, token] = 10
    return model


def test_rows_have_the_columns_of_the_records_and_a_template():
    rows = ask(TEXT_MODEL, letter_tokenizer(), abilities("recall", "addition"), n=3, progress=False)
    assert tuple(rows.columns) == (*COLUMNS, "template")
    assert not rows.duplicated(["ability", "metric", "item", "template"]).any()
    assert set(rows.metric) == {"exact_match", "choice_accuracy", "nll_nats"}
    assert set(rows.template) == {template.name for template in TEMPLATES}
    assert len(TEMPLATES) >= 3
    again = ask(TEXT_MODEL, letter_tokenizer(), abilities("recall", "addition"), n=3, progress=False)
    pd.testing.assert_frame_equal(rows, again)


@pytest.mark.parametrize("ability", ASKABLE, ids=IDS)
def test_chance_is_that_of_an_even_guess_or_of_a_better_guesser(ability):
    from labkit.prompts import _Asked

    one = _Asked.of(None, ability, TEMPLATES[0], (5, 0, 0), False)
    chance, count = one._chance(), np.array([len(options) for options in one.options])
    assert (chance["choice_accuracy"] >= 1 / count - 1e-12).all()
    assert (chance["nll_nats"] <= np.log(count) + 1e-12).all()
    assert (chance["exact_match"] <= chance["choice_accuracy"]).all()
    if isinstance(ability, Recall | Chain | Shift | State):  # their guesser chooses among the same
        np.testing.assert_allclose(chance["exact_match"], 1 / count)


# --- sensitivity ---------------------------------------------------------------------------------------------------


def made(rates: dict[str, float], n: int = 400, metric: str = "choice_accuracy") -> pd.DataFrame:
    rng = np.random.default_rng(0)
    common = rng.random(n)
    return pd.concat(
        pd.DataFrame({"ability": "recall", "metric": metric, "item": np.arange(n), "chance": 0.125, "template": name,
                      "value": (0.9 * common + 0.1 * rng.random(n) < rate).astype(float)})
        for name, rate in rates.items()
    )  # fmt: skip


def test_sensitivity_is_the_spread_of_the_means():
    rows = made({"a": 0.5, "b": 0.7, "c": 0.4})
    means = rows.groupby("template").value.mean()
    (found,) = sensitivity(rows).itertuples()
    assert (found.lowest, found.highest, found.n_templates, found.n_items) == ("c", "b", 3, 400)
    assert found.spread == pytest.approx(means["b"] - means["c"])
    assert found.mean == pytest.approx(means.mean())
    assert found.low < found.spread < found.high
    assert found.beyond_noise
    assert found.chance == 0.125


def test_its_interval_is_a_paired_t_interval_at_the_level_of_all_pairs():
    from scipy import stats

    rows = made({"a": 0.45, "b": 0.55, "c": 0.5}, metric="nll_nats")  # without the allowance for unseen flips
    table_ = rows.pivot(index="item", columns="template", values="value")
    found = sensitivity(rows).iloc[0]
    plain = stats.ttest_rel(table_[found.highest], table_[found.lowest]).confidence_interval(1 - 0.05 / 3)
    assert (found.low, found.high) == pytest.approx((max(plain.low, 0), plain.high), abs=5e-3)


def test_templates_that_differ_by_chance_alone_are_seldom_beyond_noise():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(50):
        rows = made({"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.5}, n=80)
        rows["value"] = rng.integers(0, 2, len(rows)).astype(float)
        hits += sensitivity(rows).beyond_noise[0]
    assert hits <= 6


def test_one_template_has_no_sensitivity():
    with pytest.raises(LabkitError, match="under two or more templates; got 'recall, choice_accuracy: a'"):
        sensitivity(made({"a": 0.5}))


# --- bad input -----------------------------------------------------------------------------------------------------


CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_a_chat_template_that_is_not_used_is_said(monkeypatch):
    own = letter_tokenizer()
    own.chat_template = CHAT
    with pytest.warns(UserWarning, match="has a chat template, which is not used: chat=True would"):
        ask(TEXT_MODEL, own, [Addition()], n=1, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ask(TEXT_MODEL, letter_tokenizer(), [Addition()], n=1, progress=False)


def test_in_a_chat_examples_are_earlier_turns(monkeypatch):
    from labkit.prompts import _Asked
    from labkit.reader import Reader

    own = letter_tokenizer()
    own.chat_template = CHAT
    one = _Asked.of(Reader(TEXT_MODEL, own, True, True, True), Addition(), TEMPLATES[0], (1, 0, 1), True)
    assert one.prompts == [
        "<user>Add the two numbers.\n\nQ: 861 + 493\nA:\n<assistant>1354\n<user>Q: 754 + 583\nA:\n<assistant>"
    ]
    assert one.options[0][0] == "1337"


def test_chat_without_a_chat_template_is_refused():
    with pytest.raises(LabkitError, match="a chat needs a tokenizer with a chat template"):
        ask(TEXT_MODEL, letter_tokenizer(), [Addition()], n=1, chat=True, progress=False)


def test_a_tokenizer_that_does_not_know_the_words_is_refused():
    with pytest.raises(LabkitError, match="a tokenizer spells the text it is given; got \"'·' in .*A: 1337"):
        ask(MODEL, own_tokenizer(), [Addition()], n=1, progress=False)


def test_a_tokenizer_that_cannot_tell_candidates_apart_is_refused():
    vocabulary = {"<unk>": 0, "<s>": 1}
    own = word_tokenizer(vocabulary)
    own.bos_token = "<unk>"
    with pytest.raises(LabkitError, match="tells the candidates of a question apart; got 'addition: 1337, 1338"):
        ask(TEXT_MODEL, own, [Addition()], n=1, progress=False)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n": 0}, "n is a whole number of at least 1; got 0"),
        ({"shots": -1}, "shots is a whole number of at least 0; got -1"),
        ({"templates": ()}, "there is one at least; got \\[\\]"),
        ({"templates": TEMPLATES[:1] * 2}, "different names"),
    ],
)
def test_senseless_settings_are_refused(wrong, message):
    with pytest.raises(LabkitError, match=message):
        ask(TEXT_MODEL, letter_tokenizer(), [Addition()], progress=False, **wrong)


def test_arrangements_are_the_elements_of_the_group():
    """The written permutations multiply as the ability's own table does."""
    from labkit.abilities.state import table as products
    from labkit.prompts.wording import _arrangements

    for group in ("s3", "a5"):
        written = _arrangements(State(group=group))
        for g, h in itertools.product(range(6), repeat=2):
            both = "".join(written[h][int(place) - 1] for place in written[g])
            assert written[products(group)[g, h]] == both


def test_a_tokenizer_that_writes_other_words_than_it_reads_is_refused():
    own = letter_tokenizer()
    own.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(LabkitError, match="a tokenizer spells the text it is given; got .*'REFUSE' as 'refuse'"):
        ask(TEXT_MODEL, own, abilities("guard"), n=2, progress=False)


@pytest.mark.parametrize(("suite", "message"), [([], "a suite is a sequence of abilities"), (["recall"], "a suite is a sequence of abilities"), ([Recall(), Recall()], "names every ability once; got 'recall'")])
def test_a_suite_is_that_of_evaluate(suite, message):
    with pytest.raises(LabkitError, match=message):
        ask(TEXT_MODEL, letter_tokenizer(), suite, n=2, progress=False)
