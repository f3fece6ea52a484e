"""Roles are read off scores written by hand; in the decoder built by hand they are the two heads that copy."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from labkit.abilities import Repeat
from labkit.errors import LabkitError
from labkit.inside.estimates import looks
from labkit.inside.heads import head_scores
from labkit.inside.roles import OTHERS, by_role, roles
from labkit.inside.sites import Part

MEANS = {  # (previous token, induction) of each head
    (0, 0): (0.9, 0.0), (0, 1): (0.5, 0.1), (0, 2): (0.1, 0.1),
    (1, 0): (0.2, 0.7), (1, 1): (0.0, 0.2), (1, 2): (0.3, 0.3),
}  # fmt: skip


@pytest.fixture
def rows() -> pd.DataFrame:
    """Two sequences on either side of each mean."""
    told = [
        (f"head {layer}.{head}", layer, head, score, item, mean + (0.02 if item else -0.02), 0.1 * (item + 1))
        for (layer, head), means in MEANS.items()
        for score, mean in zip(("previous token", "induction"), means, strict=True)
        for item in (0, 1)
    ]
    return pd.DataFrame(told, columns=["part", "layer", "head", "score", "item", "value", "even"])


def heads(*pairs: tuple[int, int]) -> tuple[Part, ...]:
    return tuple(Part("head", *pair) for pair in pairs)


def test_heads_have_the_roles_of_where_they_look_on_average(rows):
    found = roles(rows, least=0.45)
    assert found["previous token heads"] == heads((0, 0), (0, 1))
    assert found["induction heads"] == heads((1, 0))
    assert list(found) == ["previous token heads", "induction heads", OTHERS]


def test_the_others_have_no_role_are_as_many_and_are_drawn_by_the_seed(rows):
    free = set(heads((0, 2), (1, 1), (1, 2)))
    draws = [roles(rows, least=0.45, seed=seed)[OTHERS] for seed in range(20)]
    assert all(set(draw) < free and len(draw) == 2 for draw in draws)
    assert {part for draw in draws for part in draw} == free and draws[0] == roles(rows, least=0.45)[OTHERS]
    found = roles(rows, least=0.25)
    assert len(found["previous token heads"]) == 3 and found[OTHERS] == heads((0, 2), (1, 1))  # all that are left


def test_a_head_may_have_several_roles(rows):
    found = roles(rows, least=0.15)
    assert Part("head", 1, 0) in set(found["previous token heads"]) & set(found["induction heads"])


def test_the_copying_heads_of_the_decoder_built_by_hand(copier):
    items = Repeat().sample(8, seed=0)
    rows = head_scores(copier, items.tokens, items.labels >= 0)
    rows = pd.concat([rows, rows[rows["head"] == 0].assign(part="head 1.1", layer=1, head=1, value=0.0)])
    found = roles(rows, least=0.99)
    assert found == {"previous token heads": heads((0, 0)), "induction heads": heads((1, 0)), OTHERS: heads((1, 1))}


def test_a_role_has_the_mean_of_its_heads_in_every_sequence(rows):
    told = by_role(rows, roles(rows, least=0.45)).set_index(["part", "score", "item"])
    assert told.loc[("previous token heads", "previous token", 0), "value"] == pytest.approx((0.88 + 0.48) / 2)
    assert told.loc[("induction heads", "previous token", 1)].to_list() == pytest.approx([0.22, 0.2])
    averaged = looks(told.reset_index()).set_index(["part", "score"])
    assert averaged.loc[("previous token heads", "induction"), "value"] == pytest.approx((0.0 + 0.1) / 2)


def test_what_the_rows_do_not_have_is_refused(rows):
    with pytest.raises(LabkitError, match="a known score of heads is needed; got 'inductive'. Nearest: induction."):
        roles(rows, ["inductive"])
    rule = "a role is that of a head with induction of at least 0.8; got 'at most 0.70 of the attention'. Lower least."
    with pytest.raises(LabkitError, match=re.escape(rule)):
        roles(rows, least=0.8)
    alike = rows.assign(value=0.6)
    with pytest.raises(LabkitError, match="there are heads without; got 'all 6 heads have one'. Raise least."):
        roles(alike)
    for least in (0, 1.5, float("nan")):
        with pytest.raises(LabkitError, match=r"least is a share of the attention, in \(0, 1\]; got"):
            roles(rows, least=least)
    with pytest.raises(LabkitError, match="a known head of these rows is needed; got 'head 2.0'"):
        by_role(rows, {"copying": heads((0, 0), (2, 0))})
