"""Names and paths that are longer than the file system takes, refused before anything is done."""

import os
from pathlib import Path

from kd.config.plan import Plan
from kd.system.errors import Problem
from kd.system.messages import shortened

NAME_BYTES, PATH_BYTES = 255, 4096  # where the file system does not tell its limits
# The longest paths that are made below a run's folder and below --cache-dir.
_IN_RUN, _IN_CACHE = 150, 400
_SHOWN = 60  # characters of a name in a message


def refuse_long_names(plan: Plan) -> None:
    """Raise Problem if a run, or a teacher that it trains, cannot have its folder."""
    settings = plan.settings
    _refuse_long_path(Path(settings.output.out), "--out")
    _refuse_long_path(Path(settings.data.cache_dir), "--cache-dir", _IN_CACHE)
    data, mode, pair, _ = plan.folder.parts[-4:]
    networks = "fewer networks" if "+" in pair else "networks with shorter names"
    cures = {
        data: "Rename the folder of the data set.",
        mode: "Use a shorter --tag.",
        pair: f"Use {networks} as teacher and student.",
    }
    limit = _limit(plan.folder, "PC_NAME_MAX", NAME_BYTES)
    for name, cure in cures.items():
        if len(os.fsencode(name)) > limit:
            raise _too_long("The folder of the run", name, limit, cure)
    _refuse_long_path(plan.folder, "--out", _IN_RUN)
    for teacher in plan.teachers:
        if teacher.plan is not None:
            refuse_long_names(teacher.plan)


def _refuse_long_path(path: Path, flag: str, more: int = 0) -> None:
    """Raise Problem if a path, or a name in it, is too long; `more` bytes are needed below it."""
    limit = _limit(path, "PC_NAME_MAX", NAME_BYTES)
    for name in path.parts:
        if len(os.fsencode(name)) > limit:
            raise _too_long(flag, name, limit, f"Use a shorter {flag}.")
    limit = _limit(path, "PC_PATH_MAX", PATH_BYTES) - 1 - more
    whole = os.fsencode(path.absolute())
    if len(whole) > limit:
        raise Problem(
            f"Path '{shortened(str(path), _SHOWN)}' is too long: it has {len(whole)} bytes from the"
            f" root, but at most {limit} leave room for the files in it. Use a shorter {flag}."
        )


def _too_long(what: str, name: str, limit: int, cure: str) -> Problem:
    return Problem(
        f"{what} cannot be made: its part '{shortened(name, _SHOWN)}' has"
        f" {len(os.fsencode(name))} bytes, but the file system takes names of at most {limit}."
        f" {cure}"
    )


def _limit(path: Path, name: str, default: int) -> int:
    """Return a limit of the file system that a path, which need not exist yet, is on."""
    for folder in (path, *path.absolute().parents):
        if os.path.exists(folder):
            try:
                return os.pathconf(folder, name)
            except (OSError, ValueError):
                return default
    return default
