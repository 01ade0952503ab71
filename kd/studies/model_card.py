"""The card of a run as plain values: what a network is for, its data, its results, its hashes.

`describe` collects them from the files of the run; `text` writes them as the README.md of a
repository on the Hugging Face Hub. Neither contains a patient, an image or a path of a machine.
"""

from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

from kd.config import parsing
from kd.config.layout import RunPaths
from kd.config.paths import PATHS
from kd.config.resolve import resolve
from kd.config.settings import DistillSettings, TeacherSettings
from kd.reports.headline import names_of
from kd.reports.predictions import read_predictions
from kd.studies.metric_gaps import metric_gaps
from kd.studies.model_card_text import text
from kd.studies.modes import ALONE, meaning_of, method_of
from kd.studies.networks import member_folder, members_of, read_alone
from kd.studies.runs import Run, read_run, read_settings, same_images
from kd.system import checkpoint
from kd.system.errors import BAD_CHECKPOINT, Problem
from kd.system.names import without_paths

__all__ = ["SCHEMA_VERSION", "UNKNOWN", "Licences", "describe", "text"]

SCHEMA_VERSION = 3  # 1 and 2 had only the comparison with the teacher
UNKNOWN = "unknown"
# Why a network that could stand beside the one of the card does not.
NO_TEACHER = "the network was trained on labels only"
NO_NETWORK = "its teacher is not a network"
SEVERAL = "several teachers teach together, and only their joint accuracy is reported"
NO_RUN = "its run is not there, has other weights now, or has other test images"
NOT_BESIDE = "there is no finished run of it, or one with other test images"
ITSELF = "the network of this card is the network alone"
OTHER_IMAGES = "its predictions are for other images, or in another order"
NO_PREDICTIONS = "its predictions cannot be read"


class Licences(NamedTuple):
    """The licences of a card, as they are given to evaluate.py; None is unknown.

    weights  of the weights (--weights-license)
    data     of the images that they were trained on (--data-license)
    """

    weights: str | None = None
    data: str | None = None


class Beside(NamedTuple):
    """A network that stands beside the one of the card.

    name           its name, and None if there is no such network
    test_accuracy  None if it is not known
    run            its finished run; None if there is none
    reason         why `run` is None
    """

    name: str | None
    test_accuracy: float | None = None
    run: Run | None = None
    reason: str | None = None


def describe(folder: Path, licences: Licences, files: list[dict], brief: bool = False) -> dict:
    """Return the card of a finished run as plain values for JSON.

    folder    the folder of the run, of a student or of a network trained on labels only
    files     the exported files, each with `file`, `bytes`, `sha256`, and what was measured of it:
              `accuracy`, `largest_difference` (of a probability), `equal_answers`, and latencies:
              `latency_1` and `latency_32` are {threads: `median`, `low`, `high` in seconds}. What
              is not known may be missing; the list may be empty
    brief     without what takes long: the differences, and what only model.pt says

    Raises Problem (4) if the report, the predictions or model.pt are missing, damaged, or do not
    belong together. The teacher and the network trained alone may be missing: that is a `reason`.
    """
    run = read_run(folder)
    report = run.report
    kind = TeacherSettings if report["kind"] == "teacher" else DistillSettings
    settings = read_settings(folder, report, kind)
    teacher, alone = _teacher(folder, report), _alone(folder, report)
    return {
        "schema_version": SCHEMA_VERSION,
        "run": str(resolve(settings).folder.relative_to(settings.output.out)),
        "title": _title(run),
        "model": _model(run, settings),
        "licences": {key: value or UNKNOWN for key, value in licences._asdict().items()},
        "data": _data(folder, report),
        "preprocessing": _as_reported(report) if brief else _preprocessing(folder, report),
        "training": _training(report, settings, run.unused),
        "distillation": _distillation(report, settings),
        "first_metrics": _first_metrics(report["evidence"]),
        "subgroups": report["evidence"]["subgroups"],
        "results": {
            "network": _result(report),
            "teacher": _beside(teacher),
            "alone": _beside(alone),
        },
        "differences": {
            "teacher": _minus(run, teacher, brief),
            "alone": _minus(run, alone, brief),
        },
        "hashes": _hashes(report),
        "software": report["clock"]["versions"],
        "hardware": {key: report["clock"][key] for key in _HARDWARE},
        "repeat": _repeat(report),
        "files": files,
    }


_HARDWARE = ("device", "precision", "threads", "ranks", "seconds", "images_per_second", "finished")


def _title(run: Run) -> str:
    name = without_paths(run.student)
    if run.teacher:
        return f"{name} <- {without_paths(run.teacher)}, {run.role}"
    if run.role == ALONE:
        return f"{name}, trained on labels only"
    return f"{name}, {run.role}"


def _model(run: Run, settings) -> dict:
    student = run.report["student"]
    return {
        "name": without_paths(student["name"]),
        "architecture": student["architecture"],
        "parameters": student["parameters"],
        "pretrained": student["pretrained"],
        "own_initial_weights": bool(settings.network.weights),
        "classes": run.report["data"]["classes"],
        "positive": run.report["evidence"]["positive"],
        "operating_point": run.report["evidence"]["operating_point"],
        "role": run.role,
        "seed": run.seed,
        "tag": run.tag,
    }


def _data(folder: Path, report: dict) -> dict:
    """Return the sizes of the data: images, patients and classes of each split, and the flow."""
    data = report["data"]
    entry = {key: data[key] for key in _COUNTS}
    entry["patients_per_class"] = {
        "train": None,
        "reason": "the classes of the patients of the train split are not recorded",
    }
    for split in ("valid", "test"):
        entry["patients_per_class"][split] = _patients_per_class(folder, split, data["classes"])
    entry["pool"] = None
    if data["pool"] is not None:
        entry["pool"] = {key: data["pool"][key] for key in ("images", "hash")}
    return entry


_COUNTS = (
    "name",
    "reader",
    "split",
    "leaks",
    "overlaps",
    "parts",
    "distinct_images",
    "per_class",
    "patients",
    "without_patient",
    "flow",
    "skipped_files",
)


def _patients_per_class(folder: Path, split: str, classes: list[str]) -> list[int]:
    """Return the number of known patients with images of each class. A patient may have several."""
    own = read_predictions(folder, split)
    known = own.patients != own.paths
    counts = []
    for place in range(len(classes)):
        counts.append(len(set(own.patients[known & (own.labels == place)].tolist())))
    return counts


def _preprocessing(folder: Path, report: dict) -> dict:
    """Return how images are prepared, as model.pt and the report say."""
    file = RunPaths(folder).model
    taken = checkpoint.load(file, "model").get("input")
    if not isinstance(taken, dict) or not {"image_size", "resize", "mean", "std"} <= taken.keys():
        raise Problem(
            f"Model '{file}' does not say how images are prepared. Is it a model.pt of this"
            " project?",
            BAD_CHECKPOINT,
        )
    return {
        "image_size": taken["image_size"],
        "resize": taken["resize"],
        "crop": taken.get("crop", "none"),
        "channels": report["data"]["channels"],
        "ranges": taken.get("ranges", {}),
        "mean": taken["mean"],
        "std": taken["std"],
    }


def _as_reported(report: dict) -> dict:
    """Return how images are prepared as far as the report says it."""
    data = report["data"]
    return {
        "image_size": data["image_size"],
        "resize": report["settings"]["resize"],
        "crop": data["crop"],
        "channels": data["channels"],
        "ranges": data["ranges"],
        "mean": None,
        "std": None,
    }


def _training(report: dict, settings, unused: frozenset[str]) -> dict:
    history = report["history"]
    return {
        "epochs": len(history["epochs"]),
        "steps": history["steps"],
        "ended": history["ended"],
        "best_epoch": report["results"]["best"]["epoch"],
        "settings": shown_settings(settings, unused),
    }


def shown_settings(settings, unused: frozenset[str]) -> dict:
    """Return the settings that change what a run computes, without those that it does not use.

    Of a setting that is a path, only whether it is given is told.
    """
    paths = _path_keys(type(settings))
    synthetic = settings.data.dataset == "synthetic"
    shown = {}
    for key, value in parsing.flat(settings, identity_only=True).items():
        if key not in unused and (synthetic or not key.startswith("synthetic_")):
            shown[key] = bool(value) if key in paths else _without_paths(value)
    return shown


def _without_paths(value):
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    return without_paths(value) if isinstance(value, str) else value


def _path_keys(kind: type) -> set[str]:
    """Return the names of the settings whose values are paths or tell how files are named."""
    keys = {"patient_pattern"}
    for section in fields(kind):
        for entry in fields(section.type):
            if entry.metadata["argument"].get("metavar") in PATHS:
                keys.add(entry.name)
    return keys


def _distillation(report: dict, settings) -> dict | None:
    """Return the method and the teachers; None for a network trained on labels only."""
    method = method_of(settings)
    if method is None:
        return None
    teacher = report["teacher"]
    members = []
    for one in members_of(report):
        own = {key: one[key] for key in ("architecture", "parameters", "weight", "hash")}
        own |= {key: one[key] for key in ("valid_accuracy", "test_accuracy", "differences")}
        members.append({"name": without_paths(one["name"]), **own})
    keys = ("valid_accuracy", "test_accuracy", "disagreement", "gradient_ratio")
    return {
        **method,
        "image_size": meaning_of(settings).size,
        "teachers": members,
        **{key: teacher[key] for key in keys},
        "agreement": _agreement(report["agreement"]),
    }


def _agreement(own: dict | None) -> dict | None:
    """Return how the network and its teacher agree, without the lines of predictions.csv."""
    if own is None:
        return None
    return {key: own[key] for key in ("same_prediction", "newly_wrong", "newly_right")}


def _first_metrics(evidence: dict) -> list[str]:
    return list(names_of(evidence)) if evidence["metrics"] else []


def _result(report: dict) -> dict:
    evidence, best = report["evidence"], report["results"]["best"]
    return {
        "name": without_paths(report["student"]["name"]),
        "reason": None,
        "train_accuracy": best["train_accuracy"],
        "valid_accuracy": best["valid_accuracy"],
        "test_accuracy": best["test_accuracy"],
        "metrics": evidence["metrics"],
        "calibration": evidence["calibration"],
        "weights_hash": report["student"]["weights_hash"],
    }


def _beside(other: Beside) -> dict:
    """Return the results of a network beside the one of the card, as `_result` does."""
    if other.run is not None:
        return _result(other.run.report) | {"name": other.name}
    empty = dict.fromkeys(("train_accuracy", "valid_accuracy", "weights_hash", "calibration"))
    return {
        "name": other.name,
        "reason": other.reason,
        "test_accuracy": other.test_accuracy,
        "metrics": {},
        **empty,
    }


def _teacher(folder: Path, report: dict) -> Beside:
    teacher, members = report["teacher"], members_of(report)
    if teacher is None:
        return Beside(None, reason=NO_TEACHER)
    name = without_paths(teacher["name"])
    if not members:
        return Beside(name, reason=NO_NETWORK)
    accuracy = teacher["test_accuracy"]
    if len(members) > 1:
        return Beside(name, accuracy, reason=SEVERAL)
    try:
        found = member_folder(folder, members[0])
        if found is not None:
            return Beside(name, accuracy, read_run(found))
    except Problem:
        return Beside(name, accuracy, reason=NO_PREDICTIONS)
    return Beside(name, accuracy, reason=NO_RUN)


def _alone(folder: Path, report: dict) -> Beside:
    name = without_paths(report["student"]["name"])
    if report["kind"] == "teacher":
        return Beside(name, reason=ITSELF)
    try:
        found, _ = read_alone(folder, report)
    except Problem:
        return Beside(name, reason=NOT_BESIDE)
    try:
        return Beside(name, run=read_run(found))
    except Problem:
        return Beside(name, reason=NO_PREDICTIONS)


def _minus(run: Run, other: Beside, brief: bool) -> dict:
    """Return `metrics`, the differences from a network with intervals, and why there are none."""
    if other.run is None:
        return {"metrics": {}, "reason": other.reason}
    if not same_images(run, other.run):
        return {"metrics": {}, "reason": OTHER_IMAGES}
    if brief:
        return {"metrics": {}, "reason": None}
    return {"metrics": metric_gaps({0: run}, {0: other.run}), "reason": None}


def _hashes(report: dict) -> dict:
    data = report["data"]
    return {
        "weights": report["student"]["weights_hash"],
        **{key: data[f"{key}_hash"] for key in ("split", "index", "content")},
    }


def _repeat(report: dict) -> dict:
    """Return the command that repeats the run, and the commit of the program that made it."""
    return {
        "command": f"python {report['command']} --config settings.json --out again",
        "commit": report["clock"]["versions"].get("kd"),
    }
