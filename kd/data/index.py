"""The index that a reader returns: all images with their class, patient and study."""

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kd.data.tables.grades import stem_of
from kd.system.errors import Problem, first_ten

UNLABELED = -1
_SITE = "::"


class Sample(NamedTuple):
    """One image.

    path     relative to `Index.root`
    label    position of the class in `Index.classes`, or -1 if the image is unlabelled
    patient  name of the patient, `SITE::NAME` if its site is known (see `at_site`); equal to
             `path` if the patient is unknown
    study    name of the study that the image belongs to; equal to `patient` or `path` if the study
             is unknown
    split    the split that the data set specifies for the image, or None
    """

    path: str
    label: int
    patient: str
    study: str
    split: str | None = None

    @property
    def known_patient(self) -> str | None:
        """The patient, or None if the patient is unknown."""
        return self.patient if self.patient != self.path else None

    @property
    def known_study(self) -> tuple[str | None, str] | None:
        """The study as (patient, name), or None if the study is unknown.

        The patients of a data set may all have a study named "1", which are different studies.
        """
        if self.study in (self.patient, self.path):
            return None
        return self.known_patient, self.study


@dataclass(frozen=True)
class Index:
    """A data set as its reader found it.

    name      short, and safe in a folder's name
    space     the data set whose names of patients these are, `mura` for example; empty for names
              of a hospital. Equal names in the same space are the same patient
    classes   class names, in the order of the network's outputs
    samples   in a fixed order: the position of an image is its row in the store
    root      the folder that `Sample.path` is relative to; None if images are drawn, not read
    draw      function row -> uint8 [H, W], for data sets without files
    stamp     version of the images that `draw` returns
    sizes     images per class (train, valid, test) in the data set's own protocol; None for all
    channels  1 for grey, 3 for colour, 0 if it depends on the images
    skipped   number of files that were skipped on purpose (hidden files and files in folders of
              the system), for the report
    copies    number of images that were excluded because an identical file is kept
    others    number of all other files that are not images, by extension: {".pdf": 3}
    lost      what could not be read while the images were listed, {path: reason}; only for a
              trained network that predicts the others
    same      {patient: the patient whose side of the split he shares}, of patients who have an
              identical file, which may be one person with two names
    extra     further columns of the table: {name: one text for each sample}
    grows     whether the data set may grow, so that a split by fraction must not change the split
              of any patient who is already in it
    notes     what a user should know before training on the data set
    graded    whether the classes are ordered grades: class k is grade k, named "k" or "k - words"
    crop      preparation of images before they are resized: `none`, or `fundus` (cropped to the
              disc)

    Raises Problem if `graded` is set and the classes are not such grades.
    """

    name: str
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    space: str = ""
    root: Path | None = None
    draw: Callable[[int], np.ndarray] | None = None
    stamp: str = ""
    sizes: tuple[int, int, int] | None = None
    channels: int = 0
    skipped: int = 0
    copies: int = 0
    others: dict[str, int] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    extra: dict[str, tuple[str, ...]] = field(default_factory=dict)
    same: dict[str, str] = field(default_factory=dict)
    grows: bool = True
    notes: tuple[str, ...] = field(default=())
    graded: bool = False
    crop: str = "none"

    def __post_init__(self):
        if self.graded and not _are_grades(self.classes):
            raise Problem(
                f"Classes {first_ten(list(self.classes))} in {self.root or self.name} are not"
                " grades: --graded needs at least two classes, named 0, 1, 2 and so on. Rename the"
                " classes, or remove --graded."
            )

    def file(self, row: int) -> Path:
        """Return the path of an image's file. Only for data sets with a root."""
        return self.root / self.samples[row].path

    def identity(self, row: int) -> str:
        """Return one line that changes when the sample's path, class, patient or study changes."""
        sample = self.samples[row]
        label = self.classes[sample.label] if sample.label >= 0 else ""
        return "\t".join((sample.path, label, sample.patient, sample.study))

    def without_labels(self, rows: np.ndarray) -> "Index":
        """Return the index without the labels of some rows, so that nothing can use them."""
        samples = list(self.samples)
        for row in rows:
            samples[row] = samples[row]._replace(label=UNLABELED)
        return replace(self, samples=tuple(samples))

    def unit(self, row: int) -> str:
        """Return what must not be in two splits: the patient, or the study if only that is known.

        A study belongs to one patient.
        """
        sample = self.samples[row]
        if sample.known_patient is None and sample.known_study is not None:
            return f"study {sample.study}"
        return self.same.get(sample.patient, sample.patient)

    def has_patient(self, row: int) -> bool:
        """Return whether the patient of an image is known.

        The file names of Messidor serve as names of patients in comparisons of data sets, but name
        the image.
        """
        sample = self.samples[row]
        if self.space == "messidor" and sample.patient == stem_of(sample.path):
            return False
        return sample.known_patient is not None

    def only(self, rows: Iterable[int], *notes: str) -> "Index":
        """Return the index of some rows, in their order, with additional notes.

        Only for data sets with a root, because `draw` depends on the row.
        """
        rows = [int(row) for row in rows]
        extra = {}
        for name, texts in self.extra.items():
            extra[name] = tuple(texts[row] for row in rows)
        samples = tuple(self.samples[row] for row in rows)
        return replace(self, samples=samples, extra=extra, notes=(*self.notes, *notes))

    @property
    def labels(self) -> np.ndarray:
        """The label of each row: int64 [N], -1 for unlabelled images."""
        return np.array([sample.label for sample in self.samples], dtype=np.int64)


def _are_grades(classes: tuple[str, ...]) -> bool:
    """Return whether each class is named by its position, with or without words: 2, "2 - mild"."""
    for grade, name in enumerate(classes):
        if not re.match(rf"{grade}(?![0-9]|[.,][0-9])", name):
            return False
    return len(classes) >= 2


def at_site(site: str, patient: str) -> str:
    """Return the name of a patient at a site; an empty site is unknown."""
    return f"{site}{_SITE}{patient}" if site else patient


def has_site(patient: str) -> bool:
    """Return whether the site of a patient is known."""
    return _SITE in patient


def name_of(patient: str) -> str:
    """Return the name of a patient without the site."""
    return patient.partition(_SITE)[2] or patient


def are_among(patients: Iterable[str | None], others: set[str], guess: bool = False) -> np.ndarray:
    """Return which known patients are, or may be, among others: bool [n].

    A patient without a site may be any of the others with that name. With `guess`, one with a site
    may also be another without a site. None is never among them.
    """
    without_site = {other for other in others if not has_site(other)}
    names = {name_of(other) for other in others}
    found = []
    for patient in patients:
        maybe = patient in names
        if guess and patient is not None:
            maybe = maybe or name_of(patient) in without_site
        found.append(patient is not None and (patient in others or maybe))
    return np.array(found, bool)


def digest(lines) -> str:
    """Return the first 16 hex digits of the SHA-256 of an iterable of strings, in their order."""
    sha = hashlib.sha256()
    for line in lines:
        sha.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return sha.hexdigest()[:16]
