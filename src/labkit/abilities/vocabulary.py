"""The one vocabulary all abilities share. A name is a range of token ids; `spell` turns ids back into text."""

from __future__ import annotations

from collections.abc import Iterable

PAD, SEPARATOR, REFUSE, PLUS, EQUALS = range(5)
TASKS = range(5, 17)  # one task token per family of abilities
HOPS = range(17, 22)  # how many hops are asked: see HOP_COUNTS
DIGITS = range(22, 32)
LETTERS = range(32, 64)
SYMBOLS = range(64, 128)  # four types of 16: A0..A15, B0.., C0.., D0..
VALUES = range(128, 160)
RELATIONS = range(160, 168)
SIZE = 168

TYPE_SIZE = 16
HOP_COUNTS = (1, 2, 4, 8, 16)  # for p-hop; chains use the first three tokens for 1, 2 and 3 hops
TASK_NAMES = ("markov", "repeat", "reverse", "recall", "shift", "facts", "addition", "chain", "state", "p-hop", "guard", "user")


def task(name: str) -> int:
    """Token id of a task token."""
    return TASKS[TASK_NAMES.index(name)]


def _names() -> list[str]:
    letters = [chr(ord("a") + i) for i in range(26)] + [chr(ord("à") + i) for i in range(6)]
    return [
        *("·", "|", "REFUSE", "+", "="),
        *(f"[{name}]" for name in TASK_NAMES),
        *(f"?{i + 1}" for i in range(len(HOPS))),
        *"0123456789",
        *letters,
        *(f"{kind}{i}" for kind in "ABCD" for i in range(TYPE_SIZE)),
        *(f"v{i}" for i in range(len(VALUES))),
        *(f"r{i}" for i in range(len(RELATIONS))),
    ]


NAMES = tuple(_names())


def spell(tokens: Iterable[int]) -> str:
    """Token ids as readable text, blank for ids below zero (places without a label).

    >>> spell([13, 22, 27, 3, 23])
    '[state] 0 5 + 1'
    """
    return " ".join(NAMES[int(t)] if t >= 0 else "_" for t in tokens)
