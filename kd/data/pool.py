"""Pictures to be seen without labels: those of the train part, and any others; never those of a patient who is judged on."""

from dataclasses import dataclass

import numpy as np
import torch

from kd.data import folder
from kd.data.dataset import Dataset
from kd.data.index import Index, Sample, digest
from kd.data.retinopathy import patient_of
from kd.data.store import Joined, Store
from kd.data.views import Views
from kd.errors import Problem, first_ten
from kd.settings import Unlabeled


@dataclass(frozen=True)
class Pool:
    """Rows of a store.

    patients  of the pictures of the data set at hand
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


def open_pool(dataset: Dataset, unlabeled: Unlabeled, leave=lambda: None) -> Pool:
    """The pool of a data set: `dataset.parts.pool` and the pictures of --unlabeled-dir, decoded as the data set's own are.

    What shows a patient of the validation or test part, or is the same file as one of their pictures, is dropped, or with
    --strict refused. Raises Problem for that, and where nothing is left.
    """
    settings, samples, rows = dataset.settings, list(dataset.index.samples), dataset.parts.pool
    store, source, own = dataset.store, None, len(dataset.index.samples)
    store.ensure(rows, leave)
    if unlabeled.unlabeled_dir is not None:
        source = read_unlabeled(unlabeled.unlabeled_dir, unlabeled.unlabeled_dataset)
        other = Store(source, settings.cache_dir, store.size, store.resize, store.channels, store.crop)
        other.ensure(np.arange(len(source.samples)), leave)
        store, rows = Joined(store, other), np.concatenate([rows, own + np.arange(len(source.samples))])
        samples += source.samples
    where = f" in --unlabeled-dir '{unlabeled.unlabeled_dir}'" if source else ""
    by_patient, by_file = _judged(dataset, [samples[row] for row in rows], store.hashes[rows])
    dropped = [samples[row].path for row in rows[by_patient | by_file]]
    if dropped and unlabeled.strict:
        raise Problem(f"unlabelled pictures{where}: {first_ten(dropped)} show patients of the validation or test part, or are "
                      "the same files; take them out, or leave --strict out to have them dropped")
    rows = rows[~(by_patient | by_file)]
    if not len(rows):
        raise Problem(f"unlabelled pictures{where}: none are left, all {len(dropped)} show validation or test patients; give "
                      "others")
    account = {"images": len(rows), "of_the_data_set": int((rows < own).sum()), "of_unlabeled_dir": int((rows >= own).sum()),
               "dropped_by_patient": int(by_patient.sum()),
               "dropped_by_file": int((by_file & ~by_patient).sum()), "name": source and source.name,
               "skipped_files": source.skipped if source else 0}
    # By content: neither names nor class folders move what is seen when.
    patients = sorted({samples[row].patient for row in rows if row < own})
    pool = Pool(store, rows[np.lexsort(store.hashes[rows].T)], tuple(patients), account)
    account["hash"] = pool.hash
    return pool


def read_unlabeled(data_dir: str, kind: str) -> Index:
    """The pictures below a folder, without any label: no file that holds labels is opened, but for the patients in images.csv."""
    index = folder.read_pictures(data_dir, "--unlabeled-dir")
    if kind == "folder":
        return index
    samples = (sample._replace(patient=patient_of(kind, sample.path)) for sample in index.samples)
    return Index(kind, index.classes, tuple(samples), root=index.root, skipped=index.skipped)


def _judged(dataset: Dataset, samples: list[Sample], hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which samples show a known patient of the validation or test part, and which are the same files: bool [n], bool [n]."""
    rows = np.concatenate([dataset.parts.valid, dataset.parts.test])
    patients = {sample.patient for sample in (dataset.index.samples[row] for row in rows) if sample.patient != sample.path}
    files = {content.tobytes() for content in dataset.store.hashes[rows]}
    return (np.array([sample.patient in patients and sample.patient != sample.path for sample in samples], bool),
            np.array([content.tobytes() in files for content in hashes], bool))
