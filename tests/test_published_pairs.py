"""Published pairs as studies: they load without network or models, add up, and say at once what is missing."""

from __future__ import annotations

import pandas as pd
import pytest

from labkit import published
from labkit.errors import LabkitError
from labkit.hub import is_id
from labkit.pairs import Figure, Needs, Pair
from labkit.published import beside
from labkit.study import Study

NAMES = ("pythia-ladder", "gpt2-distilgpt2", "llama-minitron", "llama-3.2", "qwen", "r1-distils")


def models(study: Study) -> list[str]:
    return list(dict.fromkeys(model for model, _ in study.jobs()))


@pytest.fixture(params=NAMES, scope="module")
def study(request) -> Study:
    return Study.load(request.param)


def test_it_asks_in_text_of_hub_models_and_counts_what_they_need(study):
    assert study.prompts and study.benchmarks and not study.abilities and not study.compressions
    assert all(map(is_id, models(study)))
    assert set(study.needs.parameters) == set(models(study))
    assert all(study.needs.parameters[p.dense] >= study.needs.parameters[p.small] or "R1" in p.how for p in study.pairs)


def test_every_published_figure_is_of_a_model_of_the_study_and_names_its_source(study):
    assert {figure.model for figure in study.published} <= set(models(study))
    assert study.published
    assert len({(figure.model, figure.task) for figure in study.published}) == len(study.published)
    assert all("percent" not in f.metric or 0 < f.value < 100 for f in study.published)


def test_of_two_models_the_larger_has_the_higher_figure_that_ours_stand_beside(study):
    # A column read in the place of its neighbour would mostly break this.
    beside_ours = [figure for figure in study.published if figure.ours]
    for task in {figure.task for figure in beside_ours}:
        by_size = [(study.needs.parameters[f.model], f.value) for f in beside_ours if f.task == task]
        assert all(less < more for small, less in by_size for large, more in by_size if small < large), task


def test_one_source_says_one_number_of_a_model_and_a_task():
    said = [((f.model, f.task, f.source), f.value) for name in NAMES for f in Study.load(name).published]
    assert len(set(said)) == len(dict(said)) < len(said)  # some stand in two studies


def test_of_every_qwen_a_figure_stands_beside_ours():
    study = Study.load("qwen")
    known = {(figure.model, figure.ours.partition(": ")[0]) for figure in study.published if figure.ours}
    assert {model for model, _ in known} == set(models(study))
    base = [model for model in models(study) if "Qwen2.5" in model]
    assert {(model, task) for model in base for task in study.benchmarks} <= known


def test_started_offline_it_ends_at_once_and_makes_no_store(study, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(LabkitError, match=f"{models(study)[0]}, which is neither .* HF_HUB_OFFLINE is set.*hf download"):
        study.run(tmp_path / "rows", progress=False)
    assert not (tmp_path / "rows").exists()


def test_the_pythia_figures_are_those_of_the_shipped_table():
    table = published.pythia()
    table = table[(table["shots"] == 0) & (table["metric"] == "acc") & ~table["deduped"]]
    model = "EleutherAI/" + table["model"].str.replace("-bf16", "")
    shipped = dict(zip(zip(model, table["task"] + ", 0-shot", strict=True), table["value"], strict=True))
    study = Study.load("pythia-ladder")
    assert {(f.model, f.task): f.value for f in study.published}.items() <= shipped.items()
    assert dict(zip(model, table["params"], strict=True)) == study.needs.parameters


def test_parameters_of_gpt2_and_its_student_are_those_of_their_shapes():
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    for layers, count in zip((12, 6), Study.load("gpt2-distilgpt2").needs.parameters.values(), strict=True):
        with torch.device("meta"):
            model = GPT2LMHeadModel(GPT2Config(n_layer=layers))
        assert sum(p.numel() for p in model.parameters()) == count


def test_what_is_needed_is_arithmetic():
    needs = Needs({"large": 3 * 2**30, "small": 2**30}, bytes=2, read=4e13 / 2**31, written=8)
    assert needs.memory_gib("large") == pytest.approx(1.2 * 6) and needs.disk_gib("small") == 2
    # FLOPs of reading at 2e13 a second, and 1 token of 8 texts: all weights once, at 1e12 bytes a second
    assert needs.hours("small") == pytest.approx((2 + 2**31 / 1e12) / 3600)
    assert needs.hours("large") == pytest.approx(3 * needs.hours("small"))
    assert needs.hours("small", needs.read, needs.written) == pytest.approx(2 * needs.hours("small"))


def test_every_study_says_what_its_benchmarks_take(study):
    writes = {"gsm8k", "squad_completion", "drop"} & set(study.benchmarks)
    assert study.needs.read > 0 and (study.needs.written > 0) == bool(writes)


# -- published figures beside ours ---------------------------------------------------------------------------------------


def rows(*of: tuple[str, str, str, str, list[float]]) -> pd.DataFrame:
    named = [(*which, value) for *which, values in of for value in values]
    return pd.DataFrame(named, columns=["model", "compression", "ability", "metric", "value"])


def test_ours_stand_beside_figures_as_means_over_items_of_the_model_the_task_and_the_metric():
    figures = [
        Figure("a/b", "mmlu, 5-shot", "percent correct", 60.0, "paper", "mmlu: choice_accuracy"),
        Figure("a/b@v1", "arc_easy, 0-shot", "fraction correct", 0.5, "paper", "arc_easy: choice_accuracy"),
        Figure("a/c", "arc_easy, 0-shot", "fraction correct", 0.4, "paper", "arc_easy: choice_accuracy"),
        Figure("a/b", "wikitext", "perplexity", 20.0, "card"),
    ]
    found = beside(
        figures,
        [Pair("a/x", "a/b", "distilled")],
        rows(
            ("a/b@main", "distilled", "mmlu_law", "choice_accuracy", [1, 1, 0]),
            ("a/b@main", "distilled", "mmlu_art", "choice_accuracy", [0]),
            ("a/b@main", "distilled", "mmlu_law", "nll_nats", [9, 9, 9]),
            ("a/b@main", "distilled", "mmlux", "choice_accuracy", [1]),
            ("a/b@main", "dense", "arc_easy", "choice_accuracy", [1, 0, 0, 0]),
            ("a/b@main", "wanda", "arc_easy", "choice_accuracy", [0, 0, 0, 0]),
            ("other", "dense", "arc_easy", "choice_accuracy", [1]),
        ),
    )
    assert found["ours"].fillna(-1).tolist() == [50.0, 0.25, -1, -1] and found["n_items"].tolist() == [4, 4, 0, 0]
    assert found["published"].tolist() == [60.0, 0.5, 0.4, 20.0] and found["of"].tolist()[0] == "choice_accuracy"


def test_what_is_beside_a_figure_is_asked_by_the_study(study):
    named = {figure.ours.partition(": ")[0] for figure in study.published} - {""}
    assert named <= set(study.benchmarks)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Pair("a/b", "a/b", "distilled"), "a pair is of two models; got 'a/b'. Name the smaller one"),
        (lambda: Figure("a/b", "mmlu", "percent", "60", "a paper"), "a published figure is a number; got \"'60' of a/b\""),
        (lambda: Figure("a/b", "mmlu", "percent", 60, " "), "a published figure names its source; got 'mmlu of a/b'. Say"),
        (lambda: Figure("a/b", "mmlu", "%", 6, "x", "mmlu"), "ours names an ability and a metric; got 'mmlu'. Write e.g."),
        (lambda: Needs({}), "needs count the parameters of each model; got {}. Give"),
    ],
)
def test_what_is_wrong_is_said(make, message):
    with pytest.raises(LabkitError) as error:
        make()
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[pair]]\ndense = "a/b"\nsmall = "a/c"', "a pair names how; got "),
        ('[[pair]]\ndense = "a/b"\nsmal = "a/c"\nhow = "x"', "a known key of a pair is needed; got 'smal'. Nearest: small"),
        ('models = ["a/b"]\nloading = { dtyp = "bfloat16" }', "a known key of loading is needed; got 'dtyp'. Nearest: dtype"),
        ('models = ["a/b"]\nprompts = ["recal"]', "a known ability is needed; got 'recal'. Nearest: recall"),
        ("needs = 3", "needs of a study is a table, [needs]; got 3. Mend needs in "),
        ('[needs]\nparameters = { "a/b" = "7B" }', "parameters of a needs is a table of numbers, e.g. { … = 1e9 }; got {'a/b': '7B'}"),
        ('models = ["a/b"]\nloading = "bfloat16"', "loading of a study is a table of texts"),
        ('pair = "a/b"', "pair of a study is a list of tables, [[pair]]; got 'a/b'. Mend pair in "),
        ("[[pairs]]", "a known key of a study is needed; got 'pairs'. Nearest: pair"),
        ("[[compresion]]", "a known key of a study is needed; got 'compresion'. Nearest: compression"),
        ("items = 3", "a study names models; got 'study'. Write e.g. models"),
    ],
)
def test_a_bad_file_is_refused_before_any_model_is_looked_for(tmp_path, text, message):
    (tmp_path / "study.toml").write_text(f'question = "?"\n{text}\n')
    with pytest.raises(LabkitError) as error:
        Study.load(tmp_path / "study.toml")
    assert message in str(error.value)
