"""Empty cells of a table and the commands that fill them."""

import shlex

from kd.config.layout import RunPaths, out_of
from kd.studies.modes import ALONE, DEFECTIVE, is_mode, members, teacher_flags, teacher_role
from kd.studies.runs import Cell, Run
from kd.studies.study import Study


def missing_commands(study: Study, mode: str, tag: str) -> list[str]:
    """Return the commands that fill a table's empty cells, for every seed that was used.

    Teachers come first, then networks trained alone, then students.
    """
    commands = []
    for role, teacher, student in _wanted(study, mode, tag):
        there = study.at(role, tag, teacher, student)
        for seed in study.seeds:
            if seed not in there:
                commands.append(fill_command(study, Cell(role, tag, teacher, student, seed)))
    return commands


def _wanted(study: Study, mode: str, tag: str) -> list[tuple[str, str, str]]:
    """Return (role, teacher, student) of all runs that a table needs."""
    teachers, students = study.pairs(mode, tag)
    given = set()  # teachers that were loaded from a file
    for run in study.students_of(mode, tag):
        if run.report["settings"].get("teacher_checkpoint"):
            given.add(run.teacher)
    wanted = []
    for teacher in teachers:
        if teacher not in given:
            wanted += [(teacher_role(mode), "", name) for name in members(mode, teacher)]
    wanted += [(ALONE, "", student) for student in students]
    wanted += [(mode, teacher, student) for teacher, student in study.cells(mode, tag)]
    return list(dict.fromkeys(wanted))


def fill_command(study: Study, cell: Cell) -> str:
    """Return the command for a run: the settings of the most similar run, and what differs."""
    like = min(study.runs.values(), key=lambda run: _distance(run, cell))
    words = ["--config", str(RunPaths(like.folder).settings)]
    if is_mode(cell.role):
        names = [*teacher_flags(cell.role, cell.teacher), "--student", cell.student]
        words = ["distill.py", *words, "--mode", cell.role, *names]
    else:
        words = ["train_teacher.py", *words, "--model", cell.student]
    if cell.role == DEFECTIVE and like.role != DEFECTIVE:
        words += ["--stop-at-val-accuracy", "0.5"]
    for key in _not_carried_over(like, cell):
        words += ["--" + key.replace("_", "-"), "none"]
    if like.tag != cell.tag:
        words += ["--tag", cell.tag]
    out = str(out_of(like.folder))
    return shlex.join(["python", *words, "--seed", str(cell.seed), "--out", out])


def _distance(run: Run, cell: Cell) -> tuple:
    """Return the distance of a run from a cell, with the most important difference first."""
    return (
        is_mode(run.role) != is_mode(cell.role),
        run.role != cell.role,
        run.tag != cell.tag,
        run.student != cell.student,
        run.seed != cell.seed,
    )


def _not_carried_over(like: Run, cell: Cell) -> list[str]:
    """Return the settings that belong to one run only and that another cell must not inherit."""
    other_teacher = like.teacher != cell.teacher
    foreign = {
        "stop_at_val_accuracy": cell.role == ALONE,
        "teacher_checkpoint": other_teacher,
        "teacher_weights": other_teacher,
        "weights": like.student != cell.student,
        "max_minutes": True,
    }
    settings = like.report["settings"]
    return [key for key, own in foreign.items() if own and settings.get(key) not in (None, [])]
