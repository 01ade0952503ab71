"""What the settings of a student name in the tables of modes and knowledge."""

from kd.config.settings import DistillSettings
from kd.methods import MODES, Mode


def teacher_names(settings: DistillSettings) -> list[str]:
    """The networks that teach a student; none where a label distribution does."""
    origin = MODES[settings.distillation.mode].teacher
    if not origin.is_network:
        return []
    return (
        [settings.distillation.student]
        if origin.is_students_own
        else settings.distillation.teacher.split("+")
    )


def is_chain(settings: DistillSettings) -> bool:
    """Whether a run belongs to a chain of --generations, each taught by the one before."""
    origin = MODES[settings.distillation.mode].teacher
    return origin.is_students_own and origin.trained


def chosen_kinds(settings: DistillSettings, mode: Mode) -> list[str]:
    """The kinds of --knowledge, otherwise the mode's own."""
    return (settings.transfer.knowledge or mode.knowledge).split("+")
