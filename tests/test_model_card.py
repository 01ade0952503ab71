"""The card of a run: what it says, where it has it from, and what it never holds."""

import csv
import json
from pathlib import Path

import pytest
from conftest import DATA, PAIR, ROOT, RUN, TEACHER, TINY
from test_old_reports import as_version_4

from kd.reports import report as reports
from kd.runs.clock import versions
from kd.studies.model_card import UNKNOWN, Licences, describe, text
from kd.studies.model_card_tables import settings_rows
from kd.studies.model_card_text import code, yaml
from kd.studies.networks import read_alone
from kd.system import commit as commits
from kd.system.errors import Problem
from kd.system.names import without_paths

ALONE = DATA / "teacher/kdtiny/seed0"
FILES = [{"file": "model.onnx", "bytes": 12345, "sha256": "ab12", "accuracy": 0.5, "largest_difference": 1e-6, "equal_answers": 28,
          "latency_1": {"1": {"median": 0.0021, "low": 0.002, "high": 0.003}}}]


@pytest.fixture
def study(prepared):
    """A student, its teacher, and the student's network trained alone."""
    prepared([("distill", [*PAIR, "--mode", "normal", "--dkd-beta", "2"]), ("train_teacher", ["--model", "kdtiny", *TINY])])


def front_matter(written):
    import yaml as parser
    return parser.safe_load(written.split("---\n")[1])


def test_a_card_has_what_the_files_of_the_run_say(study):
    card, report = describe(RUN, Licences("mit", None), FILES), reports.read(RUN)
    assert json.loads(json.dumps(card, allow_nan=False)) == card
    assert card["run"] == "synthetic-patient-32/normal/kdwide-kdtiny/seed0" and card["licences"] == {"weights": "mit", "data": UNKNOWN}
    assert card["data"]["parts"] == report["data"]["parts"] and card["data"]["flow"] == report["data"]["flow"] != []
    assert card["hashes"] == {"weights": report["student"]["weights_hash"], "split": report["data"]["split_hash"],
                              "index": report["data"]["index_hash"], "content": report["data"]["content_hash"]}
    with (RUN / "predictions.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["part"] == "test"]
    patients = [len({row["patient"] for row in rows if row["label"] == name}) for name in report["data"]["classes"]]
    assert card["data"]["patients_per_class"]["test"] == patients and card["data"]["patients_per_class"]["train"] is None
    own = card["preprocessing"]
    assert (own["image_size"], own["resize"], own["channels"], own["crop"]) == (32, "squash", 1, "none")
    assert own["mean"] == pytest.approx([0.4, 0.5, 0.6]) and own["std"] == pytest.approx([0.2, 0.3, 0.2])
    method = card["distillation"]
    assert (method["mode"], method["alpha"], method["temperatures"]) == ("normal", 0.5, [4.0])
    assert list(method["phases"][0]["knowledge"]) == ["kd"] and method["teachers"][0]["name"] == "kdwide"
    assert card["training"]["settings"]["lr"] == 1e-3 and "dkd_beta" not in card["training"]["settings"]
    rows = dict(settings_rows(card, str))
    assert (rows["seed"], rows["lr"], rows["mixup"]) == ("0", "0.001", "0.0")
    assert rows["synthetic_images"] == "196" and "max_steps" not in rows
    assert card["files"] == FILES and card["repeat"]["command"].startswith("python distill.py --config settings.json")


def test_teacher_and_network_alone_stand_beside_the_student_with_differences(study):
    card = describe(RUN, Licences(), [])
    beside = {"teacher": TEACHER, "alone": ALONE}
    assert read_alone(RUN, reports.read(RUN))[0] == ALONE
    for key, folder in beside.items():
        own, other = card["results"][key], reports.read(folder)
        assert own["metrics"] == other["evidence"]["metrics"] and own["calibration"] == other["evidence"]["calibration"]
        gap = card["differences"][key]["metrics"]["accuracy"]
        accuracies = [one["results"]["best"]["test_accuracy"] for one in (reports.read(RUN), other)]
        assert gap["value"] == pytest.approx(accuracies[0] - accuracies[1]) and own["reason"] is None
    written = text(card)
    assert "| metric, test split | this network | teacher: kdwide | network alone: kdtiny | minus teacher | minus network alone |" in written
    brief = describe(RUN, Licences(), [], brief=True)
    assert brief["differences"]["alone"] == {"metrics": {}, "reason": None} and brief["results"] == card["results"]
    assert "as in model.pt" in text(brief)


def test_what_cannot_stand_beside_a_network_has_a_reason(study):
    (TEACHER / "report.json").unlink()
    (ALONE / "predictions.csv").write_text("damaged")
    card = describe(RUN, Licences(), [])
    assert "not there" in card["results"]["teacher"]["reason"] and card["results"]["teacher"]["test_accuracy"] is not None
    assert card["results"]["alone"]["reason"] == "its predictions cannot be read" and card["differences"]["alone"]["metrics"] == {}
    assert "Not compared with the teacher: its run is not there" in text(card)
    (RUN / "model.pt").unlink()
    with pytest.raises(Problem, match="model.pt"):
        describe(RUN, Licences(), [])


def test_the_hub_reads_the_card(study):
    hub = pytest.importorskip("huggingface_hub")
    card, report = describe(RUN, Licences("CC-BY-4.0", "of the hospital"), FILES), reports.read(RUN)
    written = text(card)
    data = hub.ModelCard(written).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("cc-by-4.0", "timm", "image-classification")
    assert {"knowledge-distillation", "medical-imaging", "normal"} <= set(data.tags) and "accuracy" in data.metrics
    values = {one.metric_type: one.metric_value for one in data.eval_results}
    metrics = report["evidence"]["metrics"]
    assert values["accuracy"] == metrics["accuracy"]["value"] and values["roc_auc"] == metrics["auroc"]["value"]
    assert not {name for name, one in metrics.items() if one["value"] is None} & values.keys()
    for words in ("not for diagnosis", "## Uses", "### Out-of-Scope Use", "## Bias, Risks, and Limitations", "## Training Details",
                  "## Evaluation", "## Environmental Impact", "## Technical Specifications", "- Data: `of the hospital`",
                  "| ab12 |", "2.1 [2, 3] ms, 1 thread |", "were not measured for this card"):
        assert words in written, words
    other = front_matter(text(describe(RUN, Licences("for members: of the house", None), [])))
    assert (other["license"], other["license_name"]) == ("other", "for members: of the house")


def test_licences_are_asked_for_and_their_absence_is_said(script, study):
    code_, out = script("evaluate", ["--card", RUN, "--device", "cpu", "--weights-license", "mit"])
    written, card = (RUN / "card.md").read_text(), json.loads((RUN / "card.json").read_text())
    assert code_ == 0 and "card.md and card.json" in out and card["licences"] == {"weights": "mit", "data": UNKNOWN}
    assert "license: mit\n" in written and "- Data: `unknown` (not given: --data-license" in written
    assert "| latency, 1 image (ms) |" in written and card["ratios"]["parameters"] < 1
    assert str(Path.cwd()) not in written + json.dumps(card)


@pytest.mark.parametrize("words, flag", [
    (["--tables", "runs", "--data-license", "mit"], "--data-license works only with --card"),
    (["run", "--weights-license", "mit"], "--weights-license works only with --card"),
    (["--card", "run", "--with-images"], "--with-images works only with --tables, not with --card")])
def test_options_that_do_not_fit_the_action_are_refused(script, words, flag):
    code_, out = script("evaluate", words)
    assert code_ == 2 and out.splitlines()[-1].startswith(f"error: {flag}")


def test_a_network_without_a_teacher_has_a_card(study):
    card = describe(ALONE, Licences(), [])
    written = text(card)
    assert card["distillation"] is None and card["results"]["teacher"]["name"] is None and "#### Distillation" not in written
    assert "trained on labels only" in written and front_matter(written)["tags"] == ["medical-imaging", "image-classification"]
    assert card["repeat"]["command"].startswith("python train_teacher.py")


def test_a_report_of_an_earlier_version_has_a_card(make, templates):
    folder = make("normal", "kdwide", "kdtiny", 0, as_version_4)
    (folder / "model.pt").write_bytes((templates["student"] / "model.pt").read_bytes())
    card = describe(folder, Licences(), [])
    report = reports.read(folder)
    assert "scipy" not in report["clock"]["versions"] or card["software"] == report["clock"]["versions"]
    [found] = front_matter(text(card))["model-index"][0]["results"]
    assert [one["value"] for one in found["metrics"]] == [report["results"]["best"]["test_accuracy"]]
    assert "An earlier version wrote the report" in text(card)


def test_a_card_of_an_unknown_commit_says_so(make, templates):
    def older(report):
        for name in ("scikit-learn", "scipy", "kd"):
            report["clock"]["versions"].pop(name)
    folder = make("normal", "kdwide", "kdtiny", 0, older)
    card = describe(folder, Licences(), [], brief=True)
    assert card["repeat"]["commit"] is None and "a commit that was not recorded" in text(card)


def test_names_are_code_and_values_are_yaml():
    import yaml as parser
    assert code("<b>x</b>") == "`<b>x</b>`" and code("a`b``c") == "``` a`b``c ```" and code("a\nb") == "`a b`"
    for value in ("no", "a: b # c", '"<script>', "é ü", "1e3", "- x", "\\"):
        assert parser.safe_load(yaml(value)) == value


@pytest.mark.parametrize("given, shown", [
    ("Run '/home/jane doe/study/runs' is in use.", "Run '.../runs' is in use."),
    ("python x.py --out /srv/data/p1/runs --seed 1", "python x.py --out .../runs --seed 1"),
    ("local-dir:/home/jane/net", "local-dir:.../net"), ("~/images/set", ".../set"),
    ("train / validation / test", None), ("runs/a/b/seed0", None), ("https://doi.org/10.1/x/y", None), ("0.1/0.2 +/-3", None)])
def test_paths_of_a_machine_are_shortened(given, shown):
    assert without_paths(given) == (given if shown is None else shown)


def test_the_libraries_that_compute_the_metrics_have_their_versions():
    import scipy
    import sklearn
    assert versions()["scipy"] == scipy.__version__ and versions()["scikit-learn"] == sklearn.__version__


def test_the_commit_is_that_of_this_program_and_of_no_other(monkeypatch, tmp_path):
    import subprocess
    read = commits.commit.__wrapped__
    top = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--show-toplevel"], capture_output=True, text=True)
    if top.returncode == 0 and Path(top.stdout.strip()) == ROOT:
        head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
        monkeypatch.setenv("GIT_DIR", str(tmp_path))
        assert read().removesuffix("-dirty") == head
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x"]
    monkeypatch.delenv("GIT_DIR", raising=False)
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "other"], check=True)
    (tmp_path / "kd").mkdir()
    monkeypatch.setattr(commits, "ROOT", tmp_path.resolve() / "kd")
    assert read() is None  # a copy of this program inside another repository
    monkeypatch.setattr(commits, "ROOT", tmp_path.resolve())
    assert len(read()) == 40
    monkeypatch.setenv("PATH", "")
    assert read() is None
