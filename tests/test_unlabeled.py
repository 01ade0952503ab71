"""Distillation with unlabelled images.

The tests check that hidden labels never reach it, its phases, and what its runs write.
"""

import hashlib
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DATA, PAIR, ROOT, TINY, same, weights, write_table
from faults import in_child

from kd.config import parsing
from kd.config.earlier import as_present
from kd.config.resolve import resolve
from kd.config.settings import DistillSettings, TeacherSettings
from kd.reports import report as reports
from kd.system.errors import Problem
from kd.teachers.hashed_patients import hashed

UNLABELED = [*PAIR, "--mode", "unlabeled", "--batch-size", "12"]
ONLY = [*PAIR, "--mode", "unlabeled-only"]
FEW = Path("runs/synthetic-patient-32-labels0.3")


def test_balanced_drawing_keeps_the_steps_and_stored_logits_are_the_live_ones(script, picture_tree):
    root = picture_tree("uneven", {"a": 24, "b": 8})
    words = [*PAIR, "--mode", "unlabeled", "--finetune", "kd", "--dataset", "folder", "--data-dir", root, "--batch-size", "5"]
    found = {}
    for name, more in (("none", []), ("draw", ["--balance", "draw"]), ("live", ["--balance", "draw", "--no-stored-logits"])):
        code, out = script("distill", [*words, *more, "--out", name])
        assert code == 0, out
        [found[name]] = Path(name).glob("*/unlabeled/*/seed0")
    reported = {name: reports.read(folder) for name, folder in found.items()}
    assert reported["none"]["history"]["steps"] == reported["draw"]["history"]["steps"]
    counts = {name: set(report["data"]["per_class"]["train"]) for name, report in reported.items()}
    assert len(counts["draw"]) == 1 and len(counts["none"]) == 2
    assert same(weights(found["draw"]), weights(found["live"])) and not same(weights(found["draw"]), weights(found["none"]))


def test_permuted_and_deleted_labels_in_the_pool_give_the_same_weights_bit_for_bit(script, labelled, clinic):
    """Compare the weights after phase one of the complete command.

    All that follows depends on these weights.
    """
    paths = sorted(path.relative_to(clinic).as_posix() for path in clinic.rglob("*.png"))
    tables = {"right": [(path, "ab"[k % 2]) for k, path in enumerate(paths)],
              "permuted": [(path, "ba"[k % 3 % 2]) for k, path in enumerate(paths)],
              "unknown": [(path, "?!") for path in paths]}
    argv = [*PAIR, "--mode", "unlabeled-only", "--dataset", "folder", "--data-dir", labelled, "--unlabeled-dir", clinic,
            "--batch-size", "4"]
    found = {}
    for name, rows in [*tables.items(), ("deleted", None)]:
        (clinic / "images.csv").unlink(missing_ok=True)
        if rows is not None:
            write_table(clinic, rows, "path,label")
        code, out = script("distill", [*argv, "--out", name])
        assert code == 0, out
        found[name] = weights(next(Path(name).glob("*/unlabeled-only/*/seed0")))
    assert all(same(own, found["right"]) for own in found.values())


def test_hidden_labels_change_nothing_after_the_draw(script, labelled, monkeypatch):
    """Exchange the labels that the draw hides.

    The draw reads all labels, because it keeps a share of each class. It is therefore replaced by a
    fixed one.
    """
    rows = [line.split(",") for line in (labelled / "images.csv").read_text().splitlines()[1:]]
    patient_of = {path: patient for path, _, patient, _ in rows}
    order = sorted(patient_of)  # the order of the index
    judged, hidden = {"p4", "p5"}, {"p2", "p3"}
    labels_kept = {"p0", "p1"}

    def rows_of(rows, patients):
        return np.array([row for row in rows if patient_of[order[row]] in patients])

    def kept(rows, labels, patients, size, random, fraction):
        return rows_of(rows, labels_kept)

    def drawn(index, rows, seed, name):
        return rows_of(rows, judged)

    monkeypatch.setattr("kd.data.kept.draw_patients", kept)
    monkeypatch.setattr("kd.data.splits._by_number", drawn)
    exchanged = [[path, "ba"["ab".index(label)] if patient in hidden else label, patient, part]
                 for path, label, patient, part in rows]
    assert exchanged != rows
    data = ["--dataset", "folder", "--data-dir", labelled, "--batch-size", "4"]
    found = []
    for out, table in (("as it is", rows), ("exchanged", exchanged)):
        write_table(labelled, table, "path,label,patient,split")
        code, said = script("distill", [*PAIR, "--mode", "unlabeled", *data, "--labeled-fraction", "0.5", "--out", out])
        assert code == 0, said
        [run] = Path(out).glob("*/unlabeled/*/seed0")
        about = torch.load(run / "model.pt", weights_only=True)["data"]
        expected = {"train": labels_kept | hidden, "valid": judged}
        assert same(about["patients"], {part: hashed(own, about["salt"]) for part, own in expected.items()})  # hidden patients were seen without labels
        found.append(weights(run))
    assert same(*found)


def test_both_phases_are_in_the_report(script):
    code, out = script("distill", [*UNLABELED, "--labeled-fraction", "0.3", "--finetune", "kd", "--finetune-lr", "5e-4", "--no-keep-matched"])
    assert code == 0, out
    report = reports.read(FEW / "unlabeled/kdwide-kdtiny/seed0")
    steps = report["history"]["steps"]
    match, finetune = report["history"]["phases"]
    assert (match["labelled"], finetune["labelled"]) == (False, True) and match["steps"] == round(0.8 * steps)
    assert match["steps"] + finetune["steps"] == steps == reports.read(FEW / "teacher/kdwide/seed0")["history"]["steps"]
    rows = report["history"]["epochs"]
    assert {row["phase"] for row in rows} == {"match", "finetune"} and report["results"]["best"]["epoch"] > 2
    assert all(("train_agreement" in row) == (row["phase"] == "match") for row in rows)
    assert "train_kd" in rows[-1] and report["data"]["pool"]["images"] == 140 and report["results"]["reason"] is None
    assert report["teacher"]["members"][0]["split"] == report["data"]["split_hash"]  # trained on the same labels


def test_phase_one_alone_reads_no_label_and_selects_no_epoch(script):
    code, out = script("distill", [*ONLY, "--knowledge", "kd", "--temperature", "2", "8", "--epochs", "3"])
    assert code == 0 and "no labels were read" in out
    report = reports.read(DATA / "unlabeled-only/kdwide-kdtiny/seed0")
    assert report["results"]["best"] == report["results"]["last"] and report["results"]["best"]["train_accuracy"] is None
    assert report["teacher"]["gradient_ratio"] is None and report["teacher"]["gradient_reason"]
    assert [phase["name"] for phase in report["history"]["phases"]] == ["match"]
    code, out = script("evaluate", [DATA / "unlabeled-only/kdwide-kdtiny/seed0"])
    assert code == 0 and "(reproduced)" in out
    assert script("evaluate", ["--tables", "runs"])[0] == 0
    assert script("evaluate", ["--curves", DATA / "unlabeled-only/kdwide-kdtiny/seed0"])[0] == 0


@pytest.mark.slow
def test_phase_one_alone_brings_a_student_near_a_teacher_of_all_labels(script):
    words = ["--config", ROOT / "configs/fewlabels.toml", "--epochs", "20", "--device", "cpu"]
    assert script("distill", [*words, "--mode", "unlabeled-only"])[0] == 0
    report = reports.read(DATA / "unlabeled-only/resnet34-resnet18/seed0")
    teacher, student = report["teacher"]["test_accuracy"], report["results"]["best"]["test_accuracy"]
    assert teacher > 0.9 and student > teacher - 0.03 and report["agreement"]["same_prediction"] > 0.95


def test_a_mode_without_unlabelled_images_says_that_it_uses_none(script, clinic):
    code, out = script("distill", [*PAIR, "--mode", "normal", "--unlabeled-dir", clinic, "--max-steps", "1"])
    assert code == 0 and "note: --unlabeled-dir: not used by this run" in out


@pytest.mark.parametrize("words, idle", [
    (["--mode", "normal", "--match-share", "0.5", "--finetune-lr", "1"], ["--finetune-lr", "--match-share"]),
    (["--mode", "unlabeled-only", "--alpha", "0.9", "--finetune", "kd"], ["--alpha", "--finetune"]),
    (["--mode", "unlabeled", "--alpha", "0.9", "--finetune", "kd", "--match-share", "0.5"], []),
    (["--mode", "unlabeled", "--temperature", "1", "--labeled-seed", "3", "--strict"],
     ["--labeled-seed", "--strict", "--temperature"]),
    (["--mode", "virtual", "--teacher", "x", "--correct-probability", "0.9", "--generations", "2"],
     ["--generations", "--teacher"]),
    (["--mode", "smoothing", "--temperature", "2", "--dkd-beta", "3"], ["--dkd-beta", "--temperature"]),
    (["--mode", "smoothing-0.1", "--temperature", "2", "--alpha", "0.3"], ["--alpha", "--temperature"]),
    (["--mode", "random", "--teacher-checkpoint", "x.pt", "--knowledge", "hint", "--layers", "conv"], ["--teacher-checkpoint"]),
    (["--mode", "self", "--generations", "2", "--teacher-weights", "2", "--knowledge", "dkd", "--dkd-beta", "2"],
     ["--teacher-weights"])])
def test_flags_that_a_mode_does_not_use_are_named(words, idle):
    [settings] = parsing.parse(DistillSettings, words)
    assert list(resolve(settings).idle) == idle
    assert not resolve(parsing.parse(TeacherSettings, [])[0]).idle


def test_one_step_is_too_few_for_two_phases(script):
    code, out = script("distill", [*UNLABELED, "--max-steps", "1"])
    assert code == 2 and "2 phases, but the run has only 1." in out.splitlines()[-1] and "training it first" not in out
    code, out = script("distill", [*UNLABELED, "--max-steps", "2"])
    phases = reports.read(DATA / "unlabeled/kdwide-kdtiny/seed0")["history"]["phases"]
    assert code == 0 and [phase["steps"] for phase in phases] == [1, 1]


def test_images_that_a_student_saw_without_labels_count_as_seen(script, labelled, clinic):
    code, _ = script("distill", [*ONLY, "--dataset", "folder", "--data-dir", labelled, "--unlabeled-dir", clinic, "--max-steps",
                                 "2"])
    model = torch.load(next(Path("runs").glob("*/unlabeled-only/*/seed0")) / "model.pt", weights_only=True)
    seen = {row.numpy().tobytes() for row in model["data"]["files"]["train"]}
    archive = {hashlib.sha256(path.read_bytes()).digest()[:16] for path in clinic.rglob("*.png")}
    assert code == 0 and archive < seen and len(archive) == 12


@pytest.mark.case(12)
def test_a_pool_that_changed_since_a_run_began_is_refused(script, clinic):
    argv = [*UNLABELED, "--unlabeled-dir", clinic]
    assert script("distill", [*argv, "--max-minutes", "0"])[0] == 143  # stopped while training the teacher
    assert script("train_teacher", ["--model", "kdwide", *TINY, "--batch-size", "12"])[0] == 0
    assert script("distill", [*argv, "--max-minutes", "0"])[0] == 143
    next(clinic.rglob("*.png")).unlink()
    code, out = script("distill", argv)
    assert code == 4 and "began with pool_hash" in out.splitlines()[-1]


def test_fine_tuning_that_destroys_what_was_matched_does_not_count(script):
    words = [*UNLABELED, "--labeled-fraction", "0.3", "--finetune-lr", "0.5"]
    code, out = script("distill", words)
    assert code == 0 and "no epoch of finetune had a higher validation accuracy (--keep-matched)" in out
    report = reports.read(FEW / "unlabeled/kdwide-kdtiny/seed0")
    matched = [row for row in report["history"]["epochs"] if row["phase"] == "match"][-1]
    best = report["results"]["best"]
    assert (best["epoch"], best["valid_accuracy"], best["train_accuracy"]) == (matched["epoch"], matched["valid_accuracy"], None)
    assert "--keep-matched" in report["results"]["reason"] and report["results"]["last"]["train_accuracy"] is not None
    code, out = script("distill", [*words, "--no-keep-matched", "--tag", "last"])
    report = reports.read(FEW / "unlabeled-last/kdwide-kdtiny/seed0")
    assert code == 0 and report["results"]["best"]["epoch"] > matched["epoch"] and report["results"]["reason"] is None


def test_fine_tuning_begins_at_a_tenth_of_the_learning_rate_which_earlier_runs_did_not(script):
    [settings] = parsing.parse(DistillSettings, [*map(str, UNLABELED), "--lr", "0.002"])
    match, finetune = resolve(settings).phases
    assert (match.lr, finetune.lr) == (0.002, pytest.approx(0.0002)) and finetune.keeps_start and not match.keeps_start
    assert script("train_teacher", ["--model", "kdwide", *TINY, "--batch-size", "12"])[0] == 0
    assert script("distill", [*UNLABELED, "--max-minutes", "0"])[0] == 143
    recorded = DATA / "unlabeled/kdwide-kdtiny/seed0/settings.json"
    old = json.loads(recorded.read_text())
    del old["keep_matched"]  # an earlier version did not have it
    recorded.write_text(json.dumps(old))
    code, out = script("distill", UNLABELED)
    assert code != 0 and "finetune_lr: 0.001 -> null" in out and "keep_matched: false -> true" in out
    code, out = script("distill", [*UNLABELED, "--finetune-lr", "0.001", "--no-keep-matched"])
    assert code == 0 and "continuing from step" in out
    assert as_present(DistillSettings, old)["finetune_lr"] == old["lr"] == 0.001


@pytest.mark.parametrize("name, text", [("own.toml", 'finetune_lr = 0.001\nlr = 0.01'), ("own.json", '{"finetune_lr": 0.001, "lr": 0.01}')])
def test_a_file_with_some_settings_has_the_present_defaults_in_both_languages(name, text):
    Path(name).write_text(text)
    [settings] = parsing.parse(DistillSettings, [*map(str, UNLABELED), "--config", name])
    assert settings.unlabeled.finetune_lr == 0.001 and settings.unlabeled.keep_matched


@pytest.mark.case(2, 6)
@pytest.mark.parametrize("phase", ["match", "finetune"])
def test_a_kill_in_either_phase_changes_nothing(script, prepared, phase):
    """Kill a run with SIGKILL after a step of the phase, and run the same command again.

    The run ends with the weights and the report of a run that was never killed.
    """
    prepared([("train_teacher", ["--model", "kdwide", *TINY, "--batch-size", "12"]), ("distill", [*UNLABELED, "--out", "whole"])])
    argv = [*UNLABELED, "--save-every-minutes", "0"]

    def until_killed():
        from kd.runs import active
        save = active.save

        def die(runs):
            save(runs)
            progress = runs[0].state.progress
            if runs[0].phases[progress.phase].name == phase and progress.total >= 3 + 17 * (phase == "finetune"):
                os.kill(os.getpid(), signal.SIGKILL)
        active.save = die
        import distill
        return distill.main([str(word) for word in argv])

    child = in_child(until_killed)
    assert child.code == -9, child.err
    code, out = script("distill", argv)
    assert code == 0 and "continuing from step" in out
    run = DATA / "unlabeled/kdwide-kdtiny/seed0"
    whole = "whole" / run.relative_to("runs")
    first, second = ({key: value for key, value in reports.read(folder).items() if key not in ("clock", "settings", "teacher")}
                     for folder in (run, whole))
    assert same(weights(run), weights(whole)) and first == second


def test_lists_take_several_students_through_one_pool(script):
    words = ["--mode", "unlabeled", "--student", "a", "b", "--temperature", "1", "4"]
    [first, second] = parsing.parse(DistillSettings, words)
    assert first.unlabeled == second.unlabeled and first.distillation.temperature == [1.0, 4.0]
    for words in (["--temperature", "0"], ["--temperature", "1", "nan"], ["--match-share", "1"],
                  ["--labeled-fraction", "0"]):
        with pytest.raises(Problem):
            parsing.parse(DistillSettings, words)


def test_images_that_a_network_has_seen_are_reported_when_it_is_evaluated_on_them(script, labelled, clinic):
    code, _ = script("distill", [*ONLY, "--dataset", "folder", "--data-dir", labelled, "--unlabeled-dir", clinic, "--max-steps",
                                 "2"])
    [run] = Path("runs").glob("*/unlabeled-only/*/seed0")
    write_table(clinic, [(path.relative_to(clinic).as_posix(),) for path in clinic.rglob("*.png")], "path")
    code, out = script("evaluate", [run, "--dataset", "folder", "--data-dir", clinic])
    assert code == 0 and "warning: 12 of 12 images were seen in training" in out
    result = json.loads(next(run.glob("evaluation-*/evaluation.json")).read_text())
    assert result["data"]["seen_in_training"] == 12
