"""The folder of a run in its life: claimed by one plan, saved to, continued from."""

import shutil

from kd.config import parsing
from kd.config.changes import PLACES, changed, portable
from kd.config.layout import RunPaths
from kd.config.plan import Plan
from kd.system import checkpoint
from kd.system.console import log
from kd.system.errors import BAD_CHECKPOINT, CANNOT_WRITE, Problem
from kd.system.files import read_json, write_json
from kd.training.state import SCHEMA, State

# What a resume file holds, as `checkpoint.fault` reads it.
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
    """The folder of a run that this process works in."""

    def claim(self, plan: Plan) -> None:
        """Write settings.json, or find the same settings there; remove what a killed save left.

        Raises Problem, with every `key: old -> new`, where the folder holds the work of other
        settings. Data that have moved are no other settings for an unfinished run: it knows their
        hashes.
        """
        for leftover in self.path.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        if self.settings.is_file() and (self.finished or self.begun):
            changes = changed(read_json(self.settings), plan, () if self.finished else PLACES)
            if changes:
                raise Problem(
                    f"run folder '{self.path}': holds a run with other settings"
                    f" ({'; '.join(changes)}); give --tag NAME for a folder beside it, or the same"
                    " settings"
                )
        if self.finished:
            self.forget()
        else:
            write_json(self.settings, portable(parsing.flat(plan.settings)))

    def check_space(self, parameters: int) -> None:
        """Raise Problem (74) where the disk lacks room for all files this run holds at once.

        Weights, Adam's two moments and the best epoch's weights, in two generations and one being
        written.
        """
        files = [file for file in (self.resume, self.previous) if file.is_file()]
        need = 4 * parameters * 4 * 3 - sum(file.stat().st_size for file in files)
        free = shutil.disk_usage(self.path).free
        if free < need:
            raise Problem(
                f"run folder '{self.path}': {free / 1e9:.1f} GB are free, {need / 1e9:.1f} GB may"
                " be needed; free space or choose another --out",
                CANNOT_WRITE,
            )

    def save(self, state: State, **more) -> None:
        """Save for resuming; the file before this one is kept until the next save."""
        checkpoint.save(self.resume, {"state": state.state_dict(), **more}, self.previous)

    def load(self, **expected) -> dict | None:
        """The saved state or None; where the newest is damaged, the one before, with a warning.

        Raises Problem (4) where both are damaged, or where `expected` values (hashes of the data,
        precision) differ.
        """
        for file in (self.resume, self.previous):
            if not file.is_file():
                continue
            try:
                content = checkpoint.load(file, "resume file")
            except Problem as problem:
                if file == self.previous or not self.previous.is_file():
                    raise
                log(f"warning: {problem}; going on from the one before it")
                continue
            _check_content(file, content, expected)
            if file == self.previous:
                # The damaged file must not take the good one's place at the next save.
                self.resume.unlink(missing_ok=True)
            return content
        return None


def _check_content(file, content: dict, expected: dict) -> None:
    """Raise Problem (4) for a resume file of another form, or of other data or precision."""
    own = {key: value for key, value in content.items() if key != "format"}
    fault = checkpoint.fault(own, RESUME, "it")
    if fault:
        raise Problem(
            f"resume file '{file}': {fault}; written by another version? use that one, or give"
            " --tag NAME to begin anew",
            BAD_CHECKPOINT,
        )
    for key, value in expected.items():
        if content.get(key) != value:
            raise Problem(
                f"resume file '{file}': began with {key} {content.get(key)}, now it is {value}; go"
                " back to those data (or that --amp and --device), or give --tag NAME to begin"
                " anew",
                BAD_CHECKPOINT,
            )
