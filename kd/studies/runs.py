"""The finished runs of a study: read, checked against each other, and sorted by what they share."""

import functools
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kd.config import parsing
from kd.config.layout import RunPaths, finished_below
from kd.config.settings import (
    DistillSettings,
    Network,
    TeacherSettings,
    Training,
    Transfer,
    Unlabeled,
)
from kd.reports import report as reports
from kd.reports.predictions import Predictions, read_predictions
from kd.studies.modes import meaning_of
from kd.system.errors import Problem

SPLITS = ("train", "valid", "test")


def _recipe() -> list[str]:
    """The settings of the recipe that change what is computed."""
    names = []
    for section in (Transfer, Network, Training, Unlabeled):
        for entry in fields(section):
            if entry.metadata["identity"] and entry.name not in ("seed", "weights"):
                names.append(entry.name)
    return names


# Settings that two runs of one table should share: of the recipe, not of the pair.
COMPARED = (
    "temperature",
    "alpha",
    "correct_probability",
    "teacher_weights",
    "teacher_checkpoint",
    "stop_at_val_accuracy",
    "balance",
    *_recipe(),
)


class Cell(NamedTuple):
    """Which run of a table: `role` is a mode, ALONE or DEFECTIVE, `teacher` empty for those two."""

    role: str
    tag: str
    teacher: str
    student: str
    seed: int


class Protocol(NamedTuple):
    """What must agree for two runs to stand in one table."""

    data: str
    split: str
    split_seed: int
    image_size: int
    resize: str
    channels: int
    crop: str
    train: int
    valid: int
    test: int
    split_hash: str
    content_hash: str


@dataclass(frozen=True)
class Run:
    """A finished run; `unused` are the settings that it did not look at."""

    folder: Path
    report: dict
    cell: Cell
    unused: frozenset[str] = frozenset()

    @property
    def role(self) -> str:
        return self.cell.role

    @property
    def tag(self) -> str:
        return self.cell.tag

    @property
    def teacher(self) -> str:
        return self.cell.teacher

    @property
    def student(self) -> str:
        return self.cell.student

    @property
    def seed(self) -> int:
        return self.cell.seed

    @property
    def protocol(self) -> Protocol:
        """What must agree for two runs to stand in one table."""
        data = self.report["data"]
        settings = self.report["settings"]
        return Protocol(
            data["name"],
            data["split"],
            settings["split_seed"],
            data["image_size"],
            settings["resize"],
            data["channels"],
            data["crop"],
            *(data["parts"][split] for split in SPLITS),
            data["split_hash"],
            data["content_hash"],
        )

    def accuracy(self, split: str) -> float | None:
        """Of the best epoch by validation accuracy, as a fraction.

        None for `train` where no label was read.
        """
        return self.report["results"]["best"][f"{split}_accuracy"]

    @functools.cached_property
    def test(self) -> Predictions:
        return read_predictions(self.folder, "test")


def read_settings(folder: Path, report: dict, kind: type):
    """The settings of a run as `kind`, from its report; what `kind` does not have is left out."""
    where = str(RunPaths(folder).report)
    return parsing.build(kind, {key: (value, where) for key, value in report["settings"].items()})


def read_run(folder: Path) -> Run:
    """The run in a folder.

    Raises Problem where its report or predictions are missing or damaged, or do not belong
    together.
    """
    report = reports.read(folder)
    kind = TeacherSettings if report["kind"] == "teacher" else DistillSettings
    settings = read_settings(folder, report, kind)
    meaning = meaning_of(settings)
    cell = Cell(
        meaning.role,
        settings.output.tag,
        meaning.teacher,
        meaning.student,
        settings.training.seed,
    )
    run = Run(folder, report | {"settings": parsing.flat(settings)}, cell, meaning.unused)
    _check_predictions(run)
    return run


def _check_predictions(run: Run) -> None:
    """Raise Problem where report and predictions.csv contradict each other."""
    images = run.report["data"]["parts"]
    if not set(SPLITS) <= images.keys() or len(run.test.paths) != images["test"]:
        raise Problem(
            f"'{run.folder}': report and predictions.csv differ in the images of the test part;"
            " restore both"
        )
    reported = [(run.test.right, run.accuracy("test"))]
    teacher = run.report["teacher"]
    if teacher is not None and teacher["members"]:
        reported.append((run.test.teacher_right, teacher["test_accuracy"]))
    for right, accuracy in reported:
        if abs(right.mean() - accuracy) > 1e-9:
            raise Problem(
                f"'{run.folder}': report and predictions.csv differ in accuracy; restore both"
            )


def same_images(first: Run, second: Run) -> bool:
    """Whether two runs were judged on the same images, patients and labels, in the same order."""
    return (
        np.array_equal(first.test.paths, second.test.paths)
        and np.array_equal(first.test.patients, second.test.patients)
        and np.array_equal(first.test.labels, second.test.labels)
    )


def gather(root: Path, flag: str) -> tuple[list[list[Run]], list[str]]:
    """(the runs below `root`, a list for each protocol; what was left out and why).

    Raises Problem where there is no run at all; `flag` is the one that named `root`.
    """
    folders = finished_below(root)
    if not folders:
        raise Problem(
            f"runs '{root}' in {flag}: holds no report.json; give the folder of finished runs"
            " (--out of the scripts)"
        )
    protocols = {}
    left_out = []
    for folder in folders:
        try:
            run = read_run(folder)
            _check_fits(run, protocols.get(run.protocol, []))
        except Problem as problem:
            left_out.append(str(problem))
            continue
        protocols.setdefault(run.protocol, []).append(run)
    return [protocols[protocol] for protocol in sorted(protocols, key=_words)], left_out


def _words(protocol: Protocol) -> str:
    """For sorting, whatever the types."""
    return str(tuple(protocol))


def _check_fits(run: Run, others: list[Run]) -> None:
    """Raise Problem where a run cannot stand in one table with others of its protocol."""
    if others and not same_images(run, others[0]):
        raise Problem(
            f"'{run.folder}': its predictions are of other images, patients or labels than"
            f" those of '{others[0].folder}', or in another order; restore both"
        )
    for other in others:
        if other.cell == run.cell:
            raise Problem(
                f"'{run.folder}': claims the same cell as '{other.folder}'; give one of them"
                " another --tag"
            )


def differing(runs: list[Run]) -> list[str]:
    """Settings and unlabelled images in which runs differ, each as `key: value, value`.

    A setting that a run does not use is no difference.
    """
    values = {}
    for key in COMPARED:
        values[key] = set()
        for run in runs:
            if key in run.report["settings"] and key not in run.unused:
                values[key].add(str(run.report["settings"][key]))
    pools = [run.report["data"]["pool"] for run in runs]
    values["unlabelled pictures"] = {pool["hash"] for pool in pools if pool}
    return [f"{key}: {', '.join(sorted(own))}" for key, own in values.items() if len(own) > 1]
