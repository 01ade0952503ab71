"""Rows that a user may add to the table of modes.

Rows that can run do as they say. Rows that cannot run are refused before training.
"""

import json
from pathlib import Path

import pytest
import torch
from conftest import DATA, PAIR, TINY, weights

from kd import models
from kd.methods import DISTIL, MATCH, MODES, TRAINED, VIRTUAL, Mode, ModePhase, Origin
from kd.reports import report as reports
from kd.system.errors import Problem

SHORT = [*PAIR, "--epochs", "1"]
LABELS = ModePhase("warm", "train", "labels")


@pytest.fixture
def run(script, monkeypatch):
    """Return run(row, words) -> (exit code, output, report or None).

    It runs a mode named `mine` that is this row.
    """
    def call(row, words=()):
        monkeypatch.setitem(MODES, "mine", row)
        code, out = script("distill", [*SHORT, "--mode", "mine", *words])
        assert script("distill", ["--list-modes"])[0] == 0
        return code, out, None if code else reports.read(next(Path("runs").glob("*/mine*/*/seed0")))
    return call


def steps_of(report):
    return {phase["name"]: (phase["steps"], phase["labelled"]) for phase in report["history"]["phases"]}


def test_hint_first_and_kd_second_as_in_the_paper(run):
    row = Mode(TRAINED, "1412.6550", (ModePhase("hint", "train", "match", "hint"), ModePhase("kd", "train", "distil", "kd")))
    code, out, report = run(row, ["--match-share", "0.5"])
    assert code == 0 and steps_of(report) == {"hint": (3, False), "kd": (3, True)}
    first, second = report["history"]["epochs"]
    assert "train_hint" in first and "train_ce" not in first and {"train_kd", "train_ce"} <= second.keys()
    assert "--match-share" not in out.partition("not used")[0][-80:] and report["teacher"]["gradient_ratio"] is None


def test_three_phases_share_the_steps(run):
    code, _, report = run(Mode(TRAINED, "x", (LABELS, DISTIL, ModePhase("last", "train", "labels"))), ["--match-share", "0.34"])
    assert code == 0 and steps_of(report) == {"warm": (2, True), "distil": (2, True), "last": (2, True)}
    assert "does not weigh" in report["teacher"]["gradient_reason"]


def test_a_row_may_have_knowledge_of_several_kinds(run, script):
    code, _, report = run(Mode(TRAINED, "x", knowledge="kd+similarity"))
    assert code == 0 and {"train_kd", "train_similarity"} <= report["history"]["epochs"][0].keys()
    assert "(`kd`, `similarity`) | output, stages |" in script("distill", ["--list-modes"])[1]


def test_a_students_fresh_copy_may_teach_it_without_generations(run):
    code, out, report = run(Mode(Origin("its own, never trained", "student", trained=False), "x"), ["--generations", "3"])
    assert code == 0 and report["teacher"]["name"] == "kdtiny" and "note: --generations, --teacher: not used" in out


@pytest.mark.parametrize("row", [Mode(TRAINED, "x", (ModePhase("m", "pool", "distil"),)),
                                 Mode(TRAINED, "x", (ModePhase("m", "pool", "labels"), DISTIL)),
                                 Mode(VIRTUAL, "x", (MATCH,)), Mode(VIRTUAL, "x", (ModePhase("m", "train", "match"),))])
def test_rows_that_need_labels_where_none_are_read_are_refused_at_once(run, row):
    code, out, _ = run(row)
    assert code == 2 and "needs labels, but none are read" in out and not Path("runs").exists() and not Path("cache").exists()


def test_weights_apply_in_a_phase_of_one_kind_too(script):
    for tag, words in (("plain", []), ("much", ["--knowledge-weights", "500"])):
        script("distill", [*SHORT, "--mode", "unlabeled-only", "--tag", tag, *words, "--clip-norm", "0.01"])
    losses = [reports.read(DATA / f"unlabeled-only-{tag}/kdwide-kdtiny/seed0")["history"]["epochs"][0]
              for tag in ("plain", "much")]
    assert losses[0]["train_loss"] == losses[0]["train_logit-mse"]
    assert losses[1]["train_loss"] == pytest.approx(500 * losses[1]["train_logit-mse"], rel=1e-5)


def test_unused_settings_need_no_other_folder(script):
    assert script("distill", [*SHORT, "--mode", "virtual"])[0] == 0
    before = weights(next(Path("runs").glob("*/virtual/none-kdtiny/seed0")))
    for words in (["--generations", "2"], ["--teacher", "resnet18", "kdtiny"], ["--layers", "conv"]):
        code, out = script("distill", [*SHORT, "--mode", "virtual", *words])
        assert code == 0 and "already finished" in out
    code, out = script("distill", [*SHORT, "--mode", "virtual", "--correct-probability", "0.8"])
    assert code == 2 and "correct_probability: 0.99 -> 0.8" in out
    assert torch.equal(before["fc.bias"], weights(next(Path("runs").glob("*/virtual/none-kdtiny/seed0")))["fc.bias"])


def test_a_chain_with_other_settings_starts_from_its_first_generation(script):
    script("distill", [*SHORT, "--mode", "self"])
    words = ["--mode", "self", "--generations", "2", "--tag", "a9", "--alpha", "0.9"]
    assert script("distill", [*SHORT, *words])[0] == 0
    [member] = reports.read(DATA / "self-a9/kdtiny-generation1-kdtiny/seed0")["teacher"]["members"]
    assert member["source"] == "synthetic-patient-32/self-a9/kdtiny-kdtiny/seed0" and member["differences"] == []


def test_a_chain_may_start_from_a_file(script):
    script("train_teacher", ["--model", "kdtiny", *TINY, "--seed", "4"])
    file = DATA / "teacher/kdtiny/seed4/model.pt"
    code, out = script("distill", [*SHORT, "--mode", "self", "--generations", "2", "--teacher-checkpoint", file])
    assert code == 0 and "checkpoint: not used" not in out and not (DATA / "teacher/kdtiny/seed0").exists()
    assert reports.read(DATA / "self/kdtiny-kdtiny/seed0")["teacher"]["members"][0]["source"] == "model.pt"
    words = ["--mode", "self", "--generations", "2", "--teacher-checkpoint", "none.pt", "--seed", "1"]
    code, out = script("distill", [*SHORT, *words])
    assert code == 4 and "none.pt" in out and "data synthetic" not in out


def test_the_same_data_under_another_name_is_not_foreign(script, picture_tree):
    root = picture_tree("hospital", {"a": 12, "b": 12})
    script("train_teacher", ["--model", "kdwide", *TINY, "--dataset", "folder", "--data-dir", root])
    root.rename(root.parent / "archive")
    code, out = script("distill", [*SHORT, "--mode", "normal", "--dataset", "folder", "--data-dir", root.parent / "archive",
                                   "--teacher-checkpoint", "runs/hospital-patient-32/teacher/kdwide/seed0/model.pt"])
    assert code == 0 and "note: Teacher kdwide: data set hospital instead of archive." in out


def test_data_that_a_teachers_teacher_has_seen_counts_too(script, picture_tree):
    """Check that a student inherits the data that its teacher has seen.

    T is trained on B. S is trained on A by T. S may not teach where T may not, although S itself
    has never seen B.
    """
    a, b = (picture_tree(name, {"a": 16, "b": 16}, size=size) for name, size in (("A", (20, 24)), ("B", (24, 20))))
    script("train_teacher", ["--model", "kdwide", *TINY, "--dataset", "folder", "--data-dir", b])
    first = "runs/B-patient-32/teacher/kdwide/seed0/model.pt"
    on_a = ["--mode", "normal", "--dataset", "folder", "--data-dir", a, "--teacher-checkpoint", first, "--allow-foreign-teacher"]
    assert script("distill", [*SHORT, *on_a])[0] == 0
    second = "runs/A-patient-32/normal/kdwide-kdtiny/seed0/model.pt"
    on_b = [*TINY, "--dataset", "folder", "--data-dir", b, "--split-seed", "5", "--allow-foreign-teacher", "--mode", "normal"]
    for teacher, file in (("kdwide", first), ("kdtiny", second)):
        code, out = script("distill", ["--teacher", teacher, "--student", "kdtiny", *on_b, "--teacher-checkpoint", file])
        assert code == 4 and "images of the student's" in out.splitlines()[-1]
    assert "one of its own teachers" in out
    out = script("evaluate", ["runs/A-patient-32/normal/kdwide-kdtiny/seed0", "--dataset", "folder", "--data-dir", b])[1]
    assert "images were seen in training" in out


def test_a_teacher_that_cannot_process_the_images_is_reported(script):
    code, out = script("distill", [*SHORT, "--mode", "random", "--teacher", "vit_tiny_patch16_224"])
    assert code == 2 and "cannot process images of 32 pixels" in out.splitlines()[-1]


def test_layers_that_are_overwritten_and_maps_of_one_point_are_reported(script):
    network = models.build("resnet18", ("a", "b"))
    with pytest.raises(Problem, match="overwrites its output"):
        network.outputs(torch.zeros(2, 3, 32, 32), ("layer4.1.bn2",))
    with pytest.raises(Problem, match="no module has that name"):
        network.outputs(torch.zeros(2, 3, 32, 32), ("layer4", "nothing"))
    assert not network.module.layer4[1].bn2._forward_hooks and not network.module.layer4._forward_hooks
    assert network.outputs(torch.zeros(2, 3, 32, 32), ("layer4",)).features[0].shape == (2, 512, 1, 1)
    words = [*SHORT, "--mode", "random", "--teacher", "resnet18", "--knowledge", "attention", "--max-steps", "1"]
    code, out = script("distill", [*words, "--layers", "bn:layer4"])
    assert code == 2 and "no positions to compare" in out
    code, out = script("distill", [*words, "--layers", "bn:layer4", "conv:layer1"])
    assert code == 0 and "no positions to compare in bn" in out


def test_fill_commands_do_not_carry_weights_of_other_teachers(script):
    common = ["--student", "kdtiny", *TINY, "--epochs", "1", "--mode", "normal"]
    script("distill", ["--teacher", "kdwide+kdtiny", "--teacher-weights", "1", "2", *common])
    script("distill", ["--teacher", "kdwide", *common, "--seed", "1"])
    script("evaluate", ["--tables", "runs"])
    [table] = json.loads(Path("runs/tables.json").read_text())["protocols"][0]["tables"]
    [single] = [text for text in table["missing"] if "--teacher kdwide --student" in text]
    assert "--teacher-weights none" in single
