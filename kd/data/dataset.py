"""Open a data set: from the data settings to decoded images.

This module combines the index, the splits and the store.
"""

import functools
from collections import Counter
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from kd.config.settings import Data, Reading
from kd.data import ranges
from kd.data.duplicates import without_copies
from kd.data.files.find import is_common
from kd.data.flow import flow_of
from kd.data.index import Index, digest
from kd.data.readers import folder, mura, retinopathy, synthetic
from kd.data.readers.retinopathy import RETINOPATHY
from kd.data.splits import Kept, Splits, overlaps, split
from kd.data.store import Store
from kd.data.tables.corrections import corrected
from kd.data.views import Views
from kd.system.errors import Problem, counted
from kd.system.names import stored
from kd.system.signals import never_stop

EVALUATION_BATCH = 64
ODD_EXTENSION = "(other)"  # as in `Notes of 3 May.Smith`
# Settings of `Reading` that only --dataset folder uses.
_OF_FOLDERS = ("table", "columns", "uncertain", "patient_pattern", "site")


@dataclass(frozen=True)
class Dataset:
    """An index with its splits, whose images are decoded.

    flow  how many images were found, excluded and used (see `kd.data.flow`)
    """

    settings: Data
    index: Index
    splits: Splits
    store: Store
    split_hash: str
    flow: tuple[dict, ...] = ()

    def views(
        self, name: str, device: torch.device, rows: np.ndarray | None = None, **options
    ) -> Views:
        """Return a split, or only some of its rows, as batches.

        Without options, the batches are for evaluation: in order, and without augmentation.
        """
        if rows is None:
            rows = getattr(self.splits, name)
        options = {"batch_size": EVALUATION_BATCH, "classes": len(self.index.classes)} | options
        return Views(self.store, rows, self.index.labels, device=device, **options)

    def patients(self, name: str) -> int:
        """Return the number of known patients of a split."""
        rows = [row for row in getattr(self.splits, name) if self.index.has_patient(row)]
        return len({self.index.samples[row].patient for row in rows})

    def without_patient(self, name: str) -> int:
        """Return the number of distinct images of a split whose patients are not known."""
        rows = np.unique(getattr(self.splits, name))
        return sum(not self.index.has_patient(row) for row in rows)

    def files(self, name: str) -> torch.Tensor:
        """Return the content hashes of the distinct images of a split: uint8 [n, 16], sorted."""
        return torch.from_numpy(np.unique(self.store.hashes[getattr(self.splits, name)], axis=0))

    @property
    def content_hash(self) -> str:
        """A hash of the bytes of all images in their slots.

        It changes when a file is replaced, whereas `split_hash` does not.
        """
        return digest(self.store.hashes[rows].tobytes().hex() for _, rows in self.splits.items())

    def describe(self) -> dict:
        """Return the data section of a report.

        It holds sizes, classes, patients, hashes, and what is in more than one split.
        """
        index = self.index
        splits = dict(self.splits.items())
        shared = self._overlaps
        return {
            "name": index.name,
            "reader": self.settings.dataset,
            "split": self.settings.split,
            "split_hash": self.split_hash,
            "index_hash": digest(map(index.identity, range(len(index.samples)))),
            "content_hash": self.content_hash,
            "leaks": self.splits.leaks or any(shared.values()),
            "classes": list(index.classes),
            "image_size": self.store.size,
            "channels": self.store.channels,
            "crop": self.store.crop,
            "parts": {name: len(rows) for name, rows in splits.items()},
            "patients": {name: self.patients(name) for name in splits},
            "without_patient": {name: self.without_patient(name) for name in splits},
            "per_class": {name: self._per_class(rows) for name, rows in splits.items()},
            "distinct_images": {name: len(np.unique(rows)) for name, rows in splits.items()},
            "overlaps": shared,
            "flow": list(self.flow),
            "skipped_files": index.skipped,
            "other_files": _common(index.others),
            "ranges": ranges.as_plain(self.store.ranges),
            "notes": stored(self.notes),
        }

    @property
    def notes(self) -> list[str]:
        """What a user should know before training on the data set."""
        notes = [*self.index.notes, *self.splits.notes, *ranges.remarks(self.store, self._rows)]
        for kind, count in self._overlaps.items():
            if count:
                what = counted(count, f"{kind.removesuffix('s')} is", f"{kind} are")
                notes.append(f"{what} in more than one split.")
        return notes

    @functools.cached_property
    def _overlaps(self) -> dict[str, int]:
        return overlaps(self.index, self.splits, self.store.hashes)

    @property
    def _rows(self) -> np.ndarray:
        """All rows of the three splits."""
        return np.concatenate([rows for _, rows in self.splits.items()])

    def _per_class(self, rows: np.ndarray) -> list[int]:
        """Return the number of rows of each class."""
        return np.bincount(self.index.labels[rows], minlength=len(self.index.classes)).tolist()


def _common(others: dict[str, int]) -> dict[str, int]:
    """Return the numbers of files by extension, without extensions that may be parts of names."""
    found = Counter()
    for extension, count in others.items():
        found[extension if is_common(extension) else ODD_EXTENSION] += count
    return dict(found)


def read_index(data: Data, classes: tuple[str, ...] | None = None, lenient: bool = False) -> Index:
    """Read the index of the data set in the settings, with its corrections (--errata).

    `classes` are those of a trained network: images of a folder may then have no label.
    `lenient` is that of `folder.read`.

    Raises Problem if the data set cannot be read, for settings that it does not use, and if ordered
    grades are requested and its classes are not grades.
    """
    refuse_unused(data)
    if data.dataset == "folder":
        index = folder.read(data.data_dir, classes, data, lenient)
    else:
        index = _read(data)
    if data.errata is not None and data.dataset not in (*RETINOPATHY, "folder"):
        index = corrected(index, data.errata)  # these two read it with their tables
    return replace(index, graded=True) if data.graded else index


def refuse_unused(data: Data) -> None:
    """Raise Problem for settings of --dataset folder with another data set."""
    if data.dataset == "folder":
        return
    defaults = {entry.name: entry for entry in fields(Reading)}
    for name in _OF_FOLDERS:
        value = getattr(data, name)
        if value not in ([], defaults[name].default):
            flag = "--" + name.replace("_", "-")
            raise Problem(
                f"{flag} is not valid with --dataset {data.dataset}, whose layout is fixed. Remove"
                f" {flag}, or use --dataset folder."
            )


def _read(data: Data) -> Index:
    if data.dataset in RETINOPATHY:
        return retinopathy.read(data.dataset, data.data_dir, data.errata)
    if data.dataset == "mura":
        return mura.read(data.data_dir, data.label)
    return synthetic.read(data.synthetic_images, data.synthetic_seed)


def open_dataset(
    data: Data, index: Index, check_stop=never_stop, store: Store | None = None
) -> Dataset:
    """Split the data set and decode its images.

    A second call decodes nothing, because decoded images are cached. `check_stop` is called
    repeatedly while images are decoded, and may raise an exception to end the work. Raises Problem
    for any fault of the data.

    store  that of a data set that differs in the kept labels only, which is then used for both
    """
    # The split of the thesis has copies in several splits. The labels of retinopathy sets are known
    # to contradict each other.
    if index.root is not None and (data.split != "thesis" or data.dataset in RETINOPATHY):
        index = without_copies(index)
    splits = split(
        index,
        data.split,
        data.split_seed,
        (data.train_per_class, data.valid_per_class, data.test_per_class),
        Kept(data.labeled_fraction, data.labeled_seed, data.balance),
    )
    flow = tuple(flow_of(index, splits))
    index = index.without_labels(np.setdiff1d(splits.pool, splits.train))
    rows = np.concatenate([rows for _, rows in splits.items()])
    # The pool is the train split before labels are withheld, so that every fraction of the labels
    # gives the same pixels.
    measured_on = ("the train split", splits.pool)
    if store is None:
        store = decoded(data, index, rows, measured_on, check_stop)
    else:
        store = ranges.open_store(store, data.cache_dir, rows, measured_on, check_stop)
    return Dataset(data, index, splits, store, splits.hash(index), flow)


def decoded(
    data: Data, index: Index, rows: np.ndarray, measured_on: tuple[str, np.ndarray], check_stop
) -> Store:
    """Return the store of an index with `rows` decoded; see `ranges.open_store`."""
    crop = index.crop if data.crop == "auto" else data.crop
    store = Store(
        index,
        data.cache_dir,
        data.image_size,
        data.resize,
        data.channels,
        crop,
        ranges.given(data.bits),
    )
    return ranges.open_store(store, data.cache_dir, rows, measured_on, check_stop)
