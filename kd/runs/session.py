"""What the runs of one process share, read and decoded once."""

from pathlib import Path

from kd.config.plan import Plan
from kd.config.settings import Data
from kd.data.dataset import Dataset, open_dataset, read_index
from kd.data.index import Index
from kd.data.pool import Pool, open_pool, read_unlabeled
from kd.system.console import log
from kd.system.signals import StopSignals
from kd.teachers.cache import TeacherCache


class Session:
    """What runs of one process share. All have the same data settings.

    signals   stop signals and the time budget
    teachers  the teachers that were read last
    checked   folders of the plans whose inputs were found sound
    """

    def __init__(self, data: Data, signals: StopSignals):
        self.data, self.signals = data, signals
        self.teachers = TeacherCache()
        self.checked: set[Path] = set()
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
            self._dataset = open_dataset(self.data, self.read(), self.signals.check_stop_alone)
            log_data(self._dataset)
        return self._dataset

    def read_pool(self, plan: Plan) -> Index | None:
        """The images of --unlabeled-dir, found at the first call.

        None where there are none, or where the run shows none.
        """
        if not plan.shows_pool:
            return None
        self._source = self._source or read_unlabeled(plan.settings.unlabeled)
        return self._source

    def open_pool(self, plan: Plan) -> Pool | None:
        """The images that a run sees without labels, decoded at the first call.

        None where the run shows none.
        """
        if not plan.shows_pool:
            return None
        if self._pool is None:
            source, unlabeled = self.read_pool(plan), plan.settings.unlabeled
            self._pool = open_pool(self.open(), unlabeled, source, self.signals.check_stop_alone)
            log_pool(self._pool)
        return self._pool


def log_data(dataset: Dataset) -> None:
    """Print what is trained on, and what there is to know about it."""
    described = dataset.describe()
    sizes = ", ".join(f"{name} {size}" for name, size in described["parts"].items())
    log(
        f"data {described['name']}, split {described['split']}: {sizes};"
        f" {len(described['classes'])} classes; patients in two parts"
        f" {described['overlaps']['patients']}, identical files in two parts"
        f" {described['overlaps']['files']}"
    )
    for note in described["notes"]:
        log(f"note: {note}")
    if described["skipped_files"]:
        log(f"note: {described['skipped_files']} hidden files passed over")


def log_pool(pool: Pool) -> None:
    """Print what is seen without labels, and what was kept out of it."""
    found = pool.summary
    log(
        f"unlabelled pictures: {found['images']} ({found['of_the_data_set']} of the data set,"
        f" {found['of_unlabeled_dir']} of --unlabeled-dir, of which"
        f" {found['of_unknown_patients']} show unknown patients); dropped for the validation and"
        f" test part: {found['dropped_by_patient']} by patient, {found['dropped_by_file']} as"
        f" identical files; {found['copies']} copies left out"
    )
