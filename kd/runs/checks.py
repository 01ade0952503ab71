"""Checks that need more than the settings: timm, the device, ranks, the data, files of weights.

All of them run before any teacher is trained.
"""

from pathlib import Path

from kd import models
from kd.config.layout import RunPaths
from kd.config.lengths import refuse_long_names
from kd.config.plan import Plan
from kd.data.dataset import refuse_unused
from kd.data.index import Index
from kd.reports import evidence
from kd.runs.session import Session
from kd.system import ranks, weights
from kd.system.console import log
from kd.system.devices import pick_device
from kd.system.errors import Problem
from kd.teachers.find import has_begun


def check_machine(plan: Plan) -> None:
    """Check the networks and the machine, before any data are read.

    Raises Problem if a name or a path is too long for the file system, if timm does not have a
    network of the plan, or if the device or the number of ranks does not support a setting.
    """
    refuse_long_names(plan)
    models.architecture_of(plan.student)
    for teacher in plan.teachers:
        models.architecture_of(teacher.name)
    training = plan.settings.training
    device, world = pick_device(training.device), ranks.world_size()
    if training.sync_bn and device.type != "cuda":
        raise Problem(
            f"--sync-bn works on GPUs only, but this run is on {device.type}. Remove --sync-bn."
        )
    if training.sync_bn and world == 1:
        log("note: --sync-bn has no effect on one rank. Start several ranks with torchrun.")
    if training.optimizer == "adamw" and not training.weight_decay:
        log("note: --optimizer adamw equals adam without a weight decay. Set --weight-decay.")
    if world > 1 and training.batch_size < 2 * world:
        raise Problem(
            f"--batch-size {training.batch_size} is too small for {world} ranks: each rank needs at"
            " least two images per step. Use a larger --batch-size, or start fewer ranks."
        )
    if training.compile and device.type != "cuda":
        raise Problem(
            f"--compile is for CUDA only, but this run is on {device.type}, where it would slow"
            " training down. Remove --compile."
        )


def check_inputs(plan: Plan, session: Session) -> None:
    """Check that the data can be indexed and that all weights can be loaded or downloaded.

    Runs before any image is decoded. The inputs of a plan that passed are not checked again. Raises
    Problem if an input is missing, unavailable or does not fit.
    """
    if plan.folder in session.checked:
        return
    _check_fits(plan, session.read(plan.settings.data))
    session.read_pool(plan)
    _check_files(plan, session)
    network = plan.settings.network
    fresh = _fresh_teachers(plan)
    begun = ranks.main_rank_says(RunPaths(plan.folder, plan.state_folder).begun)
    if not begun and network.weights is not None:
        weights.read(Path(network.weights))
    elif not begun:
        fresh.append(plan.student)
    if network.pretrained:
        for name in fresh:
            models.require_weights(name)
    session.checked.add(plan.folder)


def check_settings(plans: list[Plan], session: Session) -> None:
    """Check that the settings of a run can be valid, before it has a folder.

    A mistyped command then leaves nothing behind. Raises Problem if the settings name no data, or
    do not fit the data that they name. Data that cannot be read raise nothing here, because their
    disk may be missing only for a while: the run fails, and its folder says why. A run that has a
    folder is not checked.
    """
    if ranks.main_rank_says(any(RunPaths(plan.folder).settings.is_file() for plan in plans)):
        return
    data = plans[0].settings.data
    refuse_unused(data)
    try:
        index = session.read(data)
    except Exception:  # the run will raise and record it
        if data.data_dir is None and data.table is None:
            raise
        return
    for plan in plans:
        _check_fits(plan, index)


def _check_fits(plan: Plan, index: Index) -> None:
    """Raise Problem if settings do not fit the classes or columns of the data.

    For example, a kind of knowledge may need more classes than there are.
    """
    evidence.check(index, plan.settings.output)
    classes = len(index.classes)
    for name, kind in sorted(plan.kinds.items()):
        if classes < kind.least_classes:
            raise Problem(
                f"--knowledge {name} needs at least {kind.least_classes} classes, but the data set"
                f" has {classes}: a single other class has no distribution to match. Use"
                " --knowledge kd."
            )


def _check_files(plan: Plan, session: Session) -> None:
    """Raise Problem (4) if a file of a teacher, or of a teacher's teacher, does not fit."""
    for teacher in plan.teachers:
        if teacher.file is not None:
            classes = session.read(plan.settings.data).classes
            session.teachers.load_weights(Path(teacher.file), teacher.name, classes)
        elif teacher.plan is not None:
            _check_files(teacher.plan, session)


def _fresh_teachers(plan: Plan) -> list[str]:
    """Return the names of the teachers, and of their teachers, whose training has not started."""
    fresh = []
    for teacher in plan.teachers:
        if not has_begun(teacher):
            fresh += [teacher.name, *_fresh_teachers(teacher.plan)]
    return fresh
