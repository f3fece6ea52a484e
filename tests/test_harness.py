"""What lm_eval logs becomes our rows, whose means are lm_eval's; tasks run offline on local data where lm_eval is."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from labkit import harness
from labkit.errors import LabkitError
from labkit.evaluation import COLUMNS
from labkit.harness import PRESETS, benchmark, rows

HERE = Path(__file__).parent
STORED = json.loads((HERE / "data" / "lm-eval.json").read_text())


def oracle():
    """The script that made the stored output: its model, tokenizer and tasks."""
    spec = importlib.util.spec_from_file_location("oracle_harness", HERE / "oracles" / "harness.py")
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


ORACLE = oracle()
OURS = rows(STORED["results"])


def of(task: str, metric: str, frame: pd.DataFrame = OURS) -> pd.DataFrame:
    return frame[(frame.ability == task) & (frame.metric == metric)]


# --- the conversion ------------------------------------------------------------------------------------------------


def test_rows_are_of_our_form_one_for_each_item_and_metric():
    assert tuple(OURS.columns) == COLUMNS
    assert not OURS.duplicated(["ability", "metric", "item"]).any()
    assert OURS.value.dtype == OURS.chance.dtype == np.float64
    assert np.isfinite(OURS.value).all()
    for _, group in OURS.groupby(["ability", "metric"]):
        assert sorted(group.item) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("task", "metric", "theirs"),
    [
        ("local_choice", "choice_accuracy", "acc,none"),
        ("local_choice", "acc_norm", "acc_norm,none"),
        ("local_words", "exact_match", "exact_match,strict"),
        ("local_words", "exact_match, first-word", "exact_match,first-word"),
        ("local_last", "exact_match", "acc,none"),
    ],
)
def test_means_are_those_that_lm_eval_reports(task, metric, theirs):
    assert of(task, metric).value.mean() == pytest.approx(STORED["means"][task][theirs])


def test_perplexities_are_those_that_lm_eval_reports():
    means = STORED["means"]
    assert np.exp(of("local_last", "nll_nats").value.mean()) == pytest.approx(means["local_last"]["perplexity,none"])
    words = [len(document["question"].split()) for document in ORACLE.DOCUMENTS]
    per_word = np.average(of("local_text", "nll_nats").value, weights=words)
    assert np.exp(per_word) == pytest.approx(means["local_text"]["word_perplexity,none"])


def test_of_choices_chance_is_an_even_guess_and_nats_are_the_share_of_the_right_one():
    counts = np.array([3, 3, 2, 4])
    for metric in ("choice_accuracy", "acc_norm"):
        np.testing.assert_allclose(of("local_choice", metric).chance, 1 / counts)
    np.testing.assert_allclose(of("local_choice", "nll_nats").chance, np.log(counts))
    logged = STORED["results"]["samples"]["local_choice"]
    for document, sample, nats in zip(ORACLE.DOCUMENTS, logged, of("local_choice", "nll_nats").value, strict=True):
        p = np.exp([response[0] for response in sample["filtered_resps"]])
        assert np.exp(-nats) == pytest.approx(p[document["gold"]] / p.sum())
        assert sample["acc"] == (p.argmax() == document["gold"])


def test_what_is_generated_has_no_chance():
    assert (of("local_words", "exact_match").chance == 0).all()
    assert (of("local_last", "exact_match").chance == 0).all()
    assert of("local_last", "nll_nats").chance.isna().all()


def sample(**changes) -> dict:
    plain = STORED["results"]["samples"]["local_choice"][0]
    return {"configs": {"t": {"output_type": "multiple_choice"}}, "samples": {"t": [{**plain, **changes}]}}


@pytest.mark.parametrize(
    ("target", "nats"), [(0, True), (" an animal", True), ([0, 1], False), (7, False), ("?", False)]
)
def test_nats_are_of_one_right_choice_or_left_out(target, nats):
    """Several right ones, or choices that stand in the contexts: lm_eval's own metrics alone."""
    found = rows(sample(target=target))
    assert ("nll_nats" in set(found.metric)) is nats
    if nats:
        pd.testing.assert_frame_equal(found, rows(sample()))


def test_scores_without_the_context_are_no_choices():
    """For mutual information lm_eval asks every choice twice, the second time without its context."""
    plain = STORED["results"]["samples"]["local_choice"][0]
    twice = {key: plain[key] * 2 for key in ("arguments", "filtered_resps")}
    found = rows(sample(**twice, metrics=["acc", "acc_mutual_info"], acc_mutual_info=0.0))
    np.testing.assert_allclose(found[found.metric != "nll_nats"].chance, 1 / 3)


def test_what_is_no_number_is_left_out():
    found = rows(sample(metrics=["acc", "f1"], f1=(0, 1)))
    assert set(found.metric) == {"choice_accuracy", "nll_nats"}


# --- what is missing -----------------------------------------------------------------------------------------------


def test_without_lm_eval_the_error_says_how_to_install_it(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else found(name))
    with pytest.raises(LabkitError) as caught:
        benchmark(ORACLE.model(), "reasoning", ORACLE.tokenizer())
    assert caught.value.rule == "benchmarks are run by lm_eval"
    assert "pip install 'labkit[benchmarks]'" in caught.value.remedy


def test_presets_name_tasks_and_no_task_is_asked_twice():
    assert set(PRESETS) == {"reasoning", "knowledge", "in-context", "language"}
    assert harness._names("knowledge") == list(PRESETS["knowledge"])
    assert harness._names(["mmlu", "knowledge"]) == list(PRESETS["knowledge"])
    with pytest.raises(LabkitError, match="a benchmark has at least one task; got \\[\\]. Name a preset: reasoning"):
        harness._names([])


# --- with lm_eval itself -------------------------------------------------------------------------------------------


@pytest.fixture
def local(tmp_path):
    ORACLE.write_tasks(tmp_path)
    return tmp_path


def test_a_run_gives_the_stored_rows_and_leaves_everything_as_it_was(local):
    """The stored values are of lm_eval's own scoring, these of ours."""
    model = ORACLE.model().train()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    found = benchmark(model, list(ORACLE.TASKS), ORACLE.tokenizer(), folder=local)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    assert model.training
    pd.testing.assert_frame_equal(found, OURS, atol=1e-4, rtol=0)


def test_a_limit_takes_the_first_items(local):
    found = benchmark(ORACLE.model(), "local_choice", ORACLE.tokenizer(), limit=2, folder=local)
    stored = OURS[(OURS.ability == "local_choice") & (OURS.item < 2)]
    sides = (side.sort_values(["metric", "item"], ignore_index=True) for side in (found, stored))
    pd.testing.assert_frame_equal(*sides, atol=1e-4, rtol=0)


def test_an_unknown_task_is_answered_with_the_nearest(local):
    with pytest.raises(LabkitError, match="a known preset or task is needed; got 'gms8k'. Nearest: gsm8k"):
        benchmark(ORACLE.model(), "gms8k", ORACLE.tokenizer(), folder=local)
    with pytest.raises(LabkitError, match="known preset or task is needed; got 'resoning'. Nearest: reasoning"):
        benchmark(ORACLE.model(), "resoning", ORACLE.tokenizer())


def test_data_that_is_not_here_is_said_at_once(local):
    with pytest.raises(LabkitError) as caught:
        benchmark(ORACLE.model(), ["gsm8k"], ORACLE.tokenizer(), limit=1)
    assert caught.value.rule == "the data of a task is in the local cache, or fetched"
    assert "gsm8k" in caught.value.received
    assert "HF_HOME" in caught.value.remedy
    (local / "documents.jsonl").unlink()
    with pytest.raises(LabkitError, match="the data of a task is in the local cache, or fetched; got .local_choice: "):
        benchmark(ORACLE.model(), "local_choice", ORACLE.tokenizer(), folder=local)


def test_a_folder_that_is_not_there(local):
    with pytest.raises(LabkitError, match="stand in a folder of YAML files; got .*nowhere"):
        benchmark(ORACLE.model(), "local_choice", ORACLE.tokenizer(), folder=local / "nowhere")


def test_every_name_of_a_preset_is_one_of_lm_eval():
    names = [name for preset in PRESETS.values() for name in preset]
    assert set(names) <= set(harness._manager(names, None).all_tasks)
