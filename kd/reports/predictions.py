"""Predictions of a run as CSV: writing and reading."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kd.config.layout import RunPaths
from kd.data.index import Index, Sample
from kd.reports.calibration import probabilities
from kd.system.errors import BAD_CHECKPOINT, Problem, printable
from kd.system.messages import first_line

COLUMNS = ("part", "path", "patient", "study", "label", "predicted", "teacher", "newly_wrong")
# Prefixes of the columns after COLUMNS, each followed by the name of a class.
_LOGIT = "logit_"
_PROBABILITY = "probability_"


def predictions_csv(
    index: Index,
    rows_of: dict[str, np.ndarray],
    logits_of: dict[str, np.ndarray],
    teacher_of: dict[str, np.ndarray] | None = None,
    temperature: float | None = None,
) -> str:
    """Return CSV text with one row per image and split: what is known about it, and its outputs.

    The outputs are the logits and the probabilities softmax(logits / temperature).

    rows_of     split -> rows of the index [n]
    logits_of   split -> [n, K]
    teacher_of  split -> the class that the teacher predicts [n], for splits with such predictions
    temperature fitted on the validation split; None if none was found, so that nothing is scaled

    Unknown values are left empty. `newly_wrong` is 1 if the teacher is right and the network is
    wrong.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [printable(name) for name in index.classes]
    outputs = [f"{prefix}{name}" for prefix in (_LOGIT, _PROBABILITY) for name in names]
    writer.writerow([*COLUMNS, *outputs])
    for split, rows in rows_of.items():
        teacher = (teacher_of or {}).get(split)
        likely = probabilities(logits_of[split], temperature or 1.0)
        for place, row in enumerate(rows):
            answer = None if teacher is None else teacher[place]
            cells = _csv_row(index.samples[row], names, logits_of[split][place], answer)
            writer.writerow([split, *cells, *(f"{value:.6g}" for value in likely[place])])
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
    def known_studies(self) -> list[tuple[str | None, str] | None]:
        """The study of each image as `Sample.known_study`: (patient or None, study), or None."""
        samples = map(Sample, self.paths, self.labels, self.patients, self.studies)
        return [sample.known_study for sample in samples]

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
    """Parse a split. Raises ValueError, KeyError or csv.Error if the text is no predictions.csv.

    Files of earlier versions have no probabilities.
    """
    header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows = [row for row in rows if row and row[0] == split]
    names = _classes_in(header)
    if names is None or not rows or any(len(row) != len(header) for row in rows):
        raise ValueError(f"no rows of split {split}, or other columns than expected")
    column = dict(zip(COLUMNS, zip(*rows)))
    number = {name: place for place, name in enumerate(names)} | {"": -1}
    first, end = len(COLUMNS), len(COLUMNS) + len(names)
    logits = np.array([row[first:end] for row in rows], dtype=np.float32)
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


def _classes_in(header: list[str]) -> list[str] | None:
    """Return the classes in the header of a predictions.csv, or None if it is none.

    The first prefix of a column says what it is, because a class may itself be named `logit_x`.
    """
    own, outputs = tuple(header[: len(COLUMNS)]), header[len(COLUMNS) :]
    classes = {_LOGIT: [], _PROBABILITY: []}
    for name in outputs:
        prefix = _PROBABILITY if name.startswith(_PROBABILITY) else _LOGIT
        classes[prefix].append(name.removeprefix(prefix))
    logits, likely = classes.values()
    columns = [f"{_LOGIT}{name}" for name in logits] + [f"{_PROBABILITY}{name}" for name in likely]
    is_sound = own == COLUMNS and logits and outputs == columns and likely in ([], logits)
    return logits if is_sound else None
