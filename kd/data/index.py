"""The index that a reader returns: all images with their class, patient and study."""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kd.system.errors import Problem, first_ten

UNLABELED = -1


class Sample(NamedTuple):
    """One image.

    path     relative to `Index.root`
    label    position of the class in `Index.classes`, or -1 if the image is unlabelled
    patient  name of the patient; equal to `path` if the patient is unknown
    study    name of the study that the image belongs to
    split    the split that the data set specifies for the image, or None
    """

    path: str
    label: int
    patient: str
    study: str
    split: str | None = None


@dataclass(frozen=True)
class Index:
    """A data set as its reader found it.

    name      short, and safe in a folder's name; patients of two data sets are comparable if the
              names of the data sets are equal
    classes   class names, in the order of the network's outputs
    samples   in a fixed order: the position of an image is its row in the store
    root      the folder that `Sample.path` is relative to; None if images are drawn, not read
    draw      function row -> uint8 [H, W], for data sets without files
    stamp     version of the images that `draw` returns
    sizes     images per class (train, valid, test) in the data set's own protocol; None for all
    channels  1 for grey, 3 for colour, 0 if it depends on the images
    skipped   number of files that were skipped on purpose (hidden files), for the report
    notes     what a user should know before training on the data set
    graded    whether the classes are ordered grades "0", "1", ...: class k is grade k
    crop      preparation of images before they are resized: `none`, or `fundus` (cropped to the
              disc)

    Raises Problem if `graded` is set and the classes are not such grades.
    """

    name: str
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    root: Path | None = None
    draw: Callable[[int], np.ndarray] | None = None
    stamp: str = ""
    sizes: tuple[int, int, int] | None = None
    channels: int = 0
    skipped: int = 0
    notes: tuple[str, ...] = field(default=())
    graded: bool = False
    crop: str = "none"

    def __post_init__(self):
        grades = tuple(str(grade) for grade in range(len(self.classes)))
        if self.graded and (len(self.classes) < 2 or self.classes != grades):
            raise Problem(
                f"Classes {list(self.classes)} in {self.root or self.name} are not grades:"
                " --graded needs at least two classes, named 0, 1, 2 and so on. Rename the"
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

    @property
    def labels(self) -> np.ndarray:
        """The label of each row: int64 [N], -1 for unlabelled images."""
        return np.array([sample.label for sample in self.samples], dtype=np.int64)


def walk(root: Path) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Yield (folders from root down, sorted file names) for every folder.

    Links are followed, and each real folder is entered once. Hidden folders and the folder
    `__MACOSX` of archives are skipped. Raises Problem, at the end, if folders cannot be read:
    training on the rest would be training on a different data set.
    """
    entered = set()
    errors = []
    for here, folders, files in os.walk(root, followlinks=True, onerror=errors.append):
        status = os.stat(here)
        identity = (status.st_dev, status.st_ino)
        if identity in entered:
            folders.clear()
            continue
        entered.add(identity)
        shown = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        folders[:] = sorted(shown)
        yield Path(here).relative_to(root).parts, sorted(files)
    if errors:
        faults = []
        for error in errors:
            faults.append(f"{os.path.relpath(error.filename, root)} ({error.strerror})")
        raise Problem(
            f"Folders in {root} cannot be read: {first_ten(faults)}. Change their permissions, or"
            " move them out of the data folder."
        )


def digest(lines) -> str:
    """Return the first 16 hex digits of the SHA-256 of an iterable of strings, in their order."""
    sha = hashlib.sha256()
    for line in lines:
        sha.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return sha.hexdigest()[:16]
