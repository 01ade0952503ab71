"""Console output: plain lines, above a progress bar if there is one, and progress itself."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable

from tqdm import tqdm

from kd.system import ranks
from kd.system.errors import printable
from kd.system.messages import bounded

INTERVAL = 30.0  # seconds between two lines of progress where no terminal shows a bar
_SHORT = 3.0  # seconds that a bar of something short waits before it appears

# tqdm's own lock has a semaphore that all forked processes share: a process that is killed while
# it prints would block the others.
tqdm.set_lock(threading.RLock())


def log(text: str) -> None:
    """Print plain lines on the first rank, above a progress bar if there is one.

    A single line is a message, whose length is bounded; several are a table. A closed stdout is
    ignored, so that the program continues when nobody reads its output.
    """
    if not ranks.is_main_rank():
        return
    lines = list(map(printable, text.split("\n")))
    if len(lines) == 1:
        lines = [bounded(lines[0])]
    with contextlib.suppress(OSError):
        tqdm.write("\n".join(lines), file=sys.stdout)
        sys.stdout.flush()


def progress(
    total: int,
    name: str,
    unit: str,
    short: bool = False,
    done: int = 0,
    head: Callable[[int], str] | None = None,
):
    """Return a context manager with `update(count)` that shows how much of `total` is done.

    On a terminal it is a progress bar, which vanishes at the end, and appears late, if the work may
    be `short`. Elsewhere, as in the log of a job, it prints a line every INTERVAL. Only the main
    rank shows anything.

    done  what is done already
    head  see `ProgressLines`
    """
    if not sys.stderr.isatty():
        head = head or (lambda count: f"{name}: {count}/{total} {unit}")
        return ProgressLines(total, unit, head, done)
    return tqdm(
        initial=done,
        total=total,
        desc=name,
        unit=unit,
        disable=not ranks.is_main_rank(),
        leave=not short,
        delay=_SHORT if short else 0,
    )


class ProgressLines:
    """Prints a line every INTERVAL that says how much is done and how long the rest will take.

    head  returns the beginning of the line, for the count that is done
    """

    def __init__(self, total: int, unit: str, head: Callable[[int], str], done: int = 0):
        self.total, self.unit, self.head, self.done = total, unit, head, done
        self._first, self._begun = done, time.monotonic()
        self._printed = self._begun

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """There is nothing to end."""

    def update(self, count: int = 1) -> None:
        """Count what was done, and print a line if the last one is INTERVAL ago."""
        self.done += count
        now = time.monotonic()
        if now - self._printed < INTERVAL:
            return
        self._printed = now
        if self.done > self._first:
            each = (now - self._begun) / (self.done - self._first)
            left = each * max(0, self.total - self.done)
            speed = f"{100 * each:.3g} s per 100 {self.unit}"
            log(f"{self.head(self.done)}  {speed}, about {duration(left)} left")

    def postpone(self) -> None:
        """Print the next line not before INTERVAL from now: another line has just been printed."""
        self._printed = time.monotonic()


def duration(seconds: float) -> str:
    """Return a duration in words, in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
