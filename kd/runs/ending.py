"""The record of how a run ended without a report: diverged, stopped or failed."""

from dataclasses import dataclass
from pathlib import Path

from kd.runs.clock import now
from kd.system.errors import DIVERGED, FAULT, INTERRUPTED, TERMINATED, Problem, described, printable
from kd.system.names import named, without_names

SCHEMA_VERSION = 1

# How a run ended, in words.
RUN_DIVERGED = "diverged"
TEACHER_DIVERGED = "teacher diverged"
STOPPED = "stopped"
FAILED = "failed"


@dataclass
class Ending:
    """What is known about a run at its end.

    step     number of the steps that were taken; None before training
    teacher  folder of the teacher that is being trained for the run; None at all other times
    """

    step: int | None = None
    teacher: Path | None = None

    def entry(self, error: BaseException) -> dict:
        """Return the content of ended.json for the error that ended the run."""
        message, code = _described(error)
        if self.teacher is not None:
            message = f"Its teacher in '{self.teacher}' did not finish: {message}"
        return {
            "schema_version": SCHEMA_VERSION,
            "ended": self._word(code),
            "code": code,
            "message": printable(without_names(message)),
            "step": self.step,
            "time": now(),
        }

    def _word(self, code: int) -> str:
        if code in (INTERRUPTED, TERMINATED):
            return STOPPED
        if code == DIVERGED and self.teacher is not None:
            return TEACHER_DIVERGED
        # Before the first step, the code means that the outputs of a teacher are not finite.
        if code == DIVERGED and self.step is not None:
            return RUN_DIVERGED
        return FAILED


def _described(error: BaseException) -> tuple[str, int]:
    """Return the message of an error, with marked names, and its exit code.

    The text of an error of Python or of the system is hidden if the data set was being read: it may
    be the name of a file, or a value from a table or from a header.
    """
    message, code = described(error)
    if isinstance(error, Problem):
        return error.marked, code
    if (code == FAULT or isinstance(error, OSError)) and _is_from_data(error):
        what = "A bug in this program" if code == FAULT else "An error"
        text = named(str(error))
        message = f"{what} while the data set was read ({type(error).__name__}: {text})."
    return message, code


def _is_from_data(error: BaseException) -> bool:
    """Return whether an error was raised in kd.data, or in what it calls."""
    step = error.__traceback__
    while step is not None:
        if step.tb_frame.f_globals.get("__name__", "").startswith("kd.data."):
            return True
        step = step.tb_next
    return False
