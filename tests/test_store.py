import dataclasses
import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from labkit import store as module
from labkit.errors import Failure, LabkitError
from labkit.places import STALE_S
from labkit.records import ItemRow, columns
from labkit.store import SCHEMA, Store, provenance

ALWAYS = ["run", "commit", "dirty", "versions", "device", "config", "artifacts", "wall_s"]


def rows(run, items=50, ability="recall"):
    row = ItemRow(run, "ladder/64x2/seed-0", "64x2", 99_000, 0, "wanda", 0.5, ability, "exact_match", 0, 0.0, 0.1)
    values = np.random.default_rng(0).random(items)
    return pd.DataFrame({**dataclasses.asdict(row), "item": np.arange(items), "value": values})


def kept(**extra):
    return {**provenance({"study": "quick"}, {"ladder/64x2/seed-0": "ab12"}, 1.5, "cpu"), **extra}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store", create=True)


def contents(folder):
    """Every file by name and content, locks aside: what must not change when a write fails."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# -- the folder --------------------------------------------------------------------------------------------------------


def test_a_store_is_made_once_and_opened_again(tmp_path):
    Store(tmp_path / "a" / "b", create=True).write("r", rows("r"), kept())
    assert Store(tmp_path / "a" / "b", create=True).runs() == Store(tmp_path / "a" / "b").runs() == ("r",)
    assert repr(Store(tmp_path / "a" / "b")).endswith("b', 1 runs)")


def test_an_empty_folder_becomes_one_also_after_a_kill_in_between(tmp_path):
    (tmp_path / ".part-left-by-a-kill").touch()
    assert Store(tmp_path, create=True).runs() == ()


def test_a_folder_that_is_not_a_store_is_refused_and_left_alone(tmp_path):
    with pytest.raises(LabkitError, match="a store is a folder with store.json; got .*nowhere'. Name the folder"):
        Store(tmp_path / "nowhere")
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(LabkitError, match="a store is a folder with store.json"):
        Store(tmp_path)
    with pytest.raises(LabkitError, match="a new store needs an empty folder"):
        Store(tmp_path, create=True)
    assert contents(tmp_path) == {"thesis.txt": b"mine"}


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LabkitError, match="write to .*file/store; got 'Not a directory'. Choose a folder you may"):
        Store(tmp_path / "file" / "store", create=True)


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "../r", "a/b", "a.b"])
def test_run_names_stay_inside_of_the_folder(store, name):
    with pytest.raises(LabkitError, match="a run is named by letters, digits, - and _"):
        store.has(name)


# -- round trips -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [lambda frame: frame, lambda frame: {name: list(frame[name]) for name in frame}])
def test_rows_come_back_exactly(store, form):
    assert store.write("r", form(rows("r")), kept())
    assert store.has("r") and not store.has("other")
    pd.testing.assert_frame_equal(store.frame(), rows("r"))


def test_order_does_not_depend_on_when_rows_were_written(tmp_path):
    one, other = Store(tmp_path / "one", create=True), Store(tmp_path / "other", create=True)
    for run in ("a", "b"):
        one.write(run, rows(run), kept())
    for run in ("b", "a"):
        other.write(run, rows(run).sample(frac=1, random_state=0), kept())
    pd.testing.assert_frame_equal(one.frame(), other.frame())


def test_an_empty_store_has_the_columns(store):
    assert list(store.frame().columns) == list(columns(ItemRow)) and store.frame().empty
    assert list(store.provenance().columns) == ALWAYS and store.provenance().empty


def test_the_schema_is_the_row_type():
    assert SCHEMA.names == list(columns(ItemRow))
    assert [str(SCHEMA.field(name).type) for name in ("run", "seed", "value")] == ["string", "int64", "double"]


def test_values_that_are_not_numbers_come_back_as_such(store):
    store.write("r", rows("r", 3).assign(value=[0.5, np.nan, np.inf]), kept())
    np.testing.assert_array_equal(store.frame()["value"], [0.5, np.nan, np.inf])


def test_sql_and_where(store):
    store.write("a", rows("a", ability="facts"), kept())
    store.write("b", rows("b"), kept())
    counts = store.sql("SELECT ability, count(*) AS n FROM rows GROUP BY ALL ORDER BY ability")
    assert counts.to_dict("list") == {"ability": ["facts", "recall"], "n": [50, 50]}
    pd.testing.assert_frame_equal(store.frame("run = 'b'"), rows("b"))


def test_sql_that_is_none(store):
    with pytest.raises(LabkitError, match="a query is DuckDB SQL over `rows`; got 'SELECT nothing FROM rows'"):
        store.sql("SELECT nothing FROM rows")


# -- bad rows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda frame: frame.drop(columns=["metric", "item"]), "rows without metric, item"),
        (lambda frame: frame.assign(item=0.5), "rows have the types of ItemRow"),
        (lambda frame: frame.assign(rung=None), "nulls among the rows"),
        (lambda frame: frame.assign(run="other"), "rows of run r carry its name; got 'other'"),
        (lambda frame: {**frame, "item": [1, 2]}, "rows have the types of ItemRow"),
    ],
)
def test_bad_rows_are_refused_and_nothing_is_written(store, bad, message):
    before = contents(store.path)
    with pytest.raises(LabkitError, match=message):
        store.write("r", bad(rows("r")), kept())
    assert contents(store.path) == before


def test_provenance_that_is_not_json(store):
    with pytest.raises(LabkitError, match="provenance is JSON; got 'r'. .*not JSON serializable"):
        store.write("r", rows("r"), {"device": object()})


# -- whole or not at all -----------------------------------------------------------------------------------------------


def test_the_first_write_stays(store):
    assert store.write("r", rows("r"), kept()) is True
    before = contents(store.path)
    assert store.write("r", rows("r").assign(value=0.0), kept()) is False
    assert contents(store.path) == before


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP])
def test_a_drive_without_hard_links(store, monkeypatch, number):
    def link(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    assert store.write("r", rows("r"), kept()) is True
    before = contents(store.path)
    assert store.write("r", rows("r").assign(value=0.0), kept()) is False
    assert contents(store.path) == before


@pytest.mark.parametrize("step", ["fsync", "link"])
@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        (errno.ENOSPC, Failure, "No space left on device'. Free some space or choose another folder"),
        (errno.EACCES, LabkitError, "Permission denied'. Choose a folder you may write to."),
        (errno.EROFS, LabkitError, "Read-only file system'. Choose a folder you may write to."),
    ],
)
def test_a_disk_that_refuses_leaves_everything_as_it_was(store, monkeypatch, step, number, kind, message):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    store.write("first", rows("first"), kept())
    before = contents(store.path)
    monkeypatch.setattr(os, step, refuse)
    with pytest.raises(LabkitError, match=message) as error:
        store.write("r", rows("r"), kept())
    assert type(error.value) is kind and contents(store.path) == before


def test_a_full_disk_for_real(store):
    """The limit on a file's size stands in for the disk: the kernel itself cuts the write short."""
    script = (
        "import resource, signal, sys; sys.path.insert(0, sys.argv[2]); import test_store as t;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        "t.Store(sys.argv[1]).write('r', t.rows('r', 5000), t.kept())"
    )
    command = [sys.executable, "-c", script, store.path, os.path.dirname(__file__)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "LabkitError" in done.stderr and "File too large" in done.stderr
    assert contents(store.path).keys() == {"store.json"}


def _die_before_linking(path):
    os.link = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    Store(path).write("r", rows("r"), kept())


def _write_many(path, barrier, answers):
    barrier.wait()
    answers.put([Store(path).write(f"r{number}", rows(f"r{number}"), kept()) for number in range(20)])


def _claim_and_wait(path, claimed):
    with Store(path).claim("r") as mine:
        claimed.put(mine)
        time.sleep(60)


def _create(path, barrier, answers):
    barrier.wait()
    for number in range(50):
        Store(path / str(number), create=True)
    answers.put(True)


def process(target, *arguments):
    child = multiprocessing.get_context("fork").Process(target=target, args=arguments, daemon=True)
    child.start()
    return child


def test_a_writer_killed_before_the_last_step_leaves_no_rows(store):
    child = process(_die_before_linking, store.path)
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    (left,) = (store.path / "rows").iterdir()
    assert store.runs() == () and store.frame().empty and store.provenance().empty
    assert store.write("r", rows("r"), kept())
    assert left.exists(), "it might be another process's work"
    os.utime(left, (0, time.time() - 2 * STALE_S))
    assert store.write("r2", rows("r2"), kept())
    assert sorted(p.name for p in (store.path / "rows").iterdir()) == ["r.parquet", "r2.parquet"]


def test_two_writers_of_the_same_runs_make_each_part_once(store):
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(2), context.Queue()
    children = [process(_write_many, store.path, barrier, answers) for _ in range(2)]
    one, other = (answers.get(timeout=60) for _ in children)
    assert all(a != b for a, b in zip(one, other, strict=True))
    assert len(store.frame()) == 20 * 50
    assert all(p.suffix == ".parquet" for p in (store.path / "rows").iterdir())


def test_two_processes_may_make_the_same_store(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(2), context.Queue()
    children = [process(_create, tmp_path, barrier, answers) for _ in range(2)]
    assert all(answers.get(timeout=60) for _ in children)
    assert all(os.listdir(tmp_path / str(number)) == ["store.json"] for number in range(50))


def test_claims_exclude_one_another(store):
    with store.claim("r") as mine, Store(store.path).claim("r") as also, store.claim("other") as free:
        assert (mine, also, free) == (True, False, True)
    with store.claim("r") as again:
        assert again is True


def test_a_claim_outlives_neither_an_error_nor_the_process(store):
    with pytest.raises(KeyError), store.claim("r"):
        raise KeyError
    claimed = multiprocessing.get_context("fork").Queue()
    child = process(_claim_and_wait, store.path, claimed)
    assert claimed.get(timeout=60) is True
    with store.claim("r") as mine:
        assert mine is False
    child.kill()
    child.join(60)
    with store.claim("r") as mine:
        assert mine is True


# -- at a URL ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def remote():
    yield Store("memory://labkit-test-store/a/b", create=True)
    import fsspec

    fsspec.filesystem("memory").rm("/labkit-test-store", recursive=True)


def test_a_store_at_a_url_keeps_the_same_rows(store, remote):
    for each in (store, remote):
        assert each.write("r", rows("r"), kept(note="x")) and each.write("q", rows("q"), kept(note="x"))
        assert not each.write("r", rows("r").assign(value=0.0), kept())
    again = Store("memory://labkit-test-store/a/b")
    assert again.runs() == store.runs() == ("q", "r") and again.has("r") and not again.has("s")
    pd.testing.assert_frame_equal(again.frame(), store.frame())
    assert list(again.provenance()["note"]) == ["x", "x"]
    kept_here = pq.read_table(store.path / "rows" / "r.parquet")
    assert pq.read_table(pa.BufferReader(remote.export("r"))).equals(kept_here)  # the time written may be another
    with again.claim("r") as mine, remote.claim("r") as also:
        assert mine and also, "there are no locks at a URL"


def test_a_url_that_is_no_store_or_holds_something_else(remote):
    with pytest.raises(LabkitError, match="a store is a folder with store.json; got 'memory://labkit-test-store/other'"):
        Store("memory://labkit-test-store/other")
    with pytest.raises(LabkitError, match="a new store needs an empty folder"):
        Store("memory://labkit-test-store", create=True)
    with pytest.raises(LabkitError, match="a URL has a protocol that fsspec opens; got 's4://x'. Write e.g. s3://bucket"):
        Store("s4://x", create=True)


def test_a_file_url_is_a_folder_of_this_machine(store):
    assert Store(f"file://{store.path}").path == store.path


def test_a_part_is_adopted_whole_by_its_own_name_and_once(store, tmp_path):
    store.write("r", rows("r"), kept())
    part, other = store.export("r"), Store(tmp_path / "other", create=True)
    for bad, message in ((part[:-9], "a part is a whole Parquet file"), (b"", "a part is a whole Parquet file")):
        with pytest.raises(LabkitError, match=message):
            other.adopt("r", bad)
    with pytest.raises(LabkitError, match="rows of run q carry its name; got 'r'"):
        other.adopt("q", part)
    assert other.runs() == () and other.adopt("r", part) and not other.adopt("r", part)
    pd.testing.assert_frame_equal(other.frame(), store.frame())


# -- corrupted parts ---------------------------------------------------------------------------------------------------


def cut(data):
    return data[: len(data) // 2]


@pytest.mark.parametrize("damage", [cut, lambda data: b"", lambda data: b"PAR1" + bytes(100) + b"PAR1"])
@pytest.mark.parametrize("read", [Store.frame, Store.provenance])
def test_a_corrupted_part_is_named(store, damage, read):
    store.write("good", rows("good"), kept())
    store.write("bad", rows("bad"), kept())
    part = store.path / "rows" / "bad.parquet"
    part.write_bytes(damage(part.read_bytes()))
    with pytest.raises(LabkitError, match="a part is a whole Parquet file .*rows/bad.parquet'. Delete it and run"):
        read(store)
    part.unlink()
    assert store.write("bad", rows("bad"), kept()) and len(store.frame()) == 100


def test_one_flipped_bit_among_the_rows_is_noticed(store):
    store.write("r", rows("r"), kept())
    part = store.path / "rows" / "r.parquet"
    whole = part.read_bytes()
    columns = pq.ParquetFile(part).metadata.row_group(0)
    values = next(c for c in map(columns.column, range(columns.num_columns)) if c.path_in_schema == "value")
    middle = values.data_page_offset + values.total_compressed_size // 2
    part.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(LabkitError, match="rows/r.parquet'. Delete it and run again"):
        store.frame()


def test_a_stranger_among_the_parts_is_named(store):
    (store.path / "rows").mkdir()
    rows("r").astype({"params": float}).to_parquet(store.path / "rows" / "stranger.parquet")
    with pytest.raises(LabkitError, match="stranger.parquet'. .*its columns are not those of ItemRow"):
        store.frame()
    with pytest.raises(LabkitError, match="stranger.parquet'"):
        store.provenance()


# -- provenance --------------------------------------------------------------------------------------------------------


def test_provenance_has_a_row_for_each_run(store):
    store.write("b", rows("b"), kept(note="second"))
    store.write("a", rows("a"), {"wall_s": 2.0})
    frame = store.provenance()
    assert list(frame.columns[:8]) == ALWAYS and {"platform", "cpu", "utc", "note"} <= set(frame.columns)
    assert list(frame["run"]) == ["a", "b"] and list(frame["wall_s"]) == [2.0, 1.5]
    assert frame["config"][1] == {"study": "quick"} and frame["artifacts"][1] == {"ladder/64x2/seed-0": "ab12"}


def test_versions_are_those_imported_and_all_of_it_is_json():
    found = kept()
    assert json.loads(json.dumps(found)) == found
    assert found["versions"]["numpy"] == np.__version__ and found["versions"]["pandas"] == pd.__version__
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))


def test_commit_and_dirty_flag_of_a_checkout(tmp_path, monkeypatch):
    def git(*arguments):
        command = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@e.org", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    source = tmp_path / "store.py"
    source.touch()
    monkeypatch.setattr(module, "__file__", str(source))
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as inside a hook
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert (kept()["commit"], kept()["dirty"]) == (None, None)
    monkeypatch.delenv("GIT_DIR")
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "without us")
    assert (kept()["commit"], kept()["dirty"]) == (None, None)
    git("add", ".")
    git("commit", "-q", "-m", "with us")
    assert (kept()["commit"], kept()["dirty"]) == (git("rev-parse", "HEAD"), False)
    source.write_text("changed")
    assert kept()["dirty"] is True
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (kept()["commit"], kept()["dirty"]) == (None, None)


@pytest.mark.parametrize("marker", ['{"format": "labkit store", "version": 2}', "[]", "garbage"])
def test_a_store_of_another_version_is_not_read_and_nobody_is_told_to_delete_it(store, marker):
    (store.path / "store.json").write_text(marker)
    with pytest.raises(LabkitError) as error:
        Store(store.path)
    assert "store" in str(error.value) and "elete" not in str(error.value)


@pytest.mark.parametrize("cause", [PermissionError(errno.EACCES, "Permission denied"), UnicodeEncodeError("ascii", "é", 0, 1, "no")])
def test_a_part_that_cannot_be_read_is_not_called_damaged(store, monkeypatch, cause):
    store.write("r", rows("r"), kept())
    monkeypatch.setattr(module.pq, "ParquetFile", lambda *_, **__: (_ for _ in ()).throw(cause))
    with pytest.raises(LabkitError, match="a part of a store can be read") as error:
        store.frame()
    assert "elete" not in str(error.value)


def test_a_frame_is_what_duckdb_answers_to_the_same_question(store):
    for run in ("a", "b"):
        store.write(run, rows(run), kept())
    query = f"SELECT {', '.join(columns(ItemRow))} FROM rows WHERE item < 7 ORDER BY ALL"
    pd.testing.assert_frame_equal(store.frame("item < 7"), store.sql(query))


def test_an_answer_that_is_too_large_is_no_fault_of_the_query(store):
    store.write("r", rows("r"), kept())
    with pytest.raises(Failure, match="the answer to a query fits into memory"):
        store._ask("", lambda connection: connection.execute("SET memory_limit = '1MB'").execute(
            "SELECT a.item FROM rows a, rows b, rows c, rows d ORDER BY ALL").df())  # fmt: skip


def test_a_url_may_hold_what_is_a_pattern_elsewhere():
    store = Store("memory://labkit-test-store-a[1]/c", create=True)
    store.write("r", rows("r"), kept())
    assert store.runs() == ("r",) and len(store.frame()) == 50


def test_a_frame_can_be_written_to(store):
    store.write("r", rows("r"), kept())
    frame = store.frame()
    frame.loc[frame["item"] > 3, "value"] = 0.0
    assert frame["value"].iloc[-1] == 0
