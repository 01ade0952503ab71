"""A run in progress, between its first step and its report.

A run trains one student, or several at once. Each student has an `ActiveRun`.
"""

import itertools
from dataclasses import dataclass

import torch

from kd.config.plan import Plan
from kd.loop import Phase
from kd.runs.clock import Clock
from kd.runs.data import RunData
from kd.runs.folder import RunFolder
from kd.runs.tensorboard import Events
from kd.system import ranks
from kd.system.devices import Precision
from kd.system.signals import StopSignals
from kd.teachers.ensemble import Ensemble
from kd.training.state import State


@dataclass
class ActiveRun:
    """Everything that is needed to train and finish a run of a student.

    Students that are trained at once share all but the plan, the folder, the state and the events.

    ensemble       the teachers; None in a run without a teacher that exists before the student
    teacher_entry  the report's `teacher`; None in such a run
    phases         all phases of the run, in order
    state          the student in training
    """

    plan: Plan
    folder: RunFolder
    data: RunData
    ensemble: Ensemble | None
    teacher_entry: dict | None
    phases: list[Phase]
    state: State
    clock: Clock
    events: Events
    signals: StopSignals

    def describe_ranks(self) -> str:
        """Return the number of ranks and their devices in words; an empty string for one rank."""
        if ranks.world_size() == 1:
            return ""
        device = self.data.device
        own = device.type
        if device.type == "cuda":
            own = torch.cuda.get_device_name(device)
        devices = []
        for word, group in itertools.groupby(ranks.gather_words(own)):
            devices.append(f"{word} x {len(list(group))}")
        batch_size = self.plan.settings.training.batch_size
        world = ranks.world_size()
        return f"; {world} ranks ({', '.join(devices)}), {batch_size} images per step in total"


def precision_words(every: list[Precision]) -> str:
    """Return the precisions of the students of a run in words."""
    return "; ".join(one.words for one in every)


def save(runs: list[ActiveRun]) -> None:
    """Save the state of all students for resuming, and all that must be the same afterwards.

    There is one file, so that it never has students of different steps. Only the main rank saves.
    Raises Problem (3) if a state has diverged, and (74) if the file cannot be written.
    """
    if not ranks.is_main_rank():
        return
    for run in runs:
        run.events.flush()
    first = runs[0]
    first.folder.save(
        [run.state for run in runs],
        **first.data.fixed,
        precision=precision_words([run.state.precision for run in runs]),
        teacher=first.teacher_entry,
        clock=first.clock.state(),
    )
