"""The record of how a run ended without a report: diverged, stopped or failed."""

from dataclasses import dataclass
from pathlib import Path

from kd.runs.clock import now
from kd.system.errors import DIVERGED, INTERRUPTED, TERMINATED, described, printable

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
        message, code = described(error)
        if self.teacher is not None:
            message = f"Its teacher in '{self.teacher}' did not finish: {message}"
        return {
            "schema_version": SCHEMA_VERSION,
            "ended": self._word(code),
            "code": code,
            "message": printable(message),
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
