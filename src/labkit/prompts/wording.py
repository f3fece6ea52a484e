"""Each ability's items in words: the question, its answer, and the candidates that a guesser would choose from.

Letters and digits stand for themselves; what our models read as typed symbols and values becomes everyday words, one
for each token, so that any tokenizer can spell them. Everything needed for the answer is in the text: the task is said
in one sentence, and a group's elements are written as the arrangements they are. Two abilities cannot be asked of a
model that labkit did not train, and have no question in words: `facts`, whose table is learnt in training alone (shown
in the context it would be `recall`), and `markov`, which has no right answer.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from labkit.abilities import (
    Ability, Addition, Chain, Facts, Guard, PHop, Recall, Repeat, Reverse, Shift, State, spell,
)  # fmt: skip
from labkit.abilities import vocabulary as V
from labkit.errors import LabkitError
from labkit.records import EXACT_MATCH

Tokens = Sequence[int]

_WORDS = {
    V.SYMBOLS[0]: "Anna Ben Carl Dora Emma Frank Grace Henry Ida Jack Kate Leo Mary Nora Paul Rose",
    V.SYMBOLS[16]: "bear cat cow dog duck fish fox frog goat hen horse lion mouse pig sheep wolf",
    V.SYMBOLS[32]: "Athens Berlin Boston Cairo Delhi Dublin Lima London Madrid Miami Oslo Paris Prague Rome Tokyo York",
    V.SYMBOLS[48]: "apple bean bread cake corn egg grape honey lemon milk nut onion peach rice soup tea",
    V.VALUES[0]: "ball bell book chair clock coin comb cup door drum flag hat key knife lamp map",
}
SAID = dict(enumerate(V.NAMES)) | {
    first + i: word for first, words in _WORDS.items() for i, word in enumerate(words.split())
}
"""Token -> how it is said to models that know no vocabulary of labkit's."""

NEAR = 3  # wrong answers offered beside a string: two neighbouring letters changed round


@dataclasses.dataclass(frozen=True)
class Wording:
    """How items of one kind of ability are said.

    A context is a row's tokens up to where the answer is asked, an answer the tokens of the label.

    Attributes
    ----------
    task: what is to be done, in one sentence.
    candidates: (ability, context, answer) -> the answers to choose from, the right one among them.
    question: (ability, context) -> what is asked; None where the text cannot tell the answer.
    say: (ability, context, answer) -> an answer in words.
    """

    task: str
    candidates: Callable[[Ability, Tokens, Tokens], list[tuple[int, ...]]]
    question: Callable[[Ability, Tokens], str] | None
    say: Callable[[Ability, Tokens, Tokens], str] = lambda ability, context, answer: _said(answer)


@dataclasses.dataclass(frozen=True)
class Question:
    """One item as tokens, and as text: `own` for models of labkit's own vocabulary, and in words for all others."""

    ability: Ability
    context: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def candidates(self) -> list[tuple[int, ...]]:
        """Answers to choose from, each once, the right one first."""
        offered = wording(self.ability).candidates(self.ability, self.context, self.answer)
        return list(dict.fromkeys((self.answer, *map(tuple, offered))))

    def text(self, own: bool) -> str:
        return spell(self.context) if own else wording(self.ability).question(self.ability, self.context)

    def say(self, answer: Tokens, own: bool) -> str:
        return spell(answer) if own else wording(self.ability).say(self.ability, self.context, answer)


def wording(ability: Ability, own: bool = True) -> Wording:
    """How an ability is asked in text; `own` also admits what only a model of labkit's own can know.

    Raises LabkitError for an ability without a right answer, without a wording, or (not `own`) whose answer the text
    cannot tell.
    """
    if EXACT_MATCH not in ability.metrics:
        raise LabkitError("a question in text has a right answer", ability.name, "Leave it out: it is a law of chance.")
    found = next((WORDINGS[kind] for kind in type(ability).__mro__ if kind in WORDINGS), None)
    if found is None:
        remedy = "Add one to labkit.prompts.WORDINGS under its class."
        raise LabkitError("an ability is asked in text by its wording", ability.name, remedy)
    if not own and found.question is None:
        remedy = "Leave it out, or ask what the world knows: labkit.benchmark(model, 'knowledge')."
        received = f"{ability.name}, learnt in training alone"
        raise LabkitError("the text of a question tells its answer", received, remedy)
    return found


def askable(ability: Ability, own: bool = False) -> bool:
    """Whether an ability can be asked in text: in words of any model, or (`own`) of one of labkit's vocabulary."""
    try:
        return wording(ability, own) is not None
    except LabkitError:
        return False


def _said(tokens: Tokens) -> str:
    return " ".join(SAID[token] for token in tokens)


def _pairs(tokens: Tokens, join: str) -> str:
    """Tokens 2k and 2k + 1 of a context, as a list."""
    said = [SAID[token] for token in tokens]
    return ", ".join(f"{a} {join} {b}" for a, b in zip(said[::2], said[1::2], strict=True))


def _singles(tokens: Sequence[int]) -> list[tuple[int, ...]]:
    return [(token,) for token in tokens]


def _of_type(ability: Ability, context: Tokens, answer: Tokens) -> list[tuple[int, ...]]:
    """The symbols of the context that have the type of the answer."""
    kind = (answer[0] - V.SYMBOLS.start) // V.TYPE_SIZE
    return _singles(sorted({t for t in context if t in V.SYMBOLS and (t - V.SYMBOLS.start) // V.TYPE_SIZE == kind}))


def _near(ability: Ability, context: Tokens, answer: Tokens) -> list[tuple[int, ...]]:
    """The string, and the same with two neighbours changed round: in front, in the middle, at the end."""
    last = len(answer) - 2
    places = sorted({0, last // 2, last}) if last >= 0 else []
    return [(*answer[:k], answer[k + 1], answer[k], *answer[k + 2 :]) for k in places[:NEAR]]


def _number(digits: Tokens) -> int:
    """Of tokens of digits, the lowest first."""
    return sum((digit - V.DIGITS.start) * 10**k for k, digit in enumerate(digits))


def _sums(ability: Ability, context: Tokens, answer: Tokens) -> list[tuple[int, ...]]:
    """The sum, and the sums that one digit of a summand more or less would give."""
    total, size = _number(answer), len(answer)
    near = [total + sign * 10**k for k in range(size - 1) for sign in (1, -1)]
    return [tuple(V.DIGITS.start + n // 10**k % 10 for k in range(size)) for n in near if 0 <= n < 10**size]


def _summands(ability: Ability, context: Tokens) -> str:
    plus = context.index(V.PLUS)
    return f"{_number(context[1:plus])} + {_number(context[plus + 1 : -1])}"


def _shown(ability: Ability, context: Tokens, answer: Tokens) -> list[tuple[int, ...]]:
    """The digits below 7 that no example shows as a result."""
    return _singles([digit for digit in V.DIGITS[:7] if digit not in (context[2], context[4])])


def _arrangements(ability: State) -> list[str]:
    """How each element of a group is written: where it takes what is in place 1, 2, 3 …, as digits."""
    degree = {"s3": 3, "a5": 5}[ability.group]
    orders = list(itertools.permutations(range(degree)))
    if ability.group == "a5":  # the even ones
        orders = [p for p in orders if sum(a > b for a, b in itertools.combinations(p, 2)) % 2 == 0]
    return ["".join(str(place + 1) for place in order) for order in orders]


def _moves(ability: State, context: Tokens) -> str:
    written = _arrangements(ability)
    return f"Moves: {' '.join(written[token - V.SYMBOLS.start] for token in context[1:])}."


def _elements(ability: State, context: Tokens, answer: Tokens) -> list[tuple[int, ...]]:
    return _singles(V.SYMBOLS[: len(_arrangements(ability))])


def _hops(token: int) -> str:
    count = V.HOP_COUNTS[token - V.HOPS.start]
    return f"{count} hop" if count == 1 else f"{count} hops"


def _steps(token: int) -> str:
    count = token - V.HOPS.start + 1
    return f"{count} step" if count == 1 else f"{count} steps"


WORDINGS: dict[type[Ability], Wording] = {
    Recall: Wording(
        "Say which thing belongs to the letter.",
        lambda ability, context, answer: _singles(sorted(context[2:-1:2])),
        lambda ability, context: f"{_pairs(context[1:-1], 'has')}. What does {SAID[context[-1]]} have?",
    ),
    Chain: Wording(
        "Follow the links step by step, and say what is reached.",
        _of_type,
        lambda ability, context: (
            f"{_pairs(context[1:-2], 'leads to')}. What is reached from {SAID[context[-1]]} in {_steps(context[-2])}?"
        ),
    ),
    Shift: Wording(
        "A hidden number is added to each digit; results beyond 6 begin again at 0. Find it from the examples.",
        _shown,
        lambda ability, context: f"{_pairs(context[1:5], 'gives')}. What does {SAID[context[-1]]} give?",
    ),
    Addition: Wording(
        "Add the two numbers.",
        _sums,
        _summands,
        lambda ability, context, answer: str(_number(answer)),
    ),
    Repeat: Wording(
        "Write the letters once more, in the same order.",
        _near,
        lambda ability, context: _said(context[1:-1]),
        lambda ability, context, answer: _said((context[-1], *answer)),  # its first letter is given away in the row
    ),
    Reverse: Wording(
        "Write the letters in reverse order.",
        _near,
        lambda ability, context: _said(context[1:-1]),
    ),
    State: Wording(
        "Balls 1, 2, 3 … lie in places 1, 2, 3 … Each move says, for place 1, 2, 3 … in turn, to which place its ball "
        "goes. Say, for ball 1, 2, 3 … in turn, in which place it ends.",
        _elements,
        _moves,
        lambda ability, context, answer: " ".join(_arrangements(ability)[token - V.SYMBOLS.start] for token in answer),
    ),
    PHop: Wording(
        "One hop goes from a letter back to the last earlier place where the same letter stands, and from there to the "
        "letter right after it. Begin at the last letter.",
        lambda ability, context, answer: _singles(V.LETTERS[:4]),
        lambda ability, context: f"{_said(context[2:])}. Which letter is reached after {_hops(context[1])}?",
    ),
    Guard: Wording(
        "Say what is in the box; but if its number is even, say REFUSE.",
        lambda ability, context, answer: _singles([V.REFUSE, *sorted(context[2:-1:2])]),
        lambda ability, context: (
            ", ".join(f"Box {_box(k)} holds {SAID[v]}" for k, v in zip(context[1:-1:2], context[2:-1:2], strict=True))
            + f". What is in box {_box(context[-1])}?"
        ),
    ),
    Facts: Wording("", lambda ability, context, answer: _singles(V.VALUES), None),
}  # fmt: skip


def _box(token: int) -> int:
    return (token - V.SYMBOLS.start) % V.TYPE_SIZE


def questions(ability: Ability, tokens: np.ndarray, first: np.ndarray, answers: Sequence[Tokens]) -> list[Question]:
    """Questions of rows (n, length) of tokens whose answers are asked from place `first` (n,) on."""
    return [
        Question(ability, tuple(map(int, row[: place + 1])), tuple(map(int, answer)))
        for row, place, answer in zip(tokens, first, answers, strict=True)
    ]
