"""Stops that are requested by a signal or by a time limit."""

import os
import signal
import time

from kd.system import errors, ranks
from kd.system.errors import INTERRUPTED, TERMINATED, Stopped


def never_stop() -> None:
    """Do nothing; replaces a check of `StopSignals` where no stop can be requested."""


class StopSignals:
    """Stops a run at a safe point after SIGTERM, SIGHUP, Ctrl-C or a time limit of `minutes`.

    A second Ctrl-C ends the process at once and without cleanup, because threads and libraries may
    swallow a KeyboardInterrupt or hang on it. (When the package is used from other Python code and
    not from a script, it raises KeyboardInterrupt.) The time limit starts with this object. Only
    `check_time_budget` checks it, after a step, so that a run that is started again and again
    always makes progress.
    """

    def __init__(self, minutes: float | None = None):
        self.code = None
        self._why = "Stopped"
        self._minutes = minutes
        self._begun = time.monotonic()

    def __enter__(self):
        numbers = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # ignored under nohup
            numbers.append(signal.SIGHUP)
        self._old = {number: signal.signal(number, self._request) for number in numbers}
        return self

    def __exit__(self, *_):
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def check_time_budget(self) -> None:
        """Request a stop if the time limit has been reached."""
        if self._minutes is None or self.code is not None:
            return
        if time.monotonic() - self._begun >= 60 * self._minutes:
            self.code = TERMINATED
            self._why = f"Stopped by --max-minutes {self._minutes:g}"

    def check_stop(self) -> None:
        """Raise Stopped if a stop was requested and this is the only rank.

        Several ranks stop together after a step, in `check_stop_together`.
        """
        if ranks.world_size() == 1:
            self.check_stop_alone()

    def check_stop_alone(self) -> None:
        """Raise Stopped (130 or 143) if a stop was requested.

        Call it only where no work is half done and no other rank waits.
        """
        if self.code is not None:
            raise self.as_stopped("")

    def check_stop_together(self, due: bool = False) -> bool:
        """Raise Stopped on all ranks if a stop was requested on any of them.

        Otherwise return whether something is `due` on any rank. All ranks must call it together.
        """
        code, due_anywhere = ranks.maximum([self.code or 0, int(due)])
        if code:
            self.code = code
            raise self.as_stopped("")
        return bool(due_anywhere)

    def as_stopped(self, saved: str) -> Stopped:
        """Return the exception for a stop; `saved` continues its message with what was saved."""
        return Stopped(f"{self._why}{saved}. Run the same command again to continue.", self.code)

    def _request(self, number, _frame):
        """Handle a signal."""
        if number == signal.SIGINT and self.code == INTERRUPTED:
            _end_at_once()
        self.code = INTERRUPTED if number == signal.SIGINT else TERMINATED
        how = "Ctrl-C again" if number == signal.SIGINT else "Ctrl-C twice"
        errors.print_on_stderr(f"Stopping: the state is saved first. Press {how} to stop at once.")


def _end_at_once() -> None:
    if not errors.in_script:
        raise KeyboardInterrupt
    errors.print_on_stderr(errors.STOPPED_AT_ONCE)
    os._exit(INTERRUPTED)
