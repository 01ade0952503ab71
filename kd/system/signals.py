"""Stops that were asked for: by a signal, or by a time budget."""

import contextlib
import os
import signal
import sys
import time

from kd.system import errors, ranks
from kd.system.errors import INTERRUPTED, TERMINATED, Stopped


class StopSignals:
    """Asks a run to stop where nothing is half done: on SIGTERM, SIGHUP or Ctrl-C, or once a time
    budget is used up.

    A second Ctrl-C ends the process at once, without tidying up: threads and libraries may hide a
    KeyboardInterrupt, or hang on it. (Called from other Python code, not by a script, it is a
    KeyboardInterrupt.) The budget runs from here on and is looked at by `look_at_clock` alone,
    after a step: a run that is started again and again always gets further.
    """

    def __init__(self, minutes: float | None = None):
        self.code, self._why = None, "stopped"
        self._minutes, self._begun = minutes, time.monotonic()

    def __enter__(self):
        numbers = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # ignored under nohup
            numbers.append(signal.SIGHUP)
        self._old = {number: signal.signal(number, self._ask) for number in numbers}
        return self

    def __exit__(self, *_):
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def look_at_clock(self) -> None:
        """Ask for a stop where the time budget is used up."""
        if (
            self._minutes is not None
            and self.code is None
            and time.monotonic() - self._begun >= 60 * self._minutes
        ):
            self.code, self._why = TERMINATED, f"stopped: --max-minutes {self._minutes:g} are over"

    def leave(self) -> None:
        """`leave_alone`, but of several ranks none leaves alone: all do after a step, by
        `leave_together`.
        """
        if ranks.world_size() == 1:
            self.leave_alone()

    def leave_alone(self) -> None:
        """Raise Stopped (130 or 143) if a stop was asked for; called where nothing is half done and
        no other rank waits.
        """
        if self.code is not None:
            raise self.stopped("")

    def leave_together(self, due: bool = False) -> bool:
        """Raise Stopped on all ranks if any was asked to stop; else whether something is `due` on
        any. Called by all at once.
        """
        code, due = ranks.maximum([self.code or 0, int(due)])
        if code:
            self.code = code
            raise self.stopped("")
        return bool(due)

    def stopped(self, saved: str) -> Stopped:
        """The one message of a stop; `saved` says what is safe."""
        return Stopped(f"{self._why}{saved}; run the same command again to go on", self.code)

    def _ask(self, number, _frame):
        if number == signal.SIGINT and self.code == INTERRUPTED:
            if errors.in_script:
                with contextlib.suppress(OSError, RuntimeError):
                    print(f"error: {errors.STOPPED_AT_ONCE}", file=sys.stderr, flush=True)
                os._exit(INTERRUPTED)
            raise KeyboardInterrupt
        self.code = INTERRUPTED if number == signal.SIGINT else TERMINATED
        with contextlib.suppress(
            OSError, RuntimeError
        ):  # the terminal may be gone, or printing just now
            print(
                "stopping: saving first (Ctrl-C again stops at once)", file=sys.stderr, flush=True
            )
