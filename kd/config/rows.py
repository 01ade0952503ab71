"""The entries of the tables of modes and knowledge that a student's settings select."""

from kd.config.plan import ViewsPlan
from kd.config.settings import DistillSettings, TeacherSettings
from kd.config.training_settings import VIEWS
from kd.methods import MODES, Mode, ModePhase

OWN_TEACHER = "itself"  # in place of the name of a teacher, for a student that teaches itself


def teacher_names(settings: DistillSettings) -> list[str]:
    """Return the names of the teachers of a student that exist before it; empty without any."""
    origin = MODES[settings.distillation.mode].teacher
    if not origin.precedes:
        return []
    return (
        [settings.distillation.student]
        if origin.is_students_own
        else settings.distillation.teacher.split("+")
    )


def is_chain(settings: DistillSettings) -> bool:
    """Return whether a run belongs to a chain of --generations, each taught by the previous one."""
    origin = MODES[settings.distillation.mode].teacher
    return origin.is_students_own and origin.trained


def chosen_kinds(settings: DistillSettings, mode: Mode) -> list[str]:
    """Return the kinds in --knowledge, or by default those of the mode."""
    return (settings.transfer.knowledge or mode.knowledge).split("+")


def chosen_phases(settings: DistillSettings, mode: Mode) -> list[ModePhase]:
    """Return the phases of a mode, each as --finetune selects it."""
    which = settings.unlabeled.finetune
    return [phase.choices[which] if phase.choices else phase for phase in mode.phases]


def views_of(settings: TeacherSettings | DistillSettings) -> ViewsPlan:
    """Return the views of a run: those of its mode; without a teacher, those of --augment."""
    augment = settings.training.augment
    if isinstance(settings, TeacherSettings):
        return ViewsPlan(augment, augment)
    sides = VIEWS[MODES[settings.distillation.mode].views]
    return ViewsPlan(sides.student or augment, sides.teacher or augment, sides.independent)
