"""One experiment from settings to report: lock, resume or skip, early checks, missing teacher first."""

import contextlib
import functools
from pathlib import Path

import torch

from kd import checkpoint, config, models, trained, weights
from kd.data.dataset import Dataset, open_dataset, read_index
from kd.data.index import slug
from kd.errors import Problem
from kd.experiment import Experiment
from kd.folder import RunFolder, changed, folder_of, student_of, teacher_settings
from kd.results import report as reports
from kd.runtime import StopSignals, lock, pick_device, say
from kd.settings import DistillSettings, TeacherSettings
from kd.strategies import unusual


def run(settings: TeacherSettings | DistillSettings, dataset: Dataset | None = None,
        signals: StopSignals | None = None) -> dict:
    """Do what the settings say, or find it done; returns the report.

    A finished run is read, an interrupted one goes on exactly, a missing teacher is trained first (with the data and the
    stop signals of the student that asked for it). Raises Problem.
    """
    check_settings(settings)
    folder = RunFolder(folder_of(settings))
    with contextlib.nullcontext(signals) if signals else StopSignals(settings.training.max_minutes) as signals, lock(folder.path):
        folder.claim(settings)
        if folder.finished:
            say(f"finished before: {folder.path}")
            return reports.read(folder.path)
        index = dataset.index if dataset else read_index(settings.data)
        check_files(settings, folder, index.classes)
        if dataset is None:
            dataset = open_dataset(settings.data, index, signals.leave)
            say_data(dataset)
        try:
            finder = functools.partial(find_teacher, settings, dataset, signals)
            return Experiment(settings, folder, dataset, signals, finder).run()
        except torch.OutOfMemoryError as error:
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
    pick_device(settings.training.device)


def check_files(settings, folder: RunFolder, classes: tuple[str, ...]) -> None:
    """Refuse, before pictures are decoded, files of weights that are missing, out of reach or do not fit."""
    network, wanted = settings.network, []
    if isinstance(settings, DistillSettings):
        file = settings.distillation.teacher_checkpoint
        if file is not None:
            trained.load_any(Path(file), settings.distillation.teacher, classes)
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


def teacher_folders(settings: DistillSettings) -> list[RunFolder]:
    """Where a teacher may lie: under the student's --tag, then under none."""
    wanted = teacher_settings(settings)
    return [RunFolder(folder_of(config.replace(wanted, tag=tag))) for tag in dict.fromkeys((settings.output.tag, ""))]


def find_teacher(settings: DistillSettings, dataset: Dataset, signals: StopSignals) -> tuple[trained.Trained, str, list[str]]:
    """(the teacher, where it comes from, remarks for the user): from a file, from a run's folder, or trained now.

    A missing one is trained under the student's own tag. Raises Problem where what is found does not fit the data.
    """
    how = settings.distillation
    remarks = [text for text in (unusual(how.mode, how.teacher, how.student),) if text]
    if how.teacher_checkpoint is not None:
        found = trained.load_any(Path(how.teacher_checkpoint), how.teacher, dataset.index.classes)
        trained.refuse_overlap(found, dataset)
        return found, Path(how.teacher_checkpoint).name, remarks + trained.differences(found, dataset)
    wanted, own = teacher_settings(settings), teacher_folders(settings)[0]
    for folder in teacher_folders(settings):
        if not folder.finished:
            continue
        folder.forget()  # what a kill between the report and this left
        found = trained.load(folder.model)
        unlike = trained.differences(found, dataset)
        if not unlike:
            recipe = changed(checkpoint.read_json(folder.settings), wanted, ("tag", "data_dir"))
            return found, str(folder.path.relative_to(settings.output.out)), remarks + [f"teacher's {text}" for text in recipe]
        if folder.path == own.path:
            raise Problem(f"teacher in '{folder.path}': was trained on other data ({'; '.join(unlike)}); give another --tag to "
                          "train one beside it, or restore the data")
    say(f"no teacher in {own.path}: training it first")
    run(wanted, dataset, signals)
    return trained.load(own.model), str(own.path.relative_to(settings.output.out)), remarks
