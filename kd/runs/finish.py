"""The end of a run: predictions, the chosen weights, and the files that carry them."""

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from kd import models
from kd.config import parsing
from kd.config.changes import portable
from kd.data.views import Views
from kd.loop import Phase, predict
from kd.reports import evidence, figures, metrics
from kd.reports import report as reports
from kd.reports.calibration import fit_temperature, probabilities
from kd.reports.predictions import predictions_csv
from kd.runs.active import ActiveRun
from kd.system import checkpoint, ranks
from kd.system.console import log
from kd.system.errors import Problem, printable
from kd.system.files import write_json, write_text
from kd.teachers import model_file

NO_LABELS = "train_accuracy is null: no label was read; the last epoch counts, none was chosen"


@dataclass(frozen=True)
class Predictions:
    """What the finished networks say.

    valid, test  logits [n, K] of the best weights
    last         logits [n, K] of the last weights on the test split
    teacher      the class [n] that the teachers give each test image, where networks teach
    """

    valid: np.ndarray
    test: np.ndarray
    last: np.ndarray
    teacher: np.ndarray | None


def finish(run: ActiveRun) -> dict:
    """Predict, write all files of the finished run (the report last), return the report.

    A stop signal may end the predictions; the run's state is then as it was.
    """
    # First of all: seconds and images a second are those of the training.
    clock = run.clock.describe(run.data.device, run.data.precision, run.state.progress.images)
    predictions = _predict(run)
    report = reports.check(
        {
            "schema_version": reports.SCHEMA_VERSION,
            "kind": "student" if run.plan.distils else "teacher",
            "command": "distill.py" if run.plan.distils else "train_teacher.py",
            "settings": portable(parsing.flat(run.plan.settings)),
            "data": _data_entry(run),
            "teacher": run.teacher_entry,
            "student": _student_entry(run),
            "history": _history(run),
            "results": _results(run, predictions),
            **_judgement(run, predictions),
            "clock": clock,
        }
    )
    if ranks.is_main_rank():
        _write(run, predictions, report)
    return report


def _predict(run: ActiveRun) -> Predictions:
    network, state, data = run.state.network, run.state, run.data
    check_stop, progress, last = run.signals.check_stop, run.state.progress, None
    if progress.history[-1]["epoch"] != progress.best["epoch"]:
        last = predict(network, data.test, check_stop)
    with state.best_in_network():
        valid = predict(network, data.valid, check_stop)
        test = predict(network, data.test, check_stop)
        teacher = None
        if run.ensemble is not None and run.ensemble.members:
            teacher = run.ensemble.judge(data.test, check_stop).argmax(1)
    return Predictions(valid, test, test if last is None else last, teacher)


def _data_entry(run: ActiveRun) -> dict:
    pool = run.data.pool_images
    return run.data.dataset.describe() | {"pool": pool and pool.summary}


def _student_entry(run: ActiveRun) -> dict:
    network, given = run.state.network, run.plan.settings.network
    return {
        "name": network.name,
        "architecture": network.architecture,
        "parameters": models.parameters(network.module),
        "pretrained": given.pretrained and not given.weights,
        "weights_hash": model_file.state_hash(run.state.best_weights),
    }


def _history(run: ActiveRun) -> dict:
    progress = run.state.progress
    return {
        "epochs": progress.history,
        "looks": progress.looks,
        "steps": progress.total,
        "ended": progress.ended,
        "phases": [_phase_entry(phase, progress.total) for phase in run.phases],
    }


def _phase_entry(phase: Phase, total: int) -> dict:
    return {
        "name": phase.name,
        "steps": max(0, min(phase.end, total) - phase.start),
        "images": phase.images,
        "labelled": phase.reads_labels,
    }


def _results(run: ActiveRun, predictions: Predictions) -> dict:
    progress, test = run.state.progress, run.data.test
    return {
        "best": _result(progress.best, predictions.test, test),
        "last": _result(progress.history[-1], predictions.last, test),
        "reason": None if run.phases[-1].reads_labels else NO_LABELS,
    }


def _result(row: dict, test_logits: np.ndarray, test: Views) -> dict:
    return {
        "epoch": row["epoch"],
        "train_accuracy": row.get("train_accuracy"),
        "valid_accuracy": row["valid_accuracy"],
        "test_accuracy": metrics.accuracy(test_logits, test.labels.numpy()),
    }


def _judgement(run: ActiveRun, predictions: Predictions) -> dict:
    """The report's figures of the test split beyond accuracy."""
    index, rows = run.data.dataset.index, run.data.dataset.splits.test
    samples = [index.samples[row] for row in rows]
    logits, labels = predictions.test, run.data.test.labels.numpy()
    temperature = fit_temperature(predictions.valid, run.data.valid.labels.numpy())
    studies, agreement = [sample.study for sample in samples], None
    if predictions.teacher is not None:
        paths = [printable(sample.path) for sample in samples]
        agreement = metrics.agreement(logits.argmax(1), predictions.teacher, labels, paths)
    return {
        "classification_report": metrics.classification_report(logits, labels, index.classes),
        "confusion_matrix": metrics.confusion_matrix(logits, labels),
        "evidence": evidence.summarise(logits, labels, studies, temperature, index.graded),
        "agreement": agreement,
    }


def _write(run: ActiveRun, predictions: Predictions, report: dict) -> None:
    """All files of a finished run; a report that is there says that the others are."""
    checkpoint.save(run.folder.model, _model_content(run, report["kind"]))
    write_text(run.folder.predictions, _predictions_text(run, predictions))
    drawn = {}
    for name, figure in _figures(run, predictions, report).items():
        drawn[name] = figures.pixels(figure)
    for name, pixels in drawn.items():
        try:
            figures.save(run.folder.figure(name), pixels)
        except Problem as problem:  # a figure that can be drawn again is no reason to lose a run
            log(f"warning: {str(problem).partition(';')[0]}; the run goes on without it")
    run.events.finish(report, drawn)
    write_json(run.folder.report, report)


def _model_content(run: ActiveRun, kind: str) -> dict:
    """The content of model.pt."""
    state, data = run.state, run.data
    teachers = []
    if run.ensemble is not None:
        teachers = [member.trained for member in run.ensemble.members]
    return model_file.pack(
        kind,
        state.network,
        state.best_weights,
        state.progress.best["epoch"],
        data.dataset,
        data.pool_images,
        teachers,
    )


def _predictions_text(run: ActiveRun, predictions: Predictions) -> str:
    splits = run.data.dataset.splits
    rows = {"valid": splits.valid, "test": splits.test}
    logits = {"valid": predictions.valid, "test": predictions.test}
    teacher = {} if predictions.teacher is None else {"test": predictions.teacher}
    return predictions_csv(run.data.dataset.index, rows, logits, teacher)


def _figures(run: ActiveRun, predictions: Predictions, report: dict) -> dict[str, Figure]:
    index, rows = run.data.dataset.index, run.data.dataset.splits.test
    title = f"{run.folder.pair}, test part (n = {len(rows)})"
    calibration = report["evidence"]["calibration"]
    confusion = figures.confusion(report["confusion_matrix"], index.classes, title)
    reliability = _reliability(calibration, predictions.test, index.labels[rows], title)
    return {"confusion": confusion, "reliability": reliability}


def _reliability(calibration: dict, logits: np.ndarray, labels: np.ndarray, title: str) -> Figure:
    """The reliability diagram of logits [N, K], before and after temperature scaling."""
    panels = {}
    for name, temperature in (("before", 1.0), ("after", calibration["temperature"])):
        caption = f"{name} scaling (T = {temperature:.2f}): ECE {calibration[name]['ece']:.3f}"
        panels[caption] = probabilities(logits, temperature), labels
    return figures.reliability(panels, title)
