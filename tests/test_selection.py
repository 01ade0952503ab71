"""The metric of the validation split that chooses the epoch of a phase with labels (--select)."""

import copy
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import DATA, PAIR, RUN, TEACHER, TINY, TinyNet, same, weights, write_table
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, log_loss, roc_auc_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_loop import FLOAT, fresh, panel_of, resumed_from_every_step, train, two_phases
from test_loop import views as views  # a fixture

from kd import models
from kd.config import parsing
from kd.config.resolve import resolve
from kd.config.settings import DistillSettings, TeacherSettings
from kd.config.training_settings import SELECTIONS, Training
from kd.data.readers import synthetic
from kd.loop import Phase
from kd.reports import metrics
from kd.reports import report as reports
from kd.runs.summary import summary
from kd.studies.runs import differing, read_run
from kd.system import checkpoint
from kd.system.errors import Problem
from kd.teachers.outputs import no_teacher
from kd.training import selection
from kd.training.objectives import Supervised

FALLS = ("nll",)


def probabilities_of(logits):
    return torch.from_numpy(logits).double().softmax(1).numpy()


# Metrics


def test_every_setting_has_its_metric():
    assert tuple(selection.METRICS) == SELECTIONS and set(selection.FALLING) == set(FALLS)


@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_the_metrics_are_those_of_scikit_learn(classes, absent):
    random = np.random.default_rng(classes)
    present = classes - (absent and classes > 2)  # the last class may be absent
    labels = random.integers(0, present, 200)
    logits = random.normal(size=(200, classes)).astype(np.float32) + 1.5 * np.eye(classes, dtype=np.float32)[labels]
    found = {name: metric(logits, labels) for name, metric in selection.METRICS.items()}
    p = probabilities_of(logits)
    if classes == 2:
        auroc = roc_auc_score(labels, p[:, 1])
    elif present == classes:
        auroc = roc_auc_score(labels, p, multi_class="ovr", average="macro")
    else:
        auroc = np.mean([roc_auc_score(labels == k, p[:, k]) for k in range(present)])
    expected = {
        "accuracy": (logits.argmax(1) == labels).mean(),
        "balanced_accuracy": balanced_accuracy_score(labels, logits.argmax(1)) if not absent else
        np.mean([(logits.argmax(1) == k)[labels == k].mean() for k in range(present)]),
        "auroc": auroc,
        "kappa": cohen_kappa_score(labels, logits.argmax(1)),
        "nll": log_loss(labels, p, labels=range(classes)),
    }
    assert found == pytest.approx(expected, rel=1e-9) and all(isinstance(value, float) for value in found.values())


def test_the_area_compares_the_second_of_two_classes_with_the_first_and_counts_ties_as_half():
    labels = np.array([0, 0, 1, 1])
    assert metrics.auroc(np.array([[0, 1], [0, 2], [0, 3], [0, 4.0]]), labels) == 1.0
    assert metrics.auroc(np.array([[0, 4], [0, 3], [0, 2], [0, 1.0]]), labels) == 0.0
    # Equal probabilities from different logits are ties.
    assert metrics.auroc(np.array([[0, 0.3], [0.1, 0.4], [0.6, 0.9], [0.7, 1.0]], np.float64), labels) == 0.5


def test_a_single_class_has_no_area_and_its_kappa_depends_on_the_predictions():
    logits, labels = np.eye(2)[[0, 0, 0]], np.array([0, 0, 0])
    assert metrics.auroc(logits, labels) is None and metrics.kappa(logits, labels) is None
    assert metrics.kappa(logits[:, ::-1], labels) == 0.0
    assert metrics.balanced_accuracy(logits, labels) == 1.0  # the mean over the class that is present
    for select in ("auroc", "kappa"):
        with pytest.raises(Problem, match=f"--select {select} is undefined on the validation split: all of its 3 images are of class 'a'"):
            selection.refuse_undefined(select, labels, ("a", "b"))
    for select in SELECTIONS:
        selection.refuse_undefined(select, np.array([0, 1]), ("a", "b"))
        if select not in ("auroc", "kappa"):
            selection.refuse_undefined(select, labels, ("a", "b"))


# The loop

LABELS = np.repeat([0, 1], [300, 10])  # of the validation split


def logits_of(right_a, right_b, margin=2.0):
    """Return logits that classify so many images of each class correctly, all with one margin."""
    predicted = np.where(np.arange(310) < 300, np.arange(310) >= right_a, np.arange(310) < 300 + right_b)
    return (margin * np.eye(2)[predicted.astype(int)]).astype(np.float32)


# Epoch by epoch: the rare class alone, the majority alone, a mean of both twice, and a confident majority.
EPOCHS = [logits_of(0, 10), logits_of(300, 0, 1.0), logits_of(270, 9), logits_of(270, 9), logits_of(299, 0, 2.5)]


def trained_on(views, monkeypatch, select, epochs=EPOCHS, **options):
    given = iter(epochs)
    monkeypatch.setattr("kd.loop.predict", lambda network, valid, check_stop: next(given))
    training = Training(epochs=len(epochs), batch_size=12, lr=3e-3, seed=3)
    steps = views[0].steps * training.epochs
    phase = Phase("train", views[0], no_teacher, Supervised(), 0, steps, training.lr, select=select)
    valid = SimpleNamespace(labels=torch.from_numpy(LABELS))
    return train(fresh(training), (views[0], valid), training, phases=[phase], **options)


@pytest.mark.parametrize("select, best", [("accuracy", 2), ("balanced_accuracy", 3), ("auroc", 3), ("kappa", 3), ("nll", 5)])
def test_with_300_and_10_images_accuracy_chooses_the_majority(views, monkeypatch, select, best):
    ends = []
    state = trained_on(views, monkeypatch, select,
                       after_epoch=lambda state, row: ends.append(copy.deepcopy(state.network.module.state_dict())))
    rows = state.progress.history
    assert state.progress.best == rows[best - 1] and same(state.best_weights, ends[best - 1])
    assert np.array_equal(state.best_logits, EPOCHS[best - 1])
    assert [row[f"valid_{select}"] for row in rows] == [selection.METRICS[select](logits, LABELS) for logits in EPOCHS]
    assert {key for row in rows for key in row if key.startswith("valid")} == {"valid_accuracy", "valid_nll", f"valid_{select}"}


@pytest.mark.parametrize("select", SELECTIONS)
@pytest.mark.parametrize("order, best", [("better, worse", 1), ("worse, better", 2), ("equal", 1)])
def test_the_earlier_of_equal_epochs_is_chosen(views, monkeypatch, select, order, best):
    good, bad = logits_of(290, 9, 3.0), logits_of(200, 5, 1.0)  # better and worse by every metric
    epochs = {"better, worse": [good, bad], "worse, better": [bad, good], "equal": [good, good]}[order]
    assert trained_on(views, monkeypatch, select, epochs).progress.best["epoch"] == best


def selecting(views, training, select, **changes):
    """Return a phase without labels and one with labels, which select by a metric."""
    phases = two_phases(views, training, panel_of(models.build("kdwide", synthetic.CLASSES, seed=9), FLOAT))
    return [dataclasses.replace(phase, select=select) for phase in (phases[0], dataclasses.replace(phases[1], **changes))]


@pytest.mark.case(1)
@pytest.mark.parametrize("select", ["nll", "auroc"])
@pytest.mark.parametrize("phases", [1, 2])
def test_resuming_from_every_step_chooses_the_same_epoch(views, select, phases):
    training = Training(epochs=3, batch_size=12, lr=3e-3, seed=3)
    if phases == 2:
        own = selecting(views, training, select, keeps_start=True)
    else:
        own = [Phase("train", views[0], no_teacher, Supervised(), 0, 12, training.lr, select=select)]
    whole, snapshots = resumed_from_every_step(views, training, Training(seed=77), phases=own)
    rows = [row for row in whole.progress.history if row["phase"] == own[-1].name]
    chosen = [row[f"valid_{select}"] for row in rows]
    if phases == 1:
        assert whole.progress.best == rows[int(np.argmin(chosen) if select in FALLS else np.argmax(chosen))]
    # A later epoch is compared with the row in the saved state.
    late = copy.deepcopy(snapshots[-2])
    late["progress"]["best"][f"valid_{select}"] = -1.0 if select in FALLS else 2.0
    late["progress"]["best"]["valid_accuracy"] = -1.0
    resumed = fresh(training)
    resumed.load_state_dict(copy.deepcopy(late))
    train(resumed, views, training, phases=own)
    assert resumed.progress.best == late["progress"]["best"] and same(resumed.best_weights, late["best_weights"])


@pytest.mark.parametrize("select, values, best", [
    ("balanced_accuracy", [0.9, 0.6, 0.6, 0.5], 2),    # an equal epoch is not better; the first epoch is not chosen by labels
    ("balanced_accuracy", [0.2, 0.6, 0.5, 0.7], 4),
    ("nll", [0.1, 0.6, 0.6, 0.7], 2),
    ("nll", [0.1, 0.6, 0.7, 0.5], 4)])
def test_a_phase_keeps_the_weights_at_its_start_by_the_same_metric(views, monkeypatch, select, values, best):
    training = Training(epochs=3, batch_size=12, lr=3e-3, seed=3)
    accuracies = [0.9, 0.1, 0.2, 0.05]  # by accuracy, it would always be epoch 3
    monkeypatch.setattr("kd.loop._row", lambda state, phase, logits, labels: {
        "epoch": state.progress.epoch + 1, "phase": phase.name, "steps": state.progress.total,
        "valid_accuracy": accuracies[state.progress.epoch], f"valid_{select}": values[state.progress.epoch]})
    own = selecting(views, training, select, keeps_start=True)
    state = train(fresh(training), views, training, phases=own)
    assert state.progress.best["epoch"] == best


# Runs


def grey_images(root):
    """Write 300 and 10 train images, 150 and 10 validation images, and 30 and 4 test images of two overlapping classes."""
    root.mkdir()
    random, rows = np.random.default_rng(0), []
    for split, sizes in (("train", (300, 10)), ("valid", (150, 10)), ("test", (30, 4))):
        for label, mean, size in zip("ab", (100, 130), sizes):
            for number in range(size):
                name = f"{split}-{label}-{number}.png"
                shade = random.normal(mean, 25) + random.normal(0, 20, (32, 32))
                Image.fromarray(shade.clip(0, 255).astype(np.uint8)).save(root / name)
                rows.append((name, label, name, split))
    write_table(root, rows, "path,label,patient,split")


@pytest.fixture
def rare(tmp_path):
    """The flags of a run on 300 and 10 images that begins with the majority and learns with class weights."""
    grey_images(tmp_path / "rare")
    start = TinyNet(num_classes=2)
    with torch.no_grad():
        start.fc.bias.copy_(torch.tensor([6.0, -6.0]))
    torch.save(start.state_dict(), "start.pt")
    return ["--model", "kdtiny", *TINY, "--dataset", "folder", "--data-dir", "rare", "--split", "given", "--balance", "weights",
            "--weights", "start.pt", "--epochs", "8", "--lr", "3e-3", "--augment", "none"]


def without_selected(report, select):
    """Return the history of a report without the column of a metric."""
    return [{key: value for key, value in row.items() if key != f"valid_{select}"} for row in report["history"]["epochs"]]


def test_a_run_with_300_and_10_images_delivers_another_epoch(script, rare):
    found = {}
    for select in ("accuracy", "balanced_accuracy"):
        code, out = script("train_teacher", [*rare, "--select", select, "--out", select])
        assert code == 0 and "not used" not in out, out
        [folder] = (file.parent for file in Path(select).glob("*/teacher/kdtiny/seed0/report.json"))
        found[select] = folder, reports.read(folder), out
    (plain, by_accuracy, said), (balanced, by_balance, told) = found.values()
    assert without_selected(by_balance, "balanced_accuracy") == by_accuracy["history"]["epochs"]  # the training is the same
    rows = {row["epoch"]: row for row in by_balance["history"]["epochs"]}
    first, second = (report["results"]["best"] for report in (by_accuracy, by_balance))
    assert first["valid_accuracy"] == 150 / 160 and rows[first["epoch"]]["valid_balanced_accuracy"] == 0.5  # the majority
    best = rows[second["epoch"]]["valid_balanced_accuracy"]
    assert best == max(row["valid_balanced_accuracy"] for row in rows.values()) > 0.6 and second["valid_accuracy"] < 150 / 160
    assert by_balance["evidence"]["balanced_accuracy"] > 0.5 == by_accuracy["evidence"]["balanced_accuracy"]
    assert not same(weights(plain), weights(balanced))
    assert by_balance["settings"]["select"] == "balanced_accuracy" and by_accuracy["settings"]["select"] == "accuracy"
    assert f"valid {rows[1]['valid_accuracy']:.4f}  balanced accuracy {rows[1]['valid_balanced_accuracy']:.4f}" in told
    assert f"(best: highest validation balanced accuracy, {best:.4f})" in told and "(best" not in said
    assert "balanced" not in said
    events = EventAccumulator(str(balanced), {"scalars": 0}).Reload()
    assert [event.value for event in events.Scalars("epoch/valid_balanced_accuracy")] == pytest.approx(
        [row["valid_balanced_accuracy"] for row in rows.values()])
    assert script("evaluate", [balanced])[1].count("(reproduced)") == 1
    assert script("evaluate", ["--curves", plain, balanced])[0] == 0


def test_a_metric_that_is_undefined_on_the_validation_split_is_refused_before_training(script, tmp_path, picture_tree):
    root = picture_tree("set", {"x": 24})
    rows = [(f"x/image{k}.png", "ab"[k % 2 if k < 16 else 0], f"p{k}", ("train", "valid", "test")[max(0, k - 12) // 4]) for k in range(24)]
    rows = [(path, "a" if split == "valid" else label, patient, split) for path, label, patient, split in rows]
    write_table(root, rows, "path,label,patient,split")
    words = [*PAIR, "--mode", "normal", "--dataset", "folder", "--data-dir", root, "--batch-size", "4", "--max-steps", "2"]
    for select in ("auroc", "kappa"):
        code, out = script("distill", [*words, "--select", select])
        assert code == 2 and "training it first" not in out
        assert f"--select {select} is undefined on the validation split: all of its 4 images are of class 'a'" in out.splitlines()[-1]
    code, out = script("distill", [*words, "--select", "nll"])
    assert code == 0, out
    only = [word if word != "normal" else "unlabeled-only" for word in words]
    code, out = script("distill", [*only, "--select", "auroc"])  # chooses no epoch
    assert code == 0 and "note: --select: not used by this run" in out and "auroc" not in out.lower().partition("training kdtiny")[2].partition("test split, ")[0]


@pytest.mark.parametrize("words, idle", [
    (["--mode", "normal", "--select", "auroc"], []),
    (["--mode", "unlabeled", "--select", "auroc"], []),
    (["--mode", "unlabeled-only", "--select", "auroc"], ["--select"]),
    (["--mode", "unlabeled-only"], [])])
def test_a_run_that_chooses_no_epoch_by_labels_says_that_it_selects_by_none(words, idle):
    plan = resolve(parsing.parse(DistillSettings, words)[0])
    assert list(plan.idle) == idle and plan.select == ("auroc" if "--select" in words and not idle else "accuracy")


def test_a_defective_teacher_stops_by_accuracy_and_keeps_its_last_weights(script):
    words = ["--model", "kdtiny", *TINY, "--stop-at-val-accuracy", "0.2", "--look-every", "1", "--epochs", "8", "--lr", "3e-3"]
    [settings] = parsing.parse(TeacherSettings, [*words, "--select", "nll"])
    assert resolve(settings).idle == ("--select",) and resolve(settings).select == "accuracy"
    found = []
    for out, more in (("a", []), ("b", ["--select", "auroc"])):
        code, said = script("train_teacher", [*words, *more, "--out", out])
        assert code == 0 and ("--select: not used" in said) == bool(more)
        assert "best:" not in said
        folder = Path(out) / "synthetic-patient-32/teacher/kdtiny-defective/seed0"
        found.append((weights(folder), reports.read(folder)["history"]))
    assert same(*found) and found[0][1]["ended"] == "stopped"


def test_a_student_keeps_what_was_matched_by_the_same_metric(script):
    words = [*PAIR, "--mode", "unlabeled", "--batch-size", "12", "--labeled-fraction", "0.3", "--finetune-lr", "0.5", "--select", "nll"]
    code, out = script("distill", words)
    assert code == 0 and "no epoch of finetune had a lower validation NLL (--keep-matched)" in out
    report = reports.read(Path("runs/synthetic-patient-32-labels0.3/unlabeled/kdwide-kdtiny/seed0"))
    matched = [row for row in report["history"]["epochs"] if row["phase"] == "match"][-1]
    assert report["results"]["best"]["epoch"] == matched["epoch"]
    assert f"(best: lowest validation NLL, {matched['valid_nll']:.4f})" in out


@pytest.mark.case(6)
def test_a_run_that_is_stopped_after_every_step_delivers_the_same_epoch(script):
    words = [*PAIR, "--mode", "normal", "--batch-size", "70", "--select", "auroc"]
    assert script("distill", words)[0] == 0
    for _ in range(40):
        code, _ = script("distill", [*words, "--out", "stopped", "--max-minutes", "0"])
        if code == 0:
            break
    other = Path("stopped") / RUN.relative_to("runs")
    assert code == 0 and same(weights(RUN), weights(other))
    assert reports.read(RUN)["history"] == reports.read(other)["history"]
    assert "valid_auroc" in reports.read(RUN)["history"]["epochs"][0]


def test_a_teacher_that_is_trained_for_a_student_is_chosen_by_the_same_metric(script):
    assert script("distill", [*PAIR, "--mode", "normal", "--select", "kappa"])[0] == 0
    assert "valid_kappa" in reports.read(TEACHER)["history"]["epochs"][0]
    code, out = script("distill", [*PAIR, "--mode", "normal", "--tag", "plain"])
    assert code == 0 and 'trained with other settings (select: "kappa" -> "accuracy")' in out


# Runs of earlier versions


def test_a_run_that_an_earlier_version_began_continues_exactly_and_selects_as_before(script):
    words = [*PAIR, "--mode", "normal", "--batch-size", "70", "--save-every-minutes", "0"]
    assert script("distill", words)[0] == 0
    whole, report = weights(RUN), reports.read(RUN)
    tagged = [*words, "--tag", "old"]
    for _ in range(3):  # until the first epoch of two is over
        assert script("distill", [*tagged, "--max-minutes", "0"])[0] == 143
    folder = DATA / "normal-old/kdwide-kdtiny/seed0"
    assert checkpoint.load(folder / "resume.pt")["state"]["progress"]["best"] is not None
    settings = json.loads((folder / "settings.json").read_text())
    assert settings.pop("select") == "accuracy"
    (folder / "settings.json").write_text(json.dumps(settings))
    code, out = script("distill", [*tagged, "--select", "nll"])
    assert code == 2 and 'select: "accuracy" -> "nll"' in out
    code, out = script("distill", tagged)
    assert code == 0 and "continuing from step" in out and same(weights(folder), whole)
    assert reports.read(folder)["history"] == report["history"]


def test_a_report_of_an_earlier_version_selected_by_accuracy_and_a_table_names_other_metrics(make):
    former = make("normal", "kdwide", "kdtiny", 0, change=lambda report: report["settings"].pop("select"))
    other = make("normal", "kdwide", "kdtiny", 1, change=lambda report: report["settings"].update(select="nll"))
    like = make("normal", "kdwide", "kdtiny", 2)
    assert "best:" not in summary(reports.read(former), former)
    first, second, third = map(read_run, (former, other, like))
    assert first.settings["select"] == "accuracy"
    assert "select: accuracy, nll" in differing([first, second])
    assert not [text for text in differing([first, third]) if text.startswith("select")]


def test_tables_name_runs_that_select_by_different_metrics(make, script):
    for seed, select in enumerate(("accuracy", "auroc")):
        make("normal", "kdwide", "kdtiny", seed, change=lambda report: report["settings"].update(select=select))
        make("alone", "", "kdtiny", seed)
    code, out = script("evaluate", ["--tables", "runs"])
    assert code == 0 and "select: accuracy, auroc" in out
