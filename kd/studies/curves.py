"""Learning curves of finished runs in one figure."""

import os
from pathlib import Path

from kd.config.layout import out_of
from kd.reports import figures
from kd.reports import report as reports
from kd.system.console import log
from kd.system.errors import Problem


def write_curves(runs: list[Path]) -> Path:
    """Draw the learning curves of runs into curves.png and return its path.

    The file is in the output folder (--out) of the first run. A run that cannot be read is reported
    and skipped. Raises Problem if no run is left.
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
            log(f"skipped: {problem}")
    if not histories:
        raise problems[0]
    file = root / "curves.png"
    figures.save(file, figures.pixels(figures.curves(histories)))
    log(f"written: {file} ({len(histories)} runs)")
    return file
