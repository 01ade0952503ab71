"""The report of a run: its keys and types; its predictions as CSV, written and read."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kd.data.index import Index
from kd.system import checkpoint
from kd.system.errors import BAD_CHECKPOINT, Problem, printable
from kd.system.files import read_json

SCHEMA_VERSION = 4
COLUMNS = ("part", "path", "patient", "study", "label", "predicted", "teacher", "newly_wrong")
_FIGURE = (float, type(None))
_SCORES = {"ece": float, "nll": float, "brier": float}
_RESULT = {"epoch": int, "train_accuracy": _FIGURE, "valid_accuracy": float, "test_accuracy": float}
# Key -> type, tuple of types, or the keys inside. What depends on the clock or the machine stands
# in `clock` alone.
SCHEMA = {
    "schema_version": int,
    "kind": str,
    "command": str,
    "settings": dict,
    "data": {
        "name": str,
        "reader": str,
        "split": str,
        "split_hash": str,
        "index_hash": str,
        "content_hash": str,
        "leaks": bool,
        "classes": list,
        "image_size": int,
        "channels": int,
        "crop": str,
        "parts": dict,
        "patients": dict,
        "per_class": dict,
        "distinct_images": dict,
        "overlaps": {"patients": int, "files": int},
        "skipped_files": int,
        "notes": list,
        "pool": (dict, type(None)),
    },
    "teacher": (dict, type(None)),
    "student": {
        "name": str,
        "architecture": str,
        "parameters": int,
        "pretrained": bool,
        "weights_hash": str,
    },
    "history": {"epochs": list, "looks": list, "steps": int, "ended": str, "phases": list},
    "results": {"best": _RESULT, "last": _RESULT, "reason": (str, type(None))},
    "classification_report": dict,
    "confusion_matrix": list,
    "evidence": {
        "macro_f1": float,
        "balanced_accuracy": float,
        "study": {"studies": int, "accuracy": float},
        "calibration": {"temperature": float, "before": _SCORES, "after": _SCORES},
        "grades": (dict, type(None)),
    },
    "agreement": (dict, type(None)),
    "clock": {
        "seconds": float,
        "images_per_second": _FIGURE,
        "device": str,
        "precision": str,
        "threads": int,
        "versions": dict,
        "started": str,
        "finished": str,
    },
}
TEACHER = {
    "name": str,
    "members": list,
    "hash": str,
    "valid_accuracy": _FIGURE,
    "test_accuracy": _FIGURE,
    "disagreement": _FIGURE,
    "gradient_ratio": _FIGURE,
    "gradient_reason": (str, type(None)),
    "remarks": list,
}
MEMBER = {
    "name": str,
    "architecture": str,
    "source": str,
    "hash": str,
    "split": (str, type(None)),
    "weight": float,
    "parameters": int,
    "valid_accuracy": float,
    "test_accuracy": float,
    "differences": list,
}
POOL = {
    "images": int,
    "of_the_data_set": int,
    "of_unlabeled_dir": int,
    "dropped_by_patient": int,
    "dropped_by_file": int,
    "copies": int,
    "of_unknown_patients": int,
    "name": (str, type(None)),
    "skipped_files": int,
    "hash": str,
}
GRADES = {"quadratic_kappa": _FIGURE, "referable_auc": _FIGURE, "reason": (str, type(None))}
PHASE = {"name": str, "steps": int, "images": int, "labelled": bool}
ROW = {"epoch", "phase", "steps", "train_loss", "valid_accuracy"}
AGREEMENT = {
    "same_prediction": float,
    "newly_wrong": int,
    "newly_right": int,
    "first_newly_wrong": list,
}


def check(report: dict, where: str = "report") -> dict:
    """The report itself, if it has exactly the schema's keys with their types.

    Raises Problem (4) naming the first fault.
    """
    version = report.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        fault = f"schema_version is {version!r}, this program reads {SCHEMA_VERSION}"
    else:
        fault = checkpoint.fault(report, SCHEMA, "report")
    if not fault:
        optional = (
            (report["teacher"], TEACHER, "teacher"),
            (report["agreement"], AGREEMENT, "agreement"),
            (report["data"]["pool"], POOL, "data.pool"),
            (report["evidence"]["grades"], GRADES, "evidence.grades"),
            *((phase, PHASE, "history.phases") for phase in report["history"]["phases"]),
            *(
                (member, MEMBER, "teacher.members")
                for member in (report["teacher"] or {}).get("members") or ()
            ),
        )
        faults = (
            checkpoint.fault(value, schema, where)
            for value, schema, where in optional
            if value is not None
        )
        fault = next((text for text in faults if text), "")
    if not fault:
        fault = _odd(report)
    if fault:
        raise Problem(
            f"{where}: {fault}; run the command again in a new --out, or use the program that"
            " wrote it",
            BAD_CHECKPOINT,
        )
    return report


def _odd(report: dict) -> str:
    """What is wrong inside the lists and tables that the schema does not look into; empty where
    they are sound.
    """
    if not all(isinstance(row, dict) and ROW <= row.keys() for row in report["history"]["epochs"]):
        return f"report.history.epochs holds rows without {', '.join(sorted(ROW))}"
    table = report["classification_report"]
    averages = [table.get(name) for name in ("macro avg", "weighted avg")]
    if "accuracy" not in table or not all(
        isinstance(row, dict) and {"precision", "recall", "f1-score"} <= row.keys()
        for row in averages
    ):
        return "report.classification_report lacks its averages"
    return ""


def read(folder: Path) -> dict:
    """The checked report of a finished run.

    Raises Problem (4) for a folder without one and for a damaged one.
    """
    file = folder / "report.json"
    return check(read_json(file), f"report '{file}'")


def predictions_csv(
    index: Index,
    rows_of: dict[str, np.ndarray],
    logits_of: dict[str, np.ndarray],
    teacher_of: dict[str, np.ndarray] | None = None,
) -> str:
    """CSV text: every slot of every part once, with what is known of it, the predicted class and
    one logit a class.

    rows_of: part -> rows of the index [n]; logits_of: part -> [n, K]; teacher_of: part -> the class
    that the teacher predicts [n], where one was asked. What is unknown is empty; `newly_wrong` is 1
    where the teacher is right and the network is not.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [printable(name) for name in index.classes]
    writer.writerow([*COLUMNS, *(f"logit_{name}" for name in names)])
    for part, rows in rows_of.items():
        predicted = logits_of[part].argmax(1)
        for place, (row, logits) in enumerate(zip(rows, logits_of[part])):
            sample = index.samples[row]
            teacher = (teacher_of or {}).get(part)
            said, wrong = "", ""
            if teacher is not None:
                said, wrong = (
                    names[teacher[place]],
                    int(teacher[place] == sample.label != predicted[place]),
                )
            writer.writerow(
                [
                    part,
                    *map(printable, (sample.path, sample.patient, sample.study)),
                    names[sample.label] if sample.label >= 0 else "",
                    names[predicted[place]],
                    said,
                    wrong,
                    *(f"{value:.9g}" for value in logits),
                ]
            )
    return text.getvalue()


@dataclass(frozen=True)
class Predictions:
    """One part of a predictions.csv. labels and teacher (the class it predicts): [N], -1 where
    unknown; logits [N, K].
    """

    paths: np.ndarray
    patients: np.ndarray
    studies: np.ndarray
    labels: np.ndarray
    teacher: np.ndarray
    logits: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """Whether each image is classified as labelled: bool [N]."""
        return self.logits.argmax(1) == self.labels


def read_predictions(folder: Path, part: str = "test") -> Predictions:
    """A part of a run's predictions.csv. Raises Problem (4) for a missing or damaged file."""
    file = folder / "predictions.csv"
    try:
        header, *rows = csv.reader(
            io.StringIO(file.read_bytes().decode("utf-8"), newline=""), strict=True
        )
        names = [name.removeprefix("logit_") for name in header[len(COLUMNS) :]]
        number = {name: place for place, name in enumerate(names)} | {"": -1}
        rows = [row for row in rows if row and row[0] == part]
        if (
            tuple(header[: len(COLUMNS)]) != COLUMNS
            or not rows
            or any(len(row) != len(header) for row in rows)
        ):
            raise ValueError(f"no rows of {part}, or other columns")
        _, paths, patients, studies, labels, _, teacher, _, *logits = zip(*rows)
        if not np.isfinite(np.array(logits, dtype=np.float32)).all():
            raise ValueError("logits that are not finite")
        return Predictions(
            np.array(paths),
            np.array(patients),
            np.array(studies),
            np.array([number[name] for name in labels]),
            np.array([number[name] for name in teacher]),
            np.array(logits, dtype=np.float32).T,
        )
    except OSError as error:
        raise Problem(
            f"predictions '{file}': cannot be read ({error.strerror}); is it the folder of a run?",
            BAD_CHECKPOINT,
        ) from None
    except (ValueError, KeyError, csv.Error) as error:
        raise Problem(
            f"predictions '{file}': damaged ({error}); run the command again in a new --out",
            BAD_CHECKPOINT,
        ) from None
