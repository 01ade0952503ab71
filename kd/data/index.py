"""What a reader returns: which images there are, of which class, patient and study."""

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
    label    its place in `Index.classes`; -1 where it is unlabelled
    patient  the path where the patient is unknown
    split    the split that the data give it to, or None
    """

    path: str
    label: int
    patient: str
    study: str
    split: str | None = None


@dataclass(frozen=True)
class Index:
    """A data set as its reader found it.

    name      short, safe in a folder's name; patients of two sets are comparable where the names
              agree
    classes   class names, in the order of the network's outputs
    samples   in a fixed order: an image's place here is its row in the store
    root      the folder that `Sample.path` is relative to; None where images are drawn, not read
    draw      row -> uint8 [H, W]; for sets without files
    stamp     names the version of what `draw` draws
    sizes     images per class (train, valid, test) that the data set's own protocol draws; None for
              all
    channels  1 grey, 3 colour, 0 where the images decide
    skipped   files that were passed over on purpose (hidden ones), for the report
    notes     what a user should know before training on it
    graded    whether the classes are ordered grades "0", "1", ...: class k is grade k
    crop      how images are prepared before they are resized: `none`, or `fundus` (cropped to the
              disc)

    Raises Problem where it is graded and the classes are not such grades.
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
                f"classes {list(self.classes)} in {self.root or self.name}: --graded needs the"
                " grades 0, 1, 2 ... from 0 on, at least two, as their names; rename them, or"
                " leave --graded out"
            )

    def file(self, row: int) -> Path:
        """The image's file. Only for sets with a root."""
        return self.root / self.samples[row].path

    def identity(self, row: int) -> str:
        """One line that changes when the sample's path, class, patient or study does."""
        sample = self.samples[row]
        label = self.classes[sample.label] if sample.label >= 0 else ""
        return "\t".join((sample.path, label, sample.patient, sample.study))

    def without_labels(self, rows: np.ndarray) -> "Index":
        """The same index without the labels of some rows, so that nothing can use them."""
        samples = list(self.samples)
        for row in rows:
            samples[row] = samples[row]._replace(label=UNLABELED)
        return replace(self, samples=tuple(samples))

    @property
    def labels(self) -> np.ndarray:
        """int64 [N], -1 where unlabelled."""
        return np.array([sample.label for sample in self.samples], dtype=np.int64)


def walk(root: Path) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Yield (folders from root down, sorted file names) of every folder.

    Links are followed, and each real folder is entered once. Hidden folders and the `__MACOSX` of
    archives are passed over. Raises Problem, at the end, for folders that cannot be read: training
    on what is left would be training on other data.
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
            f"folders in {root}: {first_ten(faults)} cannot be read; allow it, or move them out"
        )


def digest(lines) -> str:
    """SHA-256 (first 16 hex digits) of an iterable of strings, in their order."""
    sha = hashlib.sha256()
    for line in lines:
        sha.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return sha.hexdigest()[:16]
