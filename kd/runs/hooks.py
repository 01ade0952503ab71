"""The hooks of a run during training: progress bar, TensorBoard, saves and stop signals."""

import time

from kd import loop
from kd.loop import Hooks
from kd.runs.active import ActiveRun
from kd.runs.defective import accuracy_watch
from kd.system.console import ProgressLines, log, progress
from kd.training.selection import column, in_words
from kd.training.state import State


class RunHooks(Hooks):
    """Shows the progress of a run, saves its state, and stops it on request."""

    def __init__(self, run: ActiveRun):
        self.run, self.steps = run, run.phases[-1].end
        self.watch = accuracy_watch(run)
        self.saved = time.monotonic()
        done, name = run.state.progress.total, run.plan.student
        self.bar = progress(self.steps, name, "steps", short=True, done=done, head=self._head)

    def _head(self, step: int) -> str:
        """Return the beginning of a line of progress."""
        state = self.run.state
        name = self.run.phases[state.progress.phase].name
        loss = state.means()["loss"]
        epoch = state.progress.epoch + 1
        return f"{name}: epoch {epoch}, step {step}/{self.steps}  loss {loss:.4f}"

    def should_stop(self, state: State) -> bool:
        return self.watch is not None and self.watch(state)

    def after_step(self, state: State) -> None:
        training = self.run.plan.settings.training
        self.run.events.step(state, training.batch_size)
        self.bar.update()
        self.run.signals.check_time_budget()
        due = time.monotonic() - self.saved >= 60 * training.save_every_minutes
        if self.run.signals.check_stop_together(due):
            self.run.save()
            self.saved = time.monotonic()

    def after_epoch(self, state: State, row: dict) -> None:
        self.run.events.epoch(row)
        shown = "train" if "train_accuracy" in row else "agreement"
        figure = row.get("train_accuracy", row.get("train_agreement"))
        valid, select = f"valid {row['valid_accuracy']:.4f}", self.run.plan.select
        if select != "accuracy":
            valid += f"  {in_words(select)} {row[column(select)]:.4f}"
        log(
            f"{row['phase']}: epoch {row['epoch']}, step {row['steps']}/{self.steps}  loss"
            f" {row['train_loss']:.4f}  {shown} {figure:.4f}  {valid} "
            f" {self.run.clock.seconds():.0f} s"
        )
        if isinstance(self.bar, ProgressLines):
            self.bar.postpone()

    def check_stop(self) -> None:
        self.run.signals.check_stop()


def fit(run: ActiveRun) -> None:
    """Train a run from its current state to its last step."""
    training = run.plan.settings.training
    hooks = RunHooks(run)
    with hooks.bar:
        loop.fit(run.state, run.phases, run.data.valid, training, run.precision, hooks)
