"""Locks of a folder, which the kernel drops with the process, however it ends."""

import contextlib
import fcntl
import os
import time
from pathlib import Path

from kd.system.errors import BUSY, Problem
from kd.system.files import cannot_write, make_folder


@contextlib.contextmanager
def exclusive_lock(folder: Path):
    """Hold `folder` for this process alone.

    Raises Problem (75) where another holds it, (74) where none can.

    The kernel drops the lock with the process, however it ends.
    """
    make_folder(folder)
    try:
        holder = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise cannot_write(folder, error) from None
    try:
        try:
            fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if not isinstance(error, BlockingIOError):  # a file system without locks
                raise cannot_write(folder, error) from None
            owner = os.pread(holder, 100, 0).decode("ascii", "replace").strip() or "another process"
            raise Problem(
                f"run folder '{folder}' in --out: {owner} is working in it; wait for it", BUSY
            ) from None
        with contextlib.suppress(
            OSError
        ):  # a full disk: the name is a courtesy, the lock holds without it
            os.ftruncate(holder, 0)
            os.pwrite(holder, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)
        yield
    finally:
        os.close(holder)


@contextlib.contextmanager
def wait_for_lock(folder: Path, leave=lambda: None):
    """Wait until no other process holds `folder` this way, and hold it.

    `leave` may end the waiting by an exception.
    """
    holder = os.open(folder / ".turn", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        while True:
            try:
                fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                leave()
                time.sleep(0.05)
            except OSError:  # a file system without locks: done twice, and the same
                break
        yield
    finally:
        os.close(holder)
