"""Evaluation of finished runs on their own test split or on other images."""

from pathlib import Path

import numpy as np

from kd.config.evaluate_settings import Judging
from kd.config.layout import RunPaths
from kd.data import ranges
from kd.data.index import Index, digest
from kd.data.store import Store
from kd.data.views import Views
from kd.loop import predict
from kd.reports import evidence, figures, metrics
from kd.reports import report as reports
from kd.reports.predictions import predictions_csv
from kd.reports.text import calibration_text, grades_text, report_text, study_text
from kd.studies.images import check_finite, other_images, own_test_images
from kd.system.console import log
from kd.system.devices import pick_device
from kd.system.errors import BAD_CHECKPOINT, Problem
from kd.system.files import make_folder, write_json, write_text
from kd.system.names import stored
from kd.teachers import leakage, model_file

SCHEMA_VERSION = 1


def evaluate(run: Path, how: Judging) -> dict:
    """Evaluate one run, print the result, write it to evaluation.json and return it.

    Every image counts once, in float32. Raises Problem for a folder that is not a finished run and
    for images that do not fit its classes.
    """
    folder = RunPaths(run)
    report = reports.read(run)
    model = model_file.load(folder.model)
    model.network.to(pick_device(how.device))
    _check_belongs(folder, report, model)
    if how.dataset is None:
        return _own_test_split(folder, report, model, how)
    return _other_images(folder, report, model, how)


def _check_belongs(folder: RunPaths, report: dict, model: model_file.Trained) -> None:
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
    views = dataset.views("test", pick_device(how.device), batch_size=how.batch_size)
    logits = check_finite(predict(model.network, views), folder.model)
    result = _judge(dataset.index, dataset.splits.test, logits, report)
    reported = report["results"]["best"]["test_accuracy"]
    same_table = result["classification_report"] == report["classification_report"]
    equal = result["accuracy"] == reported and same_table
    result |= {
        "data": {"name": dataset.index.name, "part": "test", "images": len(views)},
        "reported_test_accuracy": reported,
        "equals_report": equal,
    }
    log(f"test accuracy in the report: {reported:.6f} ({'' if equal else 'NOT '}reproduced)")
    return _write(folder, folder, result, dataset.index)


def _other_images(folder: RunPaths, report: dict, model: model_file.Trained, how: Judging) -> dict:
    index = other_images(how, report)
    rows = np.arange(len(index.samples))
    store = _store(index, report, model, how)
    whose = f"--bits {how.bits}" if how.bits else "the run's own images"
    remarks = [
        *index.notes,
        *ranges.remarks(store, rows),
        *ranges.check_other(store, rows, f"--data-dir '{index.root}'", whose, has_bits=True),
    ]
    for remark in remarks:
        log(f"note: {remark}")
    device = pick_device(how.device)
    views = Views(store, rows, index.labels, batch_size=how.batch_size, device=device)
    logits = check_finite(predict(model.network, views), folder.model)
    # Two clinics may both send a folder "images", so the name includes a hash of the content.
    content = digest(map(index.identity, rows))[:6]
    target = RunPaths(make_folder(folder.path / f"evaluation-{index.name}-{content}"))
    write_text(target.predictions, predictions_csv(index, {"all": rows}, {"all": logits}))
    seen = int(leakage.seen_by(model, index, store.hashes, guess=not how.site).sum())
    if seen:
        log(
            f"warning: {seen} of {len(rows)} images were seen in training or are of patients seen"
            " in training. Metrics on these images are too optimistic."
        )
    counts = np.bincount(logits.argmax(1), minlength=len(index.classes)).tolist()
    predicted = dict(zip(index.classes, counts))
    log("predicted: " + ", ".join(f"{name} {count}" for name, count in predicted.items()))
    labelled = np.flatnonzero(index.labels >= 0)
    result = _judge(index, labelled, logits[labelled], report)
    data = {
        "name": index.name,
        "data_dir": str(Path(how.data_dir).resolve()),
        "part": "all",
        "images": len(rows),
        "unlabelled": len(rows) - len(labelled),
        "seen_in_training": seen,
        "ranges": ranges.as_plain(store.ranges),
        "notes": stored(remarks),
    }
    result |= {"data": data, "predicted": predicted}
    return _write(target, folder, result, index)


def _store(index: Index, report: dict, model: model_file.Trained, how: Judging) -> Store:
    """Return all images of an index, decoded with the settings of a run.

    Images with more than 8 bits have the range of the run's own images, unless --bits says
    otherwise.
    """
    settings = report["settings"]
    data = report["data"]
    own = {}
    for kind, one in ranges.from_plain(model.about["input"]["ranges"]).items():
        own[kind] = one._replace(rule="as in the training of the run")
    store = Store(
        index,
        how.cache_dir,
        settings["image_size"],
        settings["resize"],
        data["channels"],
        data["crop"],
        own | ranges.given(how.bits),
    )
    rows = np.arange(len(index.samples))
    return ranges.open_store(store, how.cache_dir, rows, ("these images", rows))


def _judge(index: Index, rows: np.ndarray, logits: np.ndarray, report: dict) -> dict:
    """Return the metrics over labelled rows, with the calibration scaled by the run's temperature.

    The metrics are None, with a reason, if there are no such rows. rows [n], logits [n, K].
    """
    if not len(rows):
        return {
            "accuracy": None,
            "nll": None,
            "evidence": None,
            "classification_report": None,
            "confusion_matrix": None,
            "reason": "no image has a label",
        }
    labels = index.labels[rows]
    own = report["evidence"]
    return {
        "accuracy": metrics.accuracy(logits, labels),
        "nll": metrics.nll(logits, labels),
        "evidence": evidence.summarise(
            logits,
            labels,
            [index.samples[row].known_study for row in rows],
            own["calibration"]["temperature"],
            own["grades"] is not None,
        ),
        "classification_report": metrics.classification_report(logits, labels, index.classes),
        "confusion_matrix": metrics.confusion_matrix(logits, labels),
        "reason": None,
    }


def _evidence_text(own: dict) -> str:
    """Format the metrics beyond accuracy (`evidence`) as two or three lines."""
    lines = [
        (
            f"study accuracy {study_text(own['study'])}, macro F1 {own['macro_f1']:.4f}, balanced"
            f" accuracy {own['balanced_accuracy']:.4f}"
        ),
        calibration_text(own["calibration"]),
    ]
    if own["grades"]:
        lines.append(grades_text(own["grades"]))
    return "\n".join(lines)


def _write(target: RunPaths, folder: RunPaths, result: dict, index: Index) -> dict:
    """Write evaluation.json and confusion.png into `target`, print the result and return it."""
    result = {"schema_version": SCHEMA_VERSION, "run": str(folder.path), **result}
    write_json(target.evaluation, result)
    matrix = result["confusion_matrix"]
    if matrix is not None:
        images = sum(map(sum, matrix))
        title = f"{folder.pair} on {index.name} (n = {images})"
        figure = figures.confusion(matrix, index.classes, title)
        figures.save(target.figure("confusion"), figures.pixels(figure))
        log(report_text(result["classification_report"], index.classes))
        log(_evidence_text(result["evidence"]))
    written = [target.evaluation.name]
    if target.path != folder.path:
        written.append(target.predictions.name)
    log(f"written: {' and '.join(written)} in '{target.path}'")
    return result
