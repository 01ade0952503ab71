"""Data and teachers that the runs of one process share, read and decoded once."""

import shlex
from dataclasses import fields, replace
from pathlib import Path

from kd.config.plan import Plan
from kd.config.settings import Data, Protocol, Reading, Source
from kd.data.dataset import Dataset, open_dataset, read_index
from kd.data.index import Index
from kd.data.pool import Pool, open_pool, read_unlabeled
from kd.data.store import Joined, Store
from kd.system.console import log
from kd.system.errors import Problem, counted
from kd.system.signals import StopSignals
from kd.teachers.cache import TeacherCache

AnyStore = Store | Joined


class Session:
    """The data and teachers that the runs of one process share.

    All runs have the same data, but their teachers may have other labels and another image size.

    signals   stop signals and the time limit
    teachers  the teachers of the last run
    checked   folders of the plans whose inputs passed all checks
    """

    def __init__(self, signals: StopSignals):
        self.signals = signals
        self.teachers = TeacherCache()
        self.checked: set[Path] = set()
        # By the text of the data settings that determine them.
        self._indices: dict[str, Index] = {}
        self._datasets: dict[str, Dataset] = {}
        self._pools: dict[str, Pool] = {}
        self._source: Index | None = None
        self._noted: set[str] = set()

    def read(self, data: Data) -> Index:
        """Return the index of a data set, which is read at the first call.

        Raises Problem if it cannot be read.
        """
        key = repr(_for_all_sizes(_for_all_labels(data)))
        if key not in self._indices:
            self._indices[key] = read_index(data)
        return self._indices[key]

    def open(self, data: Data) -> Dataset:
        """Return a data set, which is split and decoded at the first call.

        Data sets that differ only in the labels share their decoded images. Raises Problem if the
        data set cannot be read, split or decoded.
        """
        key = repr(data)
        if key not in self._datasets:
            shared = None
            for other in self._datasets.values():
                if _for_all_labels(other.settings) == _for_all_labels(data):
                    shared = other.store
            check_stop = self.signals.check_stop_alone
            dataset = open_dataset(data, self.read(data), check_stop, shared)
            self._describe(dataset)
            self._datasets[key] = dataset
        return self._datasets[key]

    def _describe(self, dataset: Dataset) -> None:
        """Print what is in a data set, and what has not been said of another one before."""
        own = dataset.settings
        known = [other.settings for other in self._datasets.values()]
        if known and all(own.labeled_fraction != data.labeled_fraction for data in known):
            log_sizes(dataset, f" with {100 * own.labeled_fraction:g} % of the labels")
        elif not known:
            log_sizes(dataset)
        notes = [*dataset.notes, *skipped_note(dataset)]
        for note in notes:
            if note not in self._noted:
                log(f"note: {note}")
        self._noted.update(notes)
        if not known and dataset.store.was_empty and dataset.index.root is not None:
            log(
                "note: These data are new here. If they have not been checked for faults yet:"
                f" {check_command(own)}"
            )

    def read_pool(self, plan: Plan) -> Index | None:
        """Return the index of --unlabeled-dir, which is read at the first call.

        Returns None without --unlabeled-dir, or if the run uses no unlabelled images. Raises
        Problem if the folder cannot be read.
        """
        if not plan.shows_pool:
            return None
        settings = plan.settings
        self._source = self._source or read_unlabeled(settings.unlabeled, settings.data)
        return self._source

    def open_pool(self, plan: Plan, size: int | None = None) -> Pool | None:
        """Return the images that a run uses without labels, which are decoded at the first call.

        size  the image size, that of the student by default

        Returns None if the run uses no unlabelled images. Raises Problem if images cannot be
        decoded or none are left.
        """
        if not plan.shows_pool:
            return None
        data = replace(plan.settings.data, image_size=size or plan.settings.data.image_size)
        key = repr(data)
        if key not in self._pools:
            source, unlabeled = self.read_pool(plan), plan.settings.unlabeled
            check_stop = self.signals.check_stop_alone
            pool = open_pool(self.open(data), unlabeled, source, check_stop)
            if not self._pools:
                log_pool(pool)
            self._pools[key] = pool
        return self._pools[key]

    def teachers_stores(self, plan: Plan) -> dict[AnyStore, AnyStore]:
        """Return the images that a run's teachers see instead of the student's.

        The keys are the stores of the run, the values stores of the same images at the size of the
        teachers. The result is empty if the size is the same. Raises Problem as `open` does.
        """
        own, size = plan.settings.data, plan.teacher_data.image_size
        if size == own.image_size:
            return {}
        data, other = self.open(own), self.open(replace(own, image_size=size))
        pool, other_pool = self.open_pool(plan), self.open_pool(plan, size)
        pools_differ = pool is not None and pool.hash != other_pool.hash
        if data.content_hash != other.content_hash or pools_differ:
            raise Problem(
                f"Images of '{data.index.name}' changed while they were decoded at"
                f" {own.image_size} and at {size} pixels. Run the same command again."
            )
        stores = {data.store: other.store}
        if pool is not None:
            stores[pool.store] = other_pool.store
        return stores


def _for_all_labels(data: Data) -> Data:
    """Return data settings without those that select labels, for comparison."""
    return replace(data, labeled_fraction=1.0, labeled_seed=0)


def _for_all_sizes(data: Data) -> Data:
    """Return data settings without the image size, for comparison."""
    return replace(data, image_size=Data.image_size)


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


def log_sizes(dataset: Dataset, which: str = "") -> None:
    """Print the size of each split and their overlaps; `which` is added to the name of the data."""
    described = dataset.describe()
    sizes = ", ".join(f"{name} {size}" for name, size in described["parts"].items())
    log(
        f"data {described['name']}{which}, split {described['split']}: {sizes};"
        f" {len(described['classes'])} classes; in more than one split:"
        f" {counted(described['overlaps']['patients'], 'patient', 'patients')},"
        f" {counted(described['overlaps']['files'], 'identical file', 'identical files')}"
    )


def skipped_note(dataset: Dataset) -> list[str]:
    """Return a note on the files that were skipped; empty if there are none."""
    count = dataset.index.skipped
    if not count:
        return []
    skipped = counted(count, "hidden or system file was", "hidden or system files were")
    return [f"{skipped} skipped."]


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
