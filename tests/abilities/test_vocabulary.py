"""One vocabulary: its ranges tile it, and every token has a name of its own."""

from __future__ import annotations

import pytest

from labkit.abilities import abilities, spell
from labkit.abilities import vocabulary as V


def test_the_ranges_tile_the_vocabulary():
    singles = [V.PAD, V.SEPARATOR, V.REFUSE, V.PLUS, V.EQUALS]
    ranges = [V.TASKS, V.HOPS, V.DIGITS, V.LETTERS, V.SYMBOLS, V.VALUES, V.RELATIONS]
    assert singles + [token for r in ranges for token in r] == list(range(V.SIZE))


def test_every_token_has_a_name_of_its_own_without_blanks():
    assert len(set(V.NAMES)) == len(V.NAMES) == V.SIZE
    assert not any(" " in name for name in V.NAMES)


def test_tasks_and_hops_have_a_token_each():
    assert sorted(V.task(name) for name in V.TASK_NAMES) == list(V.TASKS)
    assert len(V.HOP_COUNTS) == len(V.HOPS)
    with pytest.raises(ValueError, match="'juggling' is not in tuple|tuple.index"):
        V.task("juggling")


@pytest.mark.parametrize("ability", abilities(), ids=lambda a: a.name)
def test_a_row_begins_with_the_token_of_its_family(ability):
    first = V.NAMES[ability.train([0], 0, 48).tokens[0, 0]].strip("[]")
    assert ability.name == first or ability.name.startswith(f"{first}-")


def test_spelling_marks_places_without_a_label():
    assert spell([-100, V.task("state"), V.DIGITS[7], V.SYMBOLS[17]]) == "_ [state] 7 B1"
