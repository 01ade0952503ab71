"""What the settings of a run and the table of modes mean for a study.

The only file of this room that reads the table of modes.
"""

from typing import NamedTuple

from kd.config.resolve import GENERATION_WORD, resolve
from kd.methods import MODES, Origin

# Roles of networks that were trained on labels alone; every other role is a mode.
ALONE = "alone"
DEFECTIVE = "defective teacher"  # stopped early


class Meaning(NamedTuple):
    """What the settings of a run mean.

    role     a mode, or ALONE, or DEFECTIVE
    teacher  what its teachers are called together; empty for a network trained on labels alone
    unused   the settings that the run does not look at
    """

    role: str
    teacher: str
    student: str
    unused: frozenset[str]


def meaning_of(settings) -> Meaning:
    """The role, teacher and student of a run with these settings, and what it does not use."""
    plan = resolve(settings)
    if plan.distils:
        role = settings.distillation.mode
    else:
        role = ALONE if plan.stop_at is None else DEFECTIVE
    return Meaning(role, plan.teacher_name, plan.student, plan.unused)


def is_mode(role: str) -> bool:
    """Whether a role is a mode, so that there is a teacher; ALONE and DEFECTIVE are not."""
    return role in MODES


def shows_pool(role: str) -> bool:
    """Whether a role is a mode that goes through images without labels."""
    return is_mode(role) and any(phase.images == "pool" for phase in MODES[role].phases)


def mode_order(mode: str) -> int:
    """The place of a mode in the table of modes, for sorting."""
    return list(MODES).index(mode)


def thesis_pairs(mode: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(teachers, students) of the thesis, every teacher with every student; empty if none."""
    row = MODES[mode]
    return row.teachers, row.students


def stop_accuracy(mode: str) -> float | None:
    """The validation accuracy at which a mode's teachers stop; None where they train to the end."""
    return _origin(mode).stop_at


def teacher_role(mode: str) -> str:
    """The role of the runs that are a mode's teachers."""
    return ALONE if stop_accuracy(mode) is None else DEFECTIVE


def members(mode: str, teacher: str) -> list[str]:
    """The networks trained on labels that are a mode's `teacher` together.

    None where it is no such network: an untrained one, a distribution, a generation of a chain.
    """
    origin = _origin(mode)
    if not origin.trained or not origin.is_network or GENERATION_WORD in teacher:
        return []
    return teacher.split("+")


def teaches_itself(mode: str) -> bool:
    """Whether a mode's teacher is of the student's own architecture."""
    return _origin(mode).is_students_own


def teacher_flags(mode: str, teacher: str) -> list[str]:
    """The flags of distill.py that ask for a mode's teacher."""
    if teaches_itself(mode):
        _, _, generation = teacher.partition(GENERATION_WORD)
        return ["--generations", str(1 + int(generation or 0))]
    return ["--teacher", teacher] if _origin(mode).network == "teacher" else []


def _origin(mode: str) -> Origin:
    return MODES[mode].teacher
