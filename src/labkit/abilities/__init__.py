"""The abilities a model is asked about. A new one is one file here and one line in `abilities`."""

from __future__ import annotations

from labkit import extension
from labkit.abilities.addition import Addition
from labkit.abilities.base import Ability, Draws, Items, Rows
from labkit.abilities.chain import Chain
from labkit.abilities.facts import Facts
from labkit.abilities.guard import Guard
from labkit.abilities.markov import Markov
from labkit.abilities.mixture import Corpus
from labkit.abilities.p_hop import PHop
from labkit.abilities.recall import Recall
from labkit.abilities.repeat import Repeat
from labkit.abilities.reverse import Reverse
from labkit.abilities.shift import Shift
from labkit.abilities.state import State
from labkit.abilities.vocabulary import spell
from labkit.errors import unknown

__all__ = [
    "Ability", "Addition", "Chain", "Corpus", "Draws", "Facts", "Guard", "Items", "Markov", "PHop", "Recall",
    "Repeat", "Reverse", "Rows", "Shift", "State", "abilities", "corpus", "draw", "spell",
]  # fmt: skip


def abilities(*names: str) -> tuple[Ability, ...]:
    """The suite, or the named part of it and of what was added by `labkit.extension`, in that order.

    Raises LabkitError for a name that is in neither.
    """
    suite = (
        Markov(),
        Repeat(),
        Reverse(),
        Recall(),
        Shift(),
        Facts(),
        Addition(),
        Chain(hops=1, weight=0.10),
        Chain(hops=2, weight=0.10),
        Chain(hops=3, weight=0.03),
        State(steps=4),
        State(steps=16),
        PHop(hops=2),
        Guard(),
    )
    known = {ability.name: ability for ability in suite}
    known |= extension.added("ability", taken=known)
    for name in names:
        if name not in known:
            raise unknown("ability", name, known)
    return tuple(ability for name, ability in known.items() if name in names) if names else suite


def corpus(seed: int = 0, length: int = 48) -> Corpus:
    """The training stream of the ladder: all abilities, by their weights."""
    return Corpus(abilities(), seed, length)


def draw(ability: Ability, length: int = 48, index: int = 0) -> str:
    """One training row drawn over its label row, as text; `_` marks places where nothing is asked."""
    rows = ability.train([index], seed=0, length=length)
    return f"{spell(rows.tokens[0])}\n{spell(rows.labels[0])}"
