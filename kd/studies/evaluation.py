"""Evaluation of finished runs on their own test split or on other images."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kd.config.evaluate_settings import Judging
from kd.config.layout import RunPaths
from kd.config.reporting import Reporting
from kd.data.index import Index
from kd.data.ranges import as_plain
from kd.data.views import Views
from kd.loop import predict
from kd.reports import evidence, figures, metrics
from kd.reports import report as reports
from kd.reports.evidence import Labelled
from kd.reports.evidence_figures import figures_of_many, figures_of_two
from kd.reports.headline import headline
from kd.reports.operating_point import OperatingPoint
from kd.reports.positive import positive_of
from kd.reports.predictions import predictions_csv, read_predictions
from kd.reports.text import report_text
from kd.studies.images import check_finite, own_test_images
from kd.studies.predicting import Incomplete, NewImages, open_new_images, unreadable_csv
from kd.system.console import log
from kd.system.devices import pick_device
from kd.system.errors import BAD_CHECKPOINT, Problem, first_ten, printable
from kd.system.files import make_folder, write_json, write_text
from kd.system.names import stored
from kd.teachers import leakage, model_file

SCHEMA_VERSION = 2


def evaluate(run: Path, how: Judging) -> dict:
    """Evaluate one run, print the result, write it to evaluation.json and return it.

    Every image counts once, in float32. Raises Problem for a folder that is not a finished run and
    for images that do not fit its classes, and Incomplete, after everything is written, if some of
    the images of --dataset cannot be read.
    """
    folder = RunPaths(run)
    report = reports.read(run)
    model = model_file.load(folder.model)
    model.network.to(pick_device(how.device))
    check_belongs(folder, report, model)
    if how.dataset is None:
        return _own_test_split(folder, report, model, how)
    return _other_images(folder, report, model, how)


def check_belongs(folder: RunPaths, report: dict, model: model_file.Trained) -> None:
    """Raise Problem (4) if a report and a model.pt are not of the same run."""
    data = report["data"]
    given = report["settings"]
    taken = model.about["input"]
    says = {
        "image_size": given.get("image_size"),
        "resize": given.get("resize"),
        "classes": data["classes"],
    }
    holds = {
        "image_size": taken["image_size"],
        "resize": taken["resize"],
        "classes": list(model.network.classes),
    }
    if says != holds or data["channels"] not in (1, 3):
        raise Problem(
            f"'{folder.report}' and its model.pt do not belong together: the report has {says} and"
            f" channels={data['channels']}, the model has {holds}. Restore both files.",
            BAD_CHECKPOINT,
        )


def _own_test_split(
    folder: RunPaths, report: dict, model: model_file.Trained, how: Judging
) -> dict:
    dataset = own_test_images(folder.path, report, model, how)
    _check_reporting(report, dataset.index, how)
    views = dataset.views("test", pick_device(how.device), batch_size=how.batch_size)
    logits = check_finite(predict(model.network, views), folder.model)
    judged = _judge(dataset.index, dataset.splits.test, logits, report, folder, how)
    result = judged.result
    reported = report["results"]["best"]["test_accuracy"]
    same_table = result["classification_report"] == report["classification_report"]
    equal = result["accuracy"] == reported and same_table
    result |= {
        "data": {"name": dataset.index.name, "part": "test", "images": len(views)},
        "reported_test_accuracy": reported,
        "equals_report": equal,
    }
    log(f"test accuracy in the report: {reported:.6f} ({'' if equal else 'NOT '}reproduced)")
    return _write(folder, folder, judged, dataset.index)


def _other_images(folder: RunPaths, report: dict, model: model_file.Trained, how: Judging) -> dict:
    images = open_new_images(how, report, model)
    index, rows = images.index, images.rows
    _check_reporting(report, index, how)
    device = pick_device(how.device)
    views = Views(images.store, rows, index.labels, batch_size=how.batch_size, device=device)
    logits = check_finite(predict(model.network, views), folder.model)
    # Two clinics may both send a folder "images", so the name includes a hash of the content.
    target = RunPaths(make_folder(folder.path / f"evaluation-{index.name}-{images.content}"))
    calibration = report["evidence"]["calibration"]
    text = predictions_csv(
        index, {"all": rows}, {"all": logits}, temperature=calibration["temperature"]
    )
    write_text(target.predictions, text)
    if images.unreadable:
        write_text(target.unreadable, unreadable_csv(images.unreadable))
    seen = _seen(images, model, how)
    data = _describe(images, seen, how)
    log(_probabilities_text(calibration))
    counts = np.bincount(logits.argmax(1), minlength=len(index.classes)).tolist()
    predicted = dict(zip(index.classes, counts))
    log("predicted: " + ", ".join(f"{name} {count}" for name, count in predicted.items()))
    if images.unreadable:
        faults = [printable(f"{path} ({why})") for path, why in images.unreadable.items()]
        log(f"unreadable: {len(faults)} of {images.all_of}: {first_ten(faults)}")
    labelled = np.flatnonzero(index.labels[rows] >= 0)
    judged = _judge(index, rows[labelled], logits[labelled], report, folder, how)
    scaling = {key: calibration[key] for key in ("temperature", "reason")}
    judged.result.update(data=data, predicted=predicted, probabilities=scaling)
    result = _write(target, folder, judged, index)
    if images.unreadable:
        raise Incomplete(_incomplete_text(images, target))
    return result


def _seen(images: NewImages, model: model_file.Trained, how: Judging) -> int:
    """Return how many of the images that are predicted were seen in training, and warn of them."""
    index, rows = images.index.only(images.rows), images.rows
    seen = int(leakage.seen_by(model, index, images.store.hashes[rows], guess=not how.site).sum())
    if seen:
        log(
            f"warning: {seen} of {len(rows)} images were seen in training or are of patients seen"
            " in training. Metrics on these images are too optimistic."
        )
    return seen


def _describe(images: NewImages, seen: int, how: Judging) -> dict:
    """Return the data section of evaluation.json."""
    return {
        "name": images.index.name,
        "data_dir": str(Path(how.data_dir).resolve()),
        "part": "all",
        "images": len(images.rows),
        "unlabelled": int((images.index.labels[images.rows] < 0).sum()),
        "unreadable": len(images.unreadable),
        "unreadable_file": RunPaths(Path()).unreadable.name if images.unreadable else None,
        "seen_in_training": seen,
        "ranges": as_plain(images.store.ranges),
        "notes": stored(images.remarks),
    }


def _probabilities_text(calibration: dict) -> str:
    """Return how the probabilities in predictions.csv are made from the logits."""
    temperature = calibration["temperature"]
    if temperature is None:
        return f"probabilities: softmax of the logits, not calibrated: {calibration['reason']}"
    return (
        f"probabilities: softmax(logits / {temperature:.6g}), calibrated by the temperature that"
        " the run fitted on its validation split"
    )


def _incomplete_text(images: NewImages, target: RunPaths) -> str:
    missing = len(images.unreadable)
    return (
        f"{missing} of {images.all_of} images in '{images.index.root}' cannot be read and"
        f" {'has' if missing == 1 else 'have'} no prediction; all others have one."
        f" '{target.unreadable}' lists what cannot be read. Replace or remove it, then run the same"
        " command again."
    )


class Judged(NamedTuple):
    """The metrics of a network, and the labelled images that they are of, or None."""

    result: dict
    own: Labelled | None


def _judge(
    index: Index, rows: np.ndarray, logits: np.ndarray, report: dict, folder: RunPaths, how: Judging
) -> Judged:
    """Return the metrics over labelled rows, with the run's temperature and operating point.

    The metrics are None, with a reason, if there are no such rows. rows [n], logits [n, K].
    """
    if not len(rows):
        result = {
            "accuracy": None,
            "nll": None,
            "evidence": None,
            "classification_report": None,
            "confusion_matrix": None,
            "reason": "no image has a label",
        }
        return Judged(result, None)
    own = report["evidence"]
    index = _graded(report, index)
    reporting = _reporting(report, index, how)
    images = evidence.labelled(index, rows, logits, reporting)
    point = _operating_point(report, index, folder, reporting)
    temperature = own["calibration"]["temperature"]
    result = {
        "accuracy": metrics.accuracy(logits, images.labels),
        "nll": metrics.nll(logits, images.labels),
        "evidence": evidence.summarise(images, index, temperature, point, reporting),
        "classification_report": metrics.classification_report(
            logits, images.labels, index.classes
        ),
        "confusion_matrix": metrics.confusion_matrix(logits, images.labels),
        "reason": None,
    }
    return Judged(result, images)


def _check_reporting(report: dict, index: Index, how: Judging) -> None:
    """Raise Problem, before anything is predicted, if settings of the metrics do not fit."""
    evidence.check(_graded(report, index), _reporting(report, index, how))


def _graded(report: dict, index: Index) -> Index:
    """Return an index whose classes are grades if those of the run are."""
    return replace(index, graded=report["evidence"]["grades"] is not None)


def _reporting(report: dict, index: Index, how: Judging) -> Reporting:
    """Return the settings of the metrics: those that are given, otherwise those of the run.

    Columns of the run that other images do not have are left out.
    """
    recorded = report["settings"]
    own = [name for name in recorded.get("subgroups", []) if name in index.extra]
    return Reporting(
        positive=how.positive or recorded.get("positive"),
        operating_point=how.operating_point or recorded.get("operating_point"),
        prevalence=how.prevalence or recorded.get("prevalence"),
        subgroups=how.subgroups or own,
    )


def _operating_point(
    report: dict, index: Index, folder: RunPaths, how: Reporting
) -> OperatingPoint | None:
    """Return the operating point, fixed on the predictions of the run for its validation split."""
    positive = positive_of(index.classes, index.graded, how.positive)
    if positive is None:
        return None
    valid = read_predictions(folder.path, "valid")
    temperature = report["evidence"]["calibration"]["temperature"]
    return evidence.fixed_point(valid.logits, valid.labels, temperature, positive, how)


def _write(target: RunPaths, folder: RunPaths, judged: Judged, index: Index) -> dict:
    """Write evaluation.json and figures into `target`, print the result and return it."""
    result = {"schema_version": SCHEMA_VERSION, "run": str(folder.path), **judged.result}
    write_json(target.evaluation, result)
    matrix = result["confusion_matrix"]
    if matrix is not None:
        images = sum(map(sum, matrix))
        title = f"{folder.pair} on {index.name} (n = {images})"
        own = result["evidence"]
        drawn = {"confusion": figures.confusion(matrix, index.classes, title)}
        drawn |= figures_of_two(judged.own, own, index.classes, title)
        drawn |= figures_of_many(judged.own, own, index.classes, title)
        # In the folder of the run, figures of its training stay as they are.
        prefix = "evaluation-" if target.path == folder.path else ""
        for name, figure in drawn.items():
            figures.save(target.figure(prefix + name), figures.pixels(figure))
        log(report_text(result["classification_report"], index.classes))
        log("\n".join(headline(own)))
    written = target.evaluation.name
    if target.path != folder.path:
        broken = f", {target.unreadable.name}" if result["data"]["unreadable"] else ""
        written = f"{target.predictions.name}{broken} and {written}"
    log(f"written: {written} in '{target.path}'")
    return result
