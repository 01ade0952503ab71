"""Fault injection: a forked child process that is killed, runs out of disk space, or dies inside a chosen call."""

import contextlib
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

import torch

from kd.system.errors import run_main

CRASHED = 99
NEVER = 10**9


class Child:
    """A forked copy of this process that calls `call` and exits with its exit code.

    Forking avoids importing torch again. The output goes to files and is in `out` and `err` after `wait`. An alarm ends a
    child that hangs.
    """

    def __init__(self, call, seconds: int = 60):
        self.files = Path(f"child-{time.monotonic_ns()}.out"), Path(f"child-{time.monotonic_ns()}.err")
        self.pid = os.fork()
        if self.pid == 0:
            code = CRASHED
            try:
                signal.alarm(seconds)
                sys.stdout, sys.stderr = (file.open("w", buffering=1) for file in self.files)
                torch.set_num_threads(1)  # two threads hang after a fork
                code = run_main(call)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)

    def kill(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    @property
    def alive(self) -> bool:
        """Whether the child has not ended yet."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"

    def wait(self) -> int:
        """Wait for the child and return its exit code, or the negative number of the signal that ended it."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.out, self.err = (file.read_text() if file.exists() else "" for file in self.files)
        for file in self.files:
            file.unlink(missing_ok=True)
        return code


def in_child(call, seconds: int = 60) -> Child:
    """Run `call` in a child to its end and return the child, with `code`, `out` and `err`."""
    child = Child(call, seconds)
    child.code = child.wait()
    return child


def limit_files(size: int, deadly: bool = False) -> None:
    """In a child, limit all files to `size` bytes. A larger write fails as on a full disk, or kills the child (`deadly`)."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL if deadly else signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


class DieAt:
    """In a child, send SIGKILL to itself just before or after the k-th call of a function that changes or syncs files."""

    NAMES = ("open", "close", "fsync", "replace", "rename", "unlink", "fchmod", "ftruncate")

    def __init__(self, k: int = NEVER, after: bool = False):
        self.count = 0
        for name in self.NAMES:
            setattr(os, name, self.counted(getattr(os, name), k, after))

    def counted(self, call, k, after):
        def wrapper(*arguments, **options):
            self.count += 1
            number = self.count
            if number == k and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*arguments, **options)
            if number == k:
                os.kill(os.getpid(), signal.SIGKILL)
            return result
        return wrapper
