"""Published pairs as studies: they load without network or models, add up, and say at once what is missing."""

from __future__ import annotations

import pytest

from labkit import published
from labkit.errors import LabkitError
from labkit.hub import is_id
from labkit.pairs import Figure, Needs, Pair
from labkit.study import Study

NAMES = ("pythia-ladder", "gpt2-distilgpt2", "llama-minitron", "llama-3.2", "qwen", "r1-distils")
UNCONFIRMED = ("qwen",)  # no published figures: none could be checked


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
    assert bool(study.published) != (study.name in UNCONFIRMED)
    assert len({(figure.model, figure.task) for figure in study.published}) == len(study.published)
    assert all("percent" not in f.metric or 0 < f.value < 100 for f in study.published)


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
    needs = Needs({"large": 3 * 2**30, "small": 2**30}, bytes=2)
    assert needs.memory_gib == pytest.approx(1.2 * 6) and needs.disk_gib == 8
    assert needs.hours(1e6, flops_per_s=2**33) == pytest.approx(1e6 / 3600)  # 2 · 4 · 2³⁰ FLOPs a token


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Pair("a/b", "a/b", "distilled"), "a pair is of two models; got 'a/b'. Name the smaller one"),
        (lambda: Figure("a/b", "mmlu", "percent", "60", "a paper"), "a published figure is a number; got \"'60' of a/b\""),
        (lambda: Figure("a/b", "mmlu", "percent", 60, " "), "a published figure names its source; got 'mmlu of a/b'. Say"),
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
        ("items = 3", "a study names models; got 'study'. Write e.g. models"),
    ],
)
def test_a_bad_file_is_refused_before_any_model_is_looked_for(tmp_path, text, message):
    (tmp_path / "study.toml").write_text(f'question = "?"\n{text}\n')
    with pytest.raises(LabkitError) as error:
        Study.load(tmp_path / "study.toml")
    assert message in str(error.value)
