"""Learning curves of finished runs in one figure."""

import os
from pathlib import Path

from kd.config.layout import out_of
from kd.reports import figures
from kd.reports import report as reports
from kd.system.console import log
from kd.system.errors import Problem


def write_curves(runs: list[Path]) -> Path:
    """Draw the learning curves of runs into curves.png, in the folder (--out) of the first.

    Returns its path. A bad run is reported and left out. Raises Problem where none is left.
    """
    root = out_of(runs[0].resolve())
    histories = {}
    problems = []
    for run in runs:
        name = os.path.relpath(run.resolve(), root)
        try:
            histories[name] = reports.read(run)["history"]["epochs"]
        except Problem as problem:
            problems.append(problem)
            log(f"left out: {problem}")
    if not histories:
        raise problems[0]
    file = root / "curves.png"
    figures.save(file, figures.pixels(figures.curves(histories)))
    log(f"written: {file} ({len(histories)} runs)")
    return file
