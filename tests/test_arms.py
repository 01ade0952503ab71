"""The table of arms: which arms are compared, and what is reported when arms are not equal."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import PAIR, TINY

from kd.reports import report as reports

FEW = Path("runs/synthetic-patient-32-labels0.3")


@pytest.fixture
def arms(prepared):
    """Prepare runs of four arms with a fraction of the labels, and of two arms with all labels.

    With the fraction, two of the arms have two seeds.
    """
    commands = []
    for fraction, seed, modes in (("0.3", "0", ("normal", "unlabeled-only", "unlabeled")), ("0.3", "1", ("unlabeled",)),
                                  ("1", "0", ("normal",))):
        words = [*TINY, "--epochs", "1", "--labeled-fraction", fraction, "--seed", seed, "--labeled-seed", seed]
        commands += [("distill", ["--teacher", "kdwide", "--student", "kdtiny", *words, "--mode", mode]) for mode in modes]
        commands += [("train_teacher", ["--model", "kdtiny", *words])]
    prepared(commands)


@pytest.mark.draws
def test_four_arms_over_label_fractions(arms, script):
    code, out = script("evaluate", ["--arms", "runs"])
    assert code == 0 and Path("runs/arms.png").stat().st_size > 10_000 and "Every student took 6 optimizer steps." in out
    [found] = json.loads(Path("runs/arms.json").read_text())["groups"]
    assert [row["fraction"] for row in found["rows"]] == [0.3, 1.0]
    assert (found["student"], found["teacher"]) == ("kdtiny", "kdwide")
    few, whole = found["rows"]
    assert {arm: cell["accuracy"]["n"] for arm, cell in few["cells"].items()} == {
        "teacher": 2, "alone": 2, "normal": 1, "unlabeled-only": 1, "unlabeled": 2}
    assert [one["gap"]["seeds"] for one in few["gaps"]] == [1, 1, 2, 1]
    expected = [reports.read(Path(f"runs/synthetic-patient-32-labels0.3{end}/unlabeled/kdwide-kdtiny/seed{seed}"))
                ["results"]["best"]["test_accuracy"] for end, seed in (("", 0), (".1", 1))]
    score = few["cells"]["unlabeled"]["accuracy"]
    assert score["mean"] == pytest.approx(np.mean(expected)) and score["sd"] == pytest.approx(np.std(expected, ddof=1))
    assert whole["images"] == [140] and few["images"][0] < 60 and whole["gaps"][3]["gap"] is None
    assert "trained on exactly the labels of its student" in out


def test_unequal_arms_are_reported(arms, script):
    words = [*TINY, "--epochs", "2", "--labeled-fraction", "1", "--tag", "long"]
    script("distill", ["--teacher", "kdwide", "--student", "kdtiny", *words, "--mode", "unlabeled", "--teacher-checkpoint",
                       str(FEW / "teacher/kdwide/seed0/model.pt"), "--allow-foreign-teacher"])
    out = script("evaluate", ["--arms", "runs"])[1]
    assert "Warning: the students took different numbers of optimizer steps (6, 12)" in out
    assert "Warning: 1 of 1 students had a teacher that was trained on other labels than theirs." in out


def test_arms_on_a_split_that_leaks_say_so(arms, script):
    file = FEW / "normal/kdwide-kdtiny/seed0/report.json"
    report = json.loads(file.read_text())
    report["data"] |= {"leaks": True, "overlaps": {"patients": 3, "files": 0}}
    file.write_text(json.dumps(report))
    out = script("evaluate", ["--arms", "runs"])[1]
    assert "In more than one split: 3 patients, 0 identical files." in out and "WARNING: THIS SPLIT" in out


def test_arms_with_other_labels_are_never_compared(script):
    words = ["--teacher", "kdwide", "--student", "kdtiny", *TINY, "--max-steps", "2"]
    for mode, more in (("unlabeled", ["--out", "runs/a"]), ("unlabeled", ["--train-per-class", "6", "--out", "runs/b"]),
                       ("normal", ["--out", "runs/a"])):
        assert script("distill", [*words, "--mode", mode, *more])[0] == 0
    shutil.copytree("runs/a", "runs/c")
    code, out = script("evaluate", ["--arms", "runs"])
    result = json.loads(Path("runs/arms.json").read_text())
    assert code == 0 and len(result["groups"]) == 2 and len(result["left_out"]) >= 2
    assert [len(row["cells"]) for found in result["groups"] for row in found["rows"]] in ([3, 2], [2, 3], [3, 1], [1, 3])
    assert all(cell["accuracy"]["n"] == 1 for found in result["groups"] for cell in found["rows"][0]["cells"].values())


def test_runs_of_one_seed_with_other_labels_are_reported(script, labelled):
    words = [*PAIR, "--dataset", "folder", "--data-dir", labelled, "--max-steps", "2"]
    assert script("distill", [*words, "--mode", "unlabeled", "--out", "runs/a"])[0] == 0
    text = (labelled / "images.csv").read_text()
    for row in ("x/image4.png,a", "x/image5.png,a"):
        text = text.replace(row, row[:-1] + "b")
    (labelled / "images.csv").write_text(text)
    assert script("distill", [*words, "--mode", "normal", "--out", "runs/b"])[0] == 0
    out = script("evaluate", ["--arms", "runs"])[1]
    assert "Warning: some runs of the same seed had different labels" in out
    [found] = json.loads(Path("runs/arms.json").read_text())["groups"]
    assert all(one["gap"] is None for one in found["rows"][0]["gaps"])


def test_settings_that_a_mode_does_not_use_are_no_difference(script, arms):
    words = [*TINY, "--epochs", "1", "--labeled-fraction", "0.3", "--alpha", "0.5", "--match-share", "0.5", "--tag", "half"]
    script("distill", ["--teacher", "kdwide", "--student", "kdtiny", *words, "--mode", "unlabeled"])
    script("distill", ["--teacher", "kdwide", "--student", "kdtiny", *words, "--mode", "unlabeled-only"])
    out = script("evaluate", ["--arms", "runs"])[1]
    assert "Settings differ" not in out


def test_arms_without_unlabeled_runs_say_what_to_do(script):
    script("train_teacher", ["--model", "kdtiny", *TINY, "--max-steps", "1"])
    code, out = script("evaluate", ["--arms", "runs"])
    assert code == 2 and "--mode unlabeled" in out.splitlines()[-1]


def test_a_graded_set_has_kappa_and_auc_in_report_and_arms(script, picture_tree):
    root = picture_tree("grades", {"0": 12, "1": 12, "2": 12})
    words = ["--dataset", "folder", "--data-dir", root, "--graded", "--max-steps", "2"]
    assert script("distill", [*PAIR, "--mode", "unlabeled", *words])[0] == 0
    [run] = Path("runs").glob("*/unlabeled/*/seed0")
    grades = reports.read(run)["evidence"]["grades"]
    assert -1 <= grades["quadratic_kappa"] <= 1 and 0 <= grades["referable_auc"] <= 1 and grades["reason"] is None
    code, out = script("evaluate", ["--arms", "runs"])
    assert code == 0 and "| quadratic weighted kappa by labelled images |" in out
    assert "| AUC of referable disease (grade >= 2) by" in out
    out = script("evaluate", [run])[1]
    assert "quadratic weighted kappa" in out
