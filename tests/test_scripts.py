"""The three scripts end to end on tiny settings.

The tests check what a run writes, and that it can be repeated, refused, stopped and evaluated.
"""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import DATA, PAIR, RUN, TEACHER, TINY, write_table
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kd.reports import figures
from kd.reports import report as reports
from kd.runs import run
from kd.system.errors import Problem


@pytest.mark.draws
def test_distil_trains_a_missing_teacher_first_and_writes_all_files(script):
    code, out = script("distill", [*PAIR, "--mode", "normal"])
    assert code == 0 and "no teacher in" in out and "gradient of the knowledge term" in out
    for folder in (RUN, TEACHER):
        names = {file.name for file in folder.iterdir() if not file.name.startswith((".", "events"))}
        assert names == {"settings.json", "model.pt", "report.json", "predictions.csv", "confusion.png", "reliability.png"}
        assert reports.read(folder)["kind"] == ("student" if folder == RUN else "teacher")
    report = reports.read(RUN)
    assert report["teacher"]["hash"] == reports.read(TEACHER)["student"]["weights_hash"]
    assert report["teacher"]["valid_accuracy"] == reports.read(TEACHER)["results"]["best"]["valid_accuracy"]
    assert report["teacher"]["members"][0]["source"] == "synthetic-patient-32/teacher/kdwide/seed0"
    assert report["history"]["ended"] == "epochs" and len(report["history"]["epochs"]) == 2
    assert report["data"]["overlaps"] == {"patients": 0, "files": 0}


def test_predictions_agree_with_the_report(script):
    script("train_teacher", ["--model", "kdtiny", *TINY])
    folder = DATA / "teacher/kdtiny/seed0"
    report, rows = reports.read(folder), list(csv.DictReader((folder / "predictions.csv").open()))
    classes = report["data"]["classes"]
    for part in ("valid", "test"):
        own = [row for row in rows if row["part"] == part]
        hits = [classes[int(np.argmax([float(row[f"logit_{name}"]) for name in classes]))] == row["label"] for row in own]
        assert len(own) == report["data"]["parts"][part]
        assert np.mean(hits) == pytest.approx(report["results"]["best"][f"{part}_accuracy"])
    assert list(rows[0])[:5] == ["part", "path", "patient", "study", "label"]
    assert sum(map(sum, report["confusion_matrix"])) == report["data"]["parts"]["test"]


@pytest.mark.draws
def test_tensorboard_has_terms_accuracies_and_images_in_one_run(script):
    script("distill", [*PAIR, "--mode", "normal", "--batch-size", "4"])
    events = EventAccumulator(str(RUN), {"images": 0}).Reload()
    tags = events.Tags()
    assert {"train/loss", "train/ce", "train/kd", "train/accuracy", "lr", "epoch/valid_accuracy", "hparam/test_accuracy",
            "clock/images_per_s"} <= set(tags["scalars"])
    assert {"views", "confusion"} <= {tag.split("/")[0] for tag in tags["images"]}
    assert {Path(root).name for root, _, files in os.walk("runs") for f in files if "tfevents" in f} == {"seed0"}
    history = reports.read(RUN)["history"]["epochs"]
    assert [e.value for e in events.Scalars("epoch/valid_accuracy")] == pytest.approx([r["valid_accuracy"] for r in history])


def test_model_pt_loads_in_plain_timm(script):
    script("train_teacher", ["--model", "resnet18", *TINY, "--max-steps", "1"])
    content = torch.load(DATA / "teacher/resnet18/seed0/model.pt", weights_only=True)
    network = timm.create_model(content["architecture"], num_classes=len(content["classes"]))
    network.load_state_dict(content["state_dict"], strict=True)
    assert content["architecture"] == "resnet18.tv_in1k"


def test_the_same_command_again_changes_nothing(script):
    command = ["distill", [*PAIR, "--mode", "normal"]]
    first = script(*command)[1]
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in RUN.iterdir() if file.name != ".lock"}
    code, out = script(*command)
    assert code == 0 and "already finished" in out and out.splitlines()[-4:] == first.splitlines()[-4:]
    assert before == {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in before}


@pytest.mark.case(12)
def test_other_settings_are_refused_and_a_tag_gives_them_a_folder(script):
    script("distill", [*PAIR, "--mode", "normal"])
    code, out = script("distill", [*PAIR, "--mode", "normal", "--temperature", "9"])
    assert code == 2 and "temperature: [4.0] -> [9.0]" in out and "--tag" in out
    code, out = script("distill", [*PAIR, "--mode", "normal", "--temperature", "9", "--tag", "T9"])
    assert code == 0 and "no teacher in" not in out and (DATA / "normal-T9/kdwide-kdtiny/seed0/report.json").is_file()


def test_another_seed_split_seed_and_size_have_folders_of_their_own(script):
    short = [*TINY, "--epochs", "1", "--model", "kdtiny"]
    for more in ([], ["--seed", "1"], ["--split-seed", "1"], ["--image-size", "16"], ["--split", "thesis"]):
        assert script("train_teacher", [*short, *more])[0] == 0
    found = sorted(str(file.parent.relative_to("runs")) for file in Path("runs").rglob("report.json"))
    assert found == [f"synthetic-{part}/teacher/kdtiny/seed{seed}" for part, seed in
                     (("patient-16", 0), ("patient-32", 0), ("patient-32", 1), ("patient1-32", 0), ("thesis-32", 0))]


def test_all_three_modes_train_the_teachers_they_need(script):
    common = [*TINY, "--epochs", "4", "--lr", "3e-3", "--synthetic-images", "560"]
    assert script("distill", ["--teacher", "kdwide", "--student", "kdtiny", "--mode", "normal", *common])[0] == 0
    assert script("distill", ["--teacher", "kdtiny", "--student", "kdwide", "--mode", "reverse", *common])[0] == 0
    defective = ["--model", "kdwide", "--stop-at-val-accuracy", "0.2", "--look-every", "2", *common]
    assert script("train_teacher", defective)[0] == 0
    report = reports.read(DATA / "teacher/kdwide-defective/seed0")
    assert report["history"]["ended"] == "stopped" and report["results"]["best"] == report["results"]["last"]
    assert report["results"]["best"]["valid_accuracy"] > 0.2 and report["history"]["looks"][-1][1] > 0.2
    assert report["history"]["looks"][-1][0] == report["history"]["steps"]
    code, out = script("distill", ["--teacher", "kdwide", "--student", "kdtiny", "--mode", "defective", *common])
    assert code == 0 and "stop_at_val_accuracy: 0.2 -> 0.5" in out  # found by its name; the difference in settings is reported
    [member] = reports.read(DATA / "defective/kdwide-kdtiny/seed0")["teacher"]["members"]
    assert member["source"].endswith("kdwide-defective/seed0")


def test_a_tagged_teacher_of_other_data_is_refused(script, picture_tree):
    root = picture_tree("set", {"a": 16, "b": 16})
    common = [*TINY, "--dataset", "folder", "--data-dir", root, "--tag", "x"]
    assert script("train_teacher", ["--model", "kdwide", *common])[0] == 0
    Image.new("L", (24, 20), 7).save(root / "a/image3.png")
    code, out = script("distill", ["--teacher", "kdwide", "--student", "kdtiny", "--mode", "normal", *common])
    assert code == 2 and "was trained on other data (images " in out


def test_moved_data_is_found_with_data_dir(script, picture_tree):
    root = picture_tree("set", {"a": 16, "b": 16})
    script("train_teacher", ["--model", "kdtiny", *TINY, "--dataset", "folder", "--data-dir", root])
    root.rename("elsewhere")
    run = "runs/set-patient-32/teacher/kdtiny/seed0"
    assert script("evaluate", [run])[0] == 2
    code, out = script("evaluate", [run, "--data-dir", "elsewhere"])
    assert code == 0 and "(reproduced)" in out


def test_a_defective_teacher_that_never_passes_is_refused(script):
    code, out = script("train_teacher", ["--model", "kdtiny", *TINY, "--stop-at-val-accuracy", "0.99"])
    assert code == 2 and "was not exceeded by kdtiny" in out and "best validation accuracy was 0." in out


def test_evaluate_agrees_digit_for_digit_and_takes_other_images(script, picture_tree):
    script("train_teacher", ["--model", "kdtiny", *TINY])
    folder = DATA / "teacher/kdtiny/seed0"
    code, out = script("evaluate", [folder])
    result = json.loads((folder / "evaluation.json").read_text())
    report = reports.read(folder)
    assert code == 0 and result["equals_report"] and "precision" in out
    assert result["accuracy"] == report["results"]["best"]["test_accuracy"]
    assert result["confusion_matrix"] == report["confusion_matrix"]

    for batch in (1, 7, 64):
        assert script("evaluate", [folder, "--batch-size", batch])[0] == 0
        other = json.loads((folder / "evaluation.json").read_text())
        assert other["accuracy"] == result["accuracy"] and other["nll"] == pytest.approx(result["nll"], abs=1e-5)
        ece, expected = (found["evidence"]["calibration"]["before"]["ece"] for found in (other, result))
        assert ece == pytest.approx(expected, abs=1e-5)

    predictions = (folder / "predictions.csv").read_bytes()
    labelled = picture_tree("other", {"hand": 3, "wrist": 2})
    assert script("evaluate", [folder, "--dataset", "folder", "--data-dir", labelled])[0] == 0
    result = json.loads(next(folder.glob("evaluation-other-*/evaluation.json")).read_text())
    assert sum(map(sum, result["confusion_matrix"])) == 5
    unlabelled = picture_tree("clinic", {"x/y": 4})
    code, out = script("evaluate", [folder, "--dataset", "folder", "--data-dir", unlabelled / "x" / "y"])
    rows = list(csv.DictReader(next(folder.glob("evaluation-y-*/predictions.csv")).open()))
    assert code == 0 and len(rows) == 4 and {row["label"] for row in rows} == {""} and "predicted:" in out
    assert json.loads(next(folder.glob("evaluation-y-*/evaluation.json")).read_text())["reason"] == "no image has a label"
    assert (folder / "predictions.csv").read_bytes() == predictions


def easy_images(root):
    """Write images of two classes that any network tells apart: four films of each of 24 patients, without studies."""
    rows = []
    for number in range(48):
        label, grey = ("dark", 20) if number % 2 else ("light", 230)
        rows.append((f"{label}{number}.png", label, f"p{number // 2}"))
        Image.new("L", (32, 32), grey + number % 7).save(root / rows[-1][0])
    write_table(root, rows)


@pytest.mark.draws
def test_where_all_validation_images_are_right_no_temperature_is_fitted_and_every_reader_copes(script, tmp_path, monkeypatch):
    (tmp_path / "easy").mkdir()
    easy_images(tmp_path / "easy")
    drawn = []
    draw = figures.reliability
    monkeypatch.setattr(figures, "reliability", lambda panels, title, **more: drawn.extend(panels) or draw(panels, title, **more))
    words = ["--dataset", "folder", "--data-dir", tmp_path / "easy", "--epochs", "4", "--no-augment"]
    code, _ = script("distill", [*PAIR, *words, "--mode", "normal"])
    folder = Path("runs/easy-patient-32/normal/kdwide-kdtiny/seed0")
    report = reports.read(folder)
    assert code == 0 and report["results"]["best"]["valid_accuracy"] == 1.0
    found = report["evidence"]["calibration"]
    assert found["temperature"] is None and found["after"] is None and found["before"]["nll"] > 0 and found["reason"]
    assert len(drawn) == 2 and all(caption.startswith("not scaled (no temperature fits): ECE 0.") for caption in drawn)
    assert report["evidence"]["study"] == {"studies": 0, "accuracy": None, "several_labels": 0, "reason": "no image has a known study",
                                           "unknown": report["data"]["parts"]["test"]}
    code, out = script("evaluate", [folder])
    assert code == 0 and "\nECE, without temperature scaling: " in out and "(reproduced)" in out and "`evidence` in the JSON file" in out
    assert json.loads((folder / "evaluation.json").read_text())["evidence"]["calibration"] == found
    for words in (["--card", folder, "--device", "cpu"], ["--tables", "runs"], ["--curves", folder]):
        assert script("evaluate", words)[0] == 0


def test_a_teacher_checkpoint_of_this_project_and_of_timm(script):
    script("train_teacher", ["--model", "resnet18", *TINY, "--max-steps", "1"])
    own = DATA / "teacher/resnet18/seed0/model.pt"
    torch.save(torch.load(own, weights_only=True)["state_dict"], "timm.pt")
    for number, (file, split) in enumerate(((own, reports.read(own.parent)["data"]["split_hash"]), ("timm.pt", None))):
        code, out = script("distill", ["--teacher", "resnet18", "--student", "kdtiny", "--mode", "normal", *TINY,
                                       "--teacher-checkpoint", file, "--tag", f"file{number}"])
        teacher = reports.read(DATA / f"normal-file{number}/resnet18-kdtiny/seed0")["teacher"]["members"][0]
        assert code == 0 and teacher["split"] == split and ("unknown" in out) == (split is None)
    code, out = script("distill", ["--teacher", "resnet34", "--student", "kdtiny", "--mode", "normal", *TINY,
                                   "--teacher-checkpoint", own, "--tag", "wrong"])
    assert code == 4 and "resnet18.tv_in1k" in out and "resnet34.tv_in1k" in out


def test_a_teacher_that_saw_the_students_test_patients_is_refused(script):
    script("train_teacher", ["--model", "kdwide", *TINY, "--split-seed", "1"])
    seen = Path("runs/synthetic-patient1-32/teacher/kdwide/seed0/model.pt")
    code, out = script("distill", [*PAIR, "--mode", "normal", "--teacher-checkpoint", seen])
    assert code == 4 and "patients" in out and "student's validation split" in out


@pytest.mark.case(21)
def test_a_teacher_of_other_classes_is_refused(script, picture_tree):
    root = picture_tree("two", {"a": 12, "b": 12})
    script("train_teacher", ["--model", "kdwide", *TINY, "--dataset", "folder", "--data-dir", root])
    file = "runs/two-patient-32/teacher/kdwide/seed0/model.pt"
    code, out = script("distill", [*PAIR, "--mode", "normal", "--teacher-checkpoint", file])
    assert code == 4 and "['a', 'b']" in out and "elbow" in out


@pytest.mark.parametrize("name, argv, message", [
    ("distill", ["--teacher", "seresnet50", "--student", "vgg11"], "--config configs/demo.toml"),
    ("distill", ["--teacher", "seresnet50", "--student", "vgg12", *TINY], "Did you mean vgg11"),
    ("train_teacher", ["--model", "resnet1", *TINY], "Network 'resnet1'"),
    ("train_teacher", ["--model", "resnet18,vgg11", *TINY], "without commas or quotes: resnet18 vgg11"),
    ("train_teacher", ["--model", "resnet18", *TINY, "--batch-size", "1"], "cannot be trained with batch size 1"),
    ("train_teacher", ["--model", "kdtiny", *TINY, "--lr", "1e30", "--max-steps", "1"], "not finite"),
    ("train_teacher", ["--model", "kdtiny", *TINY, "--device", "cuda:9"], "device 'cuda:9'"),
    ("train_teacher", ["--model", "kdtiny", *TINY, "--tag", "a/b"], "tag 'a/b'"),
    ("train_teacher", ["--model", "kdtiny", *TINY, "--weights", "absent.pt"], "Weights 'absent.pt'"),
    ("train_teacher", ["--model", "kdtiny", *TINY, "--dataset", "folder", "--data-dir", "absent"], "no such folder"),
    ("evaluate", ["runs/absent"], "Is it in the folder of a run?"), ("evaluate", [], "See --help")])
def test_mistakes_are_reported_in_one_line(script, name, argv, message):
    code, out = script(name, argv)
    assert code in (2, 3, 4) and message in out.splitlines()[-1] and "error: " in out.splitlines()[-1]


@pytest.mark.parametrize("words", [[], ["--card"], ["--export"], ["--shift"], ["--look"]])
def test_an_unfinished_run_is_not_called_a_wrong_folder(script, words):
    assert script("train_teacher", ["--model", "kdwide", *TINY, "--max-minutes", "0"])[0] == 143
    code, out = script("evaluate", [*words, TEACHER])
    assert code == 4 and f"Run '{TEACHER}' is not finished" in out and "Repeat its command" in out


def test_the_report_of_a_run_as_settings_is_refused_with_the_right_file(script):
    assert script("train_teacher", ["--model", "kdwide", *TINY])[0] == 0
    code, out = script("train_teacher", ["--config", TEACHER / "report.json"])
    assert code == 2 and "A run's settings are in its settings.json." in out


@pytest.mark.case(24)
def test_a_folder_that_cannot_be_written_is_reported_before_data_is_read(script):
    code, out = script("train_teacher", ["--model", "kdtiny", *TINY, "--out", "/dev/null/x"])
    assert code == 74 and "cannot be written" in out and not Path("cache").exists()


@pytest.mark.case(13)
def test_a_truncated_image_stops_the_run_before_training(script, picture_tree):
    root = picture_tree("set", {"a": 12, "b": 12})
    whole = (root / "a/image3.png").read_bytes()
    (root / "a/image3.png").write_bytes(whole[:-40])
    code, out = script("train_teacher", ["--model", "kdtiny", *TINY, "--dataset", "folder", "--data-dir", root])
    assert code == 2 and "a/image3.png" in out.splitlines()[-1]


def test_a_list_of_pairs_writes_the_same_files_as_separate_commands(script):
    common = ["--mode", "normal", *TINY, "--max-steps", "3"]
    code, out = script("distill", ["--teacher", "kdwide", "kdtiny", "--student", "kdtiny", "kdwide", *common])
    pairs = [(teacher, student) for teacher in ("kdwide", "kdtiny") for student in ("kdtiny", "kdwide")]
    assert code == 0 and out.count("data synthetic") == 1 and out.count("results: ") == 4
    assert out.count("training it first") == 2
    common += ["--out", "alone", "--cache-dir", "own"]
    for teacher, student in reversed(pairs):
        assert script("distill", ["--teacher", teacher, "--student", student, *common])[0] == 0
    for teacher, student in pairs:
        first = DATA / f"normal/{teacher}-{student}/seed0"
        second = "alone" / first.relative_to("runs")
        for name in ("model.pt", "predictions.csv"):
            assert (first / name).read_bytes() == (second / name).read_bytes()
        one, other = ({key: value for key, value in reports.read(run).items() if key not in ("clock", "settings")}
                      for run in (first, second))
        assert one == other


@pytest.mark.case(12)
def test_a_failed_run_does_not_stop_the_others_of_its_list(script, capsys):
    script("distill", [*PAIR, "--mode", "normal", "--max-steps", "1"])
    code, out = script("distill", [*PAIR, "--mode", "normal", "--student", "kdtiny", "kdwide"])
    assert code == 2 and "1 of 2 runs failed: runs/synthetic-patient-32/normal/kdwide-kdtiny/seed0" in out
    assert "max_steps: 1 -> null" in capsys.readouterr().err
    assert (DATA / "normal/kdwide-kdwide/seed0/report.json").is_file()


@pytest.mark.case(13)
@pytest.mark.parametrize("error, code", [(OSError(5, "Input/output error", "x"), 2), (MemoryError(), 2), (ValueError("bug"), 1),
                                         (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2)])
def test_no_kind_of_failure_stops_the_others_of_a_list(script, monkeypatch, error, code):
    real = run.train

    def train(plans, folders, session):
        if plans[0].student == "kdtiny":
            raise error
        return real(plans, folders, session)
    monkeypatch.setattr(run, "train", train)
    found, out = script("train_teacher", ["--model", "kdtiny", "kdwide", *TINY, "--max-steps", "1"])
    assert found == code and "1 of 2 runs failed" in out and (DATA / "teacher/kdwide/seed0/report.json").is_file()


@pytest.mark.case(18)
def test_missing_weights_of_one_network_are_reported_first_and_stop_no_other(script, monkeypatch):
    def out_of_reach(name):
        if name == "kdtiny":
            raise Problem("weights of kdtiny: out of reach")
    monkeypatch.setattr("kd.models.require_weights", out_of_reach)
    monkeypatch.setattr("kd.models.create_pretrained", lambda name, architecture, options: timm.create_model(name, **options))
    pretrained = [*(word for word in TINY if word != "--no-pretrained"), "--max-steps", "1"]
    code, out = script("train_teacher", ["--model", "kdtiny", "kdwide", *pretrained])
    assert code == 2 and "1 of 2 runs failed" in out and (DATA / "teacher/kdwide/seed0/report.json").is_file()
    assert out.index("warning: weights of kdtiny: out of reach") < out.index("training kdwide")
    code, out = script("train_teacher", ["--model", "kdtiny", "kdtiny", *pretrained, "--tag", "x"])
    assert code == 2 and out.splitlines()[-1] == "error: weights of kdtiny: out of reach"


@pytest.mark.case(22)
def test_class_names_that_matplotlib_would_read_as_formulas(script, picture_tree):
    root = picture_tree("set", {"cost $ and ^$": 16, "$\\foo$": 16})
    short = [*TINY, "--max-steps", "1"]
    code, out = script("train_teacher", ["--model", "kdtiny", *short, "--dataset", "folder", "--data-dir", root])
    assert code == 0 and Path("runs/set-patient-32/teacher/kdtiny/seed0/confusion.png").is_file()


def test_a_stop_ends_the_whole_list(script):
    code, out = script("train_teacher", ["--model", "kdtiny", "kdwide", *TINY, "--max-minutes", "0"])
    assert code == 143 and not (DATA / "teacher/kdwide").exists() and (DATA / "teacher/kdtiny/seed0/resume.pt").is_file()


@pytest.mark.case(20)
def test_a_misspelt_name_in_a_list_is_refused_before_anything_runs(script):
    code, out = script("distill", [*PAIR, "--mode", "normal", "--student", "kdtiny", "kdtinny"])
    assert code == 2 and "Network 'kdtinny'" in out and not DATA.exists()


def test_a_list_of_networks_is_trained_in_turn(script):
    code, out = script("train_teacher", ["--model", "kdtiny", "kdwide", *TINY, "--max-steps", "1"])
    assert code == 0 and [reports.read(DATA / f"teacher/{name}/seed0")["student"]["name"] for name in ("kdtiny", "kdwide")] == [
        "kdtiny", "kdwide"]


@pytest.mark.case(20)
def test_compile_without_cuda_is_refused(script):
    code, out = script("train_teacher", ["--model", "kdtiny", *TINY, "--compile"])
    assert code == 2 and "--compile is for CUDA only" in out


def test_a_student_that_cannot_be_trained_is_refused_first_even_with_a_teacher_of_other_data(script):
    script("train_teacher", ["--model", "kdwide", *TINY, "--max-steps", "1"])
    words = ["--teacher", "kdwide", "--student", "vit_tiny_patch16_224", *TINY, "--tag", "x", "--train-per-class", "5"]
    code, out = script("distill", words)
    assert code == 2 and "Network 'vit_tiny_patch16_224' cannot be trained" in out and "training kdwide" not in out
    assert not (DATA / "teacher-x").exists()


def test_a_saved_state_that_cannot_be_used_is_refused_before_a_teacher_is_trained_again(script):
    words = [*PAIR, "--mode", "normal", "--save-every-minutes", "0", "--max-minutes", "0"]
    script("train_teacher", ["--model", "kdwide", *TINY])
    assert script("distill", words)[0] == 143
    (RUN / "resume.pt").write_bytes(b"nothing")
    (RUN / "resume.previous.pt").unlink(missing_ok=True)
    shutil.rmtree(TEACHER)
    code, out = script("distill", words[:-2])
    assert code == 4 and "Resume file" in out.splitlines()[-1] and "training kdwide" not in out and not TEACHER.exists()


def test_a_run_of_a_list_is_checked_again_when_its_turn_comes(script, monkeypatch):
    asked = []

    def out_of_reach_once(name):
        asked.append(name)
        if name == "kdtiny" and asked.count(name) == 1:
            raise Problem("weights of kdtiny: out of reach")
    monkeypatch.setattr("kd.models.require_weights", out_of_reach_once)
    monkeypatch.setattr("kd.models.create_pretrained", lambda name, architecture, options: timm.create_model(name, **options))
    pretrained = [*(word for word in TINY if word != "--no-pretrained"), "--max-steps", "1"]
    code, out = script("train_teacher", ["--model", "kdwide", "kdtiny", *pretrained])
    assert code == 0 and "warning: weights of kdtiny" in out and asked == ["kdwide", "kdtiny", "kdtiny"]


def test_the_file_of_a_chain_is_needed_whichever_generations_exist(script):
    script("train_teacher", ["--model", "kdtiny", *TINY, "--max-steps", "1", "--seed", "4"])
    file = DATA / "teacher/kdtiny/seed4/model.pt"
    words = ["--mode", "self", "--student", "kdtiny", *TINY, "--max-steps", "1", "--teacher-checkpoint", file]
    assert script("distill", words)[0] == 0
    file.unlink()
    code, out = script("distill", [*words, "--generations", "2"])
    assert code == 4 and "no such file" in out


def test_the_reports_clock_is_read_before_the_predictions(script, monkeypatch):
    from kd.runs import finish
    from kd.runs.clock import Clock
    calls, predict, describe = [], finish.predict, Clock.describe
    monkeypatch.setattr(finish, "predict", lambda *arguments: calls.append("predict") or predict(*arguments))
    monkeypatch.setattr(Clock, "describe", lambda *arguments: calls.append("clock") or describe(*arguments))
    assert script("train_teacher", ["--model", "kdtiny", *TINY, "--max-steps", "1"])[0] == 0
    assert calls[0] == "clock" and calls.count("clock") == 1 and "predict" in calls
