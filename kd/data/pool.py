"""Images to be seen without labels: those of the train split, and any others.

Images of patients of the validation or test split are never among them.
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
    """Rows of a store.

    patients  whom its images show; of images outside the data set only those who are known
    summary   for the report: what is in the pool, and what was dropped
    """

    store: Store | Joined
    rows: np.ndarray
    patients: tuple[str, ...]
    summary: dict

    def views(self, device: torch.device, **options) -> Views:
        """The pool as batches without labels."""
        return Views(self.store, self.rows, None, device=device, **options)

    @property
    def hash(self) -> str:
        """A name for the bytes of all its images."""
        return digest([self.store.hashes[self.rows].tobytes().hex()])

    def files(self) -> torch.Tensor:
        """Content hashes of its distinct images: uint8 [n, 16], sorted."""
        return torch.from_numpy(np.unique(self.store.hashes[self.rows], axis=0))


def open_pool(
    dataset: Dataset, unlabeled: Unlabeled, source: Index | None, check_stop=never_stop
) -> Pool:
    """The pool of a data set: `dataset.splits.pool` and the images of `source`.

    They are decoded as the data set's own images are. An image is dropped if it shows a patient of
    the validation or test split, or is the same file as one of their images; with --strict such an
    image of `source` is refused. Patients of equal names are taken for one patient: an archive may
    name them as the hospital does. Of identical files one is kept. Raises Problem for what is
    refused, and where no image is left.
    """
    store, rows, samples = _decoded(dataset, source, check_stop)
    own_samples = [samples[row] for row in rows]
    by_patient = _shows_judged_patient(dataset, own_samples)
    by_file = _is_judged_file(dataset, store.hashes[rows])
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
    """Decode the data set's pool and all of `source`.

    Returns (the store that holds both, their rows in it, the samples of all its rows).
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
    """Raise Problem where no image is left, and with --strict where one of `source` is dropped."""
    where = f" in --unlabeled-dir '{unlabeled.unlabeled_dir}'" if source else ""
    foreign = []
    for sample, row, drop in zip(samples, rows, dropped):
        if drop and row >= len(dataset.index.samples):
            foreign.append(sample.path)
    if foreign and unlabeled.strict:
        raise Problem(
            f"unlabelled pictures{where}: {first_ten(foreign)} show patients of the validation or"
            " test part, or are the same files; take them out, or leave --strict out to have them"
            " dropped"
        )
    if dropped.all():
        raise Problem(
            f"unlabelled pictures{where}: none are left, all {len(rows)} show validation or test"
            " patients; give others"
        )


def _patients(dataset: Dataset, samples: list[Sample], rows: np.ndarray) -> tuple[str, ...]:
    """All patients of the data set's own rows, and those of other rows who are known."""
    found = set()
    for row in rows:
        sample = samples[row]
        if row < len(dataset.index.samples) or sample.patient != sample.path:
            found.add(sample.patient)
    return tuple(sorted(found))


def _distinct(store: Store | Joined, rows: np.ndarray) -> np.ndarray:
    """The rows in the order of their files' content, only the first of identical files.

    So the names of files and folders change nothing.
    """
    rows = rows[np.lexsort(store.hashes[rows].T)]
    copies = repeats(groups(content.tobytes() for content in store.hashes[rows]))
    return np.delete(rows, np.array(copies, dtype=np.int64))


def read_unlabeled(unlabeled: Unlabeled) -> Index | None:
    """The images of --unlabeled-dir, if it is given, without labels.

    No table of labels is opened, and images.csv only for the patients.
    """
    if unlabeled.unlabeled_dir is None:
        return None
    index = folder.read_pictures(unlabeled.unlabeled_dir, "--unlabeled-dir")
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
    """Whether nothing says whom an image shows; Messidor's file names do not."""
    if sample.patient == sample.path:
        return True
    return kind in ("messidor", "messidor2") and sample.patient == stem_of(sample.path)


def _judged_rows(dataset: Dataset) -> np.ndarray:
    """The rows of the validation and the test split."""
    return np.concatenate([dataset.splits.valid, dataset.splits.test])


def _shows_judged_patient(dataset: Dataset, samples: list[Sample]) -> np.ndarray:
    """Which samples show a known patient of the validation or test split: bool [n]."""
    patients = set()
    for row in _judged_rows(dataset):
        sample = dataset.index.samples[row]
        if sample.patient != sample.path:
            patients.add(sample.patient)
    shown = [sample.patient in patients and sample.patient != sample.path for sample in samples]
    return np.array(shown, bool)


def _is_judged_file(dataset: Dataset, hashes: np.ndarray) -> np.ndarray:
    """Which content hashes, uint8 [n, 16], are of a validation or test image: bool [n]."""
    judged = {content.tobytes() for content in dataset.store.hashes[_judged_rows(dataset)]}
    return np.array([content.tobytes() in judged for content in hashes], bool)
