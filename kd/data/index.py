"""What a reader returns: which pictures there are, of which class, patient and study."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

UNLABELED = -1


class Sample(NamedTuple):
    """One picture. `label` indexes `Index.classes` (-1: unlabelled); `part` is what the data say, or None."""

    path: str
    label: int
    patient: str
    study: str
    part: str | None = None


@dataclass(frozen=True)
class Index:
    """A data set as its reader found it.

    name      short, safe in a folder's name; patients of two sets are comparable where the names agree
    classes   class names, in the order of the network's outputs
    samples   in a fixed order: a picture's place here is its row in the store
    root      the folder that `Sample.path` is relative to; None where pictures are drawn, not read
    draw      row -> uint8 [H, W]; for sets without files
    sizes     per class (train, valid, test) that the data set's own protocol draws, or None for all
    skipped   files that were passed over on purpose (hidden ones), for the report
    notes     what a user should know before training on it
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

    def file(self, row: int) -> Path:
        """The picture's file. Only for sets with a root."""
        return self.root / self.samples[row].path

    def identity(self, row: int) -> str:
        """One line that changes when the sample's path, class, patient or study does."""
        sample = self.samples[row]
        label = self.classes[sample.label] if sample.label >= 0 else ""
        return "\t".join((sample.path, label, sample.patient, sample.study))

    @property
    def labels(self) -> np.ndarray:
        """int64 [N], -1 where unlabelled."""
        return np.array([sample.label for sample in self.samples], dtype=np.int64)


def digest(lines) -> str:
    """SHA-256 (first 16 hex digits) of an iterable of strings, order included."""
    sha = hashlib.sha256()
    for line in lines:
        sha.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return sha.hexdigest()[:16]


def slug(text: str) -> str:
    """`text` as it may stand in the name of a folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-") or "data"
