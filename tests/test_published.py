import numpy as np
import pytest

from labkit import published
from labkit.emergence import emergence
from labkit.records import ItemRow, columns

NON_EMBEDDING = {  # Table 1 of arXiv 2304.01373
    "70M": 18_915_328,
    "160M": 85_056_000,
    "410M": 302_311_424,
    "1B": 805_736_448,
    "1.4B": 1_208_602_624,
    "2.8B": 2_517_652_480,
    "6.9B": 6_444_163_072,
    "12B": 11_327_027_200,
}


def test_the_table_holds_what_was_published():
    """Figures copied by hand from evals/pythia-v1/pythia-1.4b-deduped/zero-shot/1.4b-deduped_step143000.json."""
    table = published.pythia()
    mine = table[(table["model"] == "pythia-1.4b-deduped") & (table["shots"] == 0)].set_index(["task", "metric"])
    given = {
        ("winogrande", "acc"): (0.5659037095501184, 0.013929882555694046),
        ("sciq", "acc"): (0.865, 0.01081165537241605),
        ("arc_challenge", "acc"): (0.2721843003412969, 0.013006600406423707),
        ("logiqa", "acc"): (0.22119815668202766, 0.016279743532401667),
        ("piqa", "acc"): (0.720348204570185, 0.01047189953030656),
        ("lambada_openai", "acc"): (0.6186687366582573, 0.0067669405969527155),
        ("lambada_openai", "ppl"): (6.106885353215226, 0.1533316616901917),
    }
    for key, expected in given.items():
        assert mine.loc[key, ["value", "stderr"]].to_list() == pytest.approx(expected, rel=5e-4), key


def test_the_table_names_its_source_and_is_complete():
    head = [line for line in published.PYTHIA.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert any("github.com/EleutherAI/pythia" in line and "Apache License 2.0" in line for line in head)
    assert any("arXiv 2304.01373" in line for line in head)
    table = published.pythia()
    counts = table.groupby(["task", "metric"])["params"].nunique()
    arithmetic = counts.index.get_level_values("task").str.startswith("num_arith")
    assert (counts[arithmetic] == 7).all() and (counts[~arithmetic] == 8).all()
    assert not table.drop(columns="chance").isna().any().any()
    assert table["chance"].isna().equals(table["metric"] == "ppl")
    accuracy = table.loc[table["metric"] == "acc", "value"]
    assert accuracy.between(0, 1).all()


def test_rows_have_the_columns_and_the_sizes_of_the_paper():
    rows = published.pythia_rows()
    assert tuple(rows) == columns(ItemRow) and len(rows) == len(published.pythia())
    assert rows.groupby("rung")["params"].unique().map(list).to_dict() == {k: [v] for k, v in NON_EMBEDDING.items()}
    assert not rows.duplicated(["rung", "seed", "ability", "metric"]).any()
    assert set(rows["ability"]) >= {"lambada", "addition", "mmlu", "arc_easy"} and rows["ability"].nunique() == 11
    assert set(rows["seed"]) == {0, 1} and rows.loc[rows["seed"] == 1, "model"].str.endswith("deduped").all()
    assert np.isfinite(rows[["value", "chance"]]).all().all()
    lambada = rows[(rows["rung"] == "1.4B") & (rows["seed"] == 1) & (rows["ability"] == "lambada")]
    values = lambada.set_index("metric")["value"]
    assert values["nll_nats"] == pytest.approx(np.log(6.106885353215226), rel=1e-5)


def test_the_rule_reads_them():
    """LAMBADA grows smoothly, and arithmetic, with one model of each size, is not decided: see the notebook."""
    rows = published.pythia_rows()
    told = emergence(rows[rows["ability"].isin(["lambada", "addition"])]).set_index("ability")
    assert told.loc["lambada", "outcome"] == "smooth"
    assert told.loc["addition", "outcome"] == "undecided"
    assert "1 of the 2 seeds" in told.loc["addition", "reason"]
    addition = rows[rows["ability"] == "addition"].sort_values("params")["value"].to_numpy()
    assert np.diff(addition).max() / np.ptp(addition) == pytest.approx(0.82, abs=0.01)  # one gap holds 82 %
