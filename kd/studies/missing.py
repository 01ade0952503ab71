"""Empty cells of a table and the commands that fill them."""

import shlex

from kd.config.layout import RunPaths, out_of
from kd.config.training_settings import AUGMENTATIONS
from kd.runs.ending import FAILED, RUN_DIVERGED, TEACHER_DIVERGED
from kd.studies.modes import (
    ALONE,
    DEFECTIVE,
    is_mode,
    members,
    teacher_flags,
    teacher_role,
    trained_at_once,
)
from kd.studies.runs import Cell, Run
from kd.studies.study import Study
from kd.studies.unfinished import RUNNING, Unfinished
from kd.system.errors import printable


def missing_commands(study: Study, mode: str, tag: str) -> list[str]:
    """Return the commands that fill a table's empty cells, for every seed that was used.

    Teachers come first, then networks trained alone, then students. A run that has begun gets its
    `begun_command`, whatever its seed. A cell whose folder has a run with other data of the teacher
    needs another tag, and so another table. Students that are trained at once share a command.
    """
    commands, at_once = [], set()
    for role, teacher, student in _wanted(study, mode, tag):
        there = study.at(role, tag, teacher, student)
        begun = {run.seed: run for run in study.unfinished_at(role, tag, teacher, student)}
        for seed in sorted({*study.seeds, *begun} - there.keys()):
            cell = Cell(role, tag, teacher, student, seed)
            names = (role, seed, *_students(cell))
            if len(_students(cell)) > 1 and names in at_once:
                continue
            at_once.add(names)
            if seed in begun:
                commands.append(begun_command(study, begun[seed]))
            elif not study.is_taken(cell):
                commands.append(fill_command(study, cell))
    return commands


def begun_command(study: Study, run: Unfinished) -> str:
    """Return the command that continues an unfinished run with its own settings.

    After a failure, the cause is a comment behind it. A run that would diverge again, or that is
    still running, has only a comment, which says what to change.
    """
    blocked = run.state == TEACHER_DIVERGED and not _teachers_finished(study, run)
    if blocked or run.state in (RUN_DIVERGED, RUNNING):
        return f"# {run.describe()}"
    script = "distill.py" if is_mode(run.role) else "train_teacher.py"
    words = ["python", script, "--config", str(RunPaths(run.folder).settings)]
    if run.settings["max_minutes"] is not None:
        words += ["--max-minutes", "none"]
    command = shlex.join([*words, "--out", str(out_of(run.folder))])
    if run.state == FAILED:
        command += f"  # {run.state}: {printable(run.message)}"
    return command


def _teachers_finished(study: Study, run: Unfinished) -> bool:
    """Return whether the networks that teach in a run have been trained since it ended.

    A generation of a chain counts as not trained.
    """
    names = members(run.role, run.teacher)
    role = teacher_role(run.role)
    return bool(names) and all(run.seed in study.at(role, run.tag, "", name) for name in names)


def _wanted(study: Study, mode: str, tag: str) -> list[tuple[str, str, str]]:
    """Return (role, teacher, student) of all runs that a table needs."""
    teachers, students = study.pairs(mode, tag)
    given = set()  # teachers that were loaded from a file
    for run in study.begun_in(mode, tag):
        if run.settings.get("teacher_checkpoint"):
            given.add(run.teacher)
    wanted = []
    for teacher in teachers:
        if teacher not in given:
            wanted += [(teacher_role(mode), "", name) for name in members(mode, teacher)]
    wanted += [(ALONE, "", student) for student in students]
    wanted += [(mode, teacher, student) for teacher, student in study.cells(mode, tag)]
    return list(dict.fromkeys(wanted))


def fill_command(study: Study, cell: Cell) -> str:
    """Return the command for a run: the settings of the most similar run, and what differs.

    The settings of a tag are those of its own runs, even if none of them is finished.
    """
    every = [*study.runs.values(), *study.unfinished]
    like = min(every, key=lambda run: _distance(run, cell))
    words = ["--config", str(RunPaths(like.folder).settings)]
    if is_mode(cell.role):
        students = "+".join(_students(cell))
        names = [*teacher_flags(cell.role, cell.teacher), "--student", students]
        words = ["distill.py", *words, "--mode", cell.role, *names]
        for key, value in study.teachers_data(cell).items():
            if like.settings.get(key) != value:
                words += [_flag(key), "none" if value is None else str(value)]
    else:
        words = ["train_teacher.py", *words, "--model", cell.student, *_views_flags(like)]
    if cell.role == DEFECTIVE and like.role != DEFECTIVE:
        words += ["--stop-at-val-accuracy", "0.5"]
    for key in _not_carried_over(like, cell):
        words += [_flag(key), "none"]
    if like.tag != cell.tag:
        words += ["--tag", cell.tag]
    out = str(out_of(like.folder))
    return shlex.join(["python", *words, "--seed", str(cell.seed), "--out", out])


def _views_flags(like: Run | Unfinished) -> list[str]:
    """Return the flag that drops those parts of views which only the mode of a run has, if any."""
    given = like.settings["augment_without"]
    kept = [part for part in given if part in AUGMENTATIONS[like.settings["augment"]]]
    return [] if kept == given else [_flag("augment_without"), *(kept or ["none"])]


def _students(cell: Cell) -> list[str]:
    """Return the names of the students that the run of a cell trains at once."""
    return trained_at_once(cell.role, cell.teacher, cell.student) if is_mode(cell.role) else []


def _flag(key: str) -> str:
    return "--" + key.replace("_", "-")


def _distance(run: Run | Unfinished, cell: Cell) -> tuple:
    """Return the distance of a run from a cell, with the most important difference first.

    That is the tag: the runs of a tag have settings of their own, whatever their role.
    """
    return (
        run.tag != cell.tag,
        is_mode(run.role) != is_mode(cell.role),
        run.role != cell.role,
        isinstance(run, Unfinished),
        run.student != cell.student,
        run.seed != cell.seed,
    )


def _not_carried_over(like: Run | Unfinished, cell: Cell) -> list[str]:
    """Return the settings that belong to one run only and that another cell must not inherit."""
    # train_teacher.py skips the settings of teachers, and does not have their flags.
    other_teacher = is_mode(cell.role) and like.teacher != cell.teacher
    foreign = {
        "stop_at_val_accuracy": cell.role == ALONE,
        "teacher_checkpoint": other_teacher,
        "teacher_weights": other_teacher,
        "weights": like.student != cell.student,
        "max_minutes": True,
    }
    return [key for key, own in foreign.items() if own and like.settings.get(key) not in (None, [])]
