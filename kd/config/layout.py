"""The layout of a run's folder: OUT/DATA/MODE[-TAG]/PAIR/seedN and the files in it.

No other file spells these names or counts these levels.
"""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunPaths:
    """The files of a run; `path` is its folder."""

    path: Path

    @property
    def settings(self) -> Path:
        return self.path / "settings.json"

    @property
    def report(self) -> Path:
        """Written last: a run that has it is finished."""
        return self.path / "report.json"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions.csv"

    @property
    def model(self) -> Path:
        return self.path / "model.pt"

    @property
    def resume(self) -> Path:
        """The newest saved state of a run that is not finished."""
        return self.path / "resume.pt"

    @property
    def previous(self) -> Path:
        """The saved state before the newest."""
        return self.path / "resume.previous.pt"

    @property
    def evaluation(self) -> Path:
        """What `evaluate.py RUN` writes."""
        return self.path / "evaluation.json"

    @property
    def card(self) -> Path:
        """What `evaluate.py --card RUN` writes."""
        return self.path / "card.json"

    @property
    def confusion(self) -> Path:
        return self.path / "confusion.png"

    @property
    def finished(self) -> bool:
        return self.report.is_file()

    @property
    def begun(self) -> bool:
        """Whether there is a saved state to continue from."""
        return self.resume.is_file() or self.previous.is_file()


def run_path(out: str, data: str, mode: str, tag: str, pair: str, seed: int) -> Path:
    """OUT/DATA/MODE[-TAG]/PAIR/seedN. `mode` is `teacher` for a network trained on labels alone."""
    tagged = f"{mode}-{tag}" if tag else mode
    return Path(out) / data / tagged / pair / f"seed{seed}"


def finished_below(root: Path) -> list[Path]:
    """The folders of all finished runs below `root`, sorted by their reports' paths."""
    reports = sorted(root.rglob(RunPaths(root).report.name))
    return [report.parent for report in reports]


def out_of(run: Path) -> Path:
    """OUT of a run's folder, relative to the working folder where `run` is given relative."""
    return _above(run, 3)


def data_of(run: Path) -> Path:
    """OUT/DATA of a run's folder, relative to the working folder where `run` is given relative."""
    return _above(run, 2)


def alone_path(run: Path, tag: str, name: str, seed: int) -> Path:
    """Where the network `name` trained on labels alone lies, beside a run on the same data."""
    data = data_of(run)
    return run_path(str(data.parent), data.name, "teacher", tag, name, seed)


def _above(run: Path, levels: int) -> Path:
    """The folder so many levels above the parent of `run`; the topmost where there are fewer."""
    if len(run.parents) > levels and ".." not in run.parts:
        return run.parents[levels]
    above = run.resolve().parents
    return Path(os.path.relpath(above[min(levels, len(above) - 1)]))
