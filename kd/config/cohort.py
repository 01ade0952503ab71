"""Students that are trained at once: their names, their order, their seeds and their folders.

A run trains one student, or in some modes (`Mode.trains_several`) all that --student joins by +.
"""

import re

from kd.config import parsing
from kd.config.seeds import SAME_NAME, another_seed
from kd.config.settings import DistillSettings
from kd.methods import MODES, Mode
from kd.system.errors import Problem

STUDENT_WORD = "-student"


def student_names(settings: DistillSettings) -> list[str]:
    """Return the names of the students that a run trains at once, usually a single one."""
    names = settings.distillation.student
    return names.split("+") if MODES[settings.distillation.mode].trains_several else [names]


def own_name(settings: DistillSettings) -> str:
    """Return the name of the student that the settings are of."""
    return student_names(settings)[_place(settings)]


def peer_names(settings: DistillSettings) -> list[str]:
    """Return the names of the other students, in order.

    One that several students have is followed by a number: `resnet18-student2`.
    """
    names = student_names(settings)
    return [_numbered(names, place) for place in range(len(names)) if place != _place(settings)]


def without_numbers(name: str) -> list[str]:
    """Return the names of the networks behind the joint name of `peer_names`."""
    return [re.sub(f"{STUDENT_WORD}[0-9]+$", "", one) for one in name.split("+")]


def own_seed(settings: DistillSettings) -> int:
    """Return the seed of a student's initial weights and dropout.

    It is --seed, as for the same network alone. With several students of one name, each but the
    first has another seed, so that their weights differ from the start.
    """
    number = _number(student_names(settings), _place(settings))
    seed = settings.training.seed
    return seed if number == 1 else another_seed(seed, SAME_NAME + number)


def in_order(settings: DistillSettings) -> DistillSettings:
    """Return the settings with the students sorted by name.

    Their order changes nothing, so a run is recorded in the same way for every order.
    """
    names = "+".join(sorted(student_names(settings)))
    given = settings.distillation.student
    return settings if names == given else parsing.replace(settings, student=names)


def each(settings: DistillSettings) -> list[DistillSettings]:
    """Return the settings of each of the students that are trained at once."""
    numbers = range(1, 1 + len(student_names(settings)))
    if len(numbers) == 1:
        return [settings]
    return [parsing.replace(settings, student_number=number) for number in numbers]


def refuse_students(settings: DistillSettings, mode: Mode) -> None:
    """Raise Problem for a number of students that the mode does not train at once."""
    how = settings.distillation
    if not mode.trains_several:
        if "+" in how.student:
            several = [f"--mode {name}" for name, row in MODES.items() if row.trains_several]
            raise Problem(
                f"--student {how.student} joins several students, which --mode {how.mode} does not"
                f" train at once. Use {' or '.join(several)}, or one run for each: --student"
                f" {how.student.replace('+', ' ')}."
            )
        return
    names = how.student.split("+")
    if len(names) == 1:
        joined = how.student.replace(",", "+") if "," in how.student else f"{how.student}+NAME"
        raise Problem(
            f"--mode {how.mode} needs at least two students, which learn from each other, but"
            f" --student names only {how.student}. Use --student {joined}, or"
            " train_teacher.py for a network alone."
        )
    if how.student_number > len(names):
        raise Problem(
            f"--student-number {how.student_number} does not exist: --student names {len(names)}."
            f" Use a number from 1 to {len(names)}."
        )


def _place(settings: DistillSettings) -> int:
    """Return the position of the settings' student among those that are trained at once."""
    several = MODES[settings.distillation.mode].trains_several
    return settings.distillation.student_number - 1 if several else 0


def _number(names: list[str], place: int) -> int:
    """Return the number of a student among those of its name, from 1."""
    return names[: place + 1].count(names[place])


def _numbered(names: list[str], place: int) -> str:
    """Return the name of a student, with its number if there are several of this name."""
    name = names[place]
    return f"{name}{STUDENT_WORD}{_number(names, place)}" if names.count(name) > 1 else name
