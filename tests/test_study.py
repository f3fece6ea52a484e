"""A grid is measured once, whole, and the same however often it was interrupted."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from labkit.addresses import code_hash
from labkit.errors import LabkitError
from labkit.pairs import Pair
from labkit.records import ItemRow, columns
from labkit.store import Store
from labkit.study import MEASURING, STUDIES, TABLES, Study, studies

TINY = """
question = "Does it run?"
models = ["ladder/16x1/seed-0", "ladder/16x1/seed-1"]
compress = ["ladder/16x1/seed-0"]
abilities = ["recall", "facts"]
items = 20

[[compression]]
prune = { criterion = "wanda", sparsity = 0.5 }

[[compression]]
prune = { criterion = "magnitude", pattern = "2:4" }
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "tiny.toml").write_text(TINY)
    return Study.load(folder / "tiny.toml").run(folder / "rows", progress=False).frame()


def start(study: Path, out: Path) -> subprocess.Popen:
    code = "import sys; from labkit.study import Study; Study.load(sys.argv[1]).run(sys.argv[2], progress=False)"
    return subprocess.Popen([sys.executable, "-c", code, str(study), str(out)])


def assert_same_rows(left: pd.DataFrame, right: pd.DataFrame) -> None:
    """All equal but for rounding: it differs between processes, and may turn a tie between two weights to be pruned."""
    exact = [name for name in left.columns if name != "value"]
    pd.testing.assert_frame_equal(left[exact], right[exact])
    np.testing.assert_allclose(left["value"], right["value"], rtol=0, atol=1e-3)


def test_grid_is_dense_models_and_compressed_ones(undisturbed):
    assert tuple(undisturbed.columns) == columns(ItemRow)
    conditions = set(undisturbed[["model", "compression", "sparsity"]].itertuples(index=False, name=None))
    assert conditions == {
        ("ladder/16x1/seed-0", "dense", 0.0),
        ("ladder/16x1/seed-1", "dense", 0.0),
        ("ladder/16x1/seed-0", "wanda", 0.5),
        ("ladder/16x1/seed-0", "magnitude 2:4", 0.5),
    }
    assert set(undisturbed["rung"]) == {"16x1"} and set(undisturbed["seed"]) == {0, 1}
    # every run asks every ability the same items under every metric
    assert (undisturbed.groupby(["run", "ability", "metric"])["item"].nunique() == 20).all()
    assert not undisturbed.duplicated(["run", "ability", "metric", "item"]).any()


def test_second_run_measures_nothing(tiny, tmp_path, undisturbed, monkeypatch):
    Study.load(tiny).run(tmp_path / "rows", progress=False)
    monkeypatch.setattr(Study, "measure", lambda *_: pytest.fail("measured again"))
    again = Study.load(tiny).run(tmp_path / "rows", progress=False)
    assert_same_rows(again.frame(), undisturbed)


def test_runs_measured_otherwise_are_not_mixed_in(tiny, tmp_path, monkeypatch):
    rows = Study.load(tiny).run(tmp_path / "rows", progress=False).frame()
    monkeypatch.setattr("labkit.study.code_hash", lambda *modules: "of another version")
    with pytest.raises(LabkitError) as error:
        Study.load(tiny).run(tmp_path / "rows", progress=False)
    assert "each run of a study once" in str(error.value) and "was measured with other code of labkit'" in str(error.value)
    tiny.write_text(TINY.replace("seed-1", "seed-2").partition("[[")[0].replace('compress = ["ladder/16x1/seed-0"]', ""))
    monkeypatch.undo()
    more = Study.load(tiny).run(tmp_path / "rows", progress=False).frame()  # another study may add other runs
    assert set(more["run"]) > set(rows["run"])


def test_killed_run_is_completed_to_the_same_rows(tiny, tmp_path, undisturbed):
    out = tmp_path / "rows"
    process = start(tiny, out)
    while process.poll() is None and not list(out.glob("rows/*.parquet")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    store = Study.load(tiny).run(out, progress=False)
    assert_same_rows(store.frame(), undisturbed)


def test_two_processes_share_one_folder(tiny, tmp_path, undisturbed):
    crew = [start(tiny, tmp_path / "rows") for _ in range(2)]
    assert [process.wait() for process in crew] == [0, 0]
    store = Study.load(tiny).run(tmp_path / "rows", progress=False)
    assert_same_rows(store.frame(), undisturbed)


def test_provenance_names_commit_config_and_checksum(tiny, tmp_path):
    store = Study.load(tiny).run(tmp_path / "rows", progress=False)
    traced = store.provenance()
    assert len(traced) == 4
    for _, row in traced.iterrows():
        assert row["config"]["items"] == 20 and row["config"]["seed"] == 0
        assert row["artifacts"] == {row["config"]["model"]: row["config"]["weights"]}
        assert row["wall_s"] > 0 and row["versions"]["torch"]


def test_a_local_folder_is_a_rung_of_its_own(tmp_path):
    from labkit.zoo import load

    load("ladder/16x1/seed-0").save_pretrained(tmp_path / "mine")
    study = Study("own", "?", (str(tmp_path / "mine"),), abilities=("facts",), items=5)
    frame = study.run(tmp_path / "rows", progress=False).frame()
    assert set(frame["rung"]) == {"mine"} and set(frame["seed"]) == {0}


def test_a_corrected_ability_has_an_address_of_its_own(tiny, monkeypatch):
    study = Study.load(tiny)
    dense, pruned = (study._config("ladder/16x1/seed-0", one, "") for one in (None, study.compressions[0]))
    assert dense["code"] == code_hash(*MEASURING) != pruned["code"]


def test_the_shipped_studies_load():
    assert "quick" in studies()
    for name in studies():
        assert Study.load(name).jobs()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("items = 20", "items = 0"), "at least one item per ability; got 0"),
        (("items = 20", "itens = 20"), "known key of a study is needed; got 'itens'. Nearest: items"),
        (('"facts"', '"fact"'), "known ability is needed; got 'fact'. Nearest: facts"),
        (('"wanda"', '"wonda"'), "known criterion is needed; got 'wonda'. Nearest: wanda"),
        (("sparsity = 0.5", "sparsity = 1.5"), "sparsity"),
        (('"2:4"', '"4:2"'), "pattern"),
        (("sparsity = 0.5", "sparcity = 0.5"), "known argument of prune is needed; got 'sparcity'. Nearest: sparsity"),
        (("prune = ", "prone = "), "known verb of a compression is needed; got 'prone'. Nearest: prune"),
        (("items = 20", "items = "), "a study is a TOML file"),
        (('question = "Does it run?"', ""), "a study names question"),
        (('["recall", "facts"]', '"recall"'), 'abilities of a study is a list of texts, e.g. ["…"]; got \'recall\'. Mend abilities'),
        (("items = 20", 'items = "many"'), "items of a study is a whole number; got 'many'. Mend items in "),
        (("items = 20", "items = true"), "items of a study is a whole number; got True"),
        (('question = "Does it run?"', "question = 3"), "question of a study is a text"),
        (("sparsity = 0.5", 'sparsity = "half"'), "tiny.toml, compression 1."),
        (('"2:4"', '"4:2"'), "tiny.toml, compression 2."),
        (('prune = { criterion = "wanda", sparsity = 0.5 }', "train = { student = 64, tokens = 9 }"), "compression 1."),
    ],
)
def test_a_bad_file_says_what_is_wrong(tiny, change, message):
    tiny.write_text(TINY.replace(*change))
    with pytest.raises(LabkitError) as error:
        Study.load(tiny)
    assert message in str(error.value)


def test_unknown_study_and_model():
    with pytest.raises(LabkitError, match="got 'quik'. Nearest: quick. All: .*quick"):
        Study.load("quik")
    with pytest.raises(LabkitError, match="got 'ladder/16x2/seed-0'. Nearest: .*ladder/16x1/seed-0.* All: "):
        Study("s", "?", ("ladder/16x2/seed-0",)).jobs()


def test_a_folder_of_something_else_stays_as_it_was(tiny, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(LabkitError, match="empty folder"):
        Study.load(tiny).run(tmp_path, progress=False)
    assert (tmp_path / "thesis.txt").read_text() == "precious" and not (tmp_path / "rows").exists()


def test_calibration_rows_are_unpadded_and_apart_from_training():
    from labkit.abilities import corpus

    rows = corpus(0).calibration(256)
    assert rows.shape == (256, 48) and (rows > 0).all()
    shown = {row.tobytes() for row in corpus(0).rows(np.arange(20_000))[0]}
    assert sum(row.tobytes() in shown for row in rows) == 0


DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_of_keys_has_all_of_them_and_links_to_every_study():
    page = (DOCS / "studies.md").read_text(encoding="utf-8")
    keys = re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE)
    fields = {field.name for field in dataclasses.fields(Study)}
    assert sorted(keys) == sorted(fields - set(TABLES.values()) | set(TABLES))
    linked = [DOCS / path for path in re.findall(r"\]\(([^)]+\.toml)\)", page)]
    files = [*(DOCS / "examples").glob("*.toml"), *STUDIES.glob("*.toml")]
    assert sorted(path.resolve() for path in linked) == sorted(path.resolve() for path in files)


def test_the_example_of_a_model_of_words_loads():
    study = Study.load(DOCS / "examples" / "own-model.toml")
    assert [compression.name for compression in study.compressions][:2] == ["magnitude", "wanda"]
    assert len(study.compressions) == 4 and study.text.file == str(DOCS / "examples" / "my-text.txt")


def test_a_folder_of_other_items_is_refused_before_anything_is_measured(tiny, tmp_path):
    Study.load(tiny).run(tmp_path / "rows", progress=False)
    study = dataclasses.replace(Study.load(tiny), models=("ladder/16x1/seed-2",), compress=(), compressions=())
    before = study.run(tmp_path / "rows", progress=False).runs()  # another model, asked the same
    for named, value in (("items", 30), ("seed", 3)):
        changed = dataclasses.replace(study, models=("ladder/32x1/seed-0",), **{named: value})
        with pytest.raises(LabkitError, match=f"was measured with other {named}'"):
            changed.run(tmp_path / "rows", progress=False)
        assert Store(tmp_path / "rows").runs() == before


def test_the_question_in_the_folder_is_the_one_asked_last(tiny, tmp_path):
    Study.load(tiny).run(tmp_path / "rows", progress=False)
    tiny.write_text(TINY.replace("Does it run?", "Does it run on?"))
    Study.load(tiny).run(tmp_path / "rows", progress=False)
    assert json.loads((tmp_path / "rows" / "study.json").read_text())["question"] == "Does it run on?"


def test_the_weights_of_a_model_are_read_once_for_all_its_runs(tiny, monkeypatch):
    asked = []
    monkeypatch.setattr("labkit.study.weights_id", lambda name: asked.append(name) or name)
    assert len(Study.load(tiny).runs()) == 4 and asked == ["ladder/16x1/seed-0", "ladder/16x1/seed-1"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('compress = ["ladder/16x1/seed-0"]', "", "a study names the models that it compresses; got 'tiny'"),
        ("items = 20", 'metrics = ["answer_givn"]', "a known metric is needed; got 'answer_givn'. Nearest: answer_given"),
        ("sparsity = 0.5", "sparsity = []", "a list of a compression holds values; got 'prune sparsity = \\[]'"),
    ],
)
def test_a_study_that_cannot_be_measured_does_not_load(tiny, old, new, message):
    tiny.write_text(TINY.replace(old, new))
    with pytest.raises(LabkitError, match=message):
        Study.load(tiny)


def test_a_dtype_is_looked_at_before_a_folder_is_made(tiny, tmp_path):
    with pytest.raises(LabkitError, match="a known dtype is needed; got 'float23'"):
        dataclasses.replace(Study.load(tiny), loading={"dtype": "float23"}).run(tmp_path / "rows")
    assert not (tmp_path / "rows").exists()


@pytest.mark.parametrize("pair", [Pair("ladder/32x1/seed-0", "ladder/16x1/seed-0", "b"), Pair("ladder/32x2/seed-0", "ladder/16x1/seed-0", "a")])
def test_rows_of_a_pair_are_of_this_pair(tmp_path, pair):
    """What is written in the rows of the smaller model is part of their address: another word, or another dense model."""
    study = Study("s", "?", abilities=("facts",), items=5, pairs=(Pair("ladder/32x1/seed-0", "ladder/16x1/seed-0", "a"),))
    study.run(tmp_path / "rows", progress=False)
    with pytest.raises(LabkitError, match="was measured with other pair'"):
        dataclasses.replace(study, pairs=(pair,)).run(tmp_path / "rows", progress=False)
    with pytest.raises(LabkitError, match="was measured with other pair'"):
        dataclasses.replace(study, pairs=(), models=("ladder/16x1/seed-0",)).run(tmp_path / "rows", progress=False)


def test_a_mark_of_the_byte_order_is_no_part_of_a_file(tiny):
    tiny.write_text("\ufeff" + TINY, encoding="utf-8")
    assert Study.load(tiny).question == "Does it run?"
