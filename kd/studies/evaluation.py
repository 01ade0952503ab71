"""Finished runs looked at again: on their own test part, or on other pictures."""

from pathlib import Path

import numpy as np

from kd.config import parsing
from kd.config.settings import Data, Judging, TeacherSettings
from kd.data import folder as folder_reader
from kd.data.dataset import open_dataset, read_index
from kd.data.index import Index, digest
from kd.data.store import Store
from kd.data.views import Views
from kd.loop import predict
from kd.reports import evidence, figures, metrics
from kd.reports import report as reports
from kd.reports.predictions import predictions_csv
from kd.reports.text import grades_text, report_text
from kd.runs.folder import RunFolder
from kd.system.console import log
from kd.system.devices import pick_device
from kd.system.errors import BAD_CHECKPOINT, Problem
from kd.system.files import make_folder, write_json, write_text
from kd.teachers import model_file

SCHEMA_VERSION = 1


def evaluate(run: Path, how: Judging) -> dict:
    """Evaluate one run as `how` says; prints and returns what it writes to evaluation.json.

    Every image counts once, in float32. Raises Problem for a folder that is no finished run and for
    pictures that do not fit its classes.
    """
    folder = RunFolder(run)
    report = reports.read(run)
    model = model_file.load(folder.model)
    network = model.network.to(pick_device(how.device))
    data, given, taken = report["data"], report["settings"], model.about["input"]
    says = {
        "image_size": given.get("image_size"),
        "resize": given.get("resize"),
        "classes": data["classes"],
    }
    holds = {
        "image_size": taken["image_size"],
        "resize": taken["resize"],
        "classes": list(network.classes),
    }
    if says != holds or data["channels"] not in (1, 3):
        raise Problem(
            f"'{folder.report}': says {says} and {data['channels']} channels, its model.pt {holds};"
            " they do not belong together, restore both",
            BAD_CHECKPOINT,
        )
    if how.dataset is None:
        return _own_test_part(folder, report, network, how)
    return _other_pictures(folder, report, model, how)


def _own_test_part(folder: RunFolder, report: dict, network, how: Judging) -> dict:
    settings = parsing.build(
        TeacherSettings,
        {key: (value, str(folder.report)) for key, value in report["settings"].items()},
    )
    data = parsing.replace(
        settings, cache_dir=how.cache_dir, data_dir=how.data_dir or settings.data.data_dir
    ).data
    dataset = open_dataset(data, read_index(data))
    for key, now in (("split_hash", dataset.split_hash), ("content_hash", dataset.content_hash)):
        if report["data"][key] != now:
            raise Problem(
                f"data of '{folder.path}': pictures, labels or parts are no longer those it was"
                f" trained on ({key} {now}, then {report['data'][key]}); restore the data"
            )
    views = dataset.views("test", pick_device(how.device), batch_size=how.batch_size)
    result = _judge(
        dataset.index, dataset.parts.test, _finite(predict(network, views), folder), report
    )
    reported = report["results"]["best"]["test_accuracy"]
    result |= {
        "data": {"name": dataset.index.name, "part": "test", "images": len(views)},
        "reported_test_accuracy": reported,
        "equals_report": (
            result["accuracy"] == reported
            and result["classification_report"] == report["classification_report"]
        ),
    }
    log(
        f"the report says {reported:.6f}:"
        f" {'the same' if result['equals_report'] else 'NOT the same'}"
    )
    return _write(folder.path, folder, result, dataset.index)


def _other_pictures(
    folder: RunFolder, report: dict, model: model_file.Trained, how: Judging
) -> dict:
    data, network = report["data"], model.network
    index = _index(how, tuple(data["classes"]))
    store = Store(
        index,
        how.cache_dir,
        report["settings"]["image_size"],
        report["settings"]["resize"],
        data["channels"],
        data["crop"],
    )
    rows = np.arange(len(index.samples))
    store.ensure(rows)
    views = Views(
        store, rows, index.labels, batch_size=how.batch_size, device=pick_device(how.device)
    )
    logits = _finite(predict(network, views), folder)
    name = (  # two clinics may both send "images"
        f"evaluation-{index.name}-{digest(map(index.identity, rows))[:6]}"
    )
    target = make_folder(folder.path / name)
    write_text(target / "predictions.csv", predictions_csv(index, {"all": rows}, {"all": logits}))
    predicted = np.bincount(logits.argmax(1), minlength=len(index.classes))
    seen = int(model_file.seen_by(model, index, store.hashes).sum())
    if seen:
        log(
            f"warning: {seen} of {len(rows)} pictures were seen in training, or show its patients:"
            " figures on them flatter"
        )
    log(
        "predicted: "
        + ", ".join(f"{name} {count}" for name, count in zip(index.classes, predicted))
    )
    labelled = np.flatnonzero(index.labels >= 0)
    result = _judge(index, labelled, logits[labelled], report)
    result |= {
        "data": {
            "name": index.name,
            "data_dir": str(Path(how.data_dir).resolve()),
            "part": "all",
            "images": len(rows),
            "unlabelled": len(rows) - len(labelled),
            "seen_in_training": seen,
            "notes": list(index.notes),
        },
        "predicted": dict(zip(index.classes, predicted.tolist())),
    }
    return _write(target, folder, result, index)


def _index(how: Judging, classes: tuple[str, ...]) -> Index:
    """The pictures of --dataset, in the classes that a network knows.

    Raises Problem where they are of others.
    """
    if how.dataset == "folder":
        return folder_reader.read(how.data_dir, classes)
    index = read_index(
        Data(dataset=how.dataset, data_dir=how.data_dir, label=how.label, errata=how.errata)
    )
    if index.classes != classes:
        raise Problem(
            f"dataset '{how.dataset}' in --dataset: its classes are {list(index.classes)}, the"
            f" network knows {list(classes)}; give one of the same scale"
        )
    return index


def _finite(logits: np.ndarray, folder: RunFolder) -> np.ndarray:
    if not np.isfinite(logits).all():
        raise Problem(
            f"model '{folder.model}': its logits are not finite, so its weights are damaged;"
            " restore it",
            BAD_CHECKPOINT,
        )
    return logits


def _judge(index: Index, rows: np.ndarray, logits: np.ndarray, report: dict) -> dict:
    """Figures over labelled rows, also scaled by the run's own temperature; null with a reason
    where there are none.
    """
    if not len(rows):
        return {
            "accuracy": None,
            "nll": None,
            "evidence": None,
            "classification_report": None,
            "confusion_matrix": None,
            "reason": "no picture has a label",
        }
    labels = index.labels[rows]
    return {
        "accuracy": metrics.accuracy(logits, labels),
        "nll": metrics.nll(logits, labels),
        "evidence": evidence.summarise(
            logits,
            labels,
            [index.samples[row].study for row in rows],
            report["evidence"]["calibration"]["temperature"],
            report["evidence"]["grades"] is not None,
        ),
        "classification_report": metrics.classification_report(logits, labels, index.classes),
        "confusion_matrix": metrics.confusion_matrix(logits, labels),
        "reason": None,
    }


def _beyond(found: dict) -> str:
    """The figures beyond accuracy as a line or two."""
    scores = [
        f"{name} scaling: "
        + ", ".join(f"{key} {value:.4f}" for key, value in found["calibration"][name].items())
        for name in ("before", "after")
    ]
    study, temperature = found["study"], found["calibration"]["temperature"]
    grades = f"\n{grades_text(found['grades'])}" if found["grades"] else ""
    return (
        f"{study['studies']} studies: accuracy {study['accuracy']:.4f}; macro-F1"
        f" {found['macro_f1']:.4f}; balanced accuracy"
        f" {found['balanced_accuracy']:.4f}\n{'; '.join(scores)} (T = {temperature:.3f}){grades}"
    )


def _write(target: Path, folder: RunFolder, result: dict, index: Index) -> dict:
    result = {"schema_version": SCHEMA_VERSION, "run": str(folder.path), **result}
    write_json(target / "evaluation.json", result)
    if result["confusion_matrix"] is not None:
        title = (
            f"{folder.path.parent.name} on {index.name} (n ="
            f" {sum(map(sum, result['confusion_matrix']))})"
        )
        figure = figures.confusion(result["confusion_matrix"], index.classes, title)
        figures.save(target / "confusion.png", figures.pixels(figure))
        log(report_text(result["classification_report"], index.classes))
        log(_beyond(result["evidence"]))
    log(f"written: {target}/evaluation.json")
    return result
