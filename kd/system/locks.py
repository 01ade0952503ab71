"""Locks of a folder, which the kernel releases when the process ends, even if it is killed."""

import contextlib
import fcntl
import os
import time
from pathlib import Path

from kd.system.errors import BUSY, Problem
from kd.system.files import cannot_write, make_folder
from kd.system.signals import never_stop


@contextlib.contextmanager
def exclusive_lock(folder: Path):
    """Lock `folder` for this process.

    Raises Problem (75) if another process holds the lock, and Problem (74) if the folder cannot be
    locked.
    """
    make_folder(folder)
    try:
        holder = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise cannot_write(folder, error) from None
    try:
        _lock_or_refuse(holder, folder)
        _write_owner(holder)
        yield
    finally:
        os.close(holder)


def _lock_or_refuse(holder: int, folder: Path) -> None:
    try:
        # `owner_of_lock` holds the lock for an instant, which must not refuse a run.
        if not any(_try_lock(holder, fcntl.LOCK_EX, pause) for pause in (0, 0.02, 0.05)):
            raise Problem(
                f"Run folder '{folder}' is in use by {_owner(holder)}. Wait until it ends.", BUSY
            )
    except OSError as error:  # a file system without locks
        raise cannot_write(folder, error) from None


def _try_lock(holder: int, kind: int, pause: float = 0) -> bool:
    """Return whether the lock could be taken after `pause` seconds."""
    time.sleep(pause)
    try:
        fcntl.flock(holder, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _owner(holder: int) -> str:
    return os.pread(holder, 100, 0).decode("ascii", "replace").strip() or "another process"


def owner_of_lock(folder: Path) -> str | None:
    """Return the process that holds the exclusive lock of `folder`, or None if there is none.

    The lock of a running process is not touched. Raises OSError if the file cannot be read, or on a
    file system without locks.
    """
    try:
        holder = os.open(folder / ".lock", os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        # A shared lock is refused while another process holds the exclusive one.
        return None if _try_lock(holder, fcntl.LOCK_SH) else _owner(holder)
    finally:
        os.close(holder)


def _write_owner(holder: int) -> None:
    """Name this process in the lock file. On a full disk the lock is valid without the name."""
    with contextlib.suppress(OSError):
        os.ftruncate(holder, 0)
        os.pwrite(holder, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)


@contextlib.contextmanager
def wait_for_lock(folder: Path, check_stop=never_stop):
    """Wait until no other process holds this lock of `folder`, then hold it.

    `check_stop` may end the waiting by raising an exception.
    """
    holder = os.open(folder / ".turn", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        while True:
            try:
                fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                check_stop()
                time.sleep(0.05)
            except (
                OSError
            ):  # a file system without locks: two processes do the same work, with the same result
                break
        yield
    finally:
        os.close(holder)
