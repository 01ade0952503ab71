"""TensorBoard events of a run: curves during training, figures, and settings with the results."""

import functools
import threading
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from kd.loop import LOG_EVERY
from kd.system import ranks
from kd.system.console import log
from kd.system.errors import printable
from kd.system.files import reason
from kd.training.state import State


def _or_warn_once(write):
    """Decorate a method of Events to warn once and stop writing if the events cannot be written.

    Curves are not worth losing a run.
    """

    @functools.wraps(write)
    def guarded(self, *arguments):
        if self.writer is None:
            return
        try:
            write(self, *arguments)
        except (OSError, UnicodeEncodeError) as error:
            self.writer = None
            log(
                f"warning: TensorBoard events in '{self.folder}' cannot be written ({_why(error)})."
                " The run continues without them."
            )

    return guarded


class Events:
    """Writes the TensorBoard events of a run.

    After a resume, no point is written twice: points after the last save are purged. If events
    cannot be written, a warning is printed once, and the run continues without them. On several
    ranks, only the main rank writes. Nothing is written to the folder of a finished student, which
    may be trained again because its peers are not finished.
    """

    def __init__(self, folder: Path, state: State, finished: bool = False):
        self.folder = folder
        self.writer = ... if ranks.is_main_rank() and not finished else None
        self._mark, self._images = time.monotonic(), 0
        self._open(state)

    @_or_warn_once
    def _open(self, state: State) -> None:
        total = state.progress.total
        before = sorted(self.folder.glob("events.out.tfevents.*"))
        if not total:
            for old in before:  # left by a run that was killed before its first save
                old.unlink(missing_ok=True)
        elif before:
            _wait_for_next_second(before[-1])
        threading.excepthook = _quiet_writer
        self.writer = SummaryWriter(str(self.folder), purge_step=total if total else None)
        # The purge also removes the points at `total` itself, so they are written again.
        if total:
            self.step(state, 0)
        for row in state.progress.history:
            if row["steps"] == total:
                self.epoch(row)

    @_or_warn_once
    def step(self, state: State, images: int) -> None:
        """Write the running means of the epoch, the learning rate and the speed.

        Only every LOG_EVERY steps; the speed is that of the steps since the last time.

        images  number of images in the step
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

    @_or_warn_once
    def epoch(self, row: dict) -> None:
        """Write the accuracies and the validation loss in a row of the history."""
        for name, value in row.items():
            group, _, figure = name.partition("_")
            if group == "valid" or figure in ("accuracy", "agreement"):
                self.writer.add_scalar(f"epoch/{name}", value, row["steps"])
        self.writer.flush()

    @_or_warn_once
    def views(self, images: torch.Tensor) -> None:
        """Write up to 8 training views as a grid; images [B, 3, S, S] in 0..1."""
        self.writer.add_images("views", images[:8].float().cpu(), 0)

    @_or_warn_once
    def finish(self, report: dict, drawn: dict) -> None:
        """Write the figures, and the settings with the final accuracies as hparams of this run.

        drawn  name -> uint8 [H, W, 3]
        """
        total = report["history"]["steps"]
        for name, pixels in drawn.items():
            self.writer.add_image(name, pixels, total, dataformats="HWC")
        settings = {
            key: value if isinstance(value, (bool, int, float)) else printable(value)
            for key, value in report["settings"].items()
        }
        results = {
            f"hparam/{key}": value
            for key, value in report["results"]["best"].items()
            if key != "epoch" and value is not None
        }
        self.writer.add_hparams(settings, results, run_name=".", global_step=total)

    @_or_warn_once
    def flush(self) -> None:
        """Write all pending points to disk.

        To be called before a save, so that the points up to it exist if the run is killed later.
        """
        self.writer.flush()

    @_or_warn_once
    def close(self) -> None:
        """Write all pending points and close the file."""
        self.writer.close()


def write_images(folder: Path, drawn: dict[str, np.ndarray]) -> None:
    """Write images to the events of a folder, in place of those it has; warn if that fails.

    drawn  name -> uint8 [H, W, 3]
    """
    before = list(folder.glob("events.out.tfevents.*"))
    threading.excepthook = _quiet_writer
    try:
        for old in before:
            old.unlink(missing_ok=True)
        with SummaryWriter(str(folder)) as writer:
            for name, pixels in drawn.items():
                writer.add_image(printable(name), pixels, 0, dataformats="HWC")
    except (OSError, UnicodeEncodeError) as error:
        log(f"warning: TensorBoard events in '{folder}' cannot be written ({_why(error)}).")


def _why(error: OSError | UnicodeEncodeError) -> str:
    return reason(error) if isinstance(error, OSError) else "the path is not UTF-8"


def _quiet_writer(failed) -> None:
    """Print the traceback of a thread, except for the writer thread of TensorBoard.

    The next call of the writer raises the same error, which is reported there.
    """
    if not type(failed.thread).__module__.startswith("tensorboard."):
        threading.__excepthook__(failed)


def _wait_for_next_second(newest: Path) -> None:
    """Wait until a new event file gets a name that sorts after the newest one.

    TensorBoard reads files in the order of their names, which contain the second of creation.
    """
    made = newest.name.split(".")[3]
    deadline = time.monotonic() + 2
    while made.isdigit() and int(time.time()) <= int(made) and time.monotonic() < deadline:
        time.sleep(0.02)
