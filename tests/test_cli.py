from __future__ import annotations

import json
import subprocess
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from transformers import LlamaConfig
from typer.testing import CliRunner

import labkit
from labkit import cli, doctor, report, schooling
from labkit.errors import Failure, LabkitError, warn
from labkit.pairs import Figure
from labkit.store import Store
from labkit.study import Study, studies
from labkit.verdict import judge

VERBS = ("run", "report", "ladder", "compare", "zoo", "doctor")


@pytest.fixture(autouse=True)
def piped(monkeypatch):
    """As in a pipe: no colour, and the width of no terminal."""
    for name in ("COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def call(*arguments):
    """Exit code, standard output and standard error of a command."""
    done = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    return done.exit_code, done.stdout, done.stderr


def test_a_warning_is_its_message_and_those_of_others_say_where(monkeypatch, capsys):
    def warns(**_):
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warn("careful")
            warnings.warn("soon gone", DeprecationWarning, stacklevel=1)

    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setattr(warnings, "showwarning", _shown)
    monkeypatch.setattr(cli, "app", warns)
    cli.main()
    first, second, *_ = capsys.readouterr().err.splitlines()
    assert first == "Warning: careful"
    assert second.startswith(f"{__file__}:") and second.endswith("DeprecationWarning: soon gone")


def _shown(*warning):
    sys.stderr.write(warnings.formatwarning(*warning[:4]))  # as Python does outside of pytest


def rows(run, compression, seed, score, ability="recall"):
    items = np.arange(40)
    return pd.DataFrame({
        "run": run, "model": f"ladder/64x2/seed-{seed}", "rung": "64x2", "params": 100, "seed": seed,
        "compression": compression, "sparsity": 0.0 if compression == "dense" else 0.5, "ability": ability,
        "metric": "exact_match", "item": items, "value": (items % 10 < 10 * score).astype(float), "chance": 0.0,
    })  # fmt: skip


def filled(folder, pruned=0.2, item_seed=0):
    """A store of five seeds, dense and pruned."""
    store = Store(folder, create=True)
    for seed in range(5):
        for compression, score in (("dense", 1.0), ("wanda", pruned)):
            run = f"{compression}-{seed}"
            abilities = [rows(run, compression, seed, score, name) for name in ("recall", "[bold]shift")]
            store.write(run, pd.concat(abilities), {"config": {"seed": item_seed}})
    return store


@pytest.fixture
def measured(monkeypatch):
    """`Study.run` that measures nothing and fills the folder; the question is one that markup could spoil."""
    asked = {"question": "What [red]survives[/red]?", "published": (), "pairs": ()}
    plan = types.SimpleNamespace(**asked, run=lambda out, progress: filled(out))
    monkeypatch.setattr(Study, "load", classmethod(lambda cls, name: plan))
    return plan


def fails_with(error):
    def fail(*arguments, **options):
        raise error

    return fail


# -- help and start ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_shows_an_example(verb):
    code, out, _ = call(verb, "--help")
    assert code == 0 and f"Example:  labkit {verb}" in out


def test_help_names_every_verb_and_the_exit_codes():
    code, out, _ = call("--help")
    assert code == 0 and all(f" {verb} " in out for verb in VERBS)
    assert "0 done; 1 the work failed, or doctor found a fault; 2 bad input" in out


def test_the_version():
    assert call("--version") == (0, f"labkit {labkit.__version__}\n", "")


def test_the_command_line_loads_nothing_heavy():
    code = "import labkit.cli, sys; print({'torch', 'transformers', 'pandas', 'numpy', 'duckdb'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_log_holds_no_bars():
    code = "from labkit import cli; cli.app = lambda **_: 0; cli.main(); import tqdm.auto; list(tqdm.auto.tqdm([1]))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stderr == b""


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_an_unknown_study_names_the_nearest_and_all_of_them():
    code, out, err = call("run", "quik", "--out", "nowhere")
    assert (code, out) == (2, "") and not Path("nowhere").exists()
    assert f"got 'quik'. Nearest: quick. All: {', '.join(studies())}." in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("abilities", '["recal"]', "a known ability is needed; got 'recal'. Nearest: recall"),
        ("compression", '[{prune = {criterion = "wandaa", sparsity = 0.5}}]', "got 'wandaa'. Nearest: wanda"),
        ("modles", "[]", "got 'modles'. Nearest: models"),
    ],
)
def test_unknown_names_in_a_study_are_bad_input(tmp_path, key, value, message):
    (tmp_path / "own.toml").write_text(f'question = "?"\nmodels = []\n{key} = {value}\n')
    code, _, err = call("run", tmp_path / "own.toml", "--out", tmp_path / "out")
    assert code == 2 and message in err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [[], ["rnu"], ["run", "quick"], ["compare", "a", "b", "--items", "0"]])
def test_usage_errors_are_bad_input(arguments):
    assert call(*arguments)[0] == 2


def test_an_unknown_profile_and_device_are_bad_input(tmp_path):
    code, _, err = call("ladder", "--profile", "t44", "--out", tmp_path)
    assert code == 2 and "a known profile is needed; got 't44'. Nearest: t4. All: cpu, t4, h100." in err
    code, _, err = call("ladder", "--profile", "cpu", "--out", tmp_path, "--device", "cud")
    assert code == 2 and "a known device is needed; got 'cud'. Nearest: cuda, cpu. All: auto, cpu, cuda." in err


def test_a_gpu_that_is_not_there_is_bad_input(tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, err = call("ladder", "--profile", "cpu", "--out", tmp_path, "--device", "cuda")
    assert code == 2 and "--device cuda needs a GPU that PyTorch sees; got 'cuda'. Use auto" in err


def test_work_that_fails_says_so_in_one_line(measured):
    measured.run = fails_with(RuntimeError("the [disk] is gone"))
    code, out, err = call("run", "quick", "--out", "x")
    assert (code, out) == (1, "")
    assert err == "Error: RuntimeError: the [disk] is gone. To see where: labkit --debug ...\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [(LabkitError("a rule", 1, "Do."), 2), (Failure("a rule", 1, "Do."), 1), (RuntimeError("gone"), 1)],
)
def test_debug_adds_the_traceback_and_keeps_the_exit_code(measured, error, code):
    measured.run = fails_with(error)
    found, _, err = call("--debug", "run", "quick", "--out", "x")
    assert found == code and err.startswith("Traceback (most recent call last)") and "\nError: " in err


def test_an_interrupted_run_says_what_is_kept_and_how_to_go_on(measured, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["labkit", "run", "quick", "--out", "my runs"])
    measured.run = fails_with(KeyboardInterrupt())
    code, _, err = call("run", "quick", "--out", "my runs")
    assert code == 130
    assert err == (
        "\nStopped. What is measured is kept; the same command goes on from there:\n"
        "  labkit run quick --out 'my runs'\n"
    )


def test_an_interrupted_look_has_nothing_to_keep(monkeypatch):
    monkeypatch.setattr(doctor, "checks", fails_with(KeyboardInterrupt()))
    assert call("doctor") == (130, "", "\nStopped.\n")


def test_a_folder_that_is_no_store(tmp_path):
    code, _, err = call("report", tmp_path)
    assert code == 2 and err.startswith("Error: a store is a folder with store.json; got ") and err.count("\n") == 1


# -- run and report ----------------------------------------------------------------------------------------------------


def test_run_prints_the_question_the_verdicts_the_answer_and_the_report(measured, tmp_path):
    code, out, err = call("run", "quick", "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    assert out.startswith("What [red]survives[/red]?\n") and "\x1b" not in out
    lines = [line.rstrip() for line in out.splitlines()]
    table = [line.split() for line in lines[lines.index("Rung 64x2") + 1 :]]
    assert ["ability", "50%"] in table
    verdicts = judge(Store(tmp_path / "out").frame())
    low, high = verdicts.loc[verdicts["ability"] == "recall", ["low", "high"]].iloc[0]
    assert table[table.index(["recall", "degraded"]) + 1] == f"{low:.2f} to {high:.2f}".split()
    assert "over 5 seeds and 40 items each." in " ".join(out.split())
    assert ["[bold]shift", "degraded"] in table
    assert report.answer(verdicts) in out
    assert lines[-1] == f"Report: {tmp_path / 'out' / 'report.html'}" and (tmp_path / "out" / "report.html").is_file()


def test_run_without_a_place_for_the_rows_is_bad_input():
    code, _, err = call("run", "quick")
    assert code == 2 and "rows need a place; got 'no --out'. Add e.g. --out runs/mine, or --dry-run" in err


def test_a_dry_run_measures_nothing_and_prints_the_arithmetic(monkeypatch):
    from labkit import planning

    line = planning.Line("a/b", "wanda", 0.5, 3, 1, 1000, 0, 2e9, 90.0, 10, 2**20, 3 * 2**20, 0)
    plan = types.SimpleNamespace(question="Why?", needs=None, published=(), pairs=(), benchmarks=("mmlu",))
    monkeypatch.setattr(Study, "load", classmethod(lambda cls, name: plan))
    monkeypatch.setattr(planning, "foretell", lambda study, out: [line])
    code, out, _ = call("run", "quick", "--dry-run")
    text = " ".join(out.split())
    assert code == 0 and text.startswith("Why?") and "a/b wanda 0.5 3 1 1,000 2.0e+09 1.5 min 4.0" in text
    assert "2 of 3 runs, 4e+09 FLOPs, about 3.0 min (1.5 min to 7.5 min)" in text and "1.0 + 3.0 + 0.0 MiB" in text
    assert "Not counted above: mmlu, whose items are known once their data is here." in text


def test_a_dry_run_offline_says_what_published_models_need_then_where_to_put_them(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    code, out, err = call("run", "gpt2-distilgpt2", "--dry-run")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0] == "What did DistilGPT2 keep of GPT-2?"
    (large,) = [line for line in lines if line.startswith("openai-community/gpt2 0.12 B")]
    memory, disk, *_ = large.split()[3:]  # 124,439,808 parameters of 4 bytes, and a fifth more
    assert (memory, disk) == (f"{1.2 * 4 * 124_439_808 / 2**30:.1f}", f"{4 * 124_439_808 / 2**30:.1f}")
    assert any(line.endswith("perplexity per word 21.1 [1]") for line in lines)
    assert "[1] model card of distilbert/distilgpt2" in lines and "ours" not in out
    assert code == 2 and "hf download openai-community/gpt2" in err and str(tmp_path / "models--openai-community--gpt2") in err


def test_published_figures_stand_beside_ours_after_a_run(measured, tmp_path):
    model = "ladder/64x2/seed-0"
    figure = Figure(model, "recall, 5-shot", "percent correct", 91.5, "a paper", "recall: exact_match")
    measured.published, measured.pairs = (figure,), ()
    code, out, err = call("run", "quick", "--out", tmp_path / "out")
    (line,) = [" ".join(line.split()) for line in out.splitlines() if line.startswith(model)]
    assert (code, err) == (0, "")  # the dense model has all of its 40 items right, the pruned one a fifth
    assert line == f"{model} recall, 5-shot percent correct 91.5 100 exact_match 40 [1]"
    assert "says nothing." in out and "[1] a paper" in out


def test_a_ray_address_is_handed_on(monkeypatch, measured, tmp_path):
    from labkit import cluster

    asked = []
    monkeypatch.setattr(cluster, "check_address", asked.append)
    monkeypatch.setattr(cluster, "run", lambda plan, out, address, progress: filled(out) if address == "h:1" else None)
    code, out, _ = call("run", "quick", "--out", tmp_path / "out", "--ray", "h:1")
    assert code == 0 and "Report: " in out and asked == ["h:1"]


def test_a_wrong_ray_address_is_refused_before_the_study_is_read(monkeypatch, tmp_path):
    monkeypatch.setattr("labkit.study.Study.load", lambda name: pytest.fail("read"))
    code, _, err = call("run", "quick", "--out", tmp_path / "out", "--ray", "host")
    assert code == 2 and "a Ray cluster has an address HOST:PORT" in err


def test_a_report_is_written_beside_rows_at_a_url(measured):
    import fsspec

    assert call("run", "quick", "--out", "memory://labkit-test-cli")[1].endswith("/labkit-test-cli/report.html\n")
    assert fsspec.filesystem("memory").cat("/labkit-test-cli/report.html").startswith(b"<!DOCTYPE html>")


def test_report_writes_where_it_is_told(tmp_path):
    filled(tmp_path / "out")
    assert call("report", tmp_path / "out", "--out", tmp_path / "a.html") == (0, f"Report: {tmp_path / 'a.html'}\n", "")
    assert (tmp_path / "a.html").is_file() and not (tmp_path / "out" / "report.html").exists()


# -- ladder and zoo ----------------------------------------------------------------------------------------------------


def test_ladder_hands_on_what_it_was_told(monkeypatch, tmp_path):
    def train(plan, out, device, workers):
        assert (plan.name, out, device, workers) == ("t4", tmp_path, "cpu", 3)
        return ["one", "two"]

    monkeypatch.setattr(schooling, "train_ladder", train)
    code, out, _ = call("ladder", "--profile", "t4", "--out", tmp_path, "--device", "cpu", "--workers", "3")
    assert (code, out) == (0, f"2 models in {tmp_path}. List them: labkit zoo --folder {tmp_path}\n")


def test_the_help_of_ladder_states_the_profiles_as_they_are():
    out = " ".join(call("ladder", "--help")[1].replace("│", " ").split())
    for plan in schooling.PROFILES:
        text = out[out.index(f"{plan.name}: {len(plan.jobs())}") :]
        assert f" {plan.tokens // 10**6} M " in text
        assert max(rung.params for rung, _ in plan.jobs()) <= 1e6 * float(text.split("up to ")[1].split(" M")[0])


def test_zoo_lists_models_by_size(tmp_path):
    record = {"rung": "16x1", "params": 3376, "seed": 0, "tokens": 8_000_000}
    models = {"ladder/32x1/seed-0": {**record, "rung": "32x1", "params": 12640}, "ladder/16x1/seed-0": record}
    files = {f"{name}/model.safetensors": f"{name[7:9]}" * 32 for name in models}
    (tmp_path / "manifest.json").write_text(json.dumps({"files": files, "models": models}))
    code, out, _ = call("zoo", "--folder", tmp_path)
    body = [line.split() for line in out.splitlines() if "ladder/" in line]
    assert code == 0 and body == [
        ["ladder/16x1/seed-0", "16x1", "3,376", "0", "8,000,000", "161616161616"],
        ["ladder/32x1/seed-0", "32x1", "12,640", "0", "8,000,000", "323232323232"],
    ]


# -- compare -----------------------------------------------------------------------------------------------------------


def test_two_runs_are_compared_in_what_they_share(tmp_path):
    filled(tmp_path / "a"), filled(tmp_path / "b", pruned=0.5)
    code, out, _ = call("compare", tmp_path / "a", tmp_path / "b")
    cells = [line.split() for line in out.splitlines() if "recall" in line]
    assert code == 0 and "B - A over seeds and items" in " ".join(out.split())
    # No item changed among 5 x 40: -ln(.025) / 200, as a rate of changes that would still have gone unseen.
    numbers = ["5", "x", "40", "1.000", "1.000", "+0.000", "-0.018", "+0.018", "no"]
    assert cells[0] == ["64x2", "dense", "recall", "exact_match", *numbers]
    assert cells[1][:2] == ["64x2", "wanda"] and cells[1][-6:-3] == ["0.200", "0.500", "+0.300"]
    assert cells[1][-1] == "yes"


def test_two_models_are_scored_on_the_same_items(monkeypatch):
    asked = []

    def scored(name, items, seed, device):
        asked.append((name, items, seed, device))
        return rows("r", "dense", 0, 0.5)

    monkeypatch.setattr(cli, "_scored", scored)
    monkeypatch.setattr("labkit.subjects.check_vocabulary", lambda name, remedy: None)
    code, out, _ = call("compare", "ladder/a", "ladder/b", "--items", "40", "--seed", "7", "--device", "cpu")
    assert code == 0 and asked == [("ladder/a", 40, 7, "cpu"), ("ladder/b", 40, 7, "cpu")]
    assert "B - A over items;" in " ".join(out.split()) and "+0.000  -0.092  +0.092" in out


def test_runs_of_different_items_are_refused(tmp_path):
    filled(tmp_path / "a"), filled(tmp_path / "b", item_seed=1)
    code, _, err = call("compare", tmp_path / "a", tmp_path / "b")
    assert code == 2 and "both runs draw their items with one seed; got [[0], [1]]" in err


def test_what_cannot_be_compared_is_refused(tmp_path):
    filled(tmp_path / "a"), (tmp_path / "empty").mkdir()
    for other, message in [
        ("ladder/64x2/seed-0", "what is compared is of one kind; got 'the model ladder/64x2/seed-0 and the run "),
        (tmp_path / "empty", "a folder to compare is that of a run (it holds store.json) or of a model (config.json)"),
        (tmp_path / "gone", "a folder to compare is there; got "),
    ]:
        code, _, err = call("compare", tmp_path / "a", other)
        assert code == 2 and message in err


# -- doctor ------------------------------------------------------------------------------------------------------------


def test_doctor_is_content(monkeypatch):
    monkeypatch.setattr(doctor, "checks", lambda: [doctor.Check("Python", True, "3.11.9 [x]", "None.")])
    assert call("doctor") == (0, "[OK]   Python: 3.11.9 [x]\nAll is well.\n", "")


def test_doctor_prints_the_remedy_of_a_fault(monkeypatch):
    found = [doctor.Check("Python", True, "3.11.9"), doctor.Check("disk", False, "1.0 GB", "Free 2 GB.")]
    monkeypatch.setattr(doctor, "checks", lambda: found)
    code, out, _ = call("doctor")
    assert (code, out) == (
        1, "[OK]   Python: 3.11.9\n[FAIL] disk: 1.0 GB\n       Free 2 GB.\n1 of 2 checks failed.\n"
    )  # fmt: skip


def test_models_of_another_vocabulary_are_not_compared_in_tokens(tmp_path):
    config = LlamaConfig(vocab_size=260, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path)
    code, out, err = call("compare", "ladder/16x1/seed-0", tmp_path, "--items", "5")
    assert code == 2 and not out and f"got '{tmp_path}, which has 260'" in err
    code, _, err = call("compare", "ladder/16x1/seed-0", "ladder/16x1/seed-9")
    assert code == 2 and "Nearest" in err  # before the first was scored
