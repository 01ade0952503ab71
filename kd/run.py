"""Experiments from settings to report: lock, resume or skip, early checks, missing teacher first; several in one process."""

import functools
import gc
from pathlib import Path

import torch

from kd import checkpoint, config, models, trained, weights
from kd.data.dataset import Dataset, open_dataset, read_index
from kd.data.index import Index, slug
from kd.data.pool import Pool, open_pool, read_unlabeled
from kd.errors import Problem, Stopped, complain
from kd.experiment import Experiment
from kd.folder import PLACES, RunFolder, changed, folder_of, student_of, teacher_settings
from kd.lesson import idle, shows_pool
from kd.results import report as reports
from kd.results.outcome import summary
from kd.runtime import StopSignals, lock, pick_device, say
from kd.settings import Data, DistillSettings, TeacherSettings
from kd.stored import StoredLogits
from kd.strategies import unusual


class Session:
    """What runs of one process share: stop signals, the data, the teacher that was read last. All have the same data settings."""

    def __init__(self, data: Data, signals: StopSignals):
        self.data, self.signals = data, signals
        self._teacher: tuple[tuple[Path, str | None], trained.Trained] | None = None
        self.stores: dict[str, StoredLogits] = {}  # that teacher's, by their keys; checked once
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
            self._dataset = open_dataset(self.data, self.read(), self.signals.leave)
            say_data(self._dataset)
        return self._dataset

    def read_pool(self, settings) -> Index | None:
        """The pictures of --unlabeled-dir, found at the first call; None where there are none, or the mode shows none."""
        if not shows_pool(settings):
            return None
        self._source = self._source or read_unlabeled(settings.unlabeled)
        return self._source

    def open_pool(self, settings) -> Pool | None:
        """The pictures that a run sees without labels, decoded at the first call; None where its mode shows none."""
        if not shows_pool(settings):
            return None
        if self._pool is None:
            self._pool = open_pool(self.open(), settings.unlabeled, self.read_pool(settings), self.signals.leave)
            say_pool(self._pool)
        return self._pool

    def load(self, file: Path, name: str | None = None) -> trained.Trained:
        """A teacher's model.pt, or with `name` any file of that network's weights; many students in a row read it once."""
        if self._teacher is None or self._teacher[0] != (file, name):
            self.stores.clear()
            found = trained.load(file) if name is None else trained.load_any(file, name, self.read().classes)
            self._teacher = (file, name), found
        return self._teacher[1]


def run_all(every: list[TeacherSettings] | list[DistillSettings]) -> None:
    """Do all runs, one after the other, and print what came out. One that fails keeps no other from running.

    They may differ in anything but their data. Raises Problem, with the first code, after the last where any has failed.
    """
    for settings in every:
        check_settings(settings)
    failed = []
    with StopSignals(every[0].training.max_minutes) as signals:
        session = Session(every[0].data, signals)
        unfinished = [settings for settings in every if not RunFolder(folder_of(settings)).finished]
        if len(every) > 1 and unfinished:  # what stops all of them is told once, and first
            check_each(unfinished, session)
            session.open()
            session.open_pool(unfinished[0])
        for settings in every:
            folder = RunFolder(folder_of(settings))
            try:
                say(summary(run(settings, session), folder))
            except Exception as error:
                if isinstance(error, Stopped) or len(every) == 1:
                    raise
                failed.append((folder.path, complain(error)))
            gc.collect()  # a run's networks may hang in cycles: the next one needs their memory
    if failed:
        raise Problem(f"{len(failed)} of {len(every)} runs failed: {', '.join(str(path) for path, _ in failed)}; see the lines "
                      "above, mend that and run the same command again", failed[0][1])


def check_each(unfinished: list, session: Session) -> None:
    """Tell early which runs of a list will fail for want of their files. Raises Problem where all will."""
    faults = []
    for settings in unfinished:
        try:
            check_files(settings, RunFolder(folder_of(settings)), session)
        except Problem as problem:
            faults.append(problem)
    if len(faults) == len(unfinished):
        raise faults[0]
    for problem in faults:
        say(f"warning: {problem}; the other runs of the list go on")


def run(settings: TeacherSettings | DistillSettings, session: Session) -> dict:
    """Do what the settings say, or find it done; returns the report.

    A finished run is read, an interrupted one goes on exactly, a missing teacher is trained first. Raises Problem.
    """
    folder = RunFolder(folder_of(settings))
    with lock(folder.path):
        folder.claim(settings)
        if folder.finished:
            say(f"finished before: {folder.path}")
            return reports.read(folder.path)
        check_files(settings, folder, session)
        if idle(settings):
            say(f"note: {', '.join(idle(settings))}: not used by this run")
        try:
            finder = functools.partial(find_teacher, settings, session)
            dataset, pool = session.open(), session.open_pool(settings)
            return Experiment(settings, folder, dataset, pool, session.signals, finder, session.stores).run()
        except RuntimeError as error:  # torch's own of a GPU, and of a CPU one that is told by its words alone
            if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
                raise
            raise Problem(f"device of '{folder.path}': out of memory ({str(error).splitlines()[0][:120]}); lower --batch-size "
                          "or --image-size") from None


def check_settings(settings) -> None:
    """Refuse, before data are read, names that cannot be."""
    models.architecture_of(student_of(settings))
    if isinstance(settings, DistillSettings):
        models.architecture_of(settings.distillation.teacher)
    tag = settings.output.tag
    if tag and slug(tag) != tag:
        raise Problem(f"tag '{tag}' in --tag: must be letters, digits, '.', '_' and '-', as it names a folder; try '{slug(tag)}'")
    device = pick_device(settings.training.device)
    if settings.training.compile and device.type != "cuda":
        raise Problem(f"compile in --compile: made for CUDA, and this run is on {device.type}, where it slows training down; "
                      "leave it out")


def check_files(settings, folder: RunFolder, session: Session) -> None:
    """Refuse, before pictures are decoded, data without an index, and weights that are missing, out of reach or do not fit."""
    session.read()
    session.read_pool(settings)
    network, wanted = settings.network, []
    if isinstance(settings, DistillSettings):
        file = settings.distillation.teacher_checkpoint
        if file is not None:
            session.load(Path(file), settings.distillation.teacher)
        elif not any(candidate.finished or candidate.begun for candidate in teacher_folders(settings)):
            wanted.append(settings.distillation.teacher)
    if not folder.begun and network.weights is not None:
        weights.read_state(Path(network.weights))
    elif not folder.begun:
        wanted.append(student_of(settings))
    for name in wanted if network.pretrained else ():
        models.require_weights(name)


def say_data(dataset: Dataset) -> None:
    """What is trained on, and what there is to know about it."""
    account = dataset.describe()
    sizes = ", ".join(f"{name} {size}" for name, size in account["parts"].items())
    say(f"data {account['name']}, split {account['split']}: {sizes}; {len(account['classes'])} classes; patients in two "
        f"parts {account['overlaps']['patients']}, identical files in two parts {account['overlaps']['files']}")
    for note in account["notes"]:
        say(f"note: {note}")
    if account["skipped_files"]:
        say(f"note: {account['skipped_files']} hidden files passed over")


def say_pool(pool: Pool) -> None:
    """What is seen without labels, and what was kept out of it."""
    found = pool.account
    say(f"unlabelled pictures: {found['images']} ({found['of_the_data_set']} of the data set, {found['of_unlabeled_dir']} of "
        f"--unlabeled-dir, of which {found['of_unknown_patients']} show unknown patients); dropped for the validation and "
        f"test part: {found['dropped_by_patient']} by patient, {found['dropped_by_file']} as identical files; "
        f"{found['copies']} copies left out")


def teacher_folders(settings: DistillSettings) -> list[RunFolder]:
    """Where a teacher may lie: under the student's --tag, then under none."""
    wanted = teacher_settings(settings)
    return [RunFolder(folder_of(config.replace(wanted, tag=tag))) for tag in dict.fromkeys((settings.output.tag, ""))]


def find_teacher(settings: DistillSettings, session: Session) -> tuple[trained.Trained, str, list[str]]:
    """(the teacher, where it comes from, remarks for the user): from a file, from a run's folder, or trained now.

    A missing one is trained under the student's own tag. Raises Problem where what is found does not fit the data.
    """
    how, dataset = settings.distillation, session.open()
    remarks = [text for text in (unusual(how.mode, how.teacher, how.student),) if text]
    if how.teacher_checkpoint is not None:
        found = session.load(Path(how.teacher_checkpoint), how.teacher)
        trained.refuse_overlap(found, dataset)
        if settings.data.labeled_fraction < 1:
            remarks.append("the teacher of --teacher-checkpoint may know labels that --labeled-fraction hides")
        return found, Path(how.teacher_checkpoint).name, remarks + trained.differences(found, dataset)
    wanted, own = teacher_settings(settings), teacher_folders(settings)[0]
    for folder in teacher_folders(settings):
        if not folder.finished:
            continue
        folder.forget()  # what a kill between the report and this left
        found = session.load(folder.model)
        unlike = trained.differences(found, dataset)
        if not unlike:
            recipe = changed(checkpoint.read_json(folder.settings), wanted, ("tag", *PLACES))
            return found, str(folder.path.relative_to(settings.output.out)), remarks + [f"teacher's {text}" for text in recipe]
        if folder.path == own.path:
            raise Problem(f"teacher in '{folder.path}': was trained on other data ({'; '.join(unlike)}); give another --tag to "
                          "train one beside it, or restore the data")
    say(f"no teacher in {own.path}: training it first")
    run(wanted, session)
    return session.load(own.model), str(own.path.relative_to(settings.output.out)), remarks
