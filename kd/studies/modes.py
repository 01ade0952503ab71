"""Meaning of a run's settings and of the table of modes for a study.

This is the only file in kd/studies that reads the table of modes.
"""

from typing import NamedTuple

from kd.config.resolve import GENERATION_WORD, resolve
from kd.methods import MODES, Origin

# Roles of networks that were trained on labels only. Every other role is a mode.
ALONE = "alone"
DEFECTIVE = "defective teacher"  # stopped early


class Meaning(NamedTuple):
    """Meaning of the settings of a run.

    role     a mode, or ALONE, or DEFECTIVE
    teacher  the joint name of its teachers; empty for a network trained on labels only
    student  the name of the trained network
    unused   the settings that the run does not use
    """

    role: str
    teacher: str
    student: str
    unused: frozenset[str]


def meaning_of(settings) -> Meaning:
    """Return the meaning of the settings of a run: its role, teacher, student, unused settings."""
    plan = resolve(settings)
    if plan.distils:
        role = settings.distillation.mode
    else:
        role = ALONE if plan.stop_at is None else DEFECTIVE
    return Meaning(role, plan.teacher_name, plan.student, plan.unused)


class Cell(NamedTuple):
    """The place of a run in the tables.

    `role` is a mode, ALONE or DEFECTIVE. `teacher` is empty for the latter two.
    """

    role: str
    tag: str
    teacher: str
    student: str
    seed: int


class InCell:
    """A run with a `cell`, whose fields are its own, too."""

    cell: Cell

    @property
    def role(self) -> str:
        return self.cell.role

    @property
    def tag(self) -> str:
        return self.cell.tag

    @property
    def teacher(self) -> str:
        return self.cell.teacher

    @property
    def student(self) -> str:
        return self.cell.student

    @property
    def seed(self) -> int:
        return self.cell.seed


def cell_of(settings) -> Cell:
    """Return the place of a run with these settings in the tables."""
    own = meaning_of(settings)
    return Cell(own.role, settings.output.tag, own.teacher, own.student, settings.training.seed)


def is_mode(role: str) -> bool:
    """Return whether a role is a mode, which has a teacher. ALONE and DEFECTIVE are not modes."""
    return role in MODES


def shows_pool(role: str) -> bool:
    """Return whether a role is a mode that uses images without labels."""
    return is_mode(role) and any(phase.images == "pool" for phase in MODES[role].phases)


def mode_order(mode: str) -> int:
    """Return the position of a mode in the table of modes, for sorting."""
    return list(MODES).index(mode)


def thesis_pairs(mode: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (teachers, students) of the thesis for a mode, empty if there are none.

    Every teacher is paired with every student.
    """
    row = MODES[mode]
    return row.teachers, row.students


def stop_accuracy(mode: str) -> float | None:
    """Return the validation accuracy at which a mode's teachers stop, or None if they never do."""
    return _origin(mode).stop_at


def teacher_role(mode: str) -> str:
    """Return the role of the runs that are a mode's teachers."""
    return ALONE if stop_accuracy(mode) is None else DEFECTIVE


def members(mode: str, teacher: str) -> list[str]:
    """Return the networks trained on labels that together form a mode's `teacher`.

    Empty if the teacher is an untrained network, a distribution or a generation of a chain.
    """
    origin = _origin(mode)
    if not origin.trained or not origin.is_network or GENERATION_WORD in teacher:
        return []
    return teacher.split("+")


def teaches_itself(mode: str) -> bool:
    """Return whether a mode's teacher has the student's own architecture."""
    return _origin(mode).is_students_own


def has_network(mode: str) -> bool:
    """Return whether a mode's teacher is a network, rather than a distribution."""
    return _origin(mode).is_network


def teacher_flags(mode: str, teacher: str) -> list[str]:
    """Return the flags of distill.py that select a mode's teacher."""
    if teaches_itself(mode):
        _, _, generation = teacher.partition(GENERATION_WORD)
        return ["--generations", str(1 + int(generation or 0))]
    return ["--teacher", teacher] if _origin(mode).network == "teacher" else []


def _origin(mode: str) -> Origin:
    return MODES[mode].teacher
