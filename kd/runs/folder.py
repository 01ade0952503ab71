"""The folder of a run: its settings, its files for resuming, what it holds when it is finished."""

import json
import shutil
from pathlib import Path

from kd.config import parsing
from kd.config.plan import born_again, origin_of, teacher_of, unused
from kd.config.settings import DistillSettings, Teacher, TeacherSettings
from kd.data.dataset import run_name
from kd.system import checkpoint
from kd.system.console import log
from kd.system.errors import BAD_CHECKPOINT, CANNOT_WRITE, Problem
from kd.system.files import read_json, write_json
from kd.training.state import SCHEMA, State

PLACES = ("data_dir", "unlabeled_dir")  # of pictures, whose hashes a run knows
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


class RunFolder:
    """Knows the files of one run; `path` is the folder."""

    def __init__(self, path: Path):
        self.path = path
        self.settings, self.report, self.model = (
            path / "settings.json",
            path / "report.json",
            path / "model.pt",
        )
        self.resume, self.previous = path / "resume.pt", path / "resume.previous.pt"

    @property
    def finished(self) -> bool:
        return self.report.is_file()

    @property
    def begun(self) -> bool:
        """Whether there is something to go on from."""
        return self.resume.is_file() or self.previous.is_file()

    def claim(self, settings) -> None:
        """Write settings.json, or find that the same settings stand there already; clear away what
        a killed save left.

        Raises Problem, with every `key: old -> new`, where the folder holds the work of other
        settings. Data that have moved are no other settings for an unfinished run: it knows their
        hashes.
        """
        for leftover in self.path.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        if self.settings.is_file() and (self.finished or self.begun):
            changes = changed(read_json(self.settings), settings, () if self.finished else PLACES)
            if changes:
                raise Problem(
                    f"run folder '{self.path}': holds a run with other settings"
                    f" ({'; '.join(changes)}); give --tag NAME for a folder beside it, or the same"
                    " settings"
                )
        if self.finished:
            self.forget()
        else:
            write_json(self.settings, portable(parsing.flat(settings)))

    def check_space(self, parameters: int) -> None:
        """Raise Problem (74) where the disk has no room for the largest set of files this run will
        hold at once.

        Weights, Adam's two moments and the best epoch's weights, in two generations and one being
        written.
        """
        there = sum(file.stat().st_size for file in (self.resume, self.previous) if file.is_file())
        need, free = 4 * parameters * 4 * 3 - there, shutil.disk_usage(self.path).free
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
        """The saved state or None; falls back to the file before, with a warning, where the newest
        is damaged.

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
            fault = checkpoint.fault(
                {key: value for key, value in content.items() if key != "format"}, RESUME, "it"
            )
            if fault:
                raise Problem(
                    f"resume file '{file}': {fault}; written by another version? use that one, or"
                    " give --tag NAME to begin anew",
                    BAD_CHECKPOINT,
                )
            for key, value in expected.items():
                if content.get(key) != value:
                    raise Problem(
                        f"resume file '{file}': began with {key} {content.get(key)}, now it is"
                        f" {value}; go back to those data (or that --amp and --device), or give"
                        " --tag NAME to begin anew",
                        BAD_CHECKPOINT,
                    )
            if file == self.previous:
                self.resume.unlink(
                    missing_ok=True
                )  # damaged: it must not take the good one's place at the next save
            return content
        return None

    def forget(self) -> None:
        """Remove what only an unfinished run needs."""
        for file in (self.resume, self.previous):
            file.unlink(missing_ok=True)


def folder_of(settings) -> Path:
    """OUT/DATA/MODE[-TAG]/TEACHER-STUDENT/seedN; of a teacher
    OUT/DATA/teacher[-TAG]/MODEL[-defective]/seedN.
    """
    if isinstance(settings, TeacherSettings):
        mode, name = "teacher", settings.teacher.model
        name += "-defective" if settings.teacher.stop_at_val_accuracy is not None else ""
    else:
        mode, name = (
            settings.distillation.mode,
            f"{teacher_of(settings)}-{settings.distillation.student}",
        )
    tag = f"-{settings.output.tag}" if settings.output.tag else ""
    return (
        Path(settings.output.out)
        / run_name(settings.data)
        / f"{mode}{tag}"
        / name
        / f"seed{settings.training.seed}"
    )


def teacher_settings(settings: DistillSettings, name: str) -> TeacherSettings | DistillSettings:
    """Settings that train the teacher `name` of a student: the student's own but for what is the
    student's alone.
    """
    if born_again(settings) and settings.distillation.generations > 1:
        return parsing.replace(settings, generations=settings.distillation.generations - 1)
    teacher = Teacher(model=name, stop_at_val_accuracy=origin_of(settings).stop_at)
    wanted = TeacherSettings(
        teacher, settings.data, settings.network, settings.training, settings.output
    )
    return parsing.replace(wanted, weights=None)


def portable(settings: dict) -> dict:
    """The same settings with the places of the data as absolute paths: a run is found again from
    anywhere.
    """
    return settings | {
        key: str(Path(settings[key]).resolve()) for key in (*PLACES, "errata") if settings.get(key)
    }


def changed(old: dict, settings, ignored: tuple[str, ...] = ()) -> list[str]:
    """`key: old -> new` for every setting that the run uses and that changes what is computed.

    Keys that `old` lacks count as defaults.
    """
    new, default = portable(parsing.flat(settings)), parsing.flat(type(settings)())
    relevant = parsing.flat(settings, identity_only=True).keys() - unused(settings) - set(ignored)
    return [
        f"{key}: {json.dumps(old.get(key, default[key]))} -> {json.dumps(value)}"
        for key, value in new.items()
        if key in relevant and old.get(key, default[key]) != value
    ]
