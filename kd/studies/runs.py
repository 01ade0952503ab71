"""The finished runs of a study: read, checked against each other and grouped by protocol."""

import functools
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kd.config import parsing
from kd.config.earlier import as_present
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
from kd.studies.modes import Cell, InCell, cell_of, meaning_of
from kd.studies.unfinished import Unfinished, of_known_data, read_unfinished
from kd.system.console import log
from kd.system.errors import Problem, counted, first_ten

SPLITS = ("train", "valid", "test")


def _recipe() -> list[str]:
    """Return the settings of the recipe that change what is computed."""
    names = []
    for section in (Transfer, Network, Training, Unlabeled):
        for entry in fields(section):
            if entry.metadata["identity"] and entry.name not in ("seed", "weights"):
                names.append(entry.name)
    return names


# Settings that all runs of a table should share: those of the recipe, not of the pair.
COMPARED = (
    "temperature",
    "alpha",
    "correct_probability",
    "teacher_decay",
    "ramp_up",
    "teacher_weights",
    "teacher_checkpoint",
    "teacher_labeled_fraction",
    "teacher_image_size",
    "stop_at_val_accuracy",
    "balance",
    *_recipe(),
)


class Protocol(NamedTuple):
    """What must agree for two runs to be in one table."""

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
class Run(InCell):
    """A finished run.

    unused  the settings that it did not use
    margin  of non-inferiority that it recorded; None if it recorded none
    """

    folder: Path
    report: dict
    cell: Cell
    unused: frozenset[str] = frozenset()
    margin: float | None = None

    @property
    def settings(self) -> dict:
        """All settings of the run, as one dictionary."""
        return self.report["settings"]

    @property
    def protocol(self) -> Protocol:
        """What must agree for two runs to be in one table."""
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
        """Return the accuracy in the best epoch, which --select has chosen, as a fraction.

        None for `train` if the run used no labels.
        """
        return self.report["results"]["best"][f"{split}_accuracy"]

    @functools.cached_property
    def test(self) -> Predictions:
        return read_predictions(self.folder, "test")


def read_settings(folder: Path, report: dict, kind: type):
    """Return the settings of a run as `kind`, from its report.

    Settings that `kind` does not have are ignored.
    """
    where = str(RunPaths(folder).report)
    values = as_present(kind, report["settings"])
    return parsing.build(kind, {key: (value, where) for key, value in values.items()})


def read_run(folder: Path) -> Run:
    """Return the run in a folder.

    Raises Problem if its report or predictions are missing or damaged, or do not belong together.
    """
    report = reports.read(folder)
    kind = TeacherSettings if report["kind"] == "teacher" else DistillSettings
    settings = read_settings(folder, report, kind)
    meaning = meaning_of(settings)
    margin = report["settings"].get("margin")  # reports of earlier versions have none
    report = report | {"settings": parsing.flat(settings)}
    run = Run(folder, report, cell_of(settings), meaning.unused, margin)
    _check_predictions(run)
    return run


def _check_predictions(run: Run) -> None:
    """Raise Problem if a run's report and predictions.csv contradict each other."""
    images = run.report["data"]["parts"]
    if not set(SPLITS) <= images.keys() or len(run.test.paths) != images["test"]:
        raise Problem(
            f"Run '{run.folder}' is inconsistent: report.json and predictions.csv differ in the"
            " images of the test split. Restore both files."
        )
    reported = [(run.test.right, run.accuracy("test"))]
    teacher = run.report["teacher"]
    if teacher is not None and teacher["members"]:
        reported.append((run.test.teacher_right, teacher["test_accuracy"]))
    for right, accuracy in reported:
        if abs(right.mean() - accuracy) > 1e-9:
            raise Problem(
                f"Run '{run.folder}' is inconsistent: report.json and predictions.csv differ in"
                " accuracy. Restore both files."
            )


def same_images(first: Run, second: Run) -> bool:
    """Return whether two runs have equal test images, patients and labels, in the same order."""
    return (
        np.array_equal(first.test.paths, second.test.paths)
        and np.array_equal(first.test.patients, second.test.patients)
        and np.array_equal(first.test.labels, second.test.labels)
    )


def gather(root: Path, flag: str) -> tuple[list[list[Run]], list[str], list[Unfinished]]:
    """Return the finished runs below `root`, the exclusions, and the unfinished runs.

    There is one list of finished runs per protocol, and a reason for each exclusion. A note counts
    the unfinished runs of data that no run was trained on, which are left out. Raises Problem if
    there is no finished run. `flag` is the flag that named `root`.
    """
    folders = finished_below(root)
    unfinished, left_out = read_unfinished(root)
    if not folders:
        raise _nothing_finished(root, flag, unfinished)
    protocols = {}
    for folder in folders:
        try:
            run = read_run(folder)
            _check_fits(run, protocols.get(run.protocol, []))
        except Problem as problem:
            left_out.append(str(problem))
            continue
        protocols.setdefault(run.protocol, []).append(run)
    groups = [protocols[protocol] for protocol in sorted(protocols, key=_words)]
    finished = [run.settings for runs in groups for run in runs]
    unfinished, others = of_known_data(unfinished, finished)
    if others:
        log(f"note: {_unknown_data(others)}")
    return groups, left_out, unfinished


def _unknown_data(runs: list[Unfinished]) -> str:
    """Return the note that counts the runs that are not listed."""
    count = counted(len(runs), "failed run is", "failed runs are")
    return (
        f"{count} not listed, because no run on the same data has taken a step:"
        f" {first_ten([str(run.folder) for run in runs])}."
    )


def _nothing_finished(root: Path, flag: str, unfinished: list[Unfinished]) -> Problem:
    """Return the problem of a folder without a report; print how its unfinished runs ended."""
    what = f"Folder '{root}' (given by {flag}) has no finished run"
    if not unfinished:
        return Problem(
            f"{what}: no report.json is below it. Use the output folder (--out) of the scripts."
        )
    for run in unfinished:
        log(f"unfinished: {run.describe()}")
    ended = first_ten([f"'{run.folder}' ({run.state})" for run in unfinished])
    return Problem(
        f"{what}, only unfinished ones: {ended}. Run the commands of stopped and interrupted runs"
        " again; the lines above say what to change for the others."
    )


def _words(protocol: Protocol) -> str:
    """Return a key for sorting protocols, whatever the types of their values."""
    return str(tuple(protocol))


def _check_fits(run: Run, others: list[Run]) -> None:
    """Raise Problem if a run cannot be in one table with others of its protocol."""
    if others and not same_images(run, others[0]):
        raise Problem(
            f"Run '{run.folder}' does not fit '{others[0].folder}': its predictions are for other"
            " images, patients or labels, or in another order. Restore both runs."
        )
    for other in others:
        if other.cell == run.cell:
            raise Problem(
                f"Run '{run.folder}' is in the same table cell as '{other.folder}'. Use another"
                " --tag for one of them."
            )


def reported(runs: list[Run], key: str) -> set:
    """Return the values of a key of the evidence of runs; of the operating point, its rules."""
    values = [run.report["evidence"][key] for run in runs]
    return {value["rule"] if isinstance(value, dict) else value for value in values}


def differing(runs: list[Run]) -> list[str]:
    """Return the settings, images and machines in which runs differ, as `key: value, value`.

    These are the settings of the recipe, the initial weights of each network, the unlabelled
    images, the positive class and the rule of the operating point, the precision, the kind of
    device and the number of ranks. Settings that a run does not use are ignored, and so is what a
    report of an earlier version does not tell.
    """
    values = {}
    for key in COMPARED:
        values[key] = set()
        for run in runs:
            if key in run.report["settings"] and key not in run.unused:
                values[key].add(str(run.report["settings"][key]))
    values |= _initial_weights(runs)
    pools = [run.report["data"]["pool"] for run in runs]
    values["unlabelled images"] = {pool["hash"] for pool in pools if pool}
    for key in ("positive", "operating_point"):
        values[key] = reported(runs, key) - {None}
    clocks = [run.report["clock"] for run in runs]
    values["precision"] = _precisions(runs)
    values["kind of device"] = {clock["device"].partition(" ")[0] for clock in clocks}
    values["ranks"] = {str(clock["ranks"]) for clock in clocks if clock["ranks"] is not None}
    return [f"{key}: {', '.join(sorted(own))}" for key, own in values.items() if len(own) > 1]


def _initial_weights(runs: list[Run]) -> dict[str, set[str]]:
    """Return where the initial weights of each network are from, without the names of files.

    Each network has a file of its own (--weights), and so may each of its seeds.
    """
    files = {}
    for run in runs:
        if "weights" in run.report["settings"]:
            seeds = files.setdefault(run.student, {})
            seeds.setdefault(run.seed, set()).add(run.report["settings"]["weights"])
    found = {}
    for student, of_seeds in files.items():
        used = set().union(*of_seeds.values())
        found[f"weights of {student}"] = {"no file" if one is None else "a file" for one in used}
        if any(len(own - {None}) > 1 for own in of_seeds.values()):
            found[f"weights of {student}"].add("another file with the same seed")
    return found


def _precisions(runs: list[Run]) -> set[str]:
    """Return the precisions of runs as texts, each with its networks: `bf16 (resnet18, vgg11)`.

    The networks are named because --amp auto chooses a precision for each architecture.
    """
    networks = {}
    for run in runs:
        precision = run.report["clock"]["precision"].replace(", ", " with ")
        networks.setdefault(precision, set()).add(run.student)
    return {f"{words} ({', '.join(sorted(own))})" for words, own in networks.items()}
