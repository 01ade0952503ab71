"""The report of a run: its keys and types, and the files that carry it (JSON, CSV, picture, TensorBoard)."""

import csv
import io
from pathlib import Path

import numpy as np

from kd import checkpoint
from kd.data.index import Index
from kd.errors import BAD_CHECKPOINT, Problem, printable

SCHEMA_VERSION = 1
_FIGURE = (float, type(None))
_RESULT = {"epoch": int, "train_accuracy": float, "valid_accuracy": float, "test_accuracy": float}
# Key -> type, tuple of types, or the keys inside. What depends on the clock or the machine stands in `clock` alone.
SCHEMA = {
    "schema_version": int, "kind": str, "command": str, "settings": dict,
    "data": {"name": str, "reader": str, "split": str, "split_hash": str, "index_hash": str, "content_hash": str, "leaks": bool,
             "classes": list, "image_size": int, "channels": int, "parts": dict, "patients": dict, "per_class": dict,
             "distinct_images": dict, "overlaps": {"patients": int, "files": int}, "skipped_files": int, "notes": list},
    "teacher": (dict, type(None)),
    "student": {"name": str, "architecture": str, "parameters": int, "pretrained": bool, "weights_hash": str},
    "history": {"epochs": list, "looks": list, "steps": int, "ended": str},
    "results": {"best": _RESULT, "last": _RESULT},
    "classification_report": dict, "confusion_matrix": list,
    "clock": {"seconds": float, "images_per_second": _FIGURE, "device": str, "precision": str, "threads": int,
              "versions": dict, "started": str, "finished": str},
}
TEACHER = {"name": str, "architecture": str, "source": str, "hash": str, "split": (str, type(None)), "valid_accuracy": float,
           "test_accuracy": float, "gradient_ratio": _FIGURE, "differences": list}


def check(report: dict, where: str = "report") -> dict:
    """The report itself, if it has exactly the schema's keys with their types. Raises Problem (4) naming the first fault."""
    version = report.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        fault = f"schema_version is {version!r}, this program reads {SCHEMA_VERSION}"
    else:
        fault = checkpoint.fault(report, SCHEMA, "report")
    if not fault and report["teacher"] is not None:
        fault = checkpoint.fault(report["teacher"], TEACHER, "teacher")
    if fault:
        raise Problem(f"{where}: {fault}; run the command again in a new --out, or use the program that wrote it", BAD_CHECKPOINT)
    return report


def read(folder: Path) -> dict:
    """The checked report of a finished run. Raises Problem (4) for a folder without one and for a damaged one."""
    file = folder / "report.json"
    return check(checkpoint.read_json(file), f"report '{file}'")


def predictions_csv(index: Index, rows_of: dict[str, np.ndarray], logits_of: dict[str, np.ndarray]) -> str:
    """CSV text: part, path, patient, study, label, one logit a class; every slot of every part once.

    rows_of: part -> rows of the index [n]; logits_of: part -> [n, K]. An unlabelled picture has an empty label.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["part", "path", "patient", "study", "label", *(f"logit_{printable(name)}" for name in index.classes)])
    for part, rows in rows_of.items():
        for row, logits in zip(rows, logits_of[part]):
            sample = index.samples[row]
            label = index.classes[sample.label] if sample.label >= 0 else ""
            writer.writerow([part, *map(printable, (sample.path, sample.patient, sample.study, label)),
                             *(f"{value:.9g}" for value in logits)])
    return text.getvalue()


def confusion_figure(matrix: list[list[int]], classes: tuple[str, ...], title: str):
    """A matplotlib figure: counts and shares of the true class; rows are true, columns predicted."""
    from matplotlib.figure import Figure  # half a second that only the end of a run pays
    counts = np.array(matrix)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = max(4.5, 0.85 * len(classes) + 1.8)
    figure = Figure(figsize=(side, side), layout="constrained", dpi=110)
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        axes.text(column, row, f"{count}\n{shares[row, column]:.0%}", ha="center", va="center", fontsize=8,
                  color="white" if shares[row, column] > 0.55 else "black")
    names = [printable(name) for name in classes]
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(title, fontsize=10)
    return figure


def save_figure(path: Path, figure) -> None:
    """Write a figure as PNG, whole or not at all."""
    with checkpoint.replacing(path) as temporary:
        figure.savefig(temporary, format="png")
