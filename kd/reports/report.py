"""The report of a run: its keys and their types, which are checked on reading."""

import os
from collections.abc import Iterator
from pathlib import Path

from kd.config.layout import RunPaths, finished_below
from kd.reports.upgrade import upgraded
from kd.system import checkpoint
from kd.system.errors import BAD_CHECKPOINT, Problem, first_ten
from kd.system.files import read_json

SCHEMA_VERSION = 6
_NUMBER = (float, type(None))
_COUNT = (int, type(None))  # None where a report of an earlier version does not tell
_SCORES = {
    "ece": float,
    "classwise_ece": _NUMBER,
    "adaptive_ece": _NUMBER,
    "nll": float,
    "brier": float,
}
_RESULT = {"epoch": int, "train_accuracy": _NUMBER, "valid_accuracy": float, "test_accuracy": float}
# Key -> type, tuple of types, or nested keys. Only `clock` depends on the time or the machine.
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
        "without_patient": dict,
        "per_class": dict,
        "distinct_images": dict,
        "overlaps": {"patients": int, "files": int},
        "flow": list,
        "skipped_files": int,
        "other_files": dict,
        "ranges": dict,
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
        "study": {
            "studies": _COUNT,
            "accuracy": _NUMBER,
            "several_labels": _COUNT,
            "unknown": _COUNT,
            "reason": (str, type(None)),
        },
        "calibration": {
            "temperature": _NUMBER,
            "ece_if_calibrated": _NUMBER,
            "before": _SCORES,
            "after": (dict, type(None)),
            "reason": (str, type(None)),
        },
        "grades": (dict, type(None)),
        "positive": (str, type(None)),
        "operating_point": (dict, type(None)),
        "prevalence": _NUMBER,
        "metrics": dict,
        "subgroups": dict,
    },
    "agreement": (dict, type(None)),
    "clock": {
        "seconds": float,
        "images_per_second": _NUMBER,
        "device": str,
        "precision": str,
        "threads": int,
        "ranks": _COUNT,
        "versions": dict,
        "started": str,
        "finished": str,
    },
}
TEACHER = {
    "name": str,
    "members": list,
    "hash": str,
    "valid_accuracy": _NUMBER,
    "test_accuracy": _NUMBER,
    "disagreement": _NUMBER,
    "gradient_ratio": _NUMBER,
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
    "ranges": dict,
    "notes": list,
    "hash": str,
}
GRADES = {"quadratic_kappa": _NUMBER, "referable_auc": _NUMBER, "reason": (str, type(None))}
PHASE = {"name": str, "steps": int, "images": int, "labelled": bool}
ROW = {"epoch", "phase", "steps", "train_loss", "valid_accuracy"}
METRIC = {"value": _NUMBER, "low": _NUMBER, "high": _NUMBER, "reason": (str, type(None))}
OPERATING_POINT = {"rule": str, "threshold": _NUMBER, "reason": (str, type(None))}
SUBGROUP = {"images": int, "patients": int, "note": (str, type(None)), "metrics": dict}
STEP = {"step": str, "images": int, "patients": _COUNT}
AVERAGE = {"precision", "recall", "f1-score"}
AGREEMENT = {
    "same_prediction": float,
    "newly_wrong": int,
    "newly_right": int,
    "first_newly_wrong": list,
}


def check(report: dict, where: str = "report") -> dict:
    """Return the report unchanged if it has exactly the schema's keys with their types.

    Otherwise raises Problem (4), which names the first fault.
    """
    fault = _fault(report)
    if fault:
        raise Problem(
            f"{where} is not valid: {fault}. Run the command again in a new --out, or use the"
            " version of this project that wrote it.",
            BAD_CHECKPOINT,
        )
    return report


def _fault(report: dict) -> str:
    """Return the first fault of a report, or an empty string if it is valid."""
    version = report.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        return f"schema_version is {version!r}, but {SCHEMA_VERSION} is required"
    fault = checkpoint.fault(report, SCHEMA, "report")
    if fault:
        return fault
    for value, schema, where in _optional_sections(report):
        if value is not None:
            fault = checkpoint.fault(value, schema, where)
            if fault:
                return fault
    return _table_fault(report)


def _optional_sections(report: dict) -> Iterator[tuple]:
    """Yield (value or None, its schema, its place) of sections that SCHEMA does not describe."""
    teacher = report["teacher"]
    yield teacher, TEACHER, "teacher"
    yield report["agreement"], AGREEMENT, "agreement"
    yield report["data"]["pool"], POOL, "data.pool"
    yield report["evidence"]["grades"], GRADES, "evidence.grades"
    yield report["evidence"]["calibration"]["after"], _SCORES, "evidence.calibration.after"
    yield report["evidence"]["operating_point"], OPERATING_POINT, "evidence.operating_point"
    yield from _metrics(report["evidence"]["metrics"], "evidence.metrics")
    yield from _subgroups(report["evidence"]["subgroups"])
    for step in report["data"]["flow"]:
        yield _present(step), STEP, "data.flow"
    for phase in report["history"]["phases"]:
        yield phase, PHASE, "history.phases"
    for member in teacher["members"] if teacher is not None else ():
        yield member, MEMBER, "teacher.members"


def _metrics(entry: dict, where: str) -> Iterator[tuple]:
    for name, one in entry.items():
        yield _present(one), METRIC, f"{where}.{name}"


def _subgroups(columns: dict) -> Iterator[tuple]:
    """Yield as `_optional_sections` does. What follows a fault is never asked for."""
    for column, groups in columns.items():
        where = f"evidence.subgroups.{column}"
        yield _present(groups), dict, where
        for group, own in groups.items():
            yield _present(own), SUBGROUP, f"{where}.{group}"
            yield from _metrics(own["metrics"], f"{where}.{group}.metrics")


class _Null:
    """A value that is None although it must not be."""


def _present(value):
    """Return a value that must not be None, so that None is a fault of its type."""
    return _Null() if value is None else value


def _table_fault(report: dict) -> str:
    """Return what is wrong with the history or classification report, or an empty string."""
    for row in report["history"]["epochs"]:
        if not isinstance(row, dict) or not ROW <= row.keys():
            return f"report.history.epochs has rows without {', '.join(sorted(ROW))}"
    table = report["classification_report"]
    averages = [table.get(name) for name in ("macro avg", "weighted avg")]
    complete = all(isinstance(row, dict) and AVERAGE <= row.keys() for row in averages)
    if "accuracy" not in table or not complete:
        return "report.classification_report lacks its averages"
    return ""


def read(folder: Path) -> dict:
    """Read and check the report of a finished run; one of an earlier version is upgraded.

    Raises Problem (4) if the folder has no report or the report is damaged.
    """
    file = RunPaths(folder).report
    if os.path.isfile(RunPaths(folder).settings) and not os.path.isfile(file):
        raise Problem(
            f"Run '{folder}' is not finished: it has no report. Repeat its command to continue it.",
            BAD_CHECKPOINT,
        )
    below = []
    if os.path.isdir(folder) and not os.path.isfile(file):  # unlike Path's, these never raise
        below = finished_below(folder)
    if below:
        runs = first_ten([f"'{path}'" for path in below])
        raise Problem(
            f"'{folder}' is not the folder of a run, but has runs below it. Use {runs}.",
            BAD_CHECKPOINT,
        )
    return check(upgraded(read_json(file), SCHEMA_VERSION), f"Report '{file}'")
