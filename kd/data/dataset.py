"""From the data section of the settings to pictures that are ready: index, parts and store in one
place.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from kd.config.settings import Data
from kd.data import folder, mura, retinopathy, synthetic
from kd.data.index import Index, digest, slug
from kd.data.retinopathy import RETINOPATHY
from kd.data.splits import Kept, Parts, overlaps, split
from kd.data.store import Store
from kd.data.views import Views
from kd.system.errors import Problem

EVALUATION_BATCH = 64


@dataclass(frozen=True)
class Dataset:
    """An index with its parts, all pictures of which are decoded."""

    settings: Data
    index: Index
    parts: Parts
    store: Store
    split_hash: str

    def views(
        self, part: str, device: torch.device, rows: np.ndarray | None = None, **options
    ) -> Views:
        """A part (or only some of its rows) as batches; without options for evaluation: in order,
        unchanged.
        """
        rows = getattr(self.parts, part) if rows is None else rows
        options = {"batch_size": EVALUATION_BATCH} | options
        return Views(self.store, rows, self.index.labels, device=device, **options)

    def patients(self, part: str) -> list[str]:
        """The sorted patients of a part."""
        return sorted({self.index.samples[row].patient for row in getattr(self.parts, part)})

    def files(self, part: str) -> torch.Tensor:
        """Content hashes of a part's distinct pictures: uint8 [n, 16], sorted."""
        return torch.from_numpy(np.unique(self.store.hashes[getattr(self.parts, part)], axis=0))

    @property
    def content_hash(self) -> str:
        """A name for the bytes of all pictures in their slots: it changes when a file is replaced,
        the split's hash not.
        """
        return digest(self.store.hashes[rows].tobytes().hex() for _, rows in self.parts.items())

    def describe(self) -> dict:
        """The report's account of the data: sizes, classes, patients, hashes, and what stands in
        more than one part.
        """
        index, parts = self.index, dict(self.parts.items())
        labels, shared = index.labels, overlaps(index, self.parts, self.store.hashes)
        found = [
            f"{count} {kind} stand in more than one part" for kind, count in shared.items() if count
        ]
        return {
            "name": index.name,
            "reader": self.settings.dataset,
            "split": self.settings.split,
            "split_hash": self.split_hash,
            "index_hash": digest(map(index.identity, range(len(index.samples)))),
            "content_hash": self.content_hash,
            "leaks": self.parts.leaks or any(shared.values()),
            "classes": list(index.classes),
            "image_size": self.store.size,
            "channels": self.store.channels,
            "crop": self.store.crop,
            "parts": {name: len(rows) for name, rows in parts.items()},
            "patients": {name: len(self.patients(name)) for name in parts},
            "per_class": {
                name: np.bincount(labels[rows], minlength=len(index.classes)).tolist()
                for name, rows in parts.items()
            },
            "distinct_images": {name: len(np.unique(rows)) for name, rows in parts.items()},
            "overlaps": shared,
            "skipped_files": index.skipped,
            "notes": [*index.notes, *self.parts.notes, *found],
        }


def read_index(data: Data) -> Index:
    """The index that the settings name, graded where they say so.

    Raises Problem where it cannot be read, or not so.
    """
    if data.errata is not None and data.dataset not in RETINOPATHY:
        raise Problem(
            f"errata '{data.errata}' in --errata: --dataset {data.dataset} takes none; leave it"
            f" out, or give one of {', '.join(RETINOPATHY)}"
        )
    index = _read(data)
    return replace(index, graded=True) if data.graded else index


def _read(data: Data) -> Index:
    if data.dataset in RETINOPATHY:
        return retinopathy.read(data.dataset, data.data_dir, data.errata)
    if data.dataset == "mura":
        return mura.read(data.data_dir, data.label)
    if data.dataset == "folder":
        return folder.read(data.data_dir)
    return synthetic.read(data.synthetic_images, data.synthetic_seed)


def open_dataset(data: Data, index: Index, leave=lambda: None) -> Dataset:
    """Split and decode; a second call decodes nothing.

    Raises Problem for anything wrong with the data.

    `leave` is called now and then while pictures are decoded and may end the work by an exception.
    """
    parts = split(
        index,
        data.split,
        data.split_seed,
        (data.train_per_class, data.valid_per_class, data.test_per_class),
        Kept(data.labeled_fraction, data.labeled_seed, data.balance),
    )
    index = index.without_labels(np.setdiff1d(parts.pool, parts.train))
    crop = index.crop if data.crop == "auto" else data.crop
    store = Store(index, data.cache_dir, data.image_size, data.resize, data.channels, crop)
    store.ensure(np.concatenate([rows for _, rows in parts.items()]), leave)
    return Dataset(data, index, parts, store, parts.hash(index))


def run_name(data: Data) -> str:
    """The name of a data set, its split, size and labels, as run folders carry it; known without
    reading.

    `mura-patient-224`; with the labels of 5 % of the patients, drawn by seed 1,
    `mura-patient-224-labels0.05.1`.
    """
    name = {
        "mura": "mura" if data.label == "part" else "mura_abnormal",
        "folder": slug(Path(data.data_dir or ".").resolve().name),
    }.get(data.dataset, data.dataset)
    seed = f"{data.split_seed}" if data.split_seed else ""
    labels = f"-labels{data.labeled_fraction:g}" if data.labeled_fraction < 1 else ""
    labels += f".{data.labeled_seed}" if labels and data.labeled_seed else ""
    return f"{name}-{data.split}{seed}-{data.image_size}{labels}"
