"""Reports are checked against their schema, and figures and tables contain the right values."""

import dataclasses
from pathlib import Path

import pytest
from conftest import ROOT, TINY

from kd import methods
from kd.config import listing, settings
from kd.reports import figures
from kd.reports import report as reports
from kd.system.errors import Problem

TEACHER = {"name": "x", "members": [], "hash": "", "valid_accuracy": None, "test_accuracy": None, "disagreement": None,
           "gradient_ratio": None, "gradient_reason": None, "remarks": []}


@pytest.fixture
def report(prepared):
    prepared([("train_teacher", ["--model", "kdtiny", *TINY, "--max-steps", "1"])])
    return reports.read(Path("runs/synthetic-patient-32/teacher/kdtiny/seed0"))


@pytest.mark.parametrize("change, message", [
    (lambda r: r.pop("student"), "missing: .'student'."), (lambda r: r.update(extra=1), "unknown: .'extra'."),
    (lambda r: r["results"]["best"].update(epoch="1"), "report.results.best.epoch is str, not int"),
    (lambda r: r["results"]["last"].update(test_accuracy=1), "test_accuracy is int, not float"),
    (lambda r: r.update(schema_version=99), "schema_version is 99"), (lambda r: r.update(teacher={}), "teacher has other keys"),
    (lambda r: r.update(teacher=TEACHER | {"members": ["x"]}), "teacher.members is str, not a dictionary"),
    (lambda r: r.update(teacher=TEACHER | {"members": [{"name": "x"}]}), "teacher.members has other keys"),
    (lambda r: r["data"].update(leaks=None), "report.data.leaks is NoneType")])
def test_a_report_that_breaks_the_schema_is_refused(report, change, message):
    change(report)
    with pytest.raises(Problem, match=message):
        reports.check(report)


def test_the_confusion_figure_shows_counts_and_shares():
    figure = figures.confusion([[3, 1], [0, 0]], ("left", "right"), "title")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["3\n75%", "1\n25%"]  # zeros are not printed
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["left", "right"]


def test_every_mode_can_be_chosen_and_the_pairs_of_the_thesis_are_in_the_readme():
    readme = (ROOT / "kd/README.md").read_text()
    mode = next(field for field in dataclasses.fields(settings.Distillation) if field.name == "mode")
    assert mode.metadata["limits"]["choices"] is methods.MODES
    assert listing.pairs_text() in readme


def test_a_pair_of_another_mode_gets_a_remark():
    assert "in --mode reverse, not in --mode normal" in methods.unusual("normal", "vgg11", "seresnet50")
    assert not methods.unusual("normal", "seresnet50", "vgg11") and not methods.unusual("normal", "x", "y")


def test_a_folder_above_runs_names_them():
    folder = Path("runs/normal/seed0")
    folder.mkdir(parents=True)
    (folder / "report.json").write_text("{}")
    with pytest.raises(Problem, match="has runs below it. Use 'runs/normal/seed0'"):
        reports.read(folder.parent)
