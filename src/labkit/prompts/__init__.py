"""Our abilities put to any model in words, with examples, through its own tokenizer."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from labkit.abilities import Ability, Items, abilities
from labkit.abilities import vocabulary as V
from labkit.errors import LabkitError, warn
from labkit.evaluation import COLUMNS as SCORES
from labkit.evaluation import _check as check_suite
from labkit.prompts.sensitivity import sensitivity
from labkit.prompts.wording import WORDINGS, Question, Wording, askable, questions, wording
from labkit.reader import Reader
from labkit.records import CHOICE_ACCURACY, EXACT_MATCH, IGNORE, NLL_NATS

__all__ = [
    "OWN", "TEMPLATES", "WORDINGS", "Question", "Template", "Wording", "ask", "askable",
    "own_tokenizer", "prompt", "sensitivity", "text_tokens",
]  # fmt: skip

COLUMNS = (*SCORES, "template")
LENGTH = 48  # of the rows that examples are cut from, as in `Ability.sample`
MORE = 3  # tokens that an answer may be longer than the longest candidate before it is cut off


@dataclasses.dataclass(frozen=True)
class Template:
    """A way to put a question: ``task``, then examples (each question with its answer), then the question itself.

    ``task`` is a format of {task}, ``question`` one of {question}, to be followed by a blank and the answer;
    ``between`` stands after each example. A generated answer ends with its line. An ``own`` template has no words: it
    writes tokens as `labkit.abilities.spell` does, and shows no examples, for our models never saw any.
    """

    name: str
    task: str
    question: str
    between: str
    own: bool = False


TEMPLATES = (
    Template("question-answer", "{task}\n\n", "Q: {question}\nA:", "\n\n"),
    Template("input-output", "Task: {task}\n\n", "Input: {question}\nOutput:", "\n\n"),
    Template("examples-only", "", "{question} =>", "\n"),
)
OWN = Template("own", "", "{question}", "", own=True)
"""For models of labkit's vocabulary, with `own_tokenizer`: they read what `labkit.evaluate` gives them."""


def ask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    suite: Sequence[Ability] | None = None,
    n: int = 128,
    seed: int = 0,
    shots: int = 3,
    templates: Sequence[Template] = TEMPLATES,
    chat: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """Ask ``n`` items of every ability in text, by every template.

    Parameters
    ----------
    model, tokenizer
        A causal model of `transformers`; its tokenizer is looked for where the model was loaded from.
    suite
        Abilities; by default all whose answer follows from the text of a question (see `labkit.prompts.wording`): not
        ``facts`` and ``markov``.
    n, seed
        Items per ability, the same that `labkit.evaluate` scores.
    shots
        Examples before each question, from the training side of the ability: never the item asked, and the same ones
        under every template.
    chat
        Put it as a conversation, by the tokenizer's chat template, examples as earlier turns. Where there is such a
        template and it is not used, a warning says so.

    Returns
    -------
    One row per (ability, template, metric, item), columns ``ability, metric, item, value, chance, template``. For a
    store, where a template has no column, make it part of the ability: ``rows.ability + ", " + rows.template``.
    Metrics:

    - ``exact_match``: 1 if what the model says, taking the likeliest token each time, is the answer up to the end of
      its line, blanks apart. Chance as in `labkit.evaluate`.
    - ``choice_accuracy``: 1 if the answer has the highest log-likelihood of all candidates (summed over its tokens, not
      divided by their number); a tie counts as a guess among those tied.
    - ``nll_nats``: −ln of the answer's share in the probability of all candidates.

    Chance of the latter two is that of an even guess among the candidates, or of the ability's own guesser where that
    is better.

    Raises
    ------
    LabkitError
        See `labkit.reader.Reader.of`; no abilities, or one twice; an ability that has no wording; a tokenizer that cannot spell the text or tell
        two candidates apart; a prompt that the model is too short for; chat without a chat template.
    """
    _check(n, shots, templates)
    own = all(template.own for template in templates)
    if suite is None:
        suite = [ability for ability in abilities() if askable(ability, own)]
    check_suite(suite, n, batch_tokens=1)
    for ability in suite:
        for template in templates:
            wording(ability, template.own)
    reader = Reader.of(model, tokenizer)
    if reader.tokenizer.chat_template and not chat:
        warn("The tokenizer has a chat template, which is not used: chat=True would.")
    asked = [_Asked.of(reader, *pair, (n, seed, shots), chat) for pair in _each(suite, templates)]
    pairs = reader.encode([text for one in asked for text in one.texts()])
    _tells_apart(reader, asked, pairs)
    with tqdm(total=len(pairs) + sum(len(one.prompts) for one in asked), desc="ask", unit="text",
              disable=not progress) as bar:  # fmt: skip
        values, _ = reader.score(pairs, each=bar.update)
        sizes = np.array([len(continuation) for _, continuation in pairs])
        blocks, at = [], 0
        for one in asked:
            edges = at + np.cumsum([0, *(len(options) for options in one.options)])
            at = edges[-1]
            spans = [slice(*edge) for edge in zip(edges[:-1], edges[1:], strict=True)]
            # Our own models never learnt to end: they say as many tokens as the answer has.
            limits = [int(sizes[span][0] if one.template.own else sizes[span].max() + MORE) for span in spans]
            said = reader.write(one.prompts, limits, None if one.template.own else "\n")
            bar.update(len(said))
            blocks.append(one.rows([values[span] for span in spans], said))
    return pd.concat(blocks, ignore_index=True)[list(COLUMNS)]


def prompt(template: Template, question: Question, examples: Sequence[Question] = ()) -> list[str]:
    """The parts of a prompt: question, answer, question, answer, … and the last question.

    In a chat each is a turn; otherwise they are joined.
    """
    task = template.task.format(task=wording(question.ability, template.own).task)
    parts = []
    for one in (*examples, question):
        parts += [template.question.format(question=one.text(template.own)), one.say(one.answer, template.own)]
    return [task + parts[0], *parts[1:-1]]


def text_tokens(suite: Sequence[Ability], n: int = 128, seed: int = 0, shots: int = 3) -> tuple[int, int]:
    """About how many tokens `ask` makes a model read, and at most write, without a tokenizer: words and marks count.

    A prompt is read for the candidates, which share it, and once more for what the model says.
    """
    read = written = 0
    for one in (_Asked.of(None, *pair, (n, seed, shots), False) for pair in _each(suite, TEMPLATES)):
        sizes = [[_words(option) for option in options] for options in one.options]
        read += 2 * sum(map(_words, one.prompts)) + sum(map(sum, sizes))
        written += sum(max(of_item) + MORE for of_item in sizes)
    return read, written


def _words(text: str) -> int:
    return len(re.findall(r"\w+|[^\w\s]", text))


def own_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of labkit's own vocabulary: the words that `labkit.abilities.spell` writes."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({name: token for token, name in enumerate(V.NAMES)}, unk_token=V.NAMES[V.PAD]))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token=V.NAMES[V.PAD], unk_token=V.NAMES[V.PAD])


@dataclasses.dataclass(frozen=True)
class _Asked:
    """One ability under one template."""

    ability: Ability
    template: Template
    items: Items
    asked: list[Question]
    options: list[list[str]]  # of each item: its candidates as they continue the prompt, the right one first
    prompts: list[str]

    @classmethod
    def of(
        cls, reader: Reader, ability: Ability, template: Template, drawn: tuple[int, int, int], chat: bool
    ) -> _Asked:
        n, seed, shots = drawn
        items = ability.sample(n, seed)
        place = items.labels != IGNORE
        answers = [labels[mask] for labels, mask in zip(items.labels, place, strict=True)]
        asked = questions(ability, items.tokens, place.argmax(axis=1), answers)
        shown = _examples(ability, asked, items.index, seed, 0 if template.own else shots)
        parts = [prompt(template, one, examples) for one, examples in zip(asked, shown, strict=True)]
        prompts = [reader.converse(turns) if chat else _joined(turns, template) for turns in parts]
        blank = "" if chat else " "
        options = [[blank + one.say(answer, template.own) for answer in one.candidates] for one in asked]
        return cls(ability, template, items, asked, options, prompts)

    def texts(self) -> list[tuple[str, str]]:
        return [(start, option) for start, all_ in zip(self.prompts, self.options, strict=True) for option in all_]

    def rows(self, values: Sequence[np.ndarray], said: Sequence[str]) -> pd.DataFrame:
        """values: of each item, the log-likelihoods of its candidates."""
        right = [" ".join(text.split()) == options[0].strip() for text, options in zip(said, self.options, strict=True)]
        first = [(v[0] == v.max()) / (v == v.max()).sum() for v in values]
        nats = [np.logaddexp.reduce(v) - v[0] for v in values]
        scores = {EXACT_MATCH: right, CHOICE_ACCURACY: first, NLL_NATS: nats}
        chance = self._chance()
        blocks = [
            pd.DataFrame({"metric": metric, "item": self.items.index, "value": value, "chance": chance[metric]})
            for metric, value in scores.items()
        ]
        return pd.concat(blocks).astype({"value": float}).assign(ability=self.ability.name, template=self.template.name)

    def _chance(self) -> dict[str, np.ndarray]:
        whole = self.ability.chance(EXACT_MATCH, self.items)
        count = np.array([len(options) for options in self.options])
        # Of a longer answer the ability's own chance is per token.
        single = (self.items.labels != IGNORE).sum(axis=1) == 1
        nats = np.where(single, np.minimum(np.log(count), self.ability.chance(NLL_NATS, self.items)), np.log(count))
        return {EXACT_MATCH: whole, CHOICE_ACCURACY: np.maximum(1 / count, whole), NLL_NATS: nats}


def _each(suite: Sequence[Ability], templates: Sequence[Template]) -> list[tuple[Ability, Template]]:
    return [(ability, template) for ability in suite for template in templates]


def _joined(parts: Sequence[str], template: Template) -> str:
    shown = zip(parts[:-1:2], parts[1::2], strict=True)
    return "".join(f"{question} {answer}{template.between}" for question, answer in shown) + parts[-1]


def _examples(
    ability: Ability, asked: Sequence[Question], index: np.ndarray, seed: int, shots: int
) -> list[list[Question]]:
    """For each question `shots` others: the first whole answers of training rows, numbered by the item's number."""
    if not shots:
        return [[] for _ in asked]
    spare = 2 * shots  # more than are shown, so that a row like the one asked can be passed over
    numbers = (index[:, None] * spare + np.arange(spare)).ravel()
    rows = ability.train(numbers, seed, LENGTH)
    answers = [row[start:stop] for row, start, stop in zip(rows.labels, rows.start, rows.stop, strict=True)]
    drawn = questions(ability, rows.tokens, rows.start, answers)
    shown = []
    for number, one in enumerate(asked):
        others = [each for each in drawn[number * spare : (number + 1) * spare] if each.context != one.context]
        if len(others) < shots:
            remedy = "Ask with fewer shots, or of a larger ability."
            raise LabkitError("examples differ from the item asked", f"{ability.name}, item {index[number]}", remedy)
        shown.append(others[:shots])
    return shown


def _tells_apart(reader: Reader, asked: Sequence[_Asked], pairs: Sequence[tuple]) -> None:
    """Refuse a tokenizer by which two candidates, or words it does not know, are the same, or that alters words."""
    own, at = reader.tokenizer, 0

    def back(text: str) -> str:  # what is left of a text that was read and written, blanks apart
        return "".join(own.decode(own(text, add_special_tokens=False)["input_ids"]).split())

    strange = own.unk_token_id if own.unk_token_id not in (own.bos_token_id, own.eos_token_id) else None
    for one in asked:
        for start, options in zip(one.prompts, one.options, strict=True):
            mine = pairs[at : at + len(options)]
            at += len(options)
            if strange is not None and any(strange in tokens for pair in mine for tokens in pair):
                received = f"{own.unk_token!r} in {start[-60:] + options[0]!r}"
                raise LabkitError("a tokenizer spells the text it is given", received, "Use one made for such text.")
            if len({tuple(continuation) for _, continuation in mine}) < len(mine):
                received = f"{one.ability.name}: {', '.join(option.strip() for option in options)}"
                remedy = "Use a tokenizer with more words, or leave the ability out."
                raise LabkitError("a tokenizer tells the candidates of a question apart", received, remedy)
            if changed := [option for option in options if back(option) != "".join(option.split())]:
                received = f"{changed[0].strip()!r} as {back(changed[0])!r}"
                raise LabkitError("a tokenizer spells the text it is given", received, "Use one made for such text.")


def _check(n: int, shots: int, templates: Sequence[Template]) -> None:
    for name, value, least in (("n", n, 1), ("shots", shots, 0)):
        if not isinstance(value, int | np.integer) or value < least:
            raise LabkitError(f"{name} is a whole number of at least {least}", value, "Give one.")
    names = [template.name for template in templates]
    if not names or len(set(names)) < len(names):
        raise LabkitError("templates have different names, and there is one at least", names, "Use TEMPLATES.")
