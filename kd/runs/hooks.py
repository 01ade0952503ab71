"""The hooks of a run during training: progress bar, TensorBoard, saves and stop signals."""

import time

from kd import loop
from kd.loop import Hooks
from kd.runs import active
from kd.runs.active import ActiveRun
from kd.runs.defective import accuracy_watch
from kd.system.console import ProgressLines, log, progress
from kd.training.selection import column, in_words
from kd.training.state import State


class RunHooks(Hooks):
    """Shows the progress of a run, saves its state, and stops it on request.

    runs  of the students that are trained at once, usually a single one
    """

    def __init__(self, runs: list[ActiveRun]):
        self.runs, self.first, self.steps = runs, runs[0], runs[0].phases[-1].end
        self.watch = accuracy_watch(self.first)
        self.saved = time.monotonic()
        done, name = self.first.state.progress.total, "+".join(run.plan.student for run in runs)
        self.bar = progress(self.steps, name, "steps", short=True, done=done, head=self._head)

    def _head(self, step: int) -> str:
        """Return the beginning of a line of progress."""
        progress = self.first.state.progress
        name = self.first.phases[progress.phase].name
        losses = ", ".join(f"{run.state.means()['loss']:.4f}" for run in self.runs)
        return f"{name}: epoch {progress.epoch + 1}, step {step}/{self.steps}  loss {losses}"

    def should_stop(self, states: list[State]) -> bool:
        return self.watch is not None and self.watch(states[0])

    def after_step(self, states: list[State]) -> None:
        training, signals = self.first.plan.settings.training, self.first.signals
        for run in self.runs:
            run.events.step(run.state, training.batch_size)
        self.bar.update()
        signals.check_time_budget()
        due = time.monotonic() - self.saved >= 60 * training.save_every_minutes
        if signals.check_stop_together(due):
            active.save(self.runs)
            self.saved = time.monotonic()

    def after_epoch(self, states: list[State], rows: list[dict]) -> None:
        for run, row in zip(self.runs, rows):
            run.events.epoch(row)
            log(self._line(run, row))
        if isinstance(self.bar, ProgressLines):
            self.bar.postpone()

    def _line(self, run: ActiveRun, row: dict) -> str:
        """Return the line on an epoch of a student, which it names if there are several."""
        name = f"{run.plan.student}, " if len(self.runs) > 1 else ""
        shown = "train" if "train_accuracy" in row else "agreement"
        figure = row.get("train_accuracy", row.get("train_agreement"))
        valid, select = f"valid {row['valid_accuracy']:.4f}", run.plan.select
        if select != "accuracy":
            valid += f"  {in_words(select)} {row[column(select)]:.4f}"
        return (
            f"{name}{row['phase']}: epoch {row['epoch']}, step {row['steps']}/{self.steps}  loss"
            f" {row['train_loss']:.4f}  {shown} {figure:.4f}  {valid} "
            f" {run.clock.seconds():.0f} s"
        )

    def check_stop(self) -> None:
        self.first.signals.check_stop()


def fit(runs: list[ActiveRun]) -> None:
    """Train the students of a run from their current state to their last step."""
    first, hooks = runs[0], RunHooks(runs)
    states, training = [run.state for run in runs], first.plan.settings.training
    with hooks.bar:
        loop.fit(states, first.phases, first.data.valid, training, hooks)
