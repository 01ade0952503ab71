"""Reports of earlier versions are read as reports of the present one; what they do not tell is null."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from kd.reports import report as reports
from kd.system.errors import Problem

NEW = ("positive", "operating_point", "prevalence", "metrics", "subgroups")  # entries of `evidence` that version 5 does not have


def as_version_5(report):
    """Change a report into what the version before would have written."""
    report["schema_version"] = 5
    del report["data"]["flow"]
    evidence = report["evidence"]
    for key in NEW:
        del evidence[key]
    own = evidence["calibration"]
    del own["ece_if_calibrated"]
    for scores in (own["before"], own["after"]):
        for key in ("classwise_ece", "adaptive_ece"):
            if scores is not None:
                scores.pop(key, None)


def as_version_4(report):
    """Change a report into what the version before that would have written."""
    as_version_5(report)
    report["schema_version"] = 4
    own = report["evidence"]["calibration"]
    if own["temperature"] is None:
        own |= {"temperature": 100.0, "after": own["before"]}
    del report["clock"]["ranks"], report["data"]["without_patient"], own["reason"]
    for key in ("several_labels", "unknown", "reason"):
        del report["evidence"]["study"][key]


@pytest.fixture
def old(make):
    """old(change) writes a report of version 4, changed further, and returns its folder."""
    def write(change=lambda report: None, role="normal"):
        def both(report):
            as_version_4(report)
            change(report)
        shutil.rmtree("runs", ignore_errors=True)
        return make(role, "resnet34", "resnet18", 0, both)
    return write


def test_an_old_report_says_what_a_new_one_does_except_the_ranks(old, templates):
    new, read = reports.read(templates["student"]), reports.read(old())
    as_version_5(new)
    assert [read["evidence"].pop(key) for key in NEW] == [None, None, None, {}, {}] and read["data"].pop("flow") == []
    assert read["evidence"]["calibration"].pop("ece_if_calibrated") is None
    assert read["evidence"]["calibration"]["before"].pop("classwise_ece") is None is read["evidence"]["calibration"]["before"].pop("adaptive_ece")
    for key in ("evidence", "data", "classification_report", "history"):
        assert read[key] == new[key], key
    assert read["schema_version"] == reports.SCHEMA_VERSION and read["clock"]["ranks"] is None and new["clock"]["ranks"] == 1


@pytest.mark.parametrize("bound", [0.01, 100.0])
def test_a_temperature_at_a_bound_is_none(old, script, bound):
    folder = old(lambda report: report["evidence"]["calibration"].update(temperature=bound))
    found = reports.read(folder)["evidence"]["calibration"]
    assert found["temperature"] is None and found["after"] is None and "all validation images" in found["reason"]
    assert found["before"]["ece"] > 0
    inside = reports.read(old(lambda report: report["evidence"]["calibration"].update(temperature=0.02)))
    assert inside["evidence"]["calibration"]["temperature"] == 0.02 and inside["evidence"]["calibration"]["reason"] is None


def test_a_macro_average_over_absent_classes_becomes_one_over_the_present(old):
    def without_wrists(report):
        table = report["classification_report"]
        table["wrist"] |= {"precision": 0.0, "recall": None, "f1-score": 0.0, "support": 0.0}
        table["hand"]["precision"] = None  # never predicted
        table["macro avg"] |= {"precision": 0.9, "recall": 0.9, "f1-score": 0.9}
        table["weighted avg"]["recall"] = 0.25

    table = reports.read(old(without_wrists))["classification_report"]
    present = [row for name, row in table.items() if isinstance(row, dict) and " " not in name and name != "wrist"]
    assert len(present) == 6 and present[3]["precision"] is None
    for key in ("precision", "recall", "f1-score"):
        assert table["macro avg"][key] == float(np.mean([row[key] or 0.0 for row in present]))
    assert table["weighted avg"]["recall"] == 0.25


@pytest.mark.parametrize("reader, notes, patients, without", [
    ("mura", [], 7, 0), ("eyepacs", [], 7, 0), ("aptos", [], 0, 28), ("messidor2", [], 0, 28), ("folder", [], 7, 0),
    ("folder", ["40 of 40 images have no patient: each counts as a patient of its own."], 0, 28),
    ("folder", ["other", "3 of 40 images have no patient: each counts as a patient of its own."], None, None)])
def test_images_without_a_patient_are_no_patients(old, reader, notes, patients, without):
    def change(report):
        report["data"] |= {"reader": reader, "notes": notes, "patients": {"train": 9, "valid": 9, "test": 7}}
        report["data"]["distinct_images"]["test"] = 28

    data = reports.read(old(change))["data"]
    assert data["patients"]["test"] == patients and data["without_patient"]["test"] == without


@pytest.mark.parametrize("reader, errata, known", [
    ("mura", None, True), ("synthetic", None, True), ("mura", "x.csv", False), ("eyepacs", None, False), ("folder", None, False)])
def test_an_accuracy_over_studies_that_may_be_one_over_patients_is_null(old, reader, errata, known):
    def change(report):
        report["data"]["reader"] = reader
        report["settings"]["errata"] = errata

    study = reports.read(old(change))["evidence"]["study"]
    assert (study["accuracy"] is not None) == (study["studies"] is not None) == known
    assert (study["reason"] is None) == known and (known or "earlier version" in study["reason"])


def test_the_first_reports_of_the_old_version_lack_more(old):
    def change(report):
        del report["data"]["other_files"], report["data"]["ranges"]

    data = reports.read(old(change))["data"]
    assert data["other_files"] == {} and data["ranges"] == {}


@pytest.mark.parametrize("change, message", [
    (lambda report: report.pop("evidence"), "missing: ['evidence']"),
    (lambda report: report["evidence"].update(calibration=3), "calibration is int"),
    (lambda report: report.update(data=[]), "report.data is list"),
    (lambda report: report["data"].update(parts=None), "report.data.parts is NoneType"),
    (lambda report: report.update(schema_version=3), "schema_version is 3, but 6 is required")])
def test_a_damaged_old_report_is_refused(old, change, message):
    folder = old()
    report = json.loads((folder / "report.json").read_text())
    change(report)
    (folder / "report.json").write_text(json.dumps(report))
    with pytest.raises(Problem, match=re.escape(message)):
        reports.read(folder)


def test_old_and_new_runs_share_a_table(old, make, script):
    old()
    make("alone", "", "resnet18", 0)
    code, out = script("evaluate", ["--tables", "runs"])
    assert code == 0 and "# Excluded" not in out and "| resnet18 <- resnet34 |" in out
    assert Path("runs/tables.md").read_text().count("# synthetic, patient split") == 1


def test_a_report_of_version_5_has_no_metrics_with_intervals(make, templates):
    read = reports.read(make("normal", "resnet34", "resnet18", 0, as_version_5))
    assert read["evidence"]["metrics"] == {} and read["data"]["flow"] == []
    assert read["evidence"]["study"] == reports.read(templates["student"])["evidence"]["study"]  # unlike in version 4, it is right


@pytest.mark.parametrize("change, message", [
    (lambda own: own["metrics"].update(accuracy=None), "evidence.metrics.accuracy is _Null"),
    (lambda own: own.update(subgroups={"site": 3}), "evidence.subgroups.site is int"),
    (lambda own: own.update(subgroups={"site": {"a": None}}), "evidence.subgroups.site.a is _Null"),
    (lambda own: own.update(subgroups={"site": {"a": {"images": 3, "patients": 2, "note": None, "metrics": {"ece": 1}}}}), "a.metrics.ece is int"),
    (lambda own: own.update(operating_point={"rule": 3}), "evidence.operating_point has other keys")])
def test_damaged_metrics_are_refused(make, change, message):
    folder = make("normal", "resnet34", "resnet18", 0, lambda report: change(report["evidence"]))
    with pytest.raises(Problem, match=re.escape(message)):
        reports.read(folder)
