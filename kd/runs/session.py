"""Data and teachers that the runs of one process share, read and decoded once."""

import shlex
from dataclasses import fields
from pathlib import Path

from kd.config.plan import Plan
from kd.config.settings import Data, Protocol, Reading, Source
from kd.data.dataset import Dataset, open_dataset, read_index
from kd.data.index import Index
from kd.data.pool import Pool, open_pool, read_unlabeled
from kd.system.console import log
from kd.system.errors import counted
from kd.system.signals import StopSignals
from kd.teachers.cache import TeacherCache


class Session:
    """The data and teachers that the runs of one process share; all have the same data settings.

    data      the data settings
    signals   stop signals and the time limit
    teachers  the teachers of the last run
    checked   folders of the plans whose inputs passed all checks
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
        """Return the index of the data set, which is read at the first call.

        Raises Problem if it cannot be read.
        """
        self._index = self._index or read_index(self.data)
        return self._index

    def open(self) -> Dataset:
        """Return the data set, which is split and decoded at the first call.

        Raises Problem if it cannot be read, split or decoded.
        """
        if self._dataset is None:
            self._dataset = open_dataset(self.data, self.read(), self.signals.check_stop_alone)
            log_data(self._dataset)
            if self._dataset.store.was_empty and self._dataset.index.root is not None:
                log(
                    "note: These data are new here. If they have not been checked for faults yet:"
                    f" {check_command(self.data)}"
                )
        return self._dataset

    def read_pool(self, plan: Plan) -> Index | None:
        """Return the index of --unlabeled-dir, which is read at the first call.

        Returns None without --unlabeled-dir, or if the run uses no unlabelled images. Raises
        Problem if the folder cannot be read.
        """
        if not plan.shows_pool:
            return None
        self._source = self._source or read_unlabeled(plan.settings.unlabeled, self.data)
        return self._source

    def open_pool(self, plan: Plan) -> Pool | None:
        """Return the images that a run uses without labels, which are decoded at the first call.

        Returns None if the run uses no unlabelled images. Raises Problem if images cannot be
        decoded or none are left.
        """
        if not plan.shows_pool:
            return None
        if self._pool is None:
            source, unlabeled = self.read_pool(plan), plan.settings.unlabeled
            self._pool = open_pool(self.open(), unlabeled, source, self.signals.check_stop_alone)
            log_pool(self._pool)
        return self._pool


def check_command(data: Data) -> str:
    """Return the command that checks a data set for faults."""
    words = ["python", "evaluate.py", "--check-data"]
    for entry in (*fields(Source), *fields(Reading), *fields(Protocol)):
        value = getattr(data, entry.name)
        if value not in ([], None, entry.default) or entry.name == "dataset":
            words.append("--" + entry.name.replace("_", "-"))
            if value is not True:
                words += map(str, value if isinstance(value, list) else [value])
    return shlex.join(words)


def log_data(dataset: Dataset) -> None:
    """Print the size of each split, its overlaps, and the notes on the data set."""
    described = dataset.describe()
    sizes = ", ".join(f"{name} {size}" for name, size in described["parts"].items())
    log(
        f"data {described['name']}, split {described['split']}: {sizes};"
        f" {len(described['classes'])} classes; in more than one split:"
        f" {counted(described['overlaps']['patients'], 'patient', 'patients')},"
        f" {counted(described['overlaps']['files'], 'identical file', 'identical files')}"
    )
    for note in dataset.notes:
        log(f"note: {note}")
    if described["skipped_files"]:
        skipped = counted(
            described["skipped_files"], "hidden or system file was", "hidden or system files were"
        )
        log(f"note: {skipped} skipped.")


def log_pool(pool: Pool) -> None:
    """Print the number of images that are used without labels, and of those excluded."""
    found = pool.summary
    log(
        f"unlabelled images: {found['images']} ({found['of_the_data_set']} from the data set,"
        f" {found['of_unlabeled_dir']} from --unlabeled-dir, of which"
        f" {found['of_unknown_patients']} are of unknown patients); excluded:"
        f" {found['dropped_by_patient']} of validation or test patients, {found['dropped_by_file']}"
        f" identical to a validation or test image, {found['copies']} duplicates"
    )
    for note in pool.notes:
        log(f"note: --unlabeled-dir: {note}")
