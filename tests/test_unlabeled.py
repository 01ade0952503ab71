"""Distillation through unlabelled images: the pool, the labels that never reach it, the phases, the four arms."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DATA, PAIR, ROOT, TINY, same
from faults import in_child

from kd import config, lesson, losses
from kd.data import synthetic
from kd.data.dataset import open_dataset, read_index
from kd.data.pool import open_pool, read_unlabeled
from kd.data.splits import Kept, split
from kd.errors import Problem
from kd.results import report as reports
from kd.settings import Data, DistillSettings, TeacherSettings, Unlabeled

UNLABELED = [*PAIR, "--mode", "unlabeled", "--batch-size", "12"]
ONLY = [*PAIR, "--mode", "unlabeled-only"]
FEW = Path("runs/synthetic-patient-32-labels0.3")


def weights(folder):
    return torch.load(folder / "model.pt", weights_only=True)["state_dict"]


def write_table(root, rows, header="path,label,patient"):
    (root / "images.csv").write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")


@pytest.fixture
def labelled(picture_tree):
    """Sixteen pictures of two classes and eight patients; the last two patients' are the test part."""
    root = picture_tree("hospital", {"x": 16})
    rows = [(f"x/image{k}.png", "ab"[k // 2 % 2], f"p{k // 2}", "test" if k >= 12 else "train") for k in range(16)]
    write_table(root, rows, "path,label,patient,split")
    return root


@pytest.fixture
def clinic(tmp_path, picture_tree):
    """Pictures of other patients, without a table."""
    root = picture_tree("clinic", {"any/where": 12}, size=(31, 17))
    return root


def folder_data(root, **options):
    data = Data(dataset="folder", data_dir=str(root), image_size=32, **options)
    return open_dataset(data, read_index(data))


def pool_of(dataset, **options):
    unlabeled = Unlabeled(**options)
    return open_pool(dataset, unlabeled, read_unlabeled(unlabeled))


# Which labels are kept.

def test_whole_patients_keep_their_labels_and_the_judged_parts_stay():
    index = synthetic.read(560, 0)
    whole = split(index, "patient", 0, (None, None, None))
    for fraction in (0.01, 0.1, 0.3):
        few = split(index, "patient", 0, (None, None, None), Kept(fraction, 3))
        assert np.array_equal(few.valid, whole.valid) and np.array_equal(few.test, whole.test)
        assert np.array_equal(few.pool, whole.pool) and len(few.train) == len(whole.train)
        kept = {index.samples[row].patient for row in few.train}
        rows = [row for row in whole.train if index.samples[row].patient in kept]
        assert set(few.train) == set(rows)  # of a patient all images or none
        for label in range(7):  # four images a patient, so many patients that they hold the fraction
            every = (index.labels[whole.train] == label).sum()
            own = {index.samples[row].patient for row in rows if index.labels[row] == label}
            assert len(own) == -(-max(1, round(every * fraction)) // 4)
        counts = np.bincount(few.train)[np.unique(few.train)]
        assert counts.max() - counts.min() <= 1


def test_another_seed_keeps_other_patients_and_more_keep_those_of_fewer():
    index = synthetic.read(560, 0)

    def rows(fraction, seed):
        return set(split(index, "patient", 0, (None, None, None), Kept(fraction, seed)).train)

    assert rows(0.1, 0) != rows(0.1, 1) and rows(0.1, 0) < rows(0.3, 0) < rows(1.0, 0)


def test_judged_parts_of_given_sizes_do_not_move_with_the_labels():
    index = synthetic.read(560, 0)
    parts = [split(index, "patient", 0, (30, 4, 4), Kept(fraction, 5)) for fraction in (1.0, 0.2)]
    assert all(np.array_equal(getattr(parts[0], name), getattr(parts[1], name)) for name in ("valid", "test", "pool"))
    assert np.bincount(index.labels[parts[1].train]).tolist() == [30] * 7


def test_hidden_labels_are_gone_from_the_index():
    data = Data(dataset="synthetic", synthetic_images=196, image_size=32, labeled_fraction=0.3)
    dataset = open_dataset(data, read_index(data))
    hidden = np.setdiff1d(dataset.parts.pool, dataset.parts.train)
    assert len(hidden) and (dataset.index.labels[hidden] == -1).all()
    assert all((dataset.index.labels[rows] >= 0).all() for _, rows in dataset.parts.items())


def test_the_thesis_split_has_no_patients_to_hide():
    with pytest.raises(Problem, match="--split patient"):
        split(synthetic.read(560, 0), "thesis", 0, (None, None, None), Kept(0.5))


def test_drawing_evens_classes_out_and_weights_do_so_in_the_loss():
    index = synthetic.read(560, 0)
    uneven = index.without_labels(np.flatnonzero((index.labels > 0) & (np.arange(560) % 3 > 0)))
    plain = split(uneven, "patient", 0, (None, None, None))
    of_class = np.bincount(uneven.labels[plain.train])
    for fraction in (1.0, 0.3):
        parts = split(uneven, "patient", 0, (None, None, None), Kept(fraction, balance="draw"))
        counts = np.bincount(uneven.labels[parts.train])
        assert len(set(counts)) == 1 and parts.shown == len(plain.train) <= len(parts.train)
    assert len(set(split(uneven, "patient", 0, (None, None, None), Kept(balance="draw")).train)) == len(plain.train)
    assert of_class.max() > 2 * of_class.min()
    labels = torch.tensor([0, 0, 0, 1])
    weights = losses.class_weights(labels, 2)
    assert weights.tolist() == pytest.approx([2 / 3, 2]) and weights[labels].mean() == pytest.approx(1)
    logits = torch.randn(4, 2)
    by_hand = sum(weights[k] * -torch.log_softmax(row, 0)[k] for row, k in zip(logits, labels)) / 4
    assert losses.cross_entropy(logits, labels, weights).item() == pytest.approx(by_hand.item(), abs=1e-6)


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


# The pool.

def test_the_pool_of_a_data_set_is_its_train_part_without_judged_patients(labelled):
    dataset = folder_data(labelled)
    pool = pool_of(dataset)
    judged = {dataset.index.samples[row].patient for part in ("valid", "test") for row in getattr(dataset.parts, part)}
    assert not judged & {dataset.index.samples[row].patient for row in pool.rows} and len(pool.rows) == len(dataset.parts.pool)
    views = pool.views(torch.device("cpu"), batch_size=4)
    assert views.labels is None and all(batch.labels is None for batch in views.epoch(0))


def test_rows_without_a_label_are_in_the_pool_alone(labelled):
    rows = (labelled / "images.csv").read_text()
    for row in ("x/image0.png,a", "x/image15.png,b"):
        rows = rows.replace(row, row[:-1])
    (labelled / "images.csv").write_text(rows)
    dataset = folder_data(labelled)
    paths = [sample.path for sample in dataset.index.samples]
    assert any("2 of 16 pictures have no label" in note for note in dataset.index.notes)
    in_parts = {paths[row] for _, rows in dataset.parts.items() for row in rows}
    assert not {"x/image0.png", "x/image15.png"} & in_parts
    pool = {paths[row] for row in pool_of(dataset).rows}
    judged = {dataset.index.samples[row].patient for row in dataset.parts.valid}
    assert ("x/image0.png" in pool) == ("p0" not in judged) and "x/image15.png" not in pool  # the second is a test patient's


def test_a_pool_drops_judged_patients_and_files_and_counts_them(labelled, clinic):
    for number, name in enumerate(("image12.png", "image14.png")):  # byte for byte pictures of the test part, renamed
        shutil.copy(labelled / "x" / name, clinic / f"copy{number}.png")
    pictures = sorted(path.relative_to(clinic).as_posix() for path in clinic.rglob("*.png"))
    patients = {pictures[0]: "p7", pictures[1]: "p0"}  # the one of the test part, the other of train or validation
    write_table(clinic, [(path, patients.get(path, "")) for path in pictures], "path,patient")
    dataset = folder_data(labelled, valid_per_class=1)
    train = {dataset.index.samples[row].patient for row in dataset.parts.train}
    found = pool_of(dataset, unlabeled_dir=str(clinic)).account
    assert found["dropped_by_patient"] == 1 + ("p0" not in train) and found["dropped_by_file"] == 2
    assert found["of_unlabeled_dir"] == 14 - found["dropped_by_patient"] - 2
    assert found["of_the_data_set"] == len(dataset.parts.pool)
    with pytest.raises(Problem, match="copy0.png, copy1.png.* show patients of the validation or test part") as caught:
        pool_of(dataset, unlabeled_dir=str(clinic), strict=True)
    assert caught.value.code == 2


def test_a_pool_of_judged_pictures_alone_is_refused(labelled, tmp_path):
    (tmp_path / "stolen").mkdir()
    shutil.copy(labelled / "x/image12.png", tmp_path / "stolen/a.png")
    dataset = folder_data(labelled)
    empty = type(dataset)(dataset.settings, dataset.index, dataset.parts.__class__(
        dataset.parts.train, dataset.parts.valid, dataset.parts.test, np.empty(0, np.int64)), dataset.store, "")
    with pytest.raises(Problem, match="none are left"):
        pool_of(empty, unlabeled_dir=str(tmp_path / "stolen"))


def test_copies_of_judged_pictures_inside_the_data_set_stay_out_of_the_pool(labelled):
    shutil.copy(labelled / "x/image15.png", labelled / "x/image2.png")
    dataset = folder_data(labelled)
    assert "p1" in {dataset.index.samples[row].patient for row in dataset.parts.train}
    assert pool_of(dataset).account["dropped_by_file"] == 1


def test_patients_of_a_table_are_believed_whatever_the_names_say(clinic):
    pictures = sorted(path.relative_to(clinic).as_posix() for path in clinic.rglob("*.png"))
    write_table(clinic, [(path, "p7" if k else "") for k, path in enumerate(pictures)], "path,patient")
    index = read_unlabeled(Unlabeled(unlabeled_dir=str(clinic), unlabeled_dataset="messidor"))
    assert {sample.patient for sample in index.samples} == {"p7", "image0"}


def test_a_picture_that_lies_twice_is_seen_once(labelled, clinic):
    shutil.copy(next(clinic.rglob("*.png")), clinic / "again.png")
    shutil.copy(labelled / "x/image2.png", clinic / "of the train part.png")
    dataset = folder_data(labelled)
    pool = pool_of(dataset, unlabeled_dir=str(clinic))
    assert pool.account["copies"] == 2 and len({row.tobytes() for row in pool.store.hashes[pool.rows]}) == len(pool.rows)
    assert pool.account["of_unknown_patients"] == pool.account["of_unlabeled_dir"] == 12


def test_both_eyes_are_one_patient_in_a_pool(tmp_path, picture_tree):
    root = picture_tree("eyes", {"train": 4})
    for number, name in enumerate(("10_left", "10_right", "13_left", "13_right")):
        (root / f"train/image{number}.png").rename(root / f"train/{name}.jpeg")
    index = read_unlabeled(Unlabeled(unlabeled_dir=str(root), unlabeled_dataset="eyepacs"))
    assert [sample.patient for sample in index.samples] == ["10", "10", "13", "13"] and index.name == "eyepacs"
    assert not index.classes and all(sample.label == -1 for sample in index.samples)


@pytest.mark.parametrize("make, words", [
    (lambda root: None, "no such folder"), (lambda root: root.mkdir(), "holds no pictures"),
    (lambda root: (root.mkdir(), write_table(root, [("gone.png",)], "path")), "row 2 'gone.png'")])
def test_a_pool_that_cannot_be_read_is_one_line_before_the_teacher(script, tmp_path, make, words):
    make(tmp_path / "pool")
    code, out = script("distill", [*ONLY, "--unlabeled-dir", str(tmp_path / "pool")])
    assert code == 2 and words in out.splitlines()[-1] and "training it first" not in out and not Path("cache").exists()


# Labels never reach it.

def test_permuted_and_deleted_labels_in_the_pool_give_the_same_weights_bit_for_bit(script, labelled, clinic):
    """The weights after phase one, of the whole command, and with them all that comes after."""
    pictures = sorted(path.relative_to(clinic).as_posix() for path in clinic.rglob("*.png"))
    tables = {"right": [(path, "ab"[k % 2]) for k, path in enumerate(pictures)],
              "permuted": [(path, "ba"[k % 3 % 2]) for k, path in enumerate(pictures)],
              "of another world": [(path, "?!") for path in pictures]}
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


def test_once_drawn_hidden_labels_move_nothing(script, labelled, monkeypatch):
    """The draw looks at all labels, as it keeps a share of each class; it is held still. Then those it hides are exchanged."""
    rows = [line.split(",") for line in (labelled / "images.csv").read_text().splitlines()[1:]]
    patient_of = {path: patient for path, _, patient, _ in rows}
    order = sorted(patient_of)  # of the index
    judged, hidden = {"p4", "p5"}, {"p2", "p3"}
    labels_kept = {"p0", "p1"}

    def drawn(rows, labels, patients, size, random, fraction=None):
        return np.array([row for row in rows if patient_of[order[row]] in (labels_kept if fraction else judged)])

    monkeypatch.setattr("kd.data.splits._draw_patients", drawn)
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
        about = torch.load(run / "model.pt", weights_only=True)["data"]["patients"]
        assert about == {"train": sorted(labels_kept | hidden), "valid": sorted(judged)}  # hidden ones were seen without labels
        found.append(weights(run))
    assert same(*found)


def test_the_matching_loss_takes_no_labels():
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    for loss in ("logit-mse", "kd"):
        with pytest.raises(ValueError, match="reads none"):
            losses.matching(loss, [2.0])(student, teacher, torch.zeros(4, dtype=torch.long))


def test_matching_losses_against_their_formulas():
    random = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(6, 5, generator=random, dtype=torch.float64) for _ in range(2))
    mse = losses.matching("logit-mse", [])(student, teacher, None)
    assert mse["loss"].item() == pytest.approx(((student - teacher) ** 2).sum(1).div(2).mean().item(), rel=1e-6)
    assert mse["agreement"].item() == pytest.approx((student.argmax(1) == teacher.argmax(1)).double().mean().item())
    several = losses.matching("kd", [1.0, 3.0, 9.0])(student, teacher, None)["loss"].item()
    by_hand = [t * t * (torch.softmax(teacher / t, 1) * (torch.log_softmax(teacher / t, 1) - torch.log_softmax(student / t, 1))
                        ).sum(1).mean().item() for t in (1, 3, 9)]
    assert several == pytest.approx(np.mean(by_hand), rel=1e-5)
    # Hinton, Vinyals, Dean 2015, section 2.1: at high temperature and zero-mean logits, T^2 * KL is the squared error over K.
    student, teacher = student - student.mean(1, keepdim=True), teacher - teacher.mean(1, keepdim=True)
    hot, mse = losses.matching("kd", [300.0])(student, teacher, None), losses.matching("logit-mse", [])(student, teacher, None)
    assert hot["loss"].item() == pytest.approx(mse["loss"].item() / 5, rel=0.02)


# The runs.

def test_both_phases_stand_in_the_report(script):
    code, out = script("distill", [*UNLABELED, "--labeled-fraction", "0.3", "--finetune", "kd", "--finetune-lr", "5e-4"])
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
    assert report["teacher"]["split"] == report["data"]["split_hash"]  # trained on those same labels


def test_phase_one_alone_reads_no_label_and_chooses_no_epoch(script):
    code, out = script("distill", [*ONLY, "--match", "kd", "--match-temperatures", "2", "8", "--epochs", "3"])
    assert code == 0 and "no label was read" in out
    report = reports.read(DATA / "unlabeled-only/kdwide-kdtiny/seed0")
    assert report["results"]["best"] == report["results"]["last"] and report["results"]["best"]["train_accuracy"] is None
    assert report["teacher"]["gradient_ratio"] is None and report["teacher"]["gradient_reason"]
    assert [phase["name"] for phase in report["history"]["phases"]] == ["match"]
    code, out = script("evaluate", [DATA / "unlabeled-only/kdwide-kdtiny/seed0"])
    assert code == 0 and ": the same" in out
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
    (["--mode", "normal", "--match", "kd", "--finetune-lr", "1"], ["--finetune-lr", "--match"]),
    (["--mode", "unlabeled-only", "--alpha", "0.9", "--finetune", "kd"], ["--alpha", "--finetune"]),
    (["--mode", "unlabeled", "--alpha", "0.9", "--finetune", "kd", "--match-share", "0.5"], []),
    (["--mode", "unlabeled", "--match-temperatures", "1", "--labeled-seed", "3", "--strict"],
     ["--labeled-seed", "--match-temperatures", "--strict"])])
def test_flags_that_a_mode_does_not_look_at_are_named(words, idle):
    [settings] = config.parse(DistillSettings, words)
    assert lesson.idle(settings) == idle
    assert not lesson.idle(config.parse(TeacherSettings, [])[0])


def test_one_step_is_too_few_for_two_phases(script):
    code, out = script("distill", [*UNLABELED, "--max-steps", "1"])
    assert code == 2 and "1 in all for 2 phases" in out.splitlines()[-1] and "training it first" not in out
    code, out = script("distill", [*UNLABELED, "--max-steps", "2"])
    phases = reports.read(DATA / "unlabeled/kdwide-kdtiny/seed0")["history"]["phases"]
    assert code == 0 and [phase["steps"] for phase in phases] == [1, 1]


def test_what_a_student_saw_without_labels_counts_as_seen(script, labelled, clinic):
    code, _ = script("distill", [*ONLY, "--dataset", "folder", "--data-dir", labelled, "--unlabeled-dir", clinic, "--max-steps",
                                 "2"])
    model = torch.load(next(Path("runs").glob("*/unlabeled-only/*/seed0")) / "model.pt", weights_only=True)
    seen = {row.numpy().tobytes() for row in model["data"]["files"]["train"]}
    dataset = folder_data(labelled)
    assert code == 0 and {row.numpy().tobytes() for row in dataset.files("train")} < seen and len(seen) >= 12


@pytest.mark.case(12)
def test_a_pool_that_changed_under_a_begun_run_is_refused(script, clinic):
    argv = [*UNLABELED, "--unlabeled-dir", clinic]
    assert script("distill", [*argv, "--max-minutes", "0"])[0] == 143  # the teacher
    assert script("train_teacher", ["--model", "kdwide", *TINY, "--batch-size", "12"])[0] == 0
    assert script("distill", [*argv, "--max-minutes", "0"])[0] == 143
    next(clinic.rglob("*.png")).unlink()
    code, out = script("distill", argv)
    assert code == 4 and "began with pool_hash" in out.splitlines()[-1]


@pytest.mark.case(2, 6)
@pytest.mark.parametrize("phase", ["match", "finetune"])
def test_a_kill_in_either_phase_costs_nothing(script, prepared, phase):
    """kill -9 after a step of the phase; the same command again ends with the weights and report of a run left alone."""
    prepared([("train_teacher", ["--model", "kdwide", *TINY, "--batch-size", "12"]), ("distill", [*UNLABELED, "--out", "whole"])])
    argv = [*UNLABELED, "--save-every-minutes", "0"]

    def until_killed():
        import os
        import signal

        import kd.experiment
        save = kd.experiment.Experiment.save

        def die(self, state, lesson):
            save(self, state, lesson)
            if lesson.phases[state.progress.phase].name == phase and state.progress.total >= 3 + 17 * (phase == "finetune"):
                os.kill(os.getpid(), signal.SIGKILL)
        kd.experiment.Experiment.save = die
        import distill
        return distill.main([str(word) for word in argv])

    child = in_child(until_killed)
    assert child.code == -9, child.err
    code, out = script("distill", argv)
    assert code == 0 and "going on from step" in out
    run = DATA / "unlabeled/kdwide-kdtiny/seed0"
    whole = "whole" / run.relative_to("runs")
    first, second = ({key: value for key, value in reports.read(folder).items() if key not in ("clock", "settings", "teacher")}
                     for folder in (run, whole))
    assert same(weights(run), weights(whole)) and first == second


def test_lists_take_several_students_through_one_pool(script):
    words = ["--mode", "unlabeled", "--student", "a", "b", "--match-temperatures", "1", "4"]
    [first, second] = config.parse(DistillSettings, words)
    assert first.unlabeled == second.unlabeled and first.unlabeled.match_temperatures == [1.0, 4.0]
    for words in (["--match-temperatures", "0"], ["--match-temperatures", "1", "nan"], ["--match-share", "1"],
                  ["--labeled-fraction", "0"]):
        with pytest.raises(Problem):
            config.parse(DistillSettings, words)


# The table of arms.

@pytest.fixture
def arms(prepared):
    """Four arms at a fraction, two of them with two seeds, and one with all labels."""
    commands = []
    for fraction, seed, modes in (("0.3", "0", ("normal", "unlabeled-only", "unlabeled")), ("0.3", "1", ("unlabeled",)),
                                  ("1", "0", ("normal",))):
        words = [*TINY, "--epochs", "1", "--labeled-fraction", fraction, "--seed", seed, "--labeled-seed", seed]
        commands += [("distill", ["--teacher", "kdwide", "--student", "kdtiny", *words, "--mode", mode]) for mode in modes]
        commands += [("train_teacher", ["--model", "kdtiny", *words])]
    prepared(commands)


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
    assert "trained on the labels of its student" in out


def test_unequal_arms_are_called_so(arms, script):
    words = [*TINY, "--epochs", "2", "--labeled-fraction", "1", "--tag", "long"]
    script("distill", ["--teacher", "kdwide", "--student", "kdtiny", *words, "--mode", "unlabeled", "--teacher-checkpoint",
                       str(FEW / "teacher/kdwide/seed0/model.pt")])
    out = script("evaluate", ["--arms", "runs"])[1]
    assert "NOT EQUAL: the students took 6, 12 optimizer steps" in out
    assert "NOT EQUAL: 1 of 1 students had a teacher that knew other labels than theirs." in out


def test_arms_of_other_labels_are_never_set_against_each_other(script):
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


def test_runs_of_one_seed_with_other_labels_are_told(script, labelled):
    words = [*PAIR, "--dataset", "folder", "--data-dir", labelled, "--max-steps", "2"]
    assert script("distill", [*words, "--mode", "unlabeled", "--out", "runs/a"])[0] == 0
    text = (labelled / "images.csv").read_text()
    for row in ("x/image4.png,a", "x/image5.png,a"):
        text = text.replace(row, row[:-1] + "b")
    (labelled / "images.csv").write_text(text)
    assert script("distill", [*words, "--mode", "normal", "--out", "runs/b"])[0] == 0
    out = script("evaluate", ["--arms", "runs"])[1]
    assert "NOT EQUAL: runs of the same seeds had other labels" in out
    [found] = json.loads(Path("runs/arms.json").read_text())["groups"]
    assert all(one["gap"] is None for one in found["rows"][0]["gaps"])


def test_what_a_mode_does_not_use_is_no_difference(script, arms):
    words = [*TINY, "--epochs", "1", "--labeled-fraction", "0.3", "--alpha", "0.5", "--match-share", "0.5", "--tag", "half"]
    script("distill", ["--teacher", "kdwide", "--student", "kdtiny", *words, "--mode", "unlabeled"])
    script("distill", ["--teacher", "kdwide", "--student", "kdtiny", *words, "--mode", "unlabeled-only"])
    out = script("evaluate", ["--arms", "runs"])[1]
    assert "Settings differ" not in out


def test_pictures_that_a_network_has_seen_are_told_when_it_is_judged_on_them(script, labelled, clinic):
    code, _ = script("distill", [*ONLY, "--dataset", "folder", "--data-dir", labelled, "--unlabeled-dir", clinic, "--max-steps",
                                 "2"])
    [run] = Path("runs").glob("*/unlabeled-only/*/seed0")
    write_table(clinic, [(path.relative_to(clinic).as_posix(),) for path in clinic.rglob("*.png")], "path")
    code, out = script("evaluate", [run, "--dataset", "folder", "--data-dir", clinic])
    assert code == 0 and "warning: 12 of 12 pictures were seen in training" in out
    result = json.loads(next(run.glob("evaluation-*/evaluation.json")).read_text())
    assert result["data"]["seen_in_training"] == 12


def test_arms_without_any_such_run_say_what_to_do(script):
    script("train_teacher", ["--model", "kdtiny", *TINY, "--max-steps", "1"])
    code, out = script("evaluate", ["--arms", "runs"])
    assert code == 2 and "--mode unlabeled" in out.splitlines()[-1]


def test_a_graded_set_shows_kappa_and_auc_in_report_and_arms(script, picture_tree):
    root = picture_tree("grades", {"0": 12, "1": 12, "2": 12})
    words = ["--dataset", "folder", "--data-dir", root, "--graded", "--max-steps", "2"]
    assert script("distill", [*UNLABELED, *words])[0] == 0
    [run] = Path("runs").glob("*/unlabeled/*/seed0")
    grades = reports.read(run)["evidence"]["grades"]
    assert -1 <= grades["quadratic_kappa"] <= 1 and 0 <= grades["referable_auc"] <= 1 and grades["reason"] is None
    code, out = script("evaluate", ["--arms", "runs"])
    assert code == 0 and "| quadratic weighted kappa by labels |" in out and "| AUC of referable (grade >= 2) by" in out
    out = script("evaluate", [run])[1]
    assert "quadratic weighted kappa" in out
