"""Meaning of a run's settings and of the table of modes for a study.

This is the only file in kd/studies that reads the table of modes.
"""

import re
from typing import NamedTuple

from kd.config import cohort
from kd.config.plan import PhasePlan
from kd.config.resolve import GENERATION_WORD, resolve
from kd.methods import MODES, Origin

# Roles of networks that were trained on labels only. Every other role is a mode.
ALONE = "alone"
DEFECTIVE = "defective teacher"  # stopped early
# What `words_on_teachers` in kd/config/teacher_data.py adds to the name of a teacher.
_WORDS = re.compile(r" \(((all labels|\S+ % of the labels)?(, )?(\d+ px)?)\)$")


class Meaning(NamedTuple):
    """Meaning of the settings of a run.

    role     a mode, or ALONE, or DEFECTIVE
    teacher  the joint name of its teachers, with what their data have of their own, for example
             `a+b (all labels, 224 px)`; empty for a network trained on labels only
    student  the name of the trained network
    unused   the settings that the run does not use
    size     the size of the images that its teachers see
    """

    role: str
    teacher: str
    student: str
    unused: frozenset[str]
    size: int


def meaning_of(settings) -> Meaning:
    """Return the meaning of the settings of a run: its role, teacher, student, unused settings."""
    plan = resolve(settings)
    if plan.distils:
        role = settings.distillation.mode
    else:
        role = ALONE if plan.stop_at is None else DEFECTIVE
    teacher = plan.teacher_name + (f" ({plan.teacher_words})" if plan.teacher_words else "")
    return Meaning(role, teacher, plan.student, plan.unused, plan.teacher_data.image_size)


def method_of(settings) -> dict | None:
    """Return how a run distils, as plain values; None for a network trained on labels only.

    Its keys are `mode`, `teacher` (its origin, in words), `source` (arXiv number), `alpha`,
    `temperatures` and `phases`. A phase has a `name`, the `images` that it shows, whether it reads
    `labels`, its learning rate `lr`, and for each kind of `knowledge` what is transferred (`what`),
    where (`location`), by which loss (`transfer`), and its `weight` and `options`.
    """
    plan = resolve(settings)
    if not plan.distils:
        return None
    own = MODES[plan.mode]
    return {
        "mode": plan.mode,
        "teacher": own.teacher.words,
        "source": own.source,
        "alpha": plan.alpha,
        "temperatures": list(plan.temperatures),
        "phases": [_phase(phase) for phase in plan.phases],
    }


def _phase(phase: PhasePlan) -> dict:
    knowledge = {}
    for name, kind in phase.knowledge.kinds.items():
        knowledge[name] = {
            "what": kind.what,
            "location": kind.location,
            "transfer": kind.transfer,
            "weight": phase.knowledge.weights[name],
            "options": phase.knowledge.options.get(name, {}),
        }
    images = "all images without their labels" if phase.shows_pool else "labelled train split"
    if phase.half_labelled:
        images = "batches of which one half is labelled, the other of all images without labels"
    return {
        "name": phase.name,
        "images": images,
        "labels": phase.reads_labels,
        "lr": phase.lr,
        "knowledge": knowledge,
    }


def without_words(teacher: str) -> str:
    """Return the joint name of teachers without the words on their data."""
    return _WORDS.sub("", teacher)


def words_of(teacher: str) -> str:
    """Return the words on the data of teachers, e.g. `all labels`; empty if there are none."""
    found = _WORDS.search(teacher)
    return found[1] if found else ""


class Way(NamedTuple):
    """A mode and the words on the data of its teachers. Only runs of one way are averaged."""

    mode: str
    words: str

    @property
    def name(self) -> str:
        return f"{self.mode}, teacher with {self.words}" if self.words else self.mode

    def has_control(self, other: "Way") -> bool:
        """Return whether another mode is a control of this one, with the same data of a teacher."""
        same_data = other.words == self.words or not has_network(other.mode)
        return other.mode != self.mode and same_data


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

    Empty if the teacher is an untrained network, a distribution, the student itself or its peers or
    a generation of a chain, and if it has data of its own, because its runs are then in no table of
    its students.
    """
    origin = _origin(mode)
    if not origin.trained or not origin.precedes:
        return []
    if GENERATION_WORD in teacher or words_of(teacher):
        return []
    return teacher.split("+")


def teaches_itself(mode: str) -> bool:
    """Return whether a mode's teacher has the student's own architecture."""
    return _origin(mode).is_students_own


def has_own_pairs(mode: str) -> bool:
    """Return whether not every teacher of a mode can teach every student.

    So it is if students teach themselves, or those that they are trained with.
    """
    return teaches_itself(mode) or _origin(mode).is_peers


def trained_at_once(mode: str, teacher: str, student: str) -> list[str]:
    """Return the names, sorted, of the students that a mode trains at once with a student.

    They include the student. Without peers it is the only one.
    """
    names = cohort.without_numbers(teacher) if _origin(mode).is_peers else []
    return sorted([*names, student])


def has_network(mode: str) -> bool:
    """Return whether a mode's teacher is a network apart from the student.

    It is not one if it is a distribution or an average of the student's weights.
    """
    origin = _origin(mode)
    return origin.is_network and not origin.moves


def teacher_flags(mode: str, teacher: str) -> list[str]:
    """Return the flags of distill.py that select a mode's teacher, without those of its data."""
    teacher = without_words(teacher)
    if teaches_itself(mode):
        _, _, generation = teacher.partition(GENERATION_WORD)
        return ["--generations", str(1 + int(generation or 0))]
    return ["--teacher", teacher] if _origin(mode).network == "teacher" else []


def _origin(mode: str) -> Origin:
    return MODES[mode].teacher
