"""The page: true, whole, safe to open, and never half-written."""

from __future__ import annotations

import dataclasses
import errno
import json
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from labkit import report
from labkit.errors import LabkitError
from labkit.records import EXACT_MATCH, NLL_NATS, ItemRow
from labkit.store import Store
from labkit.verdict import Rule, VerdictRow

SCRIPT = "<script>alert('x')</script>"
QUICK = Rule()


def verdicts(*told):
    """(rung, compression, ability, verdict, seeds) each."""
    kinds = {"str": "", "int": 5, "float": 0.5}
    row = VerdictRow(**{field.name: kinds[field.type] for field in dataclasses.fields(VerdictRow)})
    names = ("rung", "compression", "ability", "verdict", "n_seeds")
    return pd.DataFrame(dataclasses.asdict(dataclasses.replace(row, **dict(zip(names, t, strict=True)))) for t in told)


def test_answer_at_one_rung():
    told = verdicts(
        ("64x2", "wanda", "recall", "kept", 5),
        ("64x2", "wanda", "addition", "lost", 5),
        ("64x2", "wanda", "state-4", "degraded", 5),
        ("64x2", "wanda", "guard", "absent", 0),
        ("64x2", "random", "recall", "lost", 5),
        ("64x2", "random", "addition", "lost", 5),
        ("64x2", "random", "state-4", "undecided", 3),
        ("64x2", "random", "facts", "undecided", 5),
    )
    assert report.answer(told) == (
        "Of 8 combinations of abilities and compressions at rung 64x2, 1 kept, 1 degraded, 3 lost, 2 undecided (1 of "
        "them for having fewer than 5 seeds) and 1 absent: wanda 50 % loses addition and degrades state-4; "
        "random 50 % loses addition and recall."
    )
    assert "for having fewer" not in report.answer(told, Rule(min_seeds=3))


def test_answer_counts_the_rungs_that_have_the_ability():
    told = verdicts(
        ("16x1", "wanda", "addition", "absent", 0),
        ("64x2", "wanda", "addition", "lost", 5),
        ("96x3", "wanda", "addition", "degraded", 5),
    )
    assert report.answer(told) == (
        "Of 3 combinations of rungs, abilities and compressions, 0 kept, 1 degraded, 1 lost, 0 undecided and 1 absent: "
        "wanda 50 % loses addition (1 of 2) and degrades addition (1 of 2) (in brackets: on how many of the rungs that "
        "have the ability)."
    )


@pytest.mark.parametrize(
    ("told", "ending"),
    [
        ([("64x2", "wanda", "recall", "kept", 5)], "nothing is shown to be lost or degraded."),
        ([("64x2", "wanda", "recall", "undecided", 5)], "nothing is shown to be kept, degraded or lost."),
        ([], "so which of their abilities survive compression is open."),
    ],
)
def test_answer_where_nothing_is_harmed(told, ending):
    assert report.answer(verdicts(*told)).endswith(ending)


def fill(folder, compressions, seeds=2, model="ladder/64x2"):
    """A small store: two abilities, two metrics, a hundred items."""
    store = Store(folder, create=True)
    for compression in compressions:
        for seed in range(seeds):
            run = f"{compression.replace(' ', '-')}-{seed}"
            row = ItemRow(run, f"{model}/seed-{seed}", "64x2", 99_000, seed, compression, 0.5, "", "", 0, 0.0, 0.1)
            told = [
                dataclasses.replace(row, ability=ability, metric=metric, item=item, value=float(value))
                for ability in ("recall", "facts")
                for metric, values in ((EXACT_MATCH, np.arange(100) > 1), (NLL_NATS, np.full(100, 0.05)))
                for item, value in enumerate(values)
            ]
            origin = {"commit": "c0ffee", "dirty": seed == 0, "versions": {"torch": "2"}, "device": "cpu"}
            origin |= {"wall_s": 1.5, "config": {"model": model}, "artifacts": {"weights": "5ha256"}}
            store.write(run, pd.DataFrame(map(dataclasses.asdict, told)), origin)
    return store


class Page(HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open += [] if tag in ("meta", "img", "source") else [tag]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self):
        return "".join(self.words)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """The page of a store whose every name tries to break out of it."""
    folder = tmp_path_factory.mktemp("runs") / "quick"
    store = fill(folder, ["dense", "wanda"], model=SCRIPT)
    (folder / "study.json").write_text(json.dumps({"name": f"{SCRIPT}&", "question": f'"{SCRIPT}'}))
    return store, Page(report.write_report(folder, rule=QUICK))


def test_everything_is_escaped(hostile):
    _, page = hostile
    assert page.open == []  # every element is closed, in order
    assert not page.all("script") and SCRIPT in page.text
    assert f"labkit: {SCRIPT}&" in page.text and f'"{SCRIPT}' in page.text


def test_page_needs_no_network(hostile):
    _, page = hostile
    links = [v for _, attributes in page.tags for key, v in attributes.items() if key in ("src", "srcset", "href")]
    assert len(links) == 4  # two figures, for a screen and for a phone
    assert all(link.startswith("data:image/png;base64,iVBOR") for link in links)
    assert "http" not in page.source and "url(" not in page.source and not page.all("link")


def test_every_image_says_what_it_shows(hostile):
    _, page = hostile
    alts = [attributes["alt"] for attributes in page.all("img")]
    assert len(alts) == 2
    assert alts[0].startswith("Score against model size for 2 abilities on 1 rung")
    assert alts[1].startswith("Retention with 95 % intervals of 2 abilities")


def test_page_reads_on_a_phone(hostile):
    _, page = hostile
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert page.all("html") == [{"lang": "en"}]
    boxes = [box for box in page.all("div") if box.get("class") == "scroll"]
    assert len(boxes) == len(page.all("table")) == 2
    assert all(box["tabindex"] == "0" and box["aria-label"] for box in boxes)


def test_page_holds_the_answer_the_rule_and_the_provenance(hostile):
    store, page = hostile
    told = verdicts(*[("64x2", "wanda", ability, "undecided", 2) for ability in ("recall", "facts")])
    assert f"Answer. {report.answer(told)}" in page.text
    assert "2 of the 5 seeds the rule asks for" in page.text  # the reason
    assert "can see a failure that none of them shows" in page.text
    assert "within 0.95 to 1.05" in page.text and "below 0.2;" not in page.text
    for known in ("4 runs, 1,600 rows, 6 s in all, on cpu; commit c0ffee; 2 of the runs with uncommitted", "5ha256"):
        assert known in page.text
    assert all(run in page.text for run in store.runs())


def test_what_several_compressions_do_is_a_list(tmp_path):
    told = verdicts(
        ("64x2", "wanda", "<addition>", "lost", 5), ("64x2", "random", "recall", "lost", 5),
        ("96x3", "random", "recall", "degraded", 5),
    ).assign(retention=-0.0001)  # fmt: skip
    fill(tmp_path / "s", ["dense", "wanda"])
    page = Page(report.write_report(tmp_path / "s", verdicts=told))
    assert page.open == []
    assert page.source.count("<li>") == 2 and "<li>wanda 50 % loses &lt;addition&gt; (1 of 1)</li>" in page.source
    head, _, rest = report.answer(told).partition(": ")
    assert f"Answer. {head}:" in page.text and all(point in page.text for point in rest.split(" (in br")[0].split("; "))
    assert "In brackets: on how many of the rungs that have the ability." in page.text
    assert page.text.count("lost 0.00") == 2 and "-0.00" not in page.text


def test_verdicts_are_words_not_only_colours(hostile):
    _, page = hostile
    assert page.text.count("undecided 1.00") == 2
    assert [cell for cell in page.all("td") if cell.get("class") == "undecided"]


def test_dense_rows_alone(tmp_path):
    fill(tmp_path / "s", ["dense"])
    page = Page(report.write_report(tmp_path / "s", tmp_path / "page.html", QUICK))
    assert len(page.all("img")) == 1 and not page.all("table")
    assert "Only dense models have been measured so far" in page.text
    assert "labkit: which abilities survive?" in page.text
    assert not (tmp_path / "s" / "report.html").exists()


def test_a_report_needs_rows(tmp_path):
    Store(tmp_path / "s", create=True)
    with pytest.raises(LabkitError, match="a report needs rows; got .* Measure some first: labkit run quick --out"):
        report.write_report(tmp_path / "s")
    with pytest.raises(LabkitError, match="a store is a folder with store.json"):
        report.write_report(tmp_path)


def test_an_unfinished_run_is_named(tmp_path):
    fill(tmp_path / "s", ["wanda"])
    message = "Finish the run, .* and report again. What is missing: compressed rows are paired with dense rows .*wanda"
    with pytest.raises(LabkitError, match=message):
        report.write_report(tmp_path / "s")


@pytest.mark.parametrize("text", ["{", "[1]", '"x"'])
def test_a_broken_question_is_named(tmp_path, text):
    fill(tmp_path / "s", ["dense"])
    (tmp_path / "s" / "study.json").write_text(text)
    with pytest.raises(LabkitError, match="study.json holds the name and the question .* Delete it"):
        report.write_report(tmp_path / "s")


def test_a_failed_report_leaves_the_earlier_one(tmp_path, monkeypatch):
    fill(tmp_path / "s", ["dense"])
    path = report.write_report(tmp_path / "s")
    path.write_text("earlier")
    before = sorted(entry.name for entry in path.parent.iterdir())

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(LabkitError, match="a report is written to .*report.html; got 'No space left on device'"):
        report.write_report(tmp_path / "s")
    assert path.read_text() == "earlier"
    assert sorted(entry.name for entry in path.parent.iterdir()) == before
    monkeypatch.undo()
    report.write_report(tmp_path / "s")
    assert path.read_text().startswith("<!DOCTYPE html>")


def test_an_unwritable_place_is_named(tmp_path):
    fill(tmp_path / "s", ["dense"])
    with pytest.raises(LabkitError, match="got 'No such file or directory'. Choose a place you may write to"):
        report.write_report(tmp_path / "s", tmp_path / "absent" / "page.html")


def test_a_sweep_is_drawn_against_sparsity_and_the_rest_beside_it():
    told = verdicts(*[("64x2", way, "recall", "degraded", 5) for way in ("wanda", "wanda", "wanda 2:4")])
    told = told.assign(sparsity=[0.3, 0.6, 0.5], retention=[0.9, 0.4, 0.6], low=0.3, high=0.95)
    html = report._retention(told, Rule())
    assert html.count("<img") == 2
    assert "Retention against sparsity for 1 ability on rung 64x2" in html and "0.90 at 30% to 0.40 at 60%" in html
    assert "Retention with 95 % intervals of 1 ability under 1 compression on 1 rung. wanda 2:4: 1 degraded" in html


def test_names_with_signs_of_mathematics_are_drawn_as_they_are(tmp_path):
    """And judged as all others: nothing is measured in vain for a dollar in a name."""
    store, items = Store(tmp_path / "s", create=True), np.arange(40)
    for seed in range(3):
        for compression in ("dense", "cut $a_$ x"):
            run = f"r{seed}{len(compression)}"
            row = ItemRow(run, "m", "64x2", 100, seed, compression, 0.0, "an $x_$ ability", EXACT_MATCH, 0, 1.0, 0.1)
            frame = pd.DataFrame({**dataclasses.asdict(row), "item": items, "value": (items % 10 < 9) * 1.0})
            store.write(run, frame, {"config": {"seed": 0}})
    assert "cut $a_$ x" in report.write_report(tmp_path / "s").read_text()


def test_a_sweep_that_nobody_has_is_in_no_figure_of_its_own():
    told = verdicts(("64x2", "wanda", "recall", "degraded", 5), ("64x2", "wanda", "recall", "lost", 5), ("96x3", "wanda", "recall", "absent", 5))
    told = told.assign(sparsity=[0.3, 0.6, 0.3], retention=[0.9, 0.1, np.nan], low=0.1, high=0.95)
    assert report._retention(told, Rule()).count("<figure") == 1
