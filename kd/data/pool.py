"""The pool of images that are used without labels: those of the train split, and others.

Images of patients of the validation or test split are never in it.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from kd.config.settings import Unlabeled
from kd.data import folder
from kd.data.dataset import Dataset
from kd.data.duplicates import groups, repeats
from kd.data.grades import stem_of
from kd.data.index import Index, Sample, digest
from kd.data.retinopathy import patient_of
from kd.data.store import Joined, Store
from kd.data.views import Views
from kd.system.errors import Problem, first_ten
from kd.system.signals import never_stop


@dataclass(frozen=True)
class Pool:
    """A pool of unlabelled images, as rows of a store.

    store     holds the decoded images
    rows      int64 [n], each image once
    patients  patients of the images; for images outside the data set, only known patients
    summary   what is in the pool and what was dropped, for the report
    """

    store: Store | Joined
    rows: np.ndarray
    patients: tuple[str, ...]
    summary: dict

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
    these splits. Patients with equal names are taken for one patient, because an archive may use
    the names of the hospital. Of identical files, one is kept. Raises Problem if no image is left,
    and with --strict if an image of `source` would be dropped.
    """
    store, rows, samples = _decoded(dataset, source, check_stop)
    own_samples = [samples[row] for row in rows]
    by_patient = _has_evaluation_patient(dataset, own_samples)
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
        "of_unknown_patients": sum(_is_unknown(source.name, samples[row]) for row in foreign),
        "name": source.name if source else None,
        "skipped_files": source.skipped if source else 0,
    }
    pool = Pool(store, left, _patients(dataset, samples, left), summary)
    summary["hash"] = pool.hash
    return pool


def _decoded(
    dataset: Dataset, source: Index | None, check_stop
) -> tuple[Store | Joined, np.ndarray, list[Sample]]:
    """Decode the pool of the data set and all images of `source`.

    Returns (the store that holds both, their rows in it, the samples of all rows of the store).
    """
    store = dataset.store
    rows = dataset.splits.pool
    store.ensure(rows, check_stop)
    if source is None:
        return store, rows, list(dataset.index.samples)
    other = Store(
        source, dataset.settings.cache_dir, store.size, store.resize, store.channels, store.crop
    )
    more = np.arange(len(source.samples))
    other.ensure(more, check_stop)
    samples = [*dataset.index.samples, *source.samples]
    rows = np.concatenate([rows, len(dataset.index.samples) + more])
    return Joined(store, other), rows, samples


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
            f" identical to images of these splits: {first_ten(foreign)}. Remove them, or remove"
            " --strict to drop them automatically."
        )
    if dropped.all():
        raise Problem(
            f"Unlabelled images{where} cannot be used: none is left, because all of them"
            f" ({len(rows)}) belong to patients of the validation or test split or are identical"
            " to images of these splits. Use other images."
        )


def _patients(dataset: Dataset, samples: list[Sample], rows: np.ndarray) -> tuple[str, ...]:
    """Return all patients of the data set's own rows, and the known patients of other rows."""
    found = set()
    for row in rows:
        sample = samples[row]
        if row < len(dataset.index.samples) or sample.patient != sample.path:
            found.add(sample.patient)
    return tuple(sorted(found))


def _distinct(store: Store | Joined, rows: np.ndarray) -> np.ndarray:
    """Return the rows ordered by the content of their files, only one for identical files.

    The names of files and folders therefore do not change the result.
    """
    rows = rows[np.lexsort(store.hashes[rows].T)]
    copies = repeats(groups(content.tobytes() for content in store.hashes[rows]))
    return np.delete(rows, np.array(copies, dtype=np.int64))


def read_unlabeled(unlabeled: Unlabeled) -> Index | None:
    """Return the index of the images in --unlabeled-dir without labels, or None if it is not set.

    No table of labels is opened, and images.csv is read only for the patients.
    """
    if unlabeled.unlabeled_dir is None:
        return None
    index = folder.read_images(unlabeled.unlabeled_dir, "--unlabeled-dir")
    kind = unlabeled.unlabeled_dataset
    if kind == "folder":
        return index
    samples = []
    for sample in index.samples:
        if sample.patient == sample.path:
            sample = sample._replace(patient=patient_of(kind, sample.path))
        samples.append(sample)
    return replace(index, name=kind, samples=tuple(samples))


def _is_unknown(kind: str, sample: Sample) -> bool:
    """Return whether the patient of an image is unknown.

    File names of Messidor and Messidor-2 do not name the patient.
    """
    if sample.patient == sample.path:
        return True
    return kind in ("messidor", "messidor2") and sample.patient == stem_of(sample.path)


def _evaluation_rows(dataset: Dataset) -> np.ndarray:
    """Return the rows of the validation and the test split."""
    return np.concatenate([dataset.splits.valid, dataset.splits.test])


def _has_evaluation_patient(dataset: Dataset, samples: list[Sample]) -> np.ndarray:
    """Return which samples have a known patient of the validation or test split: bool [n]."""
    patients = set()
    for row in _evaluation_rows(dataset):
        sample = dataset.index.samples[row]
        if sample.patient != sample.path:
            patients.add(sample.patient)
    found = [sample.patient in patients and sample.patient != sample.path for sample in samples]
    return np.array(found, bool)


def _is_evaluation_file(dataset: Dataset, hashes: np.ndarray) -> np.ndarray:
    """Return which hashes, uint8 [n, 16], are those of a validation or test image: bool [n]."""
    evaluated = {content.tobytes() for content in dataset.store.hashes[_evaluation_rows(dataset)]}
    return np.array([content.tobytes() in evaluated for content in hashes], bool)
