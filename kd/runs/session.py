"""What the runs of one process share, read and decoded once."""

from pathlib import Path

from kd.config.plan import shows_pool
from kd.config.settings import Data
from kd.data.dataset import Dataset, open_dataset, read_index
from kd.data.index import Index
from kd.data.pool import Pool, open_pool, read_unlabeled
from kd.system.console import log
from kd.system.signals import StopSignals
from kd.teachers import model_file
from kd.teachers.stored_logits import StoredLogits


class Session:
    """What runs of one process share: stop signals, the data, the teachers read last.

    All have the same data settings.
    """

    def __init__(self, data: Data, signals: StopSignals):
        self.data, self.signals = data, signals
        self._teachers: dict[tuple[Path, str | None], model_file.Trained] = {}
        self.stores: dict[str, StoredLogits] = {}  # theirs, by their keys; checked once
        self._index: Index | None = None
        self._dataset: Dataset | None = None
        self._source: Index | None = None
        self._pool: Pool | None = None

    def read(self) -> Index:
        """The data's index, read at the first call."""
        self._index = self._index or read_index(self.data)
        return self._index

    def open(self) -> Dataset:
        """The data, split and decoded at the first call."""
        if self._dataset is None:
            self._dataset = open_dataset(self.data, self.read(), self.signals.leave_alone)
            say_data(self._dataset)
        return self._dataset

    def read_pool(self, settings) -> Index | None:
        """The pictures of --unlabeled-dir, found at the first call; None where there are none, or
        the mode shows none.
        """
        if not shows_pool(settings):
            return None
        self._source = self._source or read_unlabeled(settings.unlabeled)
        return self._source

    def open_pool(self, settings) -> Pool | None:
        """The pictures that a run sees without labels, decoded at the first call; None where its
        mode shows none.
        """
        if not shows_pool(settings):
            return None
        if self._pool is None:
            self._pool = open_pool(
                self.open(), settings.unlabeled, self.read_pool(settings), self.signals.leave_alone
            )
            say_pool(self._pool)
        return self._pool

    def load(self, file: Path, name: str | None = None) -> model_file.Trained:
        """A teacher's model.pt, or with `name` any file of that network's weights; many students in
        a row read it once.
        """
        if (file, name) not in self._teachers:
            self._teachers[file, name] = (
                model_file.load(file)
                if name is None
                else model_file.load_any(file, name, self.read().classes)
            )
        return self._teachers[file, name]

    def keep(self, wanted: list[model_file.Trained]) -> None:
        """Let go of the teachers that are not among these, and of their stored logits' tables."""
        self._teachers = {
            key: found
            for key, found in self._teachers.items()
            if any(found is one for one in wanted)
        }
        networks = [found.network for found in wanted]
        for key in [
            key
            for key, store in self.stores.items()
            if not any(store.network is one for one in networks)
        ]:
            del self.stores[key]


def say_data(dataset: Dataset) -> None:
    """What is trained on, and what there is to know about it."""
    account = dataset.describe()
    sizes = ", ".join(f"{name} {size}" for name, size in account["parts"].items())
    log(
        f"data {account['name']}, split {account['split']}: {sizes}; {len(account['classes'])}"
        f" classes; patients in two parts {account['overlaps']['patients']}, identical files in two"
        f" parts {account['overlaps']['files']}"
    )
    for note in account["notes"]:
        log(f"note: {note}")
    if account["skipped_files"]:
        log(f"note: {account['skipped_files']} hidden files passed over")


def say_pool(pool: Pool) -> None:
    """What is seen without labels, and what was kept out of it."""
    found = pool.account
    log(
        f"unlabelled pictures: {found['images']} ({found['of_the_data_set']} of the data set,"
        f" {found['of_unlabeled_dir']} of --unlabeled-dir, of which {found['of_unknown_patients']}"
        " show unknown patients); dropped for the validation and test part:"
        f" {found['dropped_by_patient']} by patient, {found['dropped_by_file']} as identical files;"
        f" {found['copies']} copies left out"
    )
