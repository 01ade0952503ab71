"""One exception for everything a user can mend, with the exit code that a shell loop can act on."""

import contextlib
import os
import signal
import sys
import traceback

FAULT = 1  # of this program itself
USAGE, DIVERGED, BAD_CHECKPOINT, CANNOT_WRITE, BUSY, INTERRUPTED, TERMINATED = (
    2,
    3,
    4,
    74,
    75,
    130,
    143,
)

STOPPED_AT_ONCE = "interrupted; run the same command again to go on"

in_script = False  # whether this process is a script of ours, which may end it


class Problem(Exception):
    """Ends the program with one line on stderr, `error: MESSAGE`, and an exit code.

    The message says what, where, why and what to do: "<what> '<value>' in <where>: <why>; <what to
    do>".
    """

    def __init__(self, message: str, code: int = USAGE):
        super().__init__(message)
        self.code = code


class Stopped(Problem):
    """A stop that was asked for: by a signal or a time budget.

    Nothing is half done where it is raised.
    """


def run_main(main) -> int:
    """Call a script's `main()` and turn its problems into one line and an exit code."""
    global in_script
    in_script = True
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell
            setattr(sys, name, open(os.devnull, "w"))
        elif hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="backslashreplace")
    try:
        try:
            code = main() or 0
        except (Problem, OSError, MemoryError) as error:
            code = complain(error)
        except KeyboardInterrupt:
            code = _tell(STOPPED_AT_ONCE, INTERRUPTED)
        signal.signal(
            signal.SIGINT, signal.SIG_IGN
        )  # on the way out there is nothing to stop any more
    except KeyboardInterrupt:  # one more, while the first was told
        code = INTERRUPTED
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # nobody reads any more, or the log's disk is full; Python would say so again as it exits
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return code


def speaks() -> bool:
    """Whether this process is the one of its kind that speaks: alone, or the first that torchrun
    started.
    """
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0"


def complain(error: Exception) -> int:
    """Tell what went wrong on stderr, in one line, or for a fault of this program as a traceback;
    returns the exit code.
    """
    if isinstance(error, Stopped) and not speaks():
        return error.code  # all ranks stop alike, and the first says so
    if isinstance(error, Problem):
        return _tell(error, error.code)
    if isinstance(error, OSError):  # a place that no other check has looked at
        return _tell(
            f"'{error.filename}': {error.strerror}; check the path, its permissions and the disk",
            USAGE,
        )
    if isinstance(error, MemoryError):
        return _tell(
            "out of memory; lower --batch-size, --image-size or the sizes of the parts", USAGE
        )
    traceback.print_exception(error)
    return FAULT


def _tell(text, code: int) -> int:
    with contextlib.suppress(OSError):
        print(f"error: {printable(text)}", file=sys.stderr)
    return code


def first_ten(items: list[str]) -> str:
    """The first ten of a list of faults, and how many there are in all."""
    return ", ".join(items[:10]) + (f", ... ({len(items)} in all)" if len(items) > 10 else "")


def printable(text) -> str:
    """`text` on one line, with what a terminal cannot show escaped (file names need not be UTF-8)."""
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8").replace("\n", " ")
