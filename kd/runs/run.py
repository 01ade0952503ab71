"""Experiments from settings to report: lock, resume or skip, early checks, missing teachers first;
several in one process.
"""

import contextlib
import functools
import gc
from pathlib import Path

import torch

from kd import models
from kd.config.plan import idle, refuse_few_classes, refuse_misfits, student_of, teachers_of
from kd.config.settings import DistillSettings, TeacherSettings
from kd.data.index import slug
from kd.reports import report as reports
from kd.runs.experiment import Experiment
from kd.runs.find import check_teachers, find_teachers
from kd.runs.finish import summary
from kd.runs.folder import RunFolder, folder_of
from kd.runs.session import Session
from kd.system import ranks
from kd.system.console import log
from kd.system.devices import pick_device
from kd.system.errors import Problem, Stopped, complain
from kd.system.locks import exclusive_lock
from kd.system.signals import StopSignals


def run_ranks(every: list[TeacherSettings] | list[DistillSettings]) -> None:
    """`run_all`, by this process alone or by all that torchrun started."""
    with ranks.process_group():
        run_all(every)


def run_all(every: list[TeacherSettings] | list[DistillSettings]) -> None:
    """Do all runs, one after the other, and print what came out.

    One that fails keeps no other from running.

    They may differ in anything but their data. Raises Problem, with the first code, after the last
    where any has failed.
    """
    for settings in every:
        check_settings(settings)
    failed = []
    with StopSignals(every[0].training.max_minutes) as signals:
        session = Session(every[0].data, signals)
        unfinished = [
            settings
            for settings in every
            if not ranks.main_rank_says(RunFolder(folder_of(settings)).finished)
        ]
        if len(every) > 1 and unfinished:  # what stops all of them is told once, and first
            check_each(unfinished, session)
            session.open()
            session.open_pool(unfinished[0])
        for settings in every:
            folder = RunFolder(folder_of(settings))
            try:
                log(summary(run(settings, session), folder))
            except Exception as error:
                if isinstance(error, Stopped) or len(every) == 1 or ranks.world_size() > 1:
                    raise
                failed.append((folder.path, complain(error)))
            gc.collect()  # a run's networks may hang in cycles: the next one needs their memory
    if failed:
        raise Problem(
            f"{len(failed)} of {len(every)} runs failed:"
            f" {', '.join(str(path) for path, _ in failed)}; see the lines above, mend that and run"
            " the same command again",
            failed[0][1],
        )


def check_each(unfinished: list, session: Session) -> None:
    """Tell early which runs of a list will fail for want of their files.

    Raises Problem where all will.
    """
    faults = []
    for settings in unfinished:
        try:
            check_files(settings, RunFolder(folder_of(settings)), session)
        except Problem as problem:
            faults.append(problem)
    if len(faults) == len(unfinished):
        raise faults[0]
    for problem in faults:
        log(f"warning: {problem}; the other runs of the list go on")


def run(settings: TeacherSettings | DistillSettings, session: Session) -> dict:
    """Do what the settings say, or find it done; returns the report.

    A finished run is read, an interrupted one goes on exactly, a missing teacher is trained first.
    Raises Problem.
    """
    folder = RunFolder(folder_of(settings))
    with exclusive_lock(folder.path) if ranks.is_main_rank() else contextlib.nullcontext():
        if ranks.is_main_rank():
            folder.claim(settings)
        ranks.barrier()
        if ranks.main_rank_says(folder.finished):
            log(f"finished before: {folder.path}")
            return reports.read(folder.path)
        check_files(settings, folder, session)
        if idle(settings):
            log(f"note: {', '.join(idle(settings))}: not used by this run")
        try:
            finder = functools.partial(find_teachers, settings, session, run)
            dataset, pool = session.open(), session.open_pool(settings)
            return Experiment(
                settings, folder, dataset, pool, session.signals, finder, session.stores
            ).run()
        except (
            RuntimeError
        ) as error:  # torch's own of a GPU, and of a CPU one that is told by its words alone
            if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(
                error
            ):
                raise
            raise Problem(
                f"device of '{folder.path}': out of memory ({str(error).splitlines()[0][:120]});"
                " lower --batch-size or --image-size"
            ) from None


def check_settings(settings) -> None:
    """Refuse, before data are read, names that cannot be."""
    models.architecture_of(student_of(settings))
    if isinstance(settings, DistillSettings):
        for name in teachers_of(settings):
            models.architecture_of(name)
        refuse_misfits(settings)
    tag = settings.output.tag
    if tag and slug(tag) != tag:
        raise Problem(
            f"tag '{tag}' in --tag: must be letters, digits, '.', '_' and '-', as it names a"
            f" folder; try '{slug(tag)}'"
        )
    device = pick_device(settings.training.device)
    if settings.training.sync_bn and device.type != "cuda":
        raise Problem(
            f"sync_bn in --sync-bn: PyTorch has it for GPUs only, and this run is on {device.type};"
            " leave it out"
        )
    if settings.training.sync_bn and ranks.world_size() == 1:
        log("note: --sync-bn: changes nothing on one rank; start several with torchrun")
    if ranks.world_size() > 1 and settings.training.batch_size < 2 * ranks.world_size():
        raise Problem(
            f"batch_size '{settings.training.batch_size}' in --batch-size: fewer than two images a"
            f" step for each of {ranks.world_size()} ranks; give more, or start fewer"
        )
    if settings.training.compile and device.type != "cuda":
        raise Problem(
            f"compile in --compile: made for CUDA, and this run is on {device.type}, where it slows"
            " training down; leave it out"
        )


def check_files(settings, folder: RunFolder, session: Session) -> None:
    """Refuse, before pictures are decoded, data without an index, and weights that are missing, out
    of reach or do not fit.
    """
    refuse_few_classes(settings, len(session.read().classes))
    session.read_pool(settings)
    network, wanted = settings.network, []
    if isinstance(settings, DistillSettings):
        wanted += check_teachers(settings, session)
    begun = ranks.main_rank_says(folder.begun)
    if not begun and network.weights is not None:
        models.read_state(Path(network.weights))
    elif not begun:
        wanted.append(student_of(settings))
    for name in wanted if network.pretrained else ():
        models.require_weights(name)
