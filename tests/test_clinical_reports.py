"""The metrics that medicine asks for, in the reports of runs and evaluations and in the tables of studies."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA, PAIR, TINY, write_table
from PIL import Image
from sklearn.metrics import roc_auc_score

from kd.config import parsing
from kd.config.settings import TeacherSettings
from kd.reports import report as reports
from kd.reports.calibration import probabilities
from kd.reports.headline import headline
from kd.reports.measures import MEASURES
from kd.reports.predictions import read_predictions

SHORT = ["--model", "kdtiny", "--image-size", "32", "--batch-size", "8", "--epochs", "1", "--device", "cpu", "--no-pretrained"]
FIGURES = ("roc", "precision_recall", "decision_curve", "calibration")


@pytest.fixture
def radiographs(tmp_path):
    """MURA with three body parts; patients have one to three studies of one or two views, brighter if positive."""
    random = np.random.default_rng(4)
    root = tmp_path / "MURA-v1.1"
    for number in range(60):
        split = "valid" if number % 3 == 0 else "train"
        for study in range(1 + number % 3):
            part, finding = random.choice(["ELBOW", "HAND", "WRIST"]), random.choice(["positive", "negative"])
            folder = root / f"{split}/XR_{part}/patient{number:05}/study{study + 1}_{finding}"
            folder.mkdir(parents=True)
            for view in range(random.integers(1, 3)):
                level = 60 if finding == "positive" else 0
                image = random.integers(0, 180, (32, 32)) + level
                Image.fromarray(image.astype(np.uint8)).save(folder / f"image{view + 1}.png")
    return root


@pytest.fixture
def hospital(tmp_path):
    """Images of 24 patients of two sites, a quarter of whom are sick, with their ages and a table."""
    random = np.random.default_rng(5)
    rows = []
    (tmp_path / "hospital").mkdir()
    for number in range(60):
        patient = number // 2
        image = random.integers(0, 160, (32, 32)) + 80 * (patient % 4 == 0)
        Image.fromarray(image.astype(np.uint8)).save(tmp_path / f"hospital/image{number:02}.png")
        split = ("train", "valid", "test")[patient // 4 % 3]
        rows.append((f"image{number:02}.png", "normal" if patient % 4 else "effusion", f"p{patient}", split, "BA"[patient % 2], str(20 + patient)))
    write_table(tmp_path / "hospital", rows, "path,label,patient,split,scanner,age")
    return tmp_path / "hospital"


def kappa(labels, answers):
    """Return Cohen's kappa of two classes by its definition."""
    labels, answers = np.array(labels), np.array(answers)
    observed = (labels == answers).mean()
    expected = sum((labels == value).mean() * (answers == value).mean() for value in (0, 1))
    return (observed - expected) / (1 - expected)


@pytest.mark.draws
def test_kappa_of_mura_is_that_of_each_study_overall_and_by_body_part(script, radiographs):
    code, out = script("train_teacher", [*SHORT, "--dataset", "mura", "--label", "abnormal", "--data-dir", radiographs, "--epochs", "4"])
    assert code == 0, out
    [run] = Path("runs").glob("*/teacher/kdtiny/seed0")
    evidence = reports.read(run)["evidence"]
    test = read_predictions(run)
    studies = {}
    for path, label, row in zip(test.paths.tolist(), test.labels.tolist(), probabilities(test.logits)):
        studies.setdefault(path.rsplit("/", 1)[0], []).append((label, row))
    found = {"all": ([], [])}
    for folder, views in studies.items():
        answer = int(np.mean([row for _, row in views], axis=0).argmax())
        part = folder.split("/")[1].removeprefix("XR_").lower()
        for name in ("all", part):
            labels, answers = found.setdefault(name, ([], []))
            labels.append(views[0][0])
            answers.append(answer)
    assert evidence["positive"] == "positive" and len(found) == 4
    assert evidence["metrics"]["kappa_by_study"]["value"] == pytest.approx(kappa(*found.pop("all")))
    groups = evidence["subgroups"]["body part"]
    assert groups.keys() == found.keys()
    for part, (labels, answers) in found.items():
        own = groups[part]["metrics"]["kappa_by_study"]
        defined = len(set(labels) | set(answers)) > 1
        assert own["value"] == (pytest.approx(kappa(labels, answers)) if defined else None)
    assert f"Cohen's kappa by study: {evidence['metrics']['kappa_by_study']['value']:.4f}" in out
    assert all((run / f"{name}.png").stat().st_size > 5000 for name in FIGURES)
    flow = {step["step"]: step for step in reports.read(run)["data"]["flow"]}
    assert flow["test split, with labels"]["images"] == len(test.labels) and flow["test split, with labels"]["patients"] == 20


def test_two_classes_have_a_positive_one_an_operating_point_and_subgroups(script, hospital):
    words = [*SHORT, "--dataset", "folder", "--data-dir", hospital]
    code, out = script("train_teacher", [*words, "--subgroups", "scanner", "age", "--operating-point", "sensitivity=0.9", "--prevalence", "0.02"])
    assert code == 0, out
    [run] = Path("runs").glob("*/teacher/kdtiny/seed0")
    report = reports.read(run)
    evidence = report["evidence"]
    assert evidence["positive"] == "effusion" and evidence["operating_point"]["rule"] == "sensitivity=0.9"
    assert evidence["metrics"].keys() == MEASURES.keys() and evidence["prevalence"] == 0.02
    test, valid = read_predictions(run), read_predictions(run, "valid")
    assert evidence["metrics"]["auroc"]["value"] == pytest.approx(roc_auc_score(test.labels == 0, test.logits[:, 0] - test.logits[:, 1]))
    temperature = evidence["calibration"]["temperature"] or 1.0
    called = probabilities(valid.logits, temperature)[:, 0] >= evidence["operating_point"]["threshold"]
    assert called[valid.labels == 0].mean() >= 0.9  # on validation, where it was fixed
    called = probabilities(test.logits, temperature)[:, 0] >= evidence["operating_point"]["threshold"]
    assert evidence["metrics"]["sensitivity"]["value"] == called[test.labels == 0].mean()
    assert evidence["metrics"]["specificity"]["value"] == (~called[test.labels == 1]).mean()
    groups = evidence["subgroups"]
    assert list(groups) == ["scanner", "age"] and list(groups["scanner"]) == ["A", "B"] and list(groups["age"]) == ["18 to 39", "40 to 64"]
    assert sum(group["images"] for group in groups["scanner"].values()) == len(test.labels)
    odd = np.array([int(patient.removeprefix("p")) % 2 == 1 for patient in test.patients])
    assert groups["scanner"]["A"]["metrics"]["accuracy"]["value"] == test.right[odd].mean() and "only" in groups["scanner"]["A"]["note"]
    lines = headline(evidence)
    assert len(lines) == 5 + 4 + 1 and all(f"test split, {line}\n" in out for line in lines[:-1]) and f"\n{lines[-1]}\n" in out
    assert [line.partition(" (")[0] for line in lines[5:9]] == ["scanner A", "scanner B", "age 18 to 39", "age 40 to 64"]
    assert lines[5].count("patients") == 1  # a small group is called small once
    accuracy = groups["scanner"]["A"]["metrics"]["accuracy"]["value"]
    assert f"{groups['scanner']['A']['images']} images, " in lines[5] and f"accuracy: {accuracy:.4f}" in lines[5] and "AUROC: " in lines[5]
    code, out = script("evaluate", [run])
    own = json.loads((run / "evaluation.json").read_text())["evidence"]
    assert code == 0 and own == evidence and f"\n{lines[5]}\n" in out  # by the settings of the run
    code, out = script("evaluate", [run, "--operating-point", "youden", "--positive", "normal", "--prevalence", "0.5"])
    other = json.loads((run / "evaluation.json").read_text())["evidence"]
    assert code == 0 and other["positive"] == "normal" and other["operating_point"]["rule"] == "youden" and other["prevalence"] == 0.5
    assert other["metrics"]["accuracy"] == evidence["metrics"]["accuracy"] and "sensitivity for normal (youden)" in out


@pytest.mark.draws
def test_other_images_are_evaluated_with_the_operating_point_of_the_run(script, hospital, tmp_path):
    words = [*SHORT, "--dataset", "folder", "--data-dir", hospital]
    assert script("train_teacher", [*words, "--subgroups", "scanner"])[0] == 0
    [run] = Path("runs").glob("*/teacher/kdtiny/seed0")
    clinic = tmp_path / "clinic"
    clinic.mkdir()
    rows = []
    for number, path in enumerate(sorted(hospital.glob("*.png"))[:20]):
        image = np.asarray(Image.open(path)) // 2
        Image.fromarray(image).save(clinic / path.name)
        rows.append((path.name, "effusion" if number % 8 < 2 else "normal", f"q{number // 2}", ["west", "east"][number % 3 == 0]))
    write_table(clinic, rows, "path,label,patient,site")
    code, out = script("evaluate", [run, "--dataset", "folder", "--data-dir", clinic, "--subgroups", "site"])
    assert code == 0, out
    [folder] = run.glob("evaluation-clinic-*")
    evidence = json.loads((folder / "evaluation.json").read_text())["evidence"]
    assert evidence["operating_point"] == reports.read(run)["evidence"]["operating_point"]
    assert list(evidence["subgroups"]["site"]) == ["east", "west"]
    assert all((folder / f"{name}.png").stat().st_size > 5000 for name in (*FIGURES, "confusion"))
    code, out = script("evaluate", [run, "--dataset", "folder", "--data-dir", clinic])
    again = json.loads((folder / "evaluation.json").read_text())["evidence"]
    assert code == 0 and again["subgroups"] == {}  # these images have no column scanner
    write_table(clinic, [(*row, "AB"[number % 2]) for number, row in enumerate(rows)], "path,label,patient,site,scanner")
    assert script("evaluate", [run, "--dataset", "folder", "--data-dir", clinic])[0] == 0
    again = json.loads((folder / "evaluation.json").read_text())["evidence"]
    assert list(again["subgroups"]) == ["scanner"] and list(again["subgroups"]["scanner"]) == ["A", "B"]


@pytest.mark.parametrize("words, message", [
    (["--operating-point", "best"], "--operating-point best is not valid"),
    (["--operating-point", "sensitivity=1.5"], "must be above 0 and below 1"),
    (["--positive", "tumour"], "--positive 'tumour' is not valid"),
    (["--subgroups", "sex"], "--subgroups 'sex' is not valid: the data set 'hospital' has scanner, age"),
    (["--prevalence", "0"], "--prevalence")])
def test_settings_that_do_not_fit_are_refused_before_training(script, hospital, words, message):
    argv = ["--dataset", "folder", "--data-dir", hospital, "--device", "cpu"]
    code, out = script("train_teacher", [*SHORT, *argv[:4], *words])
    assert code == 2 and message in out.splitlines()[-1] and "epoch 1" not in out


@pytest.mark.parametrize("words, message", [
    (["--operating-point", "best"], "--operating-point best is not valid"), (["--positive", "x"], "--positive 'x' is not valid"),
    (["--subgroups", "sex"], "--subgroups 'sex' is not valid"), (["--prevalence", "0.1"], ""), (["--operating-point", "youden"], "")])
def test_an_evaluation_refuses_what_does_not_fit_before_it_predicts(script, monkeypatch, hospital, words, message):
    assert script("train_teacher", ["--model", "kdtiny", *TINY])[0] == 0
    assert script("train_teacher", [*SHORT, "--dataset", "folder", "--data-dir", hospital])[0] == 0
    [run] = Path("runs").glob("hospital-*/teacher/kdtiny/seed0")
    many = DATA / "teacher/kdtiny/seed0"
    monkeypatch.setattr("kd.studies.evaluation.predict", lambda *given: pytest.fail("predicted"))
    if message:
        for where in ([], ["--dataset", "folder", "--data-dir", hospital]):
            code, out = script("evaluate", [run, *where, *words])
            assert code == 2 and message in out.splitlines()[-1]
    else:  # of seven classes, none is positive
        code, out = script("evaluate", [many, *words])
        assert code == 2 and f"{words[0]} is not valid for 7 classes" in out.splitlines()[-1]


def test_settings_of_the_metrics_may_change_when_a_run_continues(script, hospital):
    words = [*SHORT, "--dataset", "folder", "--data-dir", hospital]
    assert script("train_teacher", [*words, "--max-minutes", "0"])[0] == 143
    code, out = script("train_teacher", [*words, "--prevalence", "0.1"])
    [run] = Path("runs").glob("*/teacher/kdtiny/seed0")
    assert code == 0 and "continuing from step" in out and reports.read(run)["evidence"]["prevalence"] == 0.1
    [settings] = parsing.parse(TeacherSettings, ["--operating-point", "specificity=0.8"])
    assert settings.output.operating_point == "specificity=0.8"


def test_more_classes_have_no_positive_one(script):
    assert script("train_teacher", ["--model", "kdtiny", *TINY])[0] == 0
    run = DATA / "teacher/kdtiny/seed0"
    evidence = reports.read(run)["evidence"]
    assert evidence["positive"] is None is evidence["operating_point"] and evidence["metrics"]["sensitivity"]["value"] is None
    assert evidence["metrics"]["sensitivity"]["reason"] == "no class is named as the positive one"
    assert not (run / "roc.png").exists()
    before = (run / "confusion.png").stat().st_mtime_ns
    assert script("evaluate", [run])[0] == 0 and (run / "evaluation-roc.png").exists() and (run / "evaluation-precision_recall.png").exists()
    assert not (run / "roc.png").exists() and (run / "confusion.png").stat().st_mtime_ns == before


def test_tables_have_the_difference_of_every_metric(script):
    for seed in ("0", "1"):
        assert script("train_teacher", ["--model", "kdtiny", *TINY, "--seed", seed])[0] == 0
        assert script("distill", [*PAIR, "--mode", "normal", "--seed", seed])[0] == 0
    code, out = script("evaluate", ["--tables", "runs"])
    [table] = json.loads(Path("runs/tables.json").read_text())["protocols"][0]["tables"]
    [cell] = table["cells"]
    assert code == 0 and "Other metrics, differences with 95 % intervals" in out and "minus baseline" in out
    gaps = cell["metrics_minus_alone"]
    assert gaps["accuracy"]["value"] == pytest.approx(cell["minus_alone"]["mean"]) and gaps["accuracy"]["seeds"] == 2
    assert "sensitivity" not in gaps and gaps["nll"]["low"] < gaps["nll"]["value"] < gaps["nll"]["high"]
    values = [[reports.read(DATA / f"{role}/seed{seed}")["evidence"]["metrics"]["nll"]["value"] for seed in (0, 1)]
              for role in ("normal/kdwide-kdtiny", "teacher/kdtiny")]
    assert gaps["nll"]["value"] == pytest.approx(np.mean(values[0]) - np.mean(values[1]), abs=1e-6)
    from_teacher = cell["metrics_minus_teacher"]
    taught = [reports.read(DATA / f"teacher/kdwide/seed{seed}")["evidence"]["metrics"]["nll"]["value"] for seed in (0, 1)]
    assert from_teacher["nll"]["value"] == pytest.approx(np.mean(values[0]) - np.mean(taught), abs=1e-6)
    assert from_teacher["accuracy"]["value"] == pytest.approx(cell["minus_teacher"]["mean"]) and "minus teacher |" in out


@pytest.mark.draws
def test_of_grades_the_operating_point_is_that_of_referable_disease(script, tmp_path):
    """Sensitivity at a fixed specificity of grades 2 and above, by their summed probability."""
    random = np.random.default_rng(6)
    rows = []
    (tmp_path / "fundus").mkdir()
    for number in range(96):
        grade = number % 4
        image = random.integers(0, 120, (32, 32)) + 40 * grade
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(tmp_path / f"fundus/image{number:02}.png")
        rows.append((f"image{number:02}.png", str(grade), f"p{number // 2}", ("train", "valid", "test")[number // 8 % 3]))
    write_table(tmp_path / "fundus", rows, "path,label,patient,split")
    words = [*SHORT, "--dataset", "folder", "--data-dir", tmp_path / "fundus", "--graded", "--operating-point", "specificity=0.75"]
    code, out = script("train_teacher", words)
    assert code == 0, out
    [run] = Path("runs").glob("*/teacher/kdtiny/seed0")
    evidence = reports.read(run)["evidence"]
    test, valid = read_predictions(run), read_predictions(run, "valid")
    temperature = evidence["calibration"]["temperature"] or 1.0
    likely = [probabilities(part.logits, temperature)[:, 2:].sum(1) for part in (valid, test)]
    called = [p >= evidence["operating_point"]["threshold"] for p in likely]
    assert evidence["positive"] == "grade >= 2" and (~called[0][valid.labels < 2]).mean() >= 0.75
    assert evidence["metrics"]["sensitivity"]["value"] == called[1][test.labels >= 2].mean()
    assert evidence["metrics"]["specificity"]["value"] == (~called[1][test.labels < 2]).mean()
    assert evidence["metrics"]["quadratic_kappa"]["low"] is not None and f"{evidence['metrics']['referable_auc']['value']:.4f}" in out
    assert all((run / f"{name}.png").stat().st_size > 5000 for name in FIGURES)
