"""Pictures to be seen without labels: those of the train part, and any others; never those of a
patient who is judged on.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from kd.config.settings import Unlabeled
from kd.data import folder
from kd.data.dataset import Dataset
from kd.data.grades import stem_of
from kd.data.index import Index, Sample, digest
from kd.data.retinopathy import patient_of
from kd.data.store import Joined, Store
from kd.data.views import Views
from kd.system.errors import Problem, first_ten


@dataclass(frozen=True)
class Pool:
    """Rows of a store.

    patients  that it shows, those of other pictures where they are known
    account   the report's: what is in it, and what was dropped
    """

    store: Store | Joined
    rows: np.ndarray
    patients: tuple[str, ...]
    account: dict

    def views(self, device: torch.device, **options) -> Views:
        """The pool as batches without labels."""
        return Views(self.store, self.rows, None, device=device, **options)

    @property
    def hash(self) -> str:
        """A name for the bytes of all its pictures."""
        return digest([self.store.hashes[self.rows].tobytes().hex()])

    def files(self) -> torch.Tensor:
        """Content hashes of its distinct pictures: uint8 [n, 16], sorted."""
        return torch.from_numpy(np.unique(self.store.hashes[self.rows], axis=0))


def open_pool(
    dataset: Dataset, unlabeled: Unlabeled, source: Index | None, leave=lambda: None
) -> Pool:
    """The pool of a data set: `dataset.parts.pool` and the pictures of `source`, decoded as the
    data set's own are.

    What shows a patient of the validation or test part, or is the same file as one of their
    pictures, is dropped, or with --strict refused where it is of `source`. Raises Problem for that,
    and where nothing is left. Patients of equal names are taken for one: an archive may name them
    as the hospital does. Of identical files one is kept.
    """
    store, rows, samples = _decoded(dataset, source, leave)
    own = len(dataset.index.samples)
    by_patient, by_file = _judged(dataset, [samples[row] for row in rows], store.hashes[rows])
    dropped = by_patient | by_file
    where = f" in --unlabeled-dir '{unlabeled.unlabeled_dir}'" if source else ""
    foreign = [samples[row].path for row in rows[dropped] if row >= own]
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
    left = _distinct(store, rows[~dropped])
    foreign = left[left >= own]
    account = {
        "images": len(left),
        "of_the_data_set": len(left) - len(foreign),
        "of_unlabeled_dir": len(foreign),
        "dropped_by_patient": int(by_patient.sum()),
        "dropped_by_file": int((by_file & ~by_patient).sum()),
        "copies": len(rows) - int(dropped.sum()) - len(left),
        "of_unknown_patients": sum(_unknown(source.name, samples[row]) for row in foreign),
        "name": source and source.name,
        "skipped_files": source.skipped if source else 0,
    }
    patients = {
        samples[row].patient
        for row in left
        if row < own or samples[row].patient != samples[row].path
    }
    pool = Pool(store, left, tuple(sorted(patients)), account)
    account["hash"] = pool.hash
    return pool


def _decoded(
    dataset: Dataset, source: Index | None, leave
) -> tuple[Store | Joined, np.ndarray, list[Sample]]:
    """(the store that holds the data set's pool and all of `source`, their rows in it, the samples
    of all its rows).
    """
    store, rows = dataset.store, dataset.parts.pool
    store.ensure(rows, leave)
    if source is None:
        return store, rows, list(dataset.index.samples)
    other = Store(
        source, dataset.settings.cache_dir, store.size, store.resize, store.channels, store.crop
    )
    more = np.arange(len(source.samples))
    other.ensure(more, leave)
    samples = [*dataset.index.samples, *source.samples]
    return Joined(store, other), np.concatenate([rows, len(dataset.index.samples) + more]), samples


def _distinct(store: Store | Joined, rows: np.ndarray) -> np.ndarray:
    """The rows in the order of their files' content, the first of identical ones: names and folders
    move nothing.
    """
    rows = rows[np.lexsort(store.hashes[rows].T)]
    again = (store.hashes[rows[1:]] == store.hashes[rows[:-1]]).all(1)
    return rows[np.concatenate([[True], ~again])]


def read_unlabeled(unlabeled: Unlabeled) -> Index | None:
    """The pictures of --unlabeled-dir, if any, without labels: no file that holds them is opened,
    but images.csv for patients.
    """
    if unlabeled.unlabeled_dir is None:
        return None
    index, kind = (
        folder.read_pictures(unlabeled.unlabeled_dir, "--unlabeled-dir"),
        unlabeled.unlabeled_dataset,
    )
    if kind == "folder":
        return index
    samples = (
        (
            sample
            if sample.patient != sample.path
            else sample._replace(patient=patient_of(kind, sample.path))
        )
        for sample in index.samples
    )
    return replace(index, name=kind, samples=tuple(samples))


def _unknown(kind: str, sample: Sample) -> bool:
    """Whether nothing tells whom a picture shows:

    Messidor's names tell pictures apart, not patients.
    """
    return sample.patient in (
        (sample.path, stem_of(sample.path)) if kind in ("messidor", "messidor2") else (sample.path,)
    )


def _judged(
    dataset: Dataset, samples: list[Sample], hashes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which samples show a known patient of the validation or test part, and which are the same
    files: bool [n], bool [n].
    """
    rows = np.concatenate([dataset.parts.valid, dataset.parts.test])
    patients = {
        sample.patient
        for sample in (dataset.index.samples[row] for row in rows)
        if sample.patient != sample.path
    }
    files = {content.tobytes() for content in dataset.store.hashes[rows]}
    return (
        np.array(
            [sample.patient in patients and sample.patient != sample.path for sample in samples],
            bool,
        ),
        np.array([content.tobytes() in files for content in hashes], bool),
    )
