"""A run in progress, between its first step and its report."""

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
    """Everything that is needed to train and finish a run.

    ensemble       the teachers; None in a run without a teacher
    teacher_entry  the report's `teacher`; None in a run without a teacher
    phases         all phases of the run, in order
    state          the student in training
    precision      the precision in which it is trained
    """

    plan: Plan
    folder: RunFolder
    data: RunData
    ensemble: Ensemble | None
    teacher_entry: dict | None
    phases: list[Phase]
    state: State
    precision: Precision
    clock: Clock
    events: Events
    signals: StopSignals

    def save(self) -> None:
        """Save the state for resuming, and everything that must be the same when the run continues.

        Only the main rank saves. Raises Problem (3) if the state has diverged, and (74) if it
        cannot be written.
        """
        if not ranks.is_main_rank():
            return
        self.events.flush()
        self.folder.save(
            self.state,
            **self.data.fixed,
            precision=self.precision.words,
            teacher=self.teacher_entry,
            clock=self.clock.state(),
        )

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
