"""The end of a run: its predictions, its final weights, and all files that a finished run has."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kd import models
from kd.config import parsing
from kd.config.changes import portable
from kd.data.views import Views
from kd.loop import Phase, predict
from kd.reports import evidence, figures, metrics
from kd.reports import report as reports
from kd.reports.calibration import fit_temperature, probabilities
from kd.reports.evidence_figures import figures_of_two
from kd.reports.positive import positive_of
from kd.reports.predictions import predictions_csv
from kd.runs.active import ActiveRun
from kd.runs.peers import describe_peers
from kd.system import checkpoint, ranks
from kd.system.console import log
from kd.system.devices import FLOAT32, Precision
from kd.system.errors import Problem
from kd.system.files import reason, write_json, write_text
from kd.teachers import model_file
from kd.teachers.stored_logits import key_of, store
from kd.training.selection import better

# Why a run that ends without labels has no train accuracy; printed, and kept in its report.
NO_LABELS = (
    "train_accuracy is null and the best epoch is the last one, because no labels were read in"
    " training"
)


@dataclass(frozen=True)
class Predictions:
    """The predictions of a finished run.

    valid, test  logits [n, K] of the best weights on the validation and on the test split
    last         logits [n, K] of the last weights on the test split
    teacher      classes [n] that the teachers predict on the test split; None without a teacher
                 that is a network
    """

    valid: np.ndarray
    test: np.ndarray
    last: np.ndarray
    teacher: np.ndarray | None


def finish(runs: list[ActiveRun]) -> list[dict]:
    """Compute the predictions, write all files of a finished run, and return the reports.

    There is a report for each student. It is the last of the student's files. Students that are
    finished already keep theirs. A stop signal may interrupt the predictions, which leaves the
    state of the run unchanged. Raises Stopped in that case, and Problem (74) if a file cannot be
    written.
    """
    # Read before the predictions: seconds and images per second are those of the training.
    clocks = [_clock(run) for run in runs]
    predictions = [_predict(run) for run in runs]
    if len(runs) > 1:
        predictions = _with_peers(runs, predictions)
    found = []
    for run, own, clock in zip(runs, predictions, clocks):
        if ranks.main_rank_says(run.folder.finished):
            found.append(_kept(run))
        else:
            found.append(_finish(run, own, clock))
    return found


def _clock(run: ActiveRun) -> dict:
    images = run.state.progress.images
    return run.clock.describe(run.data.device, run.state.precision, images)


def _with_peers(runs: list[ActiveRun], every: list[Predictions]) -> list[Predictions]:
    """Add to the predictions of each student those of its peers, and to its run their entry."""
    valid = np.stack([own.valid for own in every])
    test = np.stack([own.test for own in every])
    found = []
    for place, (run, own) in enumerate(zip(runs, every)):
        run.teacher_entry, classes = describe_peers(runs, place, valid, test)
        found.append(replace(own, teacher=classes))
    return found


def _kept(run: ActiveRun) -> dict:
    """Return the report of a student that was finished before its peers.

    Prints a warning if it is not that of the network that has now been trained with them.
    """
    report = reports.read(run.folder.path)
    own, now = report["student"]["weights_hash"], model_file.state_hash(run.state.best_weights)
    if own != now:
        log(
            f"warning: Run '{run.folder.path}' has other weights ({own}) than its student has now"
            f" ({now}), which was trained again with its peers: they differ if the machine does."
            " Use --tag NAME to train all again."
        )
    return report


def _finish(run: ActiveRun, predictions: Predictions, clock: dict) -> dict:
    """Write all files of a finished student, and return its report."""
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
    if report["kind"] == "teacher" and ranks.world_size() == 1:
        _store_logits(run, predictions, report["student"]["weights_hash"])
    return report


def _predict(run: ActiveRun) -> Predictions:
    network, state, data = run.state.judged, run.state, run.data
    check_stop, progress, last = run.signals.check_stop, run.state.progress, None
    if progress.history[-1]["epoch"] != progress.best["epoch"]:
        last = predict(network, data.test, check_stop)
    with state.best_in_network():
        valid = state.best_logits  # unknown if the run was interrupted after that epoch
        if valid is None:
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
        "reason": _no_train_accuracy(run.phases, progress.best),
    }


def _no_train_accuracy(phases: list[Phase], best: dict) -> str | None:
    """Return why the best epoch has no train accuracy, or None if it has one."""
    if not phases[-1].reads_labels:
        return NO_LABELS
    if "train_accuracy" in best:
        return None
    return (
        f"the best epoch is the last of {best['phase']}, which reads no labels, so train_accuracy"
        f" is null; no epoch of {phases[-1].name} had a {better(phases[-1].select)}"
        " (--keep-matched)"
    )


def _result(row: dict, test_logits: np.ndarray, test: Views) -> dict:
    return {
        "epoch": row["epoch"],
        "train_accuracy": row.get("train_accuracy"),
        "valid_accuracy": row["valid_accuracy"],
        "test_accuracy": metrics.accuracy(test_logits, test.labels.numpy()),
    }


def _judgement(run: ActiveRun, predictions: Predictions) -> dict:
    """Return the entries of the report that evaluate the test split beyond its accuracy."""
    index, how = run.data.dataset.index, run.plan.settings.output
    logits, labels = predictions.test, run.data.test.labels.numpy()
    valid_labels = run.data.valid.labels.numpy()
    temperature = fit_temperature(predictions.valid, valid_labels)
    positive = positive_of(index.classes, index.graded, how.positive)
    point = evidence.fixed_point(predictions.valid, valid_labels, temperature, positive, how)
    own = evidence.labelled(index, run.data.dataset.splits.test, logits, how)
    agreement = None
    if predictions.teacher is not None:
        first_line = 2 + len(predictions.valid)  # below the header and the validation split
        agreement = metrics.agreement(logits.argmax(1), predictions.teacher, labels, first_line)
    return {
        "classification_report": metrics.classification_report(logits, labels, index.classes),
        "confusion_matrix": metrics.confusion_matrix(logits, labels),
        "evidence": evidence.summarise(own, index, temperature, point, how),
        "agreement": agreement,
    }


def _write(run: ActiveRun, predictions: Predictions, report: dict) -> None:
    """Write all files of a finished run. The report is written last and marks it as finished."""
    with ThreadPoolExecutor(1) as other:  # draws while the weights are written and read back
        drawing = other.submit(_drawn, run, predictions, report)
        checkpoint.save(run.folder.model, _model_content(run, report))
    temperature = report["evidence"]["calibration"]["temperature"]
    write_text(run.folder.predictions, _predictions_text(run, predictions, temperature))
    drawn = drawing.result()
    for name, pixels in drawn.items():
        _save_figure(run.folder.figure(name), pixels)
    run.events.finish(report, drawn)
    write_json(run.folder.report, report)


def _store_logits(run: ActiveRun, predictions: Predictions, weights: str) -> None:
    """Store a teacher's logits, so that its first student need not compute them for its report.

    weights  the hash of the teacher's weights
    """
    data, network, cache_dir = run.data, run.state.network, run.plan.settings.data.cache_dir
    precision = Precision(data.device.type, FLOAT32)
    for views, logits in ((data.valid, predictions.valid), (data.test, predictions.test)):
        store(cache_dir, network, key_of(network, weights, views, precision), logits)


def _save_figure(path: Path, pixels: np.ndarray) -> None:
    """Write a figure, or warn if that fails: it can be drawn again and must not end the run."""
    try:
        figures.save(path, pixels)
    except Problem as problem:
        cause = problem.__context__  # the OSError that `figures.save` reports as a Problem
        why = reason(cause) if isinstance(cause, OSError) else "unknown cause"
        log(f"warning: Figure '{path}' cannot be written ({why}). The run continues without it.")


def _model_content(run: ActiveRun, report: dict) -> dict:
    """Return the content of model.pt."""
    state, data = run.state, run.data
    # The hash takes 0.4 s for VGG11, so that of the report is used.
    weights = model_file.Weights(
        state.best_weights, report["student"]["weights_hash"], state.progress.best["epoch"]
    )
    teachers = []
    if run.ensemble is not None:
        teachers = [member.trained for member in run.ensemble.members]
    return model_file.pack(
        report["kind"],
        state.network,
        weights,
        data.dataset,
        data.pool_images,
        teachers,
    )


def _predictions_text(run: ActiveRun, predictions: Predictions, temperature: float | None) -> str:
    splits = run.data.dataset.splits
    rows = {"valid": splits.valid, "test": splits.test}
    logits = {"valid": predictions.valid, "test": predictions.test}
    teacher = {} if predictions.teacher is None else {"test": predictions.teacher}
    return predictions_csv(run.data.dataset.index, rows, logits, teacher, temperature)


def _drawn(run: ActiveRun, predictions: Predictions, report: dict) -> dict[str, np.ndarray]:
    """Return the pixels of the figures of a run, by name."""
    index, rows = run.data.dataset.index, run.data.dataset.splits.test
    title = f"{run.folder.pair}, test split (n = {len(rows)})"
    calibration = report["evidence"]["calibration"]
    confusion = figures.confusion(report["confusion_matrix"], index.classes, title)
    reliability = _reliability(calibration, predictions.test, index.labels[rows], title)
    own = evidence.labelled(index, rows, predictions.test, run.plan.settings.output)
    drawn = {"confusion": confusion, "reliability": reliability}
    drawn |= figures_of_two(own, report["evidence"], index.classes, title)
    return {name: figures.pixels(figure) for name, figure in drawn.items()}


def _reliability(
    calibration: dict, logits: np.ndarray, labels: np.ndarray, title: str
) -> figures.Figure:
    """Return the reliability diagram of logits [N, K] before and after temperature scaling.

    Without a fitted temperature, there is only the diagram of the unscaled probabilities.
    """
    fitted = calibration["temperature"]
    if fitted is None:
        caption = f"not scaled (no temperature fits): ECE {calibration['before']['ece']:.3f}"
        unscaled = {caption: (probabilities(logits), labels)}
        return figures.reliability(unscaled, title, equal_counts=True)
    panels = {}
    for name, temperature in (("before", 1.0), ("after", fitted)):
        caption = f"{name} scaling (T = {temperature:.2f}): ECE {calibration[name]['ece']:.3f}"
        panels[caption] = probabilities(logits, temperature), labels
    return figures.reliability(panels, title, equal_counts=True)
