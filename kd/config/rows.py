"""The entries of the tables of modes and knowledge that a student's settings select."""

from kd.config.settings import DistillSettings
from kd.methods import MODES, Mode, ModePhase


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
