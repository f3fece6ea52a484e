import numpy as np
import pandas as pd
import pytest

from labkit.barrier import PRICES, BarrierRow, PriceRow, answer, barrier, prices
from labkit.errors import LabkitError
from labkit.imitation import imitation
from labkit.inheritance import inheritance
from labkit.records import EXACT_MATCH, columns
from labkit.statistics import jeffreys_interval
from labkit.verdict import judge

DOSES = {"1M": 960_000, "3M": 2_880_000, "6M": 5_760_000}  # as named, as counted


def study(**ways):
    """`ways`: way with _ for a space -> retention of every seed (or of each), dose by dose; teachers are always right."""
    generator, parts = np.random.default_rng(0), []
    wanted = {"dense": 1.0}
    for way, retention in ways.items():
        wanted |= {f"64x2 {way.replace('_', ' ')} {dose}": r for dose, r in zip(DOSES, retention, strict=False)}
    toss = generator.random((5, 200))
    for name, retention in wanted.items():
        right = toss < np.reshape(np.broadcast_to(retention, 5), (-1, 1))
        seed, item = np.divmod(np.arange(right.size), 200)
        parts.append(pd.DataFrame({"seed": seed, "item": item, "value": right.ravel() * 1.0, "compression": name}))
    rows = pd.concat(parts, ignore_index=True)
    rows = rows.assign(run=rows["compression"], model="m", rung="96x3", params=100, sparsity=0.0, chance=0.0)
    return rows.assign(ability="recall", metric=EXACT_MATCH)


def spent(rows):
    """A FLOP per token without a teacher, two with one."""
    runs = rows["run"].unique()
    tokens = [DOSES.get(run.split()[-1], 0) for run in runs]
    flops = [t * (2 if "distil" in run else 1) for t, run in zip(tokens, runs, strict=True)]
    return pd.DataFrame({"run": runs, "lineage": [[{"tokens": t, "flops": f}] for t, f in zip(tokens, flops, strict=True)]})


def of(rows, **options):
    frame = barrier(rows, spent(rows), **options)
    assert list(frame.columns) == list(columns(BarrierRow))
    return frame.set_index("way")


def test_the_smallest_dose_that_is_enough_and_what_it_costs():
    frame = of(study(distil_sequence=(0.5, 0.95, 1.0), scratch=(0.1, 0.5, 0.97)), row_answers=25.0)
    text, alone = frame.loc["sequence"], frame.loc["scratch"]
    assert (text["enough"], text["told"], text["seen"], text["tokens"]) == (3e6, "3M", "text", 3_000_000)
    assert (text["rows_asked"], text["answers_seen"], text["flops"]) == (60_000, 1_500_000, 5_760_000)
    assert (alone["enough"], alone["rows_asked"], alone["answers_seen"], alone["flops"]) == (6e6, 0, 0, 5_760_000)


def test_where_nothing_is_enough_the_largest_dose_is_described():
    row = of(study(distil_sequence=(0.5, 0.6, 0.7))).loc["sequence"]
    assert np.isnan(row["enough"]) and np.isnan(row["sure"])
    assert (row["told"], row["tokens"], row["reached"]) == ("not within 6M", 6_000_000, 0)
    assert (row["share_low"], row["share_high"]) == jeffreys_interval(0, 5)


def test_enough_on_average_is_not_yet_sure():
    rows = study(distil_sequence=([0.7, 1, 1, 1, 1], 1.0, 1.0))
    row = of(rows).loc["sequence"]
    assert (row["enough"], row["sure"], row["reached"], row["n_seeds"]) == (1e6, 3e6, 4, 5)
    assert (row["share_low"], row["share_high"]) == jeffreys_interval(4, 5)
    verdict = judge(rows).set_index("compression").loc["64x2 distil sequence 1M"]
    assert row[["retention", "low", "high"]].tolist() == verdict[["retention", "low", "high"]].tolist()


def test_a_lower_level_is_never_dearer():
    rows = study(distil_sequence=(0.5, 0.75, 0.95))
    enough = [of(rows, level=level).loc["sequence", "enough"] for level in (0.3, 0.6, 0.9, 0.99)]
    assert enough[:3] == [1e6, 3e6, 6e6] and np.isnan(enough[3])


def test_only_teachers_that_have_the_ability_count():
    rows = study(distil_sequence=(1.0,))
    rows.loc[(rows["compression"] == "dense") & (rows["seed"] == 1), "value"] = 0.0
    assert of(rows).loc["sequence", "n_seeds"] == 4
    assert barrier(rows.assign(value=0.0), spent(rows)).empty


def test_answers_are_passed_over():
    rows = study(distil_sequence=(0.5, 0.95))
    answers = rows.assign(metric="answer_given", chance=np.nan)
    pd.testing.assert_frame_equal(of(pd.concat([rows, answers], ignore_index=True)), of(rows))


@pytest.mark.parametrize(("options", "message"), [({"level": 1}, "level lies in (0, 1); got 1"), ({"gate": 0}, "gate lies")])
def test_levels_that_make_no_sense(options, message):
    rows = study(scratch=(1.0,))
    with pytest.raises(LabkitError) as error:
        barrier(rows, spent(rows), **options)
    assert message in str(error.value)


# --- is copying cheaper than learning? ---------------------------------------------------------------------------------


def priced(rows, **options):
    frame = prices(barrier(rows, spent(rows)), **options)
    assert list(frame.columns) == list(columns(PriceRow))
    return frame


@pytest.mark.parametrize(
    ("price", "taught", "alone"),  # a token costs twice as much with a teacher
    [
        ("cheaper", (0.95, 1.0, 1.0), (0.1, 0.5, 0.97)),  # 1.92 M operations, 5.76 M alone
        ("dearer", (0.5, 0.95, 1.0), (0.1, 0.95, 1.0)),  # twice as many
        ("only taught", (0.5, 0.6, 0.95), (0.1, 0.5, 0.6)),
        ("only alone", (0.5, 0.6, 0.7), (0.1, 0.5, 0.97)),
        ("neither", (0.5, 0.6, 0.7), (0.1, 0.5, 0.6)),
    ],
)
def test_every_price_of_an_ability(price, taught, alone):
    row = priced(study(distil_sequence=taught, scratch=alone)).iloc[0]
    assert row["price"] == price and price in PRICES
    for column, doses, factor in (("flops", taught, 2), ("alone", alone, 1)):
        enough = [factor * dose for dose, r in zip(DOSES.values(), doses, strict=True) if r >= 0.9]
        assert row[column] == enough[0] if enough else np.isnan(row[column])


def test_flops_within_the_margin_are_as_dear_and_the_cheapest_way_counts():
    rows = study(distil_sequence=(0.1, 0.2, 0.3), distil_jsd=(0.1, 0.2, 0.95), distil_forward_kl=(0.2, 0.95, 1.0), scratch=(0.1, 0.2, 0.97))
    told = priced(rows).set_index("seen")
    assert told.loc["logits", ["flops", "alone", "price"]].tolist() == [5_760_000, 5_760_000, "as dear"]
    assert told.loc["text", "price"] == "only alone"


def test_a_start_in_the_teachers_weights_is_priced_apart():
    rows = study(distil_jsd=(0.1, 0.2, 0.3), scratch=(0.1, 0.5, 0.97))
    cut = rows[rows["compression"] != "dense"].replace({"64x2 distil jsd 1M": "drop-layers 1 + distil jsd 1M"})
    cut = cut[cut["compression"].str.startswith("drop")].assign(value=1.0)
    alone = cut.assign(compression="drop-layers 1 + train 1M", value=0.0)
    cut = pd.concat([cut, alone])
    told = priced(pd.concat([rows, cut.assign(run=cut["compression"])])).set_index("seen")["price"]
    assert told.to_dict() == {"logits": "only alone", "logits and weights": "cheaper", "weights": "only alone"}


@pytest.mark.parametrize("few", ["distil sequence", "scratch"])
def test_few_seeds_on_either_side_decide_no_price(few):
    rows = study(distil_sequence=(0.95, 1.0, 1.0), scratch=(0.1, 0.5, 0.97))
    rows = rows[~(rows["compression"].str.contains(few) & (rows["seed"] == 4))]
    assert priced(rows)["price"].tolist() == ["undecided"]
    assert priced(rows, min_seeds=4)["price"].tolist() == ["cheaper"]


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        (["cheaper", "only taught"], "from text, yes (1 cheaper, 1 only taught)"),
        (["cheaper", "only taught", "undecided"], "from text, in part: a, b (1 cheaper, 1 only taught, 1 undecided)"),
        (["dearer", "undecided"], "from text, not shown (1 dearer, 1 undecided)"),
        (["dearer", "as dear", "neither"], "from text, no (1 as dear, 1 dearer, 1 neither)"),
        (["cheaper", "only alone", "only taught"], "from text, in part: a, c (1 cheaper, 1 only taught, 1 only alone)"),
        (["undecided"], "from text, nobody can say yet (1 undecided)"),
    ],
)
def test_the_answer_in_a_sentence(listed, said):
    told = answer(pd.DataFrame({"ability": list("abc")[: len(listed)], "seen": "text", "level": 0.8, "price": listed}))
    assert told == f"To have 0.8 of the teacher's ability for fewer FLOPs than from scratch: {said}."


def test_short_of_the_level_on_average_is_not_yet_below_it():
    taught, open_ = (0.95, 1.0, 1.0), (0.1, 0.5, [0.5, 0.9, 1.0, 0.9, 0.9])  # 0.84, its interval holds 0.9
    assert priced(study(distil_sequence=taught, scratch=open_))["price"].tolist() == ["undecided"]
    assert priced(study(distil_sequence=open_, scratch=taught))["price"].tolist() == ["undecided"]
    # A second way that is clearly below does not settle it.
    both = study(distil_jsd=open_, distil_forward_kl=(0.1, 0.2, 0.3), scratch=taught)
    assert priced(both)["price"].tolist() == ["undecided"]


def test_nobody_counted_the_flops():
    rows = study(distil_sequence=(0.95, 1.0, 1.0), scratch=(0.1, 0.5, 0.97))
    assert prices(barrier(rows, None))["price"].tolist() == ["undecided"]


@pytest.mark.parametrize("ask", [lambda rows: barrier(rows, None), inheritance, imitation])
def test_frames_without_columns_are_refused(ask):
    for frame, message in ((pd.DataFrame(), "rows without run, model"), (study(scratch=(1.0,)).assign(chance="low"), "the column chance holds numbers")):
        with pytest.raises(LabkitError, match=message):
            ask(frame)


def test_a_price_is_of_the_level_that_was_asked_for():
    rows = study(distil_sequence=(0.5, 0.75, 0.78), scratch=(0.1, 0.2, 0.3))
    told = {level: prices(barrier(rows, spent(rows), level=level)) for level in (0.7, 0.9)}
    assert [(level, frame["level"].tolist(), frame["price"].tolist()) for level, frame in told.items()] == [
        (0.7, [0.7], ["only taught"]), (0.9, [0.9], ["neither"]),
    ]  # fmt: skip
    assert answer(told[0.7]).startswith("To have 0.7 of")
