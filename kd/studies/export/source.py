"""The run that is exported: its report, its network, and the images for the check."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kd.config.evaluate_settings import Judging
from kd.config.layout import RunPaths
from kd.config.settings import DistillSettings
from kd.data.dataset import Dataset
from kd.reports import report as reports
from kd.reports.predictions import read_predictions
from kd.studies.card_sizes import known_of_teacher
from kd.studies.evaluation import check_belongs
from kd.studies.export.quantised import CALIBRATION_IMAGES
from kd.studies.export.verify import Row, Truth
from kd.studies.images import own_test_images, trained_rows, validation_rows
from kd.studies.modes import meaning_of
from kd.studies.runs import read_settings
from kd.studies.study import DEFAULT_MARGIN
from kd.system.errors import BAD_CHECKPOINT, USAGE, Problem
from kd.teachers import model_file
from kd.teachers.model_file import Trained


@dataclass(frozen=True)
class Source:
    """A finished run with its images.

    model        its network, which was never adapted to a device
    dataset      its test images, in its order; the store can decode all others, too
    trained      rows of images of the train split, from which int8 is calibrated
    valid        (rows, labels) of the validation split, by which the layers in float are chosen
    margin       the loss of accuracy up to which int8 counts as as good
    """

    paths: RunPaths
    report: dict
    model: Trained
    dataset: Dataset
    trained: np.ndarray
    valid: tuple[np.ndarray, np.ndarray]
    margin: float

    @property
    def temperature(self) -> float | None:
        """The temperature that was fitted on the validation split; None if none was found."""
        return self.report["evidence"]["calibration"]["temperature"]

    @property
    def classes(self) -> tuple[str, ...]:
        return self.model.network.classes

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape (C, S, S) of an image."""
        return self.dataset.store.shape


def open_source(run: Path, how: Judging) -> Source:
    """Return a finished run with the images that its export needs, decoded.

    Raises Problem if the run is not finished or damaged, or if its images are gone.
    """
    paths = RunPaths(run)
    report = reports.read(run)
    model = model_file.load(paths.model)
    check_belongs(paths, report, model)
    if model.hash != report["student"]["weights_hash"]:
        raise Problem(
            f"Model '{paths.model}' does not belong to its report: its weights are {model.hash},"
            f" but the report has {report['student']['weights_hash']}. Restore both files.",
            BAD_CHECKPOINT,
        )
    try:
        dataset = own_test_images(run, report, model, how)
        trained, valid = _other_images(run, dataset, model)
    except Problem as problem:
        if problem.code != USAGE:  # a full disk, or a damaged file of the run
            raise
        raise Problem(
            f"{problem.marked} The export needs the images of the run: it verifies every file on"
            " the test split.",
            problem.code,
        ) from None
    recorded = report["settings"].get("margin", DEFAULT_MARGIN)
    margin = recorded if how.margin is None else how.margin
    return Source(paths, report, model, dataset, trained, valid, margin)


def _other_images(run: Path, dataset: Dataset, model: Trained):
    """Return the rows of train images, and (rows, labels) of validation images, decoded."""
    trained = trained_rows(dataset.index, model, CALIBRATION_IMAGES)
    if not len(trained):
        raise Problem(
            f"No training image of run '{run}' is in its data set, so that int8 cannot be"
            " calibrated. Restore these files, or set --data-dir to their folder."
        )
    valid = validation_rows(run, dataset.index, model)
    dataset.store.ensure(np.concatenate([trained, valid[0]]))
    return trained, valid


@dataclass(frozen=True)
class Teacher:
    """The teachers of a run: the names of their networks, and the size of their images."""

    networks: list[str]
    size: int


def teacher_of(source: Source) -> Teacher | None:
    """Return the teachers of a run; None if no network has taught it."""
    taught = source.report["teacher"]
    if taught is None or not taught["members"]:
        return None
    settings = read_settings(source.paths.path, source.report, DistillSettings)
    return Teacher([one["architecture"] for one in taught["members"]], meaning_of(settings).size)


def teacher_row(source: Source, truth: Truth) -> Row:
    """Return the row of the teachers, from the report and the predictions of the run."""
    known = known_of_teacher(source.paths.path, source.report)
    predictions = read_predictions(source.paths.path)
    equal = None
    if predictions.teacher_known:
        equal = float((predictions.teacher == truth.probabilities.argmax(1)).mean())
    return Row("teacher", known["file_bytes"], None, known["test_accuracy"], None, equal)
