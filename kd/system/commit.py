"""The commit of this program, if it is in a git repository of its own."""

import functools
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_SECONDS = 10  # a repository on a slow disk must not delay a run for long


@functools.cache
def commit() -> str | None:
    """Return the commit of this program, followed by `-dirty` if tracked files have changed since.

    None without git, or if this program is not at the top of a repository: the commit of another
    project that contains a copy of it would say nothing.
    """
    top = _git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != ROOT:
        return None
    return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(*words: str) -> str | None:
    """Return what a git command prints about ROOT, or None if it fails."""
    command = ["git", "-C", str(ROOT), *words]
    # In a hook of git, variables such as GIT_DIR name another repository.
    own = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    own["GIT_OPTIONAL_LOCKS"] = "0"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, env=own)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
