"""Measurements in processes of their own, so that a crash or a hang loses one of them only.

The processes are forked, so that none of them has to import torch again. This works as long as the
parent process never uses CUDA. If something in it does, `start_by_spawn` starts new interpreters.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import time
import traceback

# Asking torch whether there is a GPU must not initialise CUDA in the parent.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
_START = "KD_BENCHMARK_START"  # in the environment, so that spawned processes know it, too


def start_by_spawn():
    """Start all further processes as new interpreters, which takes seconds for each."""
    os.environ[_START] = "spawn"


def _context():
    return multiprocessing.get_context(os.environ.get(_START, "fork"))


def in_child(function, seconds):
    """Call `function(report)` in a child process and return (what it reported last, why it ended).

    The reason is None if the function returned. A function that takes longer than `seconds` is
    stopped; what it has reported until then is kept.
    """
    receiving, sending = _context().Pipe(duplex=False)
    process = _context().Process(target=_child, args=(function, sending))
    process.start()
    sending.close()
    try:
        return _last_report(receiving, process, time.monotonic() + seconds)
    finally:
        _end(process)


def _last_report(receiving, process, deadline):
    found = {}
    while True:
        left = max(0.0, deadline - time.monotonic())
        ready = multiprocessing.connection.wait([receiving, process.sentinel], left)
        if receiving in ready:
            try:
                kind, value = receiving.recv()
            except EOFError:
                kind, value = "ended", _death(process)
            if kind == "ended":
                return found, value
            found = value
        elif ready:
            return found, _death(process)
        else:
            return found, "stopped: its time was over"


def _child(function, sending):
    os.setsid()  # so that the parent can end it together with its own children

    def report(found):
        sending.send(("found", found))

    try:
        function(report)
    except Exception as error:
        traceback.print_exc()
        sending.send(("ended", reason_of(error)))
    else:
        sending.send(("ended", None))


def _death(process):
    process.join()
    code = process.exitcode
    if code < 0:
        return f"its process was killed by signal {-code}"
    return f"its process exited ({code})"


def _end(process):
    """End a child and the processes that it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def reason_of(error):
    """Return an exception in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:3])}"[:300]


class Worker:
    """A process that answers calls, each with a number, of an object that it builds itself.

    build   function without arguments that returns a function: seconds -> result
    """

    def __init__(self, build):
        self.connection, other = _context().Pipe()
        self.process = _context().Process(target=_serve, args=(build, other))
        self.process.start()
        other.close()

    def send(self, number):
        self.connection.send(number)

    def result(self):
        """Return the next result. The first one, None, means that the object has been built."""
        try:
            kind, value = self.connection.recv()
        except EOFError:
            kind, value = "failed", _death(self.process)
        if kind == "failed":
            raise RuntimeError(value)
        return value

    def end(self):
        self.process.kill()
        self.process.join()


def _serve(build, connection):
    try:
        call = build()
        connection.send(("result", None))
        while True:
            connection.send(("result", call(connection.recv())))
    except EOFError:
        return
    except Exception as error:
        traceback.print_exc()
        connection.send(("failed", reason_of(error)))
