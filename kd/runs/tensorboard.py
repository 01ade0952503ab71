"""TensorBoard: what a run shows while it trains, and its settings with the outcome."""

import functools
import threading
import time
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from kd.loop import LOG_EVERY
from kd.system import ranks
from kd.system.console import log
from kd.system.files import reason
from kd.training.state import State


def _or_go_without(write):
    """A method of Events that warns, once, and writes no more where the disk is full: curves are no
    reason to lose a run.
    """

    @functools.wraps(write)
    def guarded(self, *arguments):
        if self.writer is None:
            return
        try:
            write(self, *arguments)
        except OSError as error:
            self.writer = None
            log(
                f"warning: TensorBoard events in '{self.folder}': cannot be written"
                f" ({reason(error)}); the run goes on without them"
            )

    return guarded


class Events:
    """Writes a run's TensorBoard events.

    After a resume nothing stands twice: later points of the killed try are purged.

    Where they cannot be written, a warning is printed, once, and the run goes on without them. Of
    several ranks the first writes.
    """

    def __init__(self, folder: Path, state: State):
        self.folder, self.writer = folder, ... if ranks.is_main_rank() else None
        self._mark, self._images = time.monotonic(), 0
        self._open(state)

    @_or_go_without
    def _open(self, state: State) -> None:
        total = state.progress.total
        before = sorted(self.folder.glob("events.out.tfevents.*"))
        if not total:
            for old in before:  # of a try that was killed before its first save
                old.unlink(missing_ok=True)
        elif before:
            _wait_for_next_second(before[-1])
        threading.excepthook = _quiet_writer
        self.writer = SummaryWriter(str(self.folder), purge_step=total if total else None)
        # Purging takes the points at `total` itself too; what belongs there is written again.
        if total:
            self.step(state, 0)
        for row in state.progress.history:
            if row["steps"] == total:
                self.epoch(row)

    @_or_go_without
    def step(self, state: State, images: int) -> None:
        """Every LOG_EVERY steps: running means of the epoch, learning rate, and speed since the
        last time.
        """
        self._images += images
        total = state.progress.total
        if total % LOG_EVERY:
            return
        for name, value in state.means().items():
            self.writer.add_scalar(f"train/{name}", value, total)
        self.writer.add_scalar("lr", state.optimizer.param_groups[0]["lr"], total)
        if self._images:
            self.writer.add_scalar(
                "clock/images_per_s", self._images / (time.monotonic() - self._mark), total
            )
        self._mark, self._images = time.monotonic(), 0

    @_or_go_without
    def epoch(self, row: dict) -> None:
        """A finished epoch: a row of the history."""
        for name, value in row.items():
            group, _, figure = name.partition("_")
            if group == "valid" or figure in ("accuracy", "agreement"):
                self.writer.add_scalar(f"epoch/{name}", value, row["steps"])
        self.writer.flush()

    @_or_go_without
    def views(self, images: torch.Tensor) -> None:
        """A grid of training views, images [B, 3, S, S] in 0..1, before the first step."""
        self.writer.add_images("views", images[:16].float().cpu(), 0)

    @_or_go_without
    def finish(self, report: dict, drawn: dict) -> None:
        """The figures (name -> uint8 [H, W, 3]), and the settings with the final accuracies as
        hparams in this same run.
        """
        total = report["history"]["steps"]
        for name, pixels in drawn.items():
            self.writer.add_image(name, pixels, total, dataformats="HWC")
        settings = {
            key: value if isinstance(value, (bool, int, float, str)) else str(value)
            for key, value in report["settings"].items()
        }
        results = {
            f"hparam/{key}": value
            for key, value in report["results"]["best"].items()
            if key != "epoch" and value is not None
        }
        self.writer.add_hparams(settings, results, run_name=".", global_step=total)

    @_or_go_without
    def flush(self) -> None:
        """Put all points so far on disk: before a save, so that a killed run's points up to its
        last save are there.
        """
        self.writer.flush()

    @_or_go_without
    def close(self) -> None:
        """Flush and close the file."""
        self.writer.close()


def _quiet_writer(failed) -> None:
    """TensorBoard's thread keeps its error for the next call, which reports it; a traceback beside
    that helps nobody.
    """
    if not type(failed.thread).__module__.startswith("tensorboard."):
        threading.__excepthook__(failed)


def _wait_for_next_second(newest: Path) -> None:
    """TensorBoard reads files in the order of their names, which begin with the second they were
    made in.
    """
    made = newest.name.split(".")[3]
    deadline = time.monotonic() + 2
    while made.isdigit() and int(time.time()) <= int(made) and time.monotonic() < deadline:
        time.sleep(0.02)
