"""The folder of a run: claimed by a plan, saved to, and continued from."""

import contextlib
import functools
import shutil

from kd.config import parsing
from kd.config.changes import PLACES, changed, portable
from kd.config.layout import RunPaths
from kd.config.plan import Plan
from kd.runs.ending import Ending
from kd.system import checkpoint, ranks
from kd.system.console import log
from kd.system.errors import BAD_CHECKPOINT, CANNOT_WRITE, Problem
from kd.system.files import read_json, write_json
from kd.training.state import SCHEMA, State, upgraded

# The schema of a resume file for `checkpoint.fault`.
RESUME = {
    "state": SCHEMA,
    "split_hash": str,
    "content_hash": str,
    "pool_hash": (str, type(None)),
    "precision": str,
    "teacher": (dict, type(None)),
    "clock": {"seconds": float, "started": str},
}


class RunFolder(RunPaths):
    """The folder of a run, in which this process works."""

    def claim(self, plan: Plan) -> None:
        """Write settings.json, or check that it has the same settings; remove temporary files.

        Temporary files remain after a save that was killed. The record of how the run ended before
        is removed, because the run continues. Raises Problem as `check_settings` does.
        """
        self.check_settings(plan)
        for leftover in self.path.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        if not self.finished:
            write_json(self.settings, portable(parsing.flat(plan.settings)))
            self.ended.unlink(missing_ok=True)

    def check_settings(self, plan: Plan) -> None:
        """Raise Problem, with every `key: old -> new`, if the folder has a run of other settings.

        The data of an unfinished run may have moved, because its resume file holds their hashes.
        """
        if self.settings.is_file() and (self.finished or self.begun):
            changes = changed(read_json(self.settings), plan, () if self.finished else PLACES)
            if changes:
                raise Problem(
                    f"Run folder '{self.path}' holds a run with other settings"
                    f" ({'; '.join(changes)}). Use --tag NAME for a separate folder, or restore the"
                    " old settings."
                )

    @functools.cached_property
    def ending(self) -> Ending:
        """What is known about the run if it ends now."""
        return Ending()

    @contextlib.contextmanager
    def recording_end(self):
        """Write ended.json if an error or a stop ends the block and the run has no report.

        Only the main rank writes. If the record cannot be written, there is none, and the error is
        raised as it is.
        """
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            if ranks.is_main_rank() and not self.finished:
                cause = ranks.lost_connection(error) or error
                with contextlib.suppress(Exception):
                    write_json(self.ended, self.ending.entry(cause))
            raise

    def check_space(self, parameters: int, averages: int = 0) -> None:
        """Raise Problem (74) if the disk has too little space for the resume files of the run.

        A resume file holds the weights, Adam's two moments, the weights of the best epoch, and the
        averages of the weights. Up to three exist at once: the newest, the one before it, and the
        one being written.

        parameters  number of float32 parameters of the student
        averages    number of averages of the weights
        """
        files = [file for file in (self.resume, self.previous) if file.is_file()]
        need = 4 * parameters * (4 + averages) * 3 - sum(file.stat().st_size for file in files)
        free = shutil.disk_usage(self.path).free
        if free < need:
            raise Problem(
                f"Run folder '{self.path}' is on a disk with too little space: {free / 1e9:.1f} GB"
                f" are free, but {need / 1e9:.1f} GB may be needed. Free space or choose another"
                " --out.",
                CANNOT_WRITE,
            )

    def save(self, states: list[State], **more) -> None:
        """Save the states of all students and the values in `more` for resuming.

        The previous resume file is kept until the next save. Raises Problem (3) if a state has
        diverged, and (74) if the file cannot be written.
        """
        content = {"state": states[0].state_dict(), **more}
        if len(states) > 1:  # the file of a single student has no such entry
            content["others"] = [state.state_dict() for state in states[1:]]
        checkpoint.save(self.resume, content, self.previous)

    def load(self, **expected) -> dict | None:
        """Load the newest resume file, or the one before it if the newest is damaged.

        Returns its content, in which `others` are the states of all students but the first, or None
        if there is no resume file. Prints a warning if the newest is damaged. Raises Problem (4) if
        both are damaged, or if the values in `expected` (hashes of the data, the precision) are
        different in the file.
        """
        for file in (self.resume, self.previous):
            if not file.is_file():
                continue
            try:
                content = checkpoint.load(file, "resume file")
            except Problem as problem:
                if file == self.previous or not self.previous.is_file():
                    raise
                log(f"warning: {problem} Continuing from the resume file before it.")
                continue
            _upgrade(content)
            _check_content(file, content, expected)
            if file == self.previous:
                # Otherwise the next save would replace the good file by the damaged one.
                self.resume.unlink(missing_ok=True)
            return content
        return None


def _upgrade(content: dict) -> None:
    """Add what earlier versions, and runs of a single student, did not save."""
    content.setdefault("others", [])
    if isinstance(content.get("state"), dict):
        content["state"] = upgraded(content["state"])


def _check_content(file, content: dict, expected: dict) -> None:
    """Raise Problem (4) if a resume file violates the schema, or has other data or precision."""
    own = {key: value for key, value in content.items() if key not in ("format", "others")}
    others = content["others"]
    fault = checkpoint.fault(own, RESUME, "its content") or checkpoint.fault(others, list, "others")
    for number, other in enumerate([] if fault else others):
        fault = fault or checkpoint.fault(other, SCHEMA, f"others.{number}")
    if fault:
        raise Problem(
            f"Resume file '{file}' does not fit this version of the program: {fault}. Use the"
            " version that wrote it, or start a new run with --tag NAME.",
            BAD_CHECKPOINT,
        )
    for key, value in expected.items():
        if content.get(key) != value:
            raise Problem(
                f"Resume file '{file}' cannot be used: its run began with {key} {content.get(key)},"
                f" but now it is {value}. Restore the data (or --amp and --device), or start a new"
                " run with --tag NAME.",
                BAD_CHECKPOINT,
            )
