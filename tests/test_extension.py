"""What users add: by name in studies, once a text, whole or not at all; and the worked example of docs/extending.md."""

from __future__ import annotations

import doctest
import importlib.util
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from labkit import divergences, extension, forward, pruning
from labkit.abilities import abilities
from labkit.errors import LabkitError
from labkit.ladder import Rung
from labkit.study import Study

DOCS = Path(__file__).parents[1] / "docs"
EXAMPLE, STUDY = DOCS / "examples" / "my_extension.py", DOCS / "examples" / "my-study.toml"
KINDS = ("ability", "criterion", "divergence", "metric")


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """Every test begins with nothing added, and leaves nothing."""
    monkeypatch.setattr(extension, "_ADDED", {kind: {} for kind in KINDS})
    monkeypatch.setattr(extension, "_READ", {})


@pytest.fixture
def write(tmp_path):
    def write(text, name="mine.py"):
        (tmp_path / name).write_text(f"from labkit import extension\n{text}\n")
        return tmp_path / name

    return write


METRIC = "@extension.metric\ndef always_{}(logits, labels):\n    return logits[:, 0, 0] * 0 + {}"


def value_of(name):
    return extension.added("metric")[name](torch.ones(1, 1, 1), None).item()


# -- the worked example -------------------------------------------------------------------------------------------------


def test_the_example_runs_as_a_study_and_its_things_do_what_they_say(tmp_path, monkeypatch):
    monkeypatch.setattr(forward, "compiled", lambda module: module)
    study = Study.load(STUDY)
    rows = study.run(tmp_path, progress=False).frame()
    assert set(rows["compression"]) == {"dense", "squared-wanda", "16x1 distil total-variation 6k"}
    assert set(rows["ability"]) == {"recall", "last"}
    ranks = rows[rows["metric"] == "rank_of_answer"].set_index(["run", "ability", "item"])
    right = rows[rows["metric"] == "exact_match"].set_index(["run", "ability", "item"])
    assert len(ranks) == len(right) == 2 * 4 * 50 and ranks["chance"].isna().all()
    # every answer has one token: it is right if, and only if, no other is likelier
    assert ((ranks["value"] == 1) == (right.loc[ranks.index, "value"] == 1)).all()
    assert right.query("ability == 'last'")["chance"].unique() == pytest.approx(1 / 3)


def test_the_examples_formulas(monkeypatch):
    extension.read([EXAMPLE])
    weight, norms = torch.tensor([[3.0, -2.0, 1.0]]), torch.tensor([1.0, 4.0, 9.0])
    score, calibrated = extension.added("criterion")["squared-wanda"]
    assert calibrated and score(weight, norms, None).tolist() == [[9.0, 16.0, 9.0]]
    student, teacher = torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log(), torch.tensor([[0.75, 0.25], [0.5, 0.5]]).log()
    variation = extension.added("divergence")["total-variation"]
    assert variation(student, teacher).tolist() == pytest.approx([0.5, 0.0])
    assert variation(student, teacher, torch.tensor([-100, 1])).tolist() == pytest.approx([0.0])
    logits, labels = torch.randn(7, 3, 11, generator=torch.Generator().manual_seed(0)), torch.randint(11, (7, 3))
    kl, tv = divergences.forward_kl(logits[0], logits[1]), variation(logits[0], logits[1])
    assert (tv**2 <= kl / 2 + 1e-6).all()  # Pinsker's inequality
    ranks = extension.added("metric")["rank_of_answer"](logits, labels)
    order = logits.argsort(-1, descending=True)
    assert torch.allclose(ranks, ((order == labels[..., None]).float().argmax(-1) + 1.0).mean(-1))


def test_the_examples_ability_draws_the_row_that_it_shows(monkeypatch):
    extension.read([EXAMPLE])
    spec = importlib.util.spec_from_file_location("shown", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "shown", module)
    monkeypatch.setattr(extension, "_ADDED", {kind: {} for kind in KINDS})
    spec.loader.exec_module(module)
    done = doctest.testmod(module)
    assert (done.failed, done.attempted) == (0, 2)
    items = module.Last().sample(200, seed=0)
    assert (items.labels[:, 4] == items.tokens[:, 3]).all() and (items.lengths == 5).all()
    assert len(np.unique(items.tokens, axis=0)) > 190


def test_the_page_shows_the_files_as_they_are():
    page = (DOCS / "extending.md").read_text(encoding="utf-8")
    shown = {language: text for language, text in re.findall(r"```(\w+)\n(.*?)```", page, flags=re.DOTALL)}
    code = EXAMPLE.read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(@extension.*?)```", page, flags=re.DOTALL):
        assert block.strip() in code, block
    assert shown["toml"].strip() in STUDY.read_text(encoding="utf-8")


# -- names, and when a file is run ---------------------------------------------------------------------------------------


def test_what_is_added_is_found_by_name_where_labkits_own_are(write):
    extension.read([EXAMPLE])
    assert abilities("recall", "last")[1].name == "last" and "last" not in [a.name for a in abilities()]
    pruning.check_prune("squared-wanda", 0.5, None)
    with pytest.raises(LabkitError, match="a known criterion is needed; got 'squared-wand'. Nearest: squared-wanda"):
        pruning.check_prune("squared-wand", 0.5, None)


@pytest.mark.parametrize(
    ("text", "look"),
    [
        ("import dataclasses\nfrom labkit.abilities import Recall\nextension.ability(Recall())", lambda: abilities()),
        ("@extension.criterion\ndef wanda(w, n, g): ...", lambda: pruning.check_prune("wanda", 0.5, None)),
        ("@extension.criterion\ndef sparsegpt(w, n, g): ...", lambda: pruning.check_prune("wanda", 0.5, None)),
        ("@extension.divergence\ndef reverse_kl(s, t): ...", None),
        ("@extension.metric\ndef exact_match(l, y): ...", None),
    ],
)
def test_a_name_of_labkits_own_is_refused(write, text, look):
    from labkit.distillation import check_distill
    from labkit.evaluation import _metric

    extension.read([write(text)])
    look = look or (check_distill if "divergence" in text else lambda: _metric("nll_nats"))
    with pytest.raises(LabkitError, match="a name is given to one .*, and labkit has this one; got .*Choose another name"):
        look()


def test_two_files_cannot_add_the_same_name(write):
    first, second = write(METRIC.format("one", 1)), write(METRIC.format("one", 2), "other.py")
    extension.read([first])
    with pytest.raises(LabkitError) as error:
        extension.read([second])
    assert str(error.value).startswith(f"a name is given to one metric; got 'always_one, added by {first}")
    assert value_of("always_one") == 1


def test_a_text_is_run_once_a_process_wherever_it_lies(write):
    text = METRIC.format("one", 1)
    first, copy = write(text), write(text, "copy.py")
    assert extension.read([first]) == extension.read([first]) == extension.read([copy])
    kept = extension.added("metric")["always_one"]
    extension.read([copy, first])
    assert extension.added("metric")["always_one"] is kept


def test_a_file_that_was_changed_is_run_again_and_its_old_things_are_gone(write):
    path = write(METRIC.format("one", 1) + "\n" + METRIC.format("two", 2))
    before = extension.read([path])
    write(METRIC.format("two", 3))
    assert extension.read([path]) != before
    assert list(extension.added("metric")) == ["always_two"] and value_of("always_two") == 3


def test_a_copy_that_is_gone_makes_place_for_the_next_version(write):
    """As in a worker of a cluster, which gets every text in a folder of its own."""
    first = write(METRIC.format("one", 1), "a.py")
    extension.read([first])
    first.unlink()
    extension.read([write(METRIC.format("one", 2), "b.py")])
    assert value_of("always_one") == 2
    (first.parent / "b.py").unlink()
    extension.read([write(METRIC.format("one", 1), "c.py")])
    assert value_of("always_one") == 1


@pytest.mark.parametrize("end", ["1 / 0", "def f(:", "raise SystemExit", "extension.ability(3)"])
def test_a_file_that_fails_adds_nothing_and_leaves_its_last_version(write, end):
    path = write(METRIC.format("one", 1))
    extension.read([path])
    path = write(METRIC.format("two", 2) + f"\n{end}")
    with pytest.raises(SystemExit if "Exit" in end else LabkitError) as error:
        extension.read([path])
    assert list(extension.added("metric")) == ["always_one"]
    write(METRIC.format("one", 1))
    extension.read([path])
    assert value_of("always_one") == 1
    expected = {
        "1 / 0": f"an extension runs; got '{path}: ZeroDivisionError: division by zero'. Mend the file.",
        "def f(:": f"an extension runs; got '{path}: SyntaxError: ",
        "extension.ability(3)": "an ability is one of labkit.abilities.Ability; got '3'. Derive its class from that.",
    }
    assert str(error.value).startswith(expected.get(end, ""))


def test_files_that_are_none(tmp_path):
    with pytest.raises(LabkitError, match=r"an extension is a Python file; got '.*gone.py \(No such file"):
        extension.read([tmp_path / "gone.py"])
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(LabkitError, match=r"an extension is a Python file; got '.*notes.txt'. Name one that ends in .py"):
        extension.read([tmp_path / "notes.txt"])


def test_a_cell_of_a_notebook_is_run_again():
    for value in (1, 2):

        @extension.metric
        def mine(logits, labels, value=value):
            return logits[:, 0, 0] * 0 + value

        assert value_of("mine") == value


# -- in the address of a run ---------------------------------------------------------------------------------------------


def test_an_edit_of_the_file_changes_the_address_of_every_run(write, tmp_path):
    toml = tmp_path / "study.toml"
    toml.write_text('question = "?"\nmodels = ["ladder/16x1/seed-0"]\nextensions = ["mine.py"]\nmetrics = ["always_one"]\n')
    addresses = []
    for value in (1, 2, 1):
        write(METRIC.format("one", value))
        study = Study.load(toml)
        addresses.append(study._config("ladder/16x1/seed-0", None, "")["extensions"])
        assert value_of("always_one") == value
    assert addresses[0] == addresses[2] != addresses[1]
    # a study that was loaded before the edit speaks of the file as it is now: its rows and their address agree
    write(METRIC.format("one", 5))
    assert study._config("ladder/16x1/seed-0", None, "")["extensions"] not in addresses and value_of("always_one") == 5


def test_the_text_that_is_hashed_is_the_text_that_runs(write, monkeypatch):
    """Bytecode beside a file is told from a newer one by length and time alone."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    hashes = []
    for value in (1, 2):
        path = write(METRIC.format("one", value))
        os.utime(path, (1_700_000_000, 1_700_000_000))
        hashes.append(extension.read([path]))
        assert value_of("always_one") == value
    assert hashes[0] != hashes[1]


def test_a_file_is_compiled_by_its_own_rules(write):
    """And not by the `from __future__` of the module that reads it."""
    extension.read([write("def f(x: int): pass\nassert f.__annotations__['x'] is int")])


@pytest.fixture
def adds(monkeypatch):
    """Adds a criterion for as long as the test runs, and prunes by it."""

    def prune(score):
        monkeypatch.setitem(extension._ADDED["criterion"], "mine", ((score, True), extension.HERE))
        tokens = torch.randint(1, 168, (8, 24), generator=torch.Generator().manual_seed(0))
        return pruning.prune(Rung(16, 1).build(seed=1), "mine", 0.5, calibration=tokens)

    return prune


def plain(weight, norms, generator):
    return weight.abs() * norms


def careless(weight, norms, generator):
    scores = weight.abs_().mul(norms)
    weight.zero_()
    norms.zero_()
    return scores


def test_a_criterion_that_writes_to_what_it_is_given_changes_no_weight(adds):
    expected, found = adds(plain).state_dict(), adds(careless).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(("score", "received"), [
    (lambda w, n, g: w.abs().T[:1], r"torch.float32 \(1, 16\)"), (lambda w, n, g: w.sum(), r"torch.float32 \(\)"),
    (lambda w, n, g: n, r"torch.float32 \(16,\)"), (lambda w, n, g: None, "NoneType"),
    (lambda w, n, g: w.abs().numpy(), "ndarray"), (lambda w, n, g: w.to(torch.complex64), r"torch.complex64 \(16, 16\)"),
])  # fmt: skip
def test_what_is_no_score_for_each_weight_is_named(adds, score, received):
    rule = rf"one real score for each weight; got '{received} of <lambda> for model.layers.0.self_attn.q_proj, \(16, 16\)'"
    with pytest.raises(LabkitError, match=rule):
        adds(score)


def test_what_is_no_function_is_no_criterion():
    with pytest.raises(LabkitError, match="a criterion is a function; got 3"):
        extension.criterion(3)
