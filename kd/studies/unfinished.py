"""Runs without a report: those that diverged, stopped, failed, were interrupted, or still run."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from kd.config import parsing
from kd.config.changes import PLACES
from kd.config.layout import RunPaths, data_name, folder_of, unfinished_below
from kd.config.settings import Data, DistillSettings, TeacherSettings
from kd.reports.text import NOT_KNOWN
from kd.runs.ending import FAILED, RUN_DIVERGED, STOPPED, TEACHER_DIVERGED
from kd.studies.modes import Cell, InCell, cell_of
from kd.system.errors import Problem, counted, printable
from kd.system.files import read_json
from kd.system.locks import owner_of_lock
from kd.system.messages import bounded

# What is said of a run without a record of its end.
RUNNING = "running"
INTERRUPTED = "interrupted"
UNKNOWN = "unfinished"

STATES = (RUN_DIVERGED, TEACHER_DIVERGED, FAILED, STOPPED, INTERRUPTED, RUNNING, UNKNOWN)


@dataclass(frozen=True)
class Unfinished(InCell):
    """A run without a report.

    settings  all settings, as one dictionary
    state     one of STATES: how the run ended, if it did
    message   why, and what to do
    step      number of steps that were taken, if known
    code      exit code of the process, if known
    time      when the run ended, if known
    """

    folder: Path
    cell: Cell
    settings: dict
    state: str
    message: str
    step: int | None = None
    code: int | None = None
    time: str | None = None

    @property
    def never_trained(self) -> bool:
        """Whether it failed before its first step."""
        return self.state == FAILED and self.step is None and not RunPaths(self.folder).begun

    def describe(self) -> str:
        """Return the folder, how the run ended, and the message as one line of text."""
        return entry_line(self.entry())

    def entry(self) -> dict:
        """Return the run as plain values for the JSON of a study."""
        ended = {key: getattr(self, key) for key in ("state", "message", "step", "code", "time")}
        return {"folder": str(self.folder), **self.cell._asdict(), **ended}


def read_unfinished(root: Path) -> tuple[list[Unfinished], list[str]]:
    """Return (the runs below `root` that have no report, the reasons why others were excluded)."""
    found = []
    left_out = []
    for folder in unfinished_below(root):
        try:
            run = _read(folder)
        except Problem as problem:
            left_out.append(str(problem))
            continue
        if run is not None:
            found.append(run)
    return found, left_out


def _read(folder: Path) -> Unfinished | None:
    """Return the run in a folder, or None if its settings.json belongs to another program.

    Raises Problem if the settings are damaged or not valid.
    """
    file = RunPaths(folder).settings
    values = read_json(file)
    kind = TeacherSettings if "model" in values else DistillSettings
    if not ("model" in values or "mode" in values) or not {"dataset", "seed"} <= values.keys():
        return None
    settings = parsing.build(kind, {key: (value, str(file)) for key, value in values.items()})
    return Unfinished(folder, cell_of(settings), parsing.flat(settings), **_end(RunPaths(folder)))


def _end(run: RunPaths) -> dict:
    """Return `state` and `message` of a run without a report, and the rest of its record."""
    if run.ended.is_file():
        return _recorded(run.ended)
    try:
        owner = owner_of_lock(run.path)
    except OSError:
        return {
            "state": UNKNOWN,
            "message": "It has no report, and its lock cannot be read. It may still be running.",
        }
    if owner is not None:
        return {"state": RUNNING, "message": f"It is in use by {owner}."}
    return {
        "state": INTERRUPTED,
        "message": (
            "It has no report and no record of its end: it was killed, could not write, or ended in"
            " an earlier version of the program. Run the same command again to continue."
        ),
    }


def _recorded(file: Path) -> dict:
    """Return the content of ended.json; a damaged record says only that the run is unfinished."""
    damaged = f"Its record '{file}' is damaged. Run the same command again to continue."
    try:
        record = read_json(file)
    except Problem:
        return {"state": UNKNOWN, "message": damaged}
    state, message, step = (record.get(key) for key in ("ended", "message", "step"))
    known = state in STATES and isinstance(message, str)
    if not known or not (step is None or isinstance(step, int)):
        return {"state": UNKNOWN, "message": damaged}
    more = {"step": step, "code": record.get("code"), "time": record.get("time")}
    return {"state": state, "message": message, **more}


def of_known_data(
    unfinished: list[Unfinished], finished: list[dict]
) -> tuple[list[Unfinished], list[Unfinished]]:
    """Return (the unfinished runs of data that some run was trained on, all others).

    The data of the others were probably mistyped: all of their runs failed before the first step.
    Image sizes, splits and labels do not count, because a teacher may have had others.

    finished  the settings of the finished runs
    """
    known = {_data_set(settings) for settings in finished}
    known |= {_data_set(run.settings) for run in unfinished if not run.never_trained}
    listed = [run for run in unfinished if _data_set(run.settings) in known]
    return listed, [run for run in unfinished if _data_set(run.settings) not in known]


def _data_set(settings: dict) -> tuple[str, str]:
    """Return the data set of a run, and the name of its folder if it can be any folder."""
    data = _data(settings)
    return data.dataset, folder_of(data).resolve().name if data.dataset == "folder" else ""


def _data(settings: dict) -> Data:
    return Data(**{entry.name: settings[entry.name] for entry in fields(Data)})


def data_settings(settings: dict, labels: bool = True) -> tuple[str, Data]:
    """Return what two runs of one protocol share, as far as their settings show it.

    The data may have moved, so only the last part of their path counts. Without `labels`, the
    selection of labelled images does not count.
    """
    data = _data(settings)
    if not labels:
        data = dataclasses.replace(data, labeled_fraction=1.0)
    if data.labeled_fraction == 1 and data.balance != "draw":
        data = dataclasses.replace(data, labeled_seed=0)  # not used
    own = [key for key in (*PLACES, "errata", "cache_dir") if hasattr(data, key)]
    return data_name(data), dataclasses.replace(data, **dict.fromkeys(own))


def count_states(runs: list[Unfinished]) -> dict[str, int]:
    """Return the number of runs in each state, in the order of STATES."""
    counts = Counter(run.state for run in runs)
    return {state: counts[state] for state in STATES if counts[state]}


def n_text(n: int, states: dict[str, int], flags: Sequence[str] = ()) -> str:
    """Format the number of finished runs of a cell, those in other states, and flags.

    For example `(n = 2; 1 diverged; at chance)`, or `diverged (1)` or `-` without a finished run.
    """
    if not n:
        return ", ".join(f"{state} ({count})" for state, count in states.items()) or NOT_KNOWN
    others = "; ".join(["", *(f"{count} {state}" for state, count in states.items()), *flags])
    return f"(n = {n}{others})"


def unfinished_lines(entries: list[dict]) -> list[str]:
    """Return the lines of Markdown that list unfinished runs, each given by `Unfinished.entry`.

    The list is empty if there are none.
    """
    if not entries:
        return []
    return ["# Unfinished runs", "", *(f"- {entry_line(entry)}" for entry in entries), ""]


def entry_line(entry: dict) -> str:
    """Return an unfinished run, given by `Unfinished.entry`, as a sentence."""
    steps = ""
    if entry["state"] == FAILED and entry["step"] is not None:  # other messages name the step
        steps = f" after {counted(entry['step'], 'step', 'steps')}"
    text = f"Run '{entry['folder']}' ({entry['state']}{steps}): {entry['message']}"
    return bounded(printable(text))
