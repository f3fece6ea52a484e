"""A ladder, trained and written down on a tiny scale: whole or not at all, once, and taken up where it was killed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import filelock
import pytest
import torch

from labkit import forward, schooling, training
from labkit.errors import Failure, LabkitError
from labkit.ladder import Rung, ladder
from labkit.zoo import MANIFEST, artifacts, damaged, load, manifest, sha256

PLAN = schooling.Profile("tiny", (("16x1", 1),), tokens=2000, batch=4, length=48)
NAME = "ladder/16x1/seed-0"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ladder")
    with quick():
        schooling._work(PLAN, folder, "cpu")
        schooling.write_manifest(folder)
    return folder


@contextlib.contextmanager
def quick() -> Iterator[pytest.MonkeyPatch]:
    """No compiling, few scored items, and a worker's settings of torch kept from the other tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward, "compiled", lambda module: module)
        patch.setattr(schooling, "SCORED_ITEMS", 20)
        patch.setattr(torch, "set_num_threads", lambda n: None)
        patch.setattr(torch, "set_flush_denormal", lambda on: None)
        yield patch


def test_a_model_stands_in_its_folder_with_nothing_but_safetensors_and_json(trained):
    assert sorted(p.name for p in (trained / NAME).iterdir()) == ["config.json", "model.safetensors", "training.json"]
    record = json.loads((trained / NAME / "training.json").read_text())
    steps = 2000 // (4 * 48)
    assert (record["rung"], record["seed"], record["params"]) == ("16x1", 0, Rung(16, 1).params)
    assert (record["steps"], record["tokens"]) == (steps, steps * 4 * 48)
    assert record["loss_nats"][-1][0] == steps
    assert {"markov", "recall", "guard"} <= set(record["scores"])
    assert record["provenance"]["config"]["profile"]["name"] == "tiny"


def test_what_was_written_down_loads_and_differs_from_where_it_began(trained):
    assert damaged(trained) == []
    model = load(NAME, folder=trained)
    assert not torch.equal(model.lm_head.weight, Rung(16, 1).build(0).lm_head.weight)
    listed = json.loads((trained / "manifest.json").read_text())
    assert "loss_nats" not in listed["models"][NAME]
    assert listed["files"][f"{NAME}/model.safetensors"] == sha256(trained / NAME / "model.safetensors")
    assert not any(".training" in name for name in listed["files"])


def test_what_is_done_is_not_trained_again(trained, monkeypatch):
    monkeypatch.setattr(schooling, "_train_one", lambda *_: pytest.fail("trained again"))
    before = sha256(trained / NAME / "model.safetensors")
    with quick():
        schooling._work(PLAN, trained, "cpu")
    assert sha256(trained / NAME / "model.safetensors") == before


class Kill(Exception):
    pass


def test_a_killed_worker_and_its_stale_lock_block_nothing(trained, tmp_path):
    """Killed in the middle, then taken up by another: the weights are those of an undisturbed training."""
    (tmp_path / ".training").mkdir()
    (tmp_path / ".training" / "ladder-16x1-seed-0.lock").write_text("4711")
    honest = training.answers_only
    left = iter(range(6))

    def killing(*batch):
        if next(left, None) is None:
            raise Kill
        return honest(*batch)

    with quick() as patch:
        patch.setattr(training, "LOG_EVERY", 2)
        patch.setattr(training, "CHECKPOINT_SECONDS", -1)
        patch.setattr(training.train, "__kwdefaults__", {**training.train.__kwdefaults__, "loss": killing})
        with pytest.raises(Kill):
            schooling._work(PLAN, tmp_path, "cpu")
    assert not (tmp_path / NAME).exists()
    assert list(tmp_path.glob(".training/ladder-16x1-seed-0-*/step-00000006"))
    with quick():
        schooling._work(PLAN, tmp_path, "cpu")
    a, b = (load(str(folder / NAME)).state_dict() for folder in (trained, tmp_path))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-6, msg=name)
    assert sorted(p.name for p in (tmp_path / NAME).iterdir()) == ["config.json", "model.safetensors", "training.json"]


def test_a_job_in_another_workers_hands_is_left_to_it_and_waited_for(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(schooling, "_train_one", lambda *_: pytest.fail("taken from another's hands"))
    (tmp_path / ".training").mkdir()
    waited = []

    def other_finishes(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            shutil.copytree(trained / NAME, tmp_path / NAME)

    monkeypatch.setattr(schooling.time, "sleep", other_finishes)
    with filelock.FileLock(tmp_path / ".training" / "ladder-16x1-seed-0.lock"), quick():
        schooling._work(PLAN, tmp_path, "cpu")
    assert len(waited) == 3


def test_killed_while_it_is_scored_a_model_is_not_trained_again(trained, tmp_path):
    from labkit import evaluation

    with quick() as patch:
        patch.setattr(evaluation, "evaluate", lambda *_, **__: (_ for _ in ()).throw(Kill))
        with pytest.raises(Kill):
            schooling._work(PLAN, tmp_path, "cpu")
    with quick() as patch:
        patch.setattr(training, "train", lambda *_, **__: pytest.fail("trained again"))
        schooling._work(PLAN, tmp_path, "cpu")
    one, other = (json.loads((folder / NAME / "training.json").read_text()) for folder in (trained, tmp_path))
    assert one["loss_nats"] == other["loss_nats"] and one["scores"] == other["scores"]
    assert sorted(p.name for p in (tmp_path / NAME).iterdir()) == ["config.json", "model.safetensors", "training.json"]


def test_a_log_gets_a_line_for_each_model(trained, tmp_path, capsys):
    with quick():
        schooling._work(PLAN, tmp_path, "cpu")
    record = json.loads((tmp_path / NAME / "training.json").read_text())
    begin, end = f"{NAME}: 1,920 tokens in {record['seconds']:,.0f} s, ", f" loss {record['loss_nats'][-1][1]:.3f} nats"
    assert any(line.startswith(begin) and line.endswith(end) for line in capsys.readouterr().err.splitlines())


def test_what_stops_a_worker_is_told_in_words_and_its_trace_is_the_cause(tmp_path, capfd):
    small = schooling.Profile("small", (("16x1", 1),), tokens=10, batch=4)
    message = "got '1 of 1 missing'. a training takes at least one batch of 4 × 48 tokens; got 10"
    with pytest.raises(Failure, match=message) as stopped:
        schooling.train_ladder(small, tmp_path, device="cpu", workers=1)
    assert "in _train_one" in str(stopped.value.__cause__)
    assert capfd.readouterr() == ("", "")


STUCK = """
import signal, sys, time
from labkit import cli, schooling

def stuck(*_):
    print("begun", flush=True)
    time.sleep(600)

schooling._train_one = stuck
schooling.PROFILES = (schooling.Profile("two", (("16x1", 2),), tokens=2000),)
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in a shell's background it would be ignored
    cli.main()
"""


@pytest.mark.parametrize("how", ["Ctrl-C", "kill -9"])
def test_no_worker_outlives_a_ladder_that_is_stopped(tmp_path, how):
    """Reading to the end of what they print takes until the last of them is gone."""
    (tmp_path / "stuck.py").write_text(STUCK)
    command = [sys.executable, "stuck.py", "ladder", "--profile", "two", "--out", "my models", "--workers", "2", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(Path(schooling.__file__).parents[1])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True, **pipes)
    assert [process.stdout.readline() for _ in range(2)] == ["begun\n"] * 2
    if how == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.kill()
    _, told = process.communicate(timeout=120)
    if how == "Ctrl-C":
        assert process.returncode == 130
        assert told.startswith("\nStopped. What is trained is kept; the same command goes on from there:\n  labkit ladder")
        assert told.count("\n") == 3


def test_files_that_are_no_part_of_the_ladder_are_not_listed(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "copy")
    (tmp_path / "copy" / ".training" / "x.json").write_text("{}")
    (tmp_path / "copy" / "notes.txt").write_text("")
    assert set(schooling.write_manifest(tmp_path / "copy")["files"]) == {
        f"{NAME}/{file}" for file in ("config.json", "model.safetensors", "training.json")
    }


def test_the_shipped_manifest_lists_every_shipped_file():
    there = {str(p.relative_to(artifacts())) for p in artifacts().rglob("*") if p.is_file() and p.parent.name != "locks"}
    assert there == {MANIFEST, *manifest()["files"]}


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "ladder"
    with pytest.raises(LabkitError, match=f"for the ladder can be written; got '{out} \\(Not a directory\\)'"):
        schooling.train_ladder(PLAN, out, device="cpu", workers=1)


def test_no_workers(tmp_path):
    with pytest.raises(LabkitError, match="at least one worker is needed; got 0. Give --workers 1"):
        schooling.train_ladder(PLAN, tmp_path, device="cpu", workers=0)


def test_an_unknown_profile():
    with pytest.raises(LabkitError, match="a known profile is needed; got 'gpu'.*All: cpu, t4, h100"):
        schooling.profile("gpu")


def test_the_profile_that_is_shipped_has_the_ladders_rungs_on_at_least_three_seeds():
    cpu = schooling.profile("cpu")
    assert {name for name, _ in cpu.rungs} == {rung.name for rung in ladder()}
    assert min(seeds for _, seeds in cpu.rungs) >= 3


def test_first_seeds_come_first():
    plan = schooling.Profile("x", (("16x1", 1), ("32x1", 3)), tokens=1)
    assert [(rung.name, seed) for rung, seed in plan.jobs()] == [("16x1", 0), ("32x1", 0), ("32x1", 1), ("32x1", 2)]


def test_a_folder_holds_one_profile(trained):
    with pytest.raises(LabkitError, match="a folder holds the models of one profile; got '.*models of tiny: 2,000 tokens each"):
        schooling.train_ladder(dataclasses.replace(PLAN, name="large", tokens=4000), trained, device="cpu", workers=1)


def test_what_another_profile_left_is_not_taken_over(trained, tmp_path):
    from labkit import evaluation

    larger = dataclasses.replace(PLAN, name="larger", tokens=4000)
    with quick() as patch:
        patch.setattr(evaluation, "evaluate", lambda *_, **__: (_ for _ in ()).throw(Kill))
        with pytest.raises(Kill):
            schooling._work(PLAN, tmp_path, "cpu")
    with quick():
        schooling._work(larger, tmp_path, "cpu")
    record = json.loads((tmp_path / NAME / "training.json").read_text())
    assert record["tokens"] == 4000 // (4 * 48) * 4 * 48
    other = dataclasses.replace(PLAN, rungs=(("32x1", 1),))  # none of whose models is there
    with pytest.raises(LabkitError, match="a folder holds the models of one profile"):
        schooling.train_ladder(other, tmp_path, device="cpu", workers=1)


def test_killed_while_it_is_given_its_name_a_model_is_there(trained, tmp_path):
    partial = tmp_path / ".training" / f"{NAME.replace('/', '-')}-{PLAN.tokens}-{PLAN.batch}-{PLAN.length}"
    shutil.copytree(trained / NAME, partial)
    with quick() as patch:
        patch.setattr(training, "train", lambda *_, **__: pytest.fail("trained again"))
        schooling._work(PLAN, tmp_path, "cpu")
    assert (tmp_path / NAME / "training.json").read_text() == (trained / NAME / "training.json").read_text()
