"""Where a run's teachers come from: files, finished runs, training now, or nowhere but a seed."""

from collections.abc import Callable
from pathlib import Path

from kd import models
from kd.config import parsing
from kd.config.plan import another_seed, origin_of, teacher_of, teachers_of, unused
from kd.config.settings import DistillSettings
from kd.methods import unusual
from kd.runs.folder import PLACES, RunFolder, changed, folder_of, teacher_settings
from kd.runs.session import Session
from kd.system import ranks
from kd.system.console import log
from kd.system.errors import BAD_CHECKPOINT, Problem
from kd.system.files import read_json
from kd.teachers import model_file
from kd.teachers.ensemble import Member
from kd.teachers.model_file import Trained

UNTRAINED = 10**6  # above every generation, which draws a student's weights


def teacher_folders(settings: DistillSettings, name: str) -> list[RunFolder]:
    """Where a teacher may lie: under the student's --tag, then under none; a generation of the same
    chain under its tag alone.
    """
    wanted, tag = teacher_settings(settings, name), settings.output.tag
    tags = (tag,) if isinstance(wanted, DistillSettings) else (tag, "")
    return [RunFolder(folder_of(parsing.replace(wanted, tag=tag))) for tag in dict.fromkeys(tags)]


def checkpoints_of(settings: DistillSettings) -> list[str]:
    """The files of --teacher-checkpoint, one for each teacher, where the mode takes them."""
    return (
        [] if "teacher_checkpoint" in unused(settings) else settings.distillation.teacher_checkpoint
    )


def check_teachers(settings: DistillSettings, session: Session) -> list[str]:
    """Refuse teachers' files that do not fit, before pictures are decoded; the networks whose
    training has yet to begin.
    """
    names, files = teachers_of(settings), checkpoints_of(settings)
    if files:
        for name, file in zip(names, files, strict=True):
            session.load(Path(file), name)  # of a chain the first generation's teacher
        return []
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise Problem(
            f"teacher '{sorted(twice)[0]}' in --teacher: named twice, it is the same network twice;"
            " give other names, or files of differently trained ones with --teacher-checkpoint"
        )
    if not origin_of(settings).trained:
        return []
    return [
        name
        for name in names
        if not any(
            ranks.main_rank_says(folder.finished or folder.begun)
            for folder in teacher_folders(settings, name)
        )
    ]


def find_teachers(
    settings: DistillSettings, session: Session, run: Callable
) -> tuple[list[Member], list[str]]:
    """(the networks that teach, remarks for the user): from files, from runs' folders, or trained
    now by `run`.

    A missing one is trained under the student's own tag. Raises Problem where what is found does
    not fit the data.
    """
    remarks = [
        unusual(settings.distillation.mode, teacher_of(settings), settings.distillation.student)
    ]
    names, files = teachers_of(settings), checkpoints_of(settings)
    if files and not isinstance(teacher_settings(settings, names[0]), DistillSettings):
        members = [
            _from_file(Path(file), name, settings, session)
            for name, file in zip(names, files, strict=True)
        ]
        if settings.data.labeled_fraction < 1:
            remarks.append(
                "a teacher of --teacher-checkpoint may know labels that --labeled-fraction hides"
            )
    elif not origin_of(settings).trained:
        members = [_untrained(name, settings.training.seed, session) for name in names]
    else:
        members = [_from_run(name, settings, session, run) for name in names]
    session.keep([member.trained for member in members])
    return members, [text for text in remarks if text]


def _from_file(file: Path, name: str, settings: DistillSettings, session: Session) -> Member:
    found, dataset = session.load(file, name), session.open()
    unlike = model_file.differences(found, dataset)
    model_file.refuse_overlap(found, dataset)
    foreign = model_file.foreign(found, dataset)
    if foreign and not settings.distillation.allow_foreign_teacher:
        raise Problem(
            f"teacher '{file}' in --teacher-checkpoint: was trained on other data"
            f" ({'; '.join(foreign)}); give --allow-foreign-teacher if that is meant",
            BAD_CHECKPOINT,
        )
    return Member(name, found, file.name, unlike)


def _untrained(name: str, seed: int, session: Session) -> Member:
    network = models.build(name, session.read().classes, seed=another_seed(seed, UNTRAINED))
    return Member(
        name,
        Trained(network, None, model_file.state_hash(network.module.state_dict())),
        "never trained",
        [],
    )


def _from_run(name: str, settings: DistillSettings, session: Session, run: Callable) -> Member:
    dataset, out = session.open(), settings.output.out
    wanted, folders = teacher_settings(settings, name), teacher_folders(settings, name)
    for folder in folders:
        if not ranks.main_rank_says(folder.finished):
            continue
        folder.forget()  # what a kill between the report and this left
        found = session.load(folder.model)
        unlike = model_file.differences(found, dataset)
        if not unlike:
            recipe = changed(read_json(folder.settings), wanted, ("tag", *PLACES))
            return Member(
                name,
                found,
                str(folder.path.relative_to(out)),
                [f"teacher's {text}" for text in recipe],
            )
        if folder.path == folders[0].path:
            raise Problem(
                f"teacher in '{folder.path}': was trained on other data ({'; '.join(unlike)}); give"
                " another --tag to train one beside it, or restore the data"
            )
    log(f"no teacher in {folders[0].path}: training it first")
    run(wanted, session)
    return Member(name, session.load(folders[0].model), str(folders[0].path.relative_to(out)), [])
