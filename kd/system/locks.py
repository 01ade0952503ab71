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
        fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(holder, 100, 0).decode("ascii", "replace").strip() or "another process"
        raise Problem(
            f"Run folder '{folder}' is in use by {owner}. Wait until it ends.", BUSY
        ) from None
    except OSError as error:  # a file system without locks
        raise cannot_write(folder, error) from None


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
