"""Refusals that need more than the settings: timm, a device, ranks, the data, files of weights.

All of them come before any teacher is trained.
"""

from pathlib import Path

from kd import models
from kd.config.layout import RunPaths
from kd.config.plan import Plan
from kd.runs.session import Session
from kd.system import ranks
from kd.system.console import log
from kd.system.devices import pick_device
from kd.system.errors import Problem
from kd.teachers.find import has_begun


def check_machine(plan: Plan) -> None:
    """Refuse, before data are read, networks that timm lacks and what this machine cannot do."""
    models.architecture_of(plan.student)
    for teacher in plan.teachers:
        models.architecture_of(teacher.name)
    training = plan.settings.training
    device, world = pick_device(training.device), ranks.world_size()
    if training.sync_bn and device.type != "cuda":
        raise Problem(
            "sync_bn in --sync-bn: PyTorch has it for GPUs only, and this run is on"
            f" {device.type}; leave it out"
        )
    if training.sync_bn and world == 1:
        log("note: --sync-bn: changes nothing on one rank; start several with torchrun")
    if world > 1 and training.batch_size < 2 * world:
        raise Problem(
            f"batch_size '{training.batch_size}' in --batch-size: fewer than two images a step for"
            f" each of {world} ranks; give more, or start fewer"
        )
    if training.compile and device.type != "cuda":
        raise Problem(
            f"compile in --compile: made for CUDA, and this run is on {device.type}, where it slows"
            " training down; leave it out"
        )


def check_inputs(plan: Plan, session: Session) -> None:
    """Refuse data without an index, and weights that are missing, out of reach or do not fit.

    It comes before images are decoded. Inputs that were found sound are not checked again.
    """
    if plan.folder in session.checked:
        return
    _check_classes(plan, len(session.read().classes))
    session.read_pool(plan)
    _check_files(plan, session)
    network = plan.settings.network
    fresh = _fresh_teachers(plan)
    begun = ranks.main_rank_says(RunPaths(plan.folder).begun)
    if not begun and network.weights is not None:
        models.read_state(Path(network.weights))
    elif not begun:
        fresh.append(plan.student)
    if network.pretrained:
        for name in fresh:
            models.require_weights(name)
    session.checked.add(plan.folder)


def _check_classes(plan: Plan, classes: int) -> None:
    """Raise Problem where there are too few classes for a kind of knowledge to say anything."""
    for name, kind in sorted(plan.kinds.items()):
        if classes < kind.least_classes:
            raise Problem(
                f"knowledge '{name}' in --knowledge: needs {kind.least_classes} classes, the data"
                f" have {classes}: of a single other class there is nothing to tell; give"
                " --knowledge kd"
            )


def _check_files(plan: Plan, session: Session) -> None:
    """Raise Problem (4) for a file of a teacher, or of a teacher's teacher, that does not fit."""
    for teacher in plan.teachers:
        if teacher.file is not None:
            classes = session.read().classes
            session.teachers.load_weights(Path(teacher.file), teacher.name, classes)
        elif teacher.plan is not None:
            _check_files(teacher.plan, session)


def _fresh_teachers(plan: Plan) -> list[str]:
    """The networks among a plan's teachers, and theirs, whose training has yet to begin."""
    fresh = []
    for teacher in plan.teachers:
        if not has_begun(teacher):
            fresh += [teacher.name, *_fresh_teachers(teacher.plan)]
    return fresh
