"""Locks of a folder, which the kernel releases when the process ends, even if it is killed."""

import contextlib
import errno
import fcntl
import os
import re
import time
from pathlib import Path

from kd.system.console import log
from kd.system.errors import BUSY, Problem
from kd.system.files import cannot_write, make_folder
from kd.system.signals import never_stop

# How a file system says that it has no locks: some network file systems, and some mounts of others.
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_NAME_BYTES = 300  # that are read from the file of a lock
_warned: set[Path] = set()


@contextlib.contextmanager
def exclusive_lock(folder: Path):
    """Lock `folder` for this process.

    On a file system without locks, a warning is printed once, and the name of this process in the
    file stands for the lock (see `_refuse_named_owner`).

    Raises Problem (75) if another process holds the lock, and Problem (74) if the folder cannot be
    locked.
    """
    make_folder(folder)
    try:
        holder = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise cannot_write(folder, error) from None
    by_name = False
    try:
        by_name = not _lock_or_refuse(holder, folder)
        _write_owner(holder, by_name)
        yield
    finally:
        if by_name:
            with contextlib.suppress(OSError):
                os.ftruncate(holder, 0)
        os.close(holder)


def _lock_or_refuse(holder: int, folder: Path) -> bool:
    """Return whether the lock could be taken; False on a file system without locks."""
    try:
        # `owner_of_lock` holds the lock for an instant, which must not refuse a run.
        if not any(_try_lock(holder, fcntl.LOCK_EX, pause) for pause in (0, 0.02, 0.05)):
            raise Problem(
                f"Run folder '{folder}' is in use by {_owner(holder)}. Wait until it ends.", BUSY
            )
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise cannot_write(folder, error) from None
        _refuse_named_owner(holder, folder)
        _warn_once(folder, error)
        return False
    return True


def _warn_once(folder: Path, error: OSError) -> None:
    if folder.absolute() not in _warned:
        _warned.add(folder.absolute())
        log(
            f"warning: Run folder '{folder}' is on a file system without locks ({error.strerror})."
            " Two processes that start in it at the same moment would not notice each other. Start"
            " only one, or use --out on another disk."
        )


def _refuse_named_owner(holder: int, folder: Path) -> None:
    """Raise Problem (75) if a process that may still run has named itself instead of locking.

    Its name is removed when it ends, unless it is killed. On this machine one can see whether it
    still runs, but not on another.
    """
    owner = _named_owner(holder)
    if owner is None:
        return
    if _is_here(owner):
        raise Problem(f"Run folder '{folder}' is in use by {owner}. Wait until it ends.", BUSY)
    raise Problem(
        f"Run folder '{folder}' is in use by {owner}, unless that was killed: its file system has"
        f" no locks that would tell. If it has ended, delete '{folder / '.lock'}' and run the same"
        " command again.",
        BUSY,
    )


def _named_owner(holder: int) -> str | None:
    """Return the process that has named itself on a file system without locks.

    None if there is none, or if it ran on this machine and has ended.
    """
    first, _, second = _content(holder).partition("\n")
    started = re.match("no locks, started at ([0-9]*)", second)
    number = re.match("process ([0-9]+) on ", first)
    if started is None or number is None:  # a lock that was released leaves the first line only
        return None
    if _is_here(first) and _start_of(int(number[1])) != started[1]:
        return None
    return first


def _is_here(owner: str) -> bool:
    return owner.partition(" on ")[2] == os.uname().nodename


def _start_of(process: int) -> str | None:
    """Return when a process of this machine started; None if there is no such process.

    The number of a process is used again, but not with the same start. It is empty where the system
    does not tell it.
    """
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except OSError:  # another user's process
        pass
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, ValueError, IndexError):
        return ""


def _content(holder: int) -> str:
    return os.pread(holder, _NAME_BYTES, 0).decode("ascii", "replace").strip()


def _try_lock(holder: int, kind: int, pause: float = 0) -> bool:
    """Return whether the lock could be taken after `pause` seconds."""
    time.sleep(pause)
    try:
        fcntl.flock(holder, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _owner(holder: int) -> str:
    return _content(holder).partition("\n")[0] or "another process"


def owner_of_lock(folder: Path) -> str | None:
    """Return the process that holds the exclusive lock of `folder`, or None if there is none.

    The lock of a running process is not touched. Raises OSError if the file cannot be read, or if
    nothing can be known on a file system without locks.
    """
    try:
        holder = os.open(folder / ".lock", os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        # A shared lock is refused while another process holds the exclusive one.
        return None if _try_lock(holder, fcntl.LOCK_SH) else _owner(holder)
    except OSError as error:
        owner = _named_owner(holder)
        if error.errno in NO_LOCKS and (owner is None or _is_here(owner)):
            return owner
        raise
    finally:
        os.close(holder)


def _write_owner(holder: int, by_name: bool) -> None:
    """Name this process in the lock file. On a full disk a lock is valid without the name.

    by_name  whether the name stands for the lock, and says so
    """
    text = f"process {os.getpid()} on {os.uname().nodename}\n"
    if by_name:
        text += f"no locks, started at {_start_of(os.getpid())}\n"
    with contextlib.suppress(OSError):
        os.ftruncate(holder, 0)
        os.pwrite(holder, text.encode(), 0)


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
            except OSError:
                break  # without locks, two processes do the same work, with the same result
        yield
    finally:
        os.close(holder)
