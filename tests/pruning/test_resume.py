"""A job that is killed and taken up again ends with the model it would have ended with."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from labkit.errors import LabkitError
from labkit.ladder import Rung
from labkit.pruning import CRITERIA, Options, engine, prune, prune_gradually

TOKENS = torch.randint(1, 168, (6, 12), generator=torch.Generator().manual_seed(0))
MODEL = Rung(32, 3).build().eval()


class Killed(Exception):
    pass


def same(a, b) -> bool:
    return all(torch.equal(tensor, b.state_dict()[name]) for name, tensor in a.state_dict().items())


@pytest.mark.filterwarnings("ignore:.*have lost all their weights")
@pytest.mark.parametrize("propagate", [True, False])
@pytest.mark.parametrize("after", [0, 1, 2])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_killed_run_goes_on_to_the_identical_model(criterion, after, propagate, tmp_path, monkeypatch):
    alone = {"calibration": TOKENS, "options": Options(propagate=propagate)}
    kept = {"calibration": TOKENS, "options": Options(propagate=propagate, folder=tmp_path)}
    save, load, calls = engine.Progress.save, engine.Progress.load, []

    def saves(self, number, *rest):
        if number == after:
            raise Killed
        save(self, number, *rest)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(engine.Progress, "save", saves)
        prune(MODEL, criterion, 0.5, **kept)
    monkeypatch.setattr(engine.Progress, "load", lambda self, n, *rest: (calls.append(n), load(self, n, *rest)))
    resumed = prune(MODEL, criterion, 0.5, **kept)
    assert calls == list(range(after))
    assert same(resumed, prune(MODEL, criterion, 0.5, **alone))
    assert same(resumed, prune(MODEL, criterion, 0.5, **kept))
    assert calls[after:] == [0, 1, 2]


def test_a_job_that_is_done_computes_and_writes_nothing(tmp_path, monkeypatch):
    kept = {"calibration": TOKENS, "options": Options(folder=tmp_path)}
    done = prune(MODEL, "wanda", 0.5, **kept)
    monkeypatch.setattr(engine.streaming, "_Stream", None)
    monkeypatch.setattr(engine.Progress, "_write", None)
    assert same(prune(MODEL, "wanda", 0.5, **kept), done)


def test_a_file_cut_off_in_the_middle_is_not_taken_for_a_block(tmp_path):
    prune(MODEL, "magnitude", 0.5, options=Options(folder=tmp_path))
    whole = tmp_path / "block-0001.safetensors"
    whole.rename(tmp_path / "block-0001.safetensors.part")
    assert same(prune(MODEL, "magnitude", 0.5, options=Options(folder=tmp_path)), prune(MODEL, "magnitude", 0.5))
    assert whole.exists()


@pytest.mark.parametrize("text", ["", "[1]", "[[1, 2]]", "null", '{"criterion": "mag'])
def test_a_damaged_description_of_a_job_is_named(tmp_path, text):
    prune(MODEL, "magnitude", 0.5, options=Options(folder=tmp_path))
    (tmp_path / "job.json").write_text(text)
    with pytest.raises(LabkitError, match=r"says which job it is; got '.*job\.json, which is damaged'. Remove the folder"):
        prune(MODEL, "magnitude", 0.5, options=Options(folder=tmp_path))


def test_a_damaged_block_is_named_and_done_again_once_it_is_removed(tmp_path):
    expected = prune(MODEL, "magnitude", 0.5, options=Options(folder=tmp_path))
    block = tmp_path / "block-0001.safetensors"
    block.write_bytes(block.read_bytes()[:-100])
    with pytest.raises(LabkitError, match=r"is whole; got '.*block-0001\.safetensors'. Remove the file"):
        prune(MODEL, "magnitude", 0.5, options=Options(folder=tmp_path))
    block.unlink()
    assert same(prune(MODEL, "magnitude", 0.5, options=Options(folder=tmp_path)), expected)


def test_a_block_of_other_matrices_is_named(tmp_path):
    prune(MODEL, "magnitude", 0.5, options=Options(folder=tmp_path))
    save_file({"other": torch.zeros(1)}, tmp_path / "block-0001.safetensors")
    with pytest.raises(LabkitError, match=r"is whole; got '.*block-0001\.safetensors'. Remove the file"):
        prune(MODEL, "magnitude", 0.5, options=Options(folder=tmp_path))


def test_outputs_that_were_lost_are_told_of_again_by_a_job_that_is_done(tmp_path):
    told = []
    for _ in range(2):
        with pytest.warns(UserWarning, match="have lost all their weights") as caught:
            prune(MODEL, "magnitude", 0.99, options=Options(folder=tmp_path))
        told.append([str(warning.message) for warning in caught])
    assert told[0] == told[1]


def test_pruning_in_steps_goes_on_where_it_was_killed(tmp_path, monkeypatch):
    """Every step has a folder of its own, and what lies between is done again."""
    steps, killed = (0.3, 0.5, 0.6), []

    def between(model):
        killed.append(model)
        if len(killed) == 2:
            raise Killed
        return model

    kept = Options(folder=tmp_path)
    with pytest.raises(Killed):
        prune_gradually(MODEL, "magnitude", steps, between, options=kept)
    loaded, load = [], engine.Progress.load
    monkeypatch.setattr(engine.Progress, "load", lambda self, n, *rest: (loaded.append(n), load(self, n, *rest)))
    resumed = prune_gradually(MODEL, "magnitude", steps, between, options=kept)
    assert loaded == 2 * [0, 1, 2]
    assert same(resumed, prune_gradually(MODEL, "magnitude", steps, between))


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"criterion": "magnitude"}, "criterion"),
        ({"sparsity": 0.6, "seed": 1}, "seed, sparsity"),
        ({"sparsity": None, "pattern": "2:4"}, "pattern, sparsity"),
        ({"calibration": TOKENS[:4]}, "calibration"),
        ({"model": Rung(32, 3).build(seed=1)}, "weights"),
    ],
)
def test_the_folder_of_another_job_is_refused_by_what_differs(other, named, tmp_path):
    kept = Options(folder=tmp_path)
    job = {"model": MODEL, "criterion": "wanda", "sparsity": 0.5, "calibration": TOKENS, "options": kept}
    prune(**job)
    with pytest.raises(LabkitError, match=f"one pruning job; got '.*, of a job with other (calibration, )?{named}'"):
        prune(**{**job, **other})
