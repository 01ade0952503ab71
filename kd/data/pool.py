"""The pool of images that are used without labels: those of the train split, and others.

Images of patients of the validation or test split are never in it.
"""

from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np
import torch

from kd.config.settings import Data, Reading, Unlabeled
from kd.data.dataset import Dataset
from kd.data.duplicates import groups, repeats
from kd.data.files.patients import compiled, patient_in
from kd.data.index import Index, Sample, are_among, at_site, digest
from kd.data.ranges import as_plain, check_other, open_store, remarks
from kd.data.readers import folder
from kd.data.readers.retinopathy import SPACES, patient_of
from kd.data.store import Joined, Store
from kd.data.views import Views
from kd.system.errors import Problem, first_names
from kd.system.names import stored
from kd.system.signals import never_stop


@dataclass(frozen=True)
class Pool:
    """A pool of unlabelled images, as rows of a store.

    store     holds the decoded images
    rows      int64 [n], each image once
    patients  the known patients of the images, for each space of names (see `Index.space`)
    summary   what is in the pool and what was dropped, for the report
    notes     what a user should know before training, with names that the summary must not have
    """

    store: Store | Joined
    rows: np.ndarray
    patients: dict[str, list[str]]
    summary: dict
    notes: tuple[str, ...] = ()

    def views(self, device: torch.device, **options) -> Views:
        """Return the pool as batches without labels."""
        return Views(self.store, self.rows, None, device=device, **options)

    @property
    def hash(self) -> str:
        """A hash of the bytes of all images in the pool."""
        return digest([self.store.hashes[self.rows].tobytes().hex()])

    def files(self) -> torch.Tensor:
        """Return the content hashes of the distinct images: uint8 [n, 16], sorted."""
        return torch.from_numpy(np.unique(self.store.hashes[self.rows], axis=0))


def open_pool(
    dataset: Dataset, unlabeled: Unlabeled, source: Index | None, check_stop=never_stop
) -> Pool:
    """Return the pool of a data set: `dataset.splits.pool` and the images of `source`.

    The images are decoded in the same way as those of the data set. An image is dropped if it
    belongs to a patient of the validation or test split, or if its file is identical to an image of
    these splits. Known patients with equal names are taken for one patient, whatever the data sets
    (`Index.space`), because an archive may use the names of the hospital: it is better to drop an
    image too many. Of identical files, one is kept. Raises Problem if no image is left, and with
    --strict if an image of `source` would be dropped.
    """
    store, rows, samples = _decoded(dataset, source, check_stop)
    notes = [] if source is None else list(source.notes)
    if source is not None:
        notes += _check_range(store.second, dataset, unlabeled)
    own_samples = [samples[row] for row in rows]
    by_patient = _has_evaluation_patient(dataset, own_samples)
    by_patient |= _is_of_evaluation_unit(dataset, source, rows)
    by_file = _is_evaluation_file(dataset, store.hashes[rows])
    dropped = by_patient | by_file
    _check_dropped(dataset, unlabeled, source, own_samples, rows, dropped)
    left = _distinct(store, rows[~dropped])
    foreign = left[left >= len(dataset.index.samples)]
    summary = {
        "images": len(left),
        "of_the_data_set": len(left) - len(foreign),
        "of_unlabeled_dir": len(foreign),
        "dropped_by_patient": int(by_patient.sum()),
        "dropped_by_file": int((by_file & ~by_patient).sum()),
        "copies": len(rows) - int(dropped.sum()) - len(left),
        "of_unknown_patients": sum(
            not source.has_patient(row - len(dataset.index.samples)) for row in foreign
        ),
        "name": source.name if source else None,
        "skipped_files": source.skipped if source else 0,
        "ranges": as_plain(store.ranges),
        "notes": stored(notes),
    }
    pool = Pool(store, left, _patients(dataset, source, samples, left), summary, tuple(notes))
    summary["hash"] = pool.hash
    return pool


def _decoded(
    dataset: Dataset, source: Index | None, check_stop
) -> tuple[Store | Joined, np.ndarray, list[Sample]]:
    """Decode the pool of the data set and all images of `source`.

    Returns (the store that holds both, their rows in it, the samples of all rows of the store).
    """
    cache_dir = dataset.settings.cache_dir
    rows = dataset.splits.pool
    measured_on = ("the train split", rows)
    store = open_store(dataset.store, cache_dir, rows, measured_on, check_stop)
    if source is None:
        return store, rows, list(dataset.index.samples)
    other = Store(
        source, cache_dir, store.size, store.resize, store.channels, store.crop, store.ranges
    )
    more = np.arange(len(source.samples))
    other = open_store(other, cache_dir, more, ("the unlabelled images", more), check_stop)
    samples = [*dataset.index.samples, *source.samples]
    rows = np.concatenate([rows, len(dataset.index.samples) + more])
    return Joined(store, other), rows, samples


def _check_range(store: Store, dataset: Dataset, unlabeled: Unlabeled) -> list[str]:
    """Return remarks on the range of unlabelled images with more than 8 bits.

    Raises Problem if it is not that of the data set.
    """
    rows = np.arange(len(store.index.samples))
    where = f"--unlabeled-dir '{unlabeled.unlabeled_dir}'"
    misfits = check_other(store, rows, where, "the data set", has_bits=False)
    return [*remarks(store, rows), *misfits]


def _check_dropped(
    dataset: Dataset,
    unlabeled: Unlabeled,
    source: Index | None,
    samples: list[Sample],
    rows: np.ndarray,
    dropped: np.ndarray,
) -> None:
    """Raise Problem if no image is left, and with --strict if one of `source` is dropped."""
    where = f" in --unlabeled-dir '{unlabeled.unlabeled_dir}'" if source else ""
    foreign = []
    for sample, row, drop in zip(samples, rows, dropped):
        if drop and row >= len(dataset.index.samples):
            foreign.append(sample.path)
    if foreign and unlabeled.strict:
        raise Problem(
            f"Unlabelled images{where} belong to patients of the validation or test split, or are"
            f" identical to images of these splits: {first_names(foreign)}. Remove them, or remove"
            " --strict to drop them automatically."
        )
    if dropped.all():
        raise Problem(
            f"Unlabelled images{where} cannot be used: none is left, because all of them"
            f" ({len(rows)}) belong to patients of the validation or test split or are identical"
            " to images of these splits. Use other images."
        )


def _patients(
    dataset: Dataset, source: Index | None, samples: list[Sample], rows: np.ndarray
) -> dict[str, list[str]]:
    """Return the sorted known patients of rows of the joined store, by the space of their names."""
    found = defaultdict(set)
    for row in rows:
        index = dataset.index if row < len(dataset.index.samples) else source
        patient = samples[row].known_patient
        if patient is not None:
            found[index.space].add(patient)
    return {space: sorted(patients) for space, patients in found.items()}


def _distinct(store: Store | Joined, rows: np.ndarray) -> np.ndarray:
    """Return the rows ordered by the content of their files, only one for identical files.

    The names of files and folders therefore do not change the result.
    """
    rows = rows[np.lexsort(store.hashes[rows].T)]
    copies = repeats(groups(content.tobytes() for content in store.hashes[rows]))
    return np.delete(rows, np.array(copies, dtype=np.int64))


def read_unlabeled(unlabeled: Unlabeled, data: Data) -> Index | None:
    """Return the index of the images in --unlabeled-dir without labels, or None if it is not set.

    No table of labels is opened, and images.csv is read only for the patients. A folder is taken to
    be of the same hospital as the data set: its patients are found by the same pattern, and belong
    to the same site. --unlabeled-dataset names archives that are published, whose file names say
    who the patients are.
    """
    if unlabeled.unlabeled_dir is None:
        return None
    kind = unlabeled.unlabeled_dataset
    if kind == "folder":
        index = folder.read_images(
            unlabeled.unlabeled_dir, "--unlabeled-dir", Reading(site=data.site)
        )
        return index if data.patient_pattern is None else _with_pattern(index, data)
    index = folder.read_images(unlabeled.unlabeled_dir, "--unlabeled-dir", Reading())
    samples = []
    for sample in index.samples:
        if sample.known_patient is None:
            sample = sample._replace(patient=patient_of(kind, sample.path))
        samples.append(sample)
    return replace(index, name=kind, space=SPACES[kind], samples=tuple(samples))


def _with_pattern(index: Index, data: Data) -> Index:
    """Return an index with the patients that --patient-pattern finds where none is known.

    An archive may name its files in another way than the data set, so that none is found.
    """
    pattern = compiled(data.patient_pattern)
    samples = []
    found = 0
    for sample in index.samples:
        patient = patient_in(sample.path, pattern)
        if sample.known_patient is None and patient:
            found += 1
            sample = sample._replace(patient=at_site(data.site, patient))
        samples.append(sample)
    note = (
        f"--patient-pattern finds a patient in {found} of {len(samples)} paths of --unlabeled-dir."
    )
    return replace(index, samples=tuple(samples), notes=(*index.notes, note))


def _evaluation_rows(dataset: Dataset) -> np.ndarray:
    """Return the rows of the validation and the test split."""
    return np.concatenate([dataset.splits.valid, dataset.splits.test])


def _has_evaluation_patient(dataset: Dataset, samples: list[Sample]) -> np.ndarray:
    """Return which samples have a known patient of the validation or test split: bool [n]."""
    patients = set()
    for row in _evaluation_rows(dataset):
        patients.add(dataset.index.samples[row].known_patient)
    return are_among([sample.known_patient for sample in samples], patients - {None}, guess=True)


def _is_of_evaluation_unit(dataset: Dataset, source: Index | None, rows: np.ndarray) -> np.ndarray:
    """Return which rows share a unit (`Index.unit`) with a validation or test image: bool [n].

    These are images of the same study, and of patients who have an identical file. Rows of `source`
    follow those of the data set, and only their studies are compared: a path is no patient there.
    """
    index = dataset.index
    units = {index.unit(row) for row in _evaluation_rows(dataset)}
    found = []
    for row in rows:
        place = int(row) - len(index.samples)
        if place < 0:
            found.append(index.unit(int(row)) in units)
        else:
            sample = source.samples[place]
            has_study = sample.known_patient is None and sample.known_study is not None
            found.append(has_study and source.unit(place) in units)
    return np.array(found, bool)


def _is_evaluation_file(dataset: Dataset, hashes: np.ndarray) -> np.ndarray:
    """Return which hashes, uint8 [n, 16], are those of a validation or test image: bool [n]."""
    evaluated = {content.tobytes() for content in dataset.store.hashes[_evaluation_rows(dataset)]}
    return np.array([content.tobytes() in evaluated for content in hashes], bool)
