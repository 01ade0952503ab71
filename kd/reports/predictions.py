"""Predictions of a run as CSV: writing and reading."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kd.config.layout import RunPaths
from kd.data.index import Index, Sample
from kd.system.errors import BAD_CHECKPOINT, Problem, printable
from kd.system.messages import first_line

COLUMNS = ("part", "path", "patient", "study", "label", "predicted", "teacher", "newly_wrong")
_LOGIT = "logit_"  # prefix of the columns after COLUMNS, followed by the name of a class


def predictions_csv(
    index: Index,
    rows_of: dict[str, np.ndarray],
    logits_of: dict[str, np.ndarray],
    teacher_of: dict[str, np.ndarray] | None = None,
) -> str:
    """Return CSV text with one row per image and split: what is known about it, and its logits.

    rows_of     split -> rows of the index [n]
    logits_of   split -> [n, K]
    teacher_of  split -> the class that the teacher predicts [n], for splits with such predictions

    Unknown values are left empty. `newly_wrong` is 1 if the teacher is right and the network is
    wrong.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [printable(name) for name in index.classes]
    writer.writerow([*COLUMNS, *(f"{_LOGIT}{name}" for name in names)])
    for split, rows in rows_of.items():
        teacher = (teacher_of or {}).get(split)
        for place, row in enumerate(rows):
            answer = None if teacher is None else teacher[place]
            cells = _csv_row(index.samples[row], names, logits_of[split][place], answer)
            writer.writerow([split, *cells])
    return text.getvalue()


def _csv_row(sample: Sample, names: list[str], logits: np.ndarray, teacher: int | None) -> list:
    """Return the values of COLUMNS after the split, and the logits."""
    predicted = logits.argmax()
    taught = ["", ""]
    if teacher is not None:
        newly_wrong = teacher == sample.label and predicted != sample.label
        taught = [names[teacher], int(newly_wrong)]
    return [
        printable(sample.path),
        printable(sample.patient),
        printable(sample.study),
        names[sample.label] if sample.label >= 0 else "",
        names[predicted],
        *taught,
        *(f"{value:.9g}" for value in logits),
    ]


@dataclass(frozen=True)
class Predictions:
    """One split of a predictions.csv.

    labels and teacher (the class that the teacher predicts) are [N], -1 where unknown; logits are
    [N, K].
    """

    paths: np.ndarray
    patients: np.ndarray
    studies: np.ndarray
    labels: np.ndarray
    teacher: np.ndarray
    logits: np.ndarray

    @property
    def clusters(self) -> np.ndarray:
        """What is independent of each other: the patient of each image [N].

        For an image whose patient is unknown it is the study, and without one the image.
        """
        unknown = (self.patients == self.paths) & (self.studies != self.paths)
        return np.where(unknown, np.char.add("study ", self.studies), self.patients)

    @property
    def right(self) -> np.ndarray:
        """Whether each image is classified correctly: bool [N]."""
        return self.logits.argmax(1) == self.labels

    @property
    def teacher_right(self) -> np.ndarray:
        """Whether the teacher classifies each image correctly: bool [N]."""
        return self.teacher == self.labels

    @property
    def teacher_known(self) -> bool:
        """Whether the teacher's prediction is known for every image."""
        return bool((self.teacher >= 0).all())


def read_predictions(folder: Path, split: str = "test") -> Predictions:
    """Read a split of a run's predictions.csv. Raises Problem (4) if it is missing or damaged."""
    file = RunPaths(folder).predictions
    try:
        return _parse(file.read_bytes().decode("utf-8"), split)
    except OSError as error:
        raise Problem(
            f"'{file}' cannot be read ({error.strerror}). Is it in the folder of a run?",
            BAD_CHECKPOINT,
        ) from None
    except (ValueError, KeyError, csv.Error) as error:
        raise Problem(
            f"'{file}' is damaged ({first_line(error)}). Run the command again in a new --out.",
            BAD_CHECKPOINT,
        ) from None


def _parse(text: str, split: str) -> Predictions:
    """Parse a split. Raises ValueError, KeyError or csv.Error if the text is no predictions.csv."""
    header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows = [row for row in rows if row and row[0] == split]
    foreign = tuple(header[: len(COLUMNS)]) != COLUMNS
    if foreign or not rows or any(len(row) != len(header) for row in rows):
        raise ValueError(f"no rows of split {split}, or other columns than expected")
    column = dict(zip(COLUMNS, zip(*rows)))
    names = [name.removeprefix(_LOGIT) for name in header[len(COLUMNS) :]]
    number = {name: place for place, name in enumerate(names)} | {"": -1}
    logits = np.array([row[len(COLUMNS) :] for row in rows], dtype=np.float32)
    if not np.isfinite(logits).all():
        raise ValueError("some logits are not finite")
    return Predictions(
        np.array(column["path"]),
        np.array(column["patient"]),
        np.array(column["study"]),
        np.array([number[name] for name in column["label"]]),
        np.array([number[name] for name in column["teacher"]]),
        logits,
    )
