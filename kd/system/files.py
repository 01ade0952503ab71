"""Crash-safe files: written to a temporary file, synced, then renamed.

Also strict JSON, and one message for everything that cannot be written.
"""

import contextlib
import errno
import json
import os
import tempfile
from pathlib import Path

from kd.system.errors import BAD_CHECKPOINT, CANNOT_WRITE, Problem

# No space left, quota exceeded, or larger than the file system or the limits of the shell allow.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def make_folder(folder: Path) -> Path:
    """Create a folder with its parents and return it. Raises Problem (74) if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from None
    return folder


def reason(error: OSError) -> str:
    """Return why something could not be written, in words that users understand."""
    if error.errno in DISK_FULL:
        return "disk full"
    return error.strerror or str(error)


def cannot_write(path: Path, error: OSError) -> Problem:
    """Return the problem to raise for a path that cannot be written."""
    if error.errno in DISK_FULL:
        cure = "Free space or choose another folder with --out or --cache-dir, then"
    elif error.errno == errno.ENAMETOOLONG:
        cure = "Choose a shorter path with --out or --cache-dir, or a shorter --tag, then"
    else:
        cure = "Choose another folder with --out or --cache-dir, or make this one writable, then"
    return Problem(
        f"'{path}' cannot be written ({reason(error)}). {cure} run the same command again.",
        CANNOT_WRITE,
    )


@contextlib.contextmanager
def replacing(path: Path, previous: Path | None = None):
    """Yield a temporary path beside `path` that replaces it when the block ends without an error.

    Otherwise the temporary file is removed. Either the old or the new file exists at every moment:
    the new file is flushed and synced before it is renamed, and the folder is synced afterwards.
    With `previous`, the old file is kept under that name; between two renames it exists only under
    that name. Raises Problem (74) if the disk is full or the folder cannot be written.
    """
    temporary = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        temporary = Path(name)
        os.fchmod(handle, 0o666 & ~_umask())
        os.close(handle)
        yield temporary
        _fsync(temporary)
        if previous is not None and path.is_file():
            os.replace(path, previous)
        os.replace(temporary, path)
        temporary = None
        _fsync(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: a reader finds either the old or the new file, complete."""
    with replacing(path) as temporary:
        temporary.write_text(text, "utf-8")


def write_json(path: Path, value) -> None:
    """Write strict JSON atomically. Raises ValueError for NaN and infinity."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=True) + "\n")


def read_json(path: Path) -> dict:
    """Read a JSON object. Raises Problem (4) if the file is missing or damaged."""
    try:
        value = strict_json(path.read_bytes())
    except OSError as error:
        raise Problem(
            f"'{path}' cannot be read ({error.strerror}). Is it in the folder of a run?",
            BAD_CHECKPOINT,
        ) from None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Problem(
            f"'{path}' is damaged: it does not contain a JSON object. Restore it or run the command"
            " again in a new --out.",
            BAD_CHECKPOINT,
        )
    return value


def strict_json(text: bytes | str):
    """Parse strict JSON. Raises ValueError for NaN and Infinity, which Python's parser accepts."""

    def refuse(name):
        raise ValueError(f"{name} is not valid JSON")

    return json.loads(text, parse_constant=refuse)
