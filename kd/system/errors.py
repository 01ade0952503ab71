"""One exception for everything that a user can mend, with an exit code that scripts can act on."""

import contextlib
import os
import signal
import sys
import traceback

# Exit codes. FAULT is an error in this program itself.
FAULT = 1
USAGE = 2
DIVERGED = 3
BAD_CHECKPOINT = 4
CANNOT_WRITE = 74
BUSY = 75
INTERRUPTED = 130
TERMINATED = 143

STOPPED_AT_ONCE = "interrupted; run the same command again to go on"

in_script = False  # whether this process runs one of our scripts, which may end it


class Problem(Exception):
    """Ends the program with one line on stderr, `error: MESSAGE`, and an exit code.

    The message says what was wrong, where, why, and what to do:
    "<what> '<value>' in <where>: <why>; <what to do>".
    """

    def __init__(self, message: str, code: int = USAGE):
        super().__init__(message)
        self.code = code


class Stopped(Problem):
    """A stop that was requested by a signal or a time budget.

    Nothing is half done where it is raised.
    """


def run_main(main) -> int:
    """Call a script's `main()` and turn its problems into one line and an exit code."""
    global in_script
    in_script = True
    _prepare_streams()
    try:
        code = _call(main)
        # On the way out there is nothing left to stop.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    except KeyboardInterrupt:  # another one, while the first was being reported
        code = INTERRUPTED
    _flush_streams()
    return code


def _prepare_streams() -> None:
    """Make sure that stdout and stderr exist and can print any text."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the shell
            setattr(sys, name, open(os.devnull, "w"))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _call(main) -> int:
    """The exit code of `main()`; what it raises is reported on stderr."""
    try:
        return main() or 0
    except (Problem, OSError, MemoryError) as error:
        return complain(error)
    except KeyboardInterrupt:
        return _print_error(STOPPED_AT_ONCE, INTERRUPTED)


def _flush_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            # Nobody reads any more, or the log's disk is full. On exit Python would report it
            # again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def speaks() -> bool:
    """Whether this process reports to the user: it runs alone, or torchrun started it first."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0"


def complain(error: Exception) -> int:
    """Report on stderr what went wrong, and return the exit code.

    A problem takes one line; a fault of this program is printed as a traceback.
    """
    if isinstance(error, Stopped) and not speaks():
        return error.code  # all ranks stop alike, and the first one reports it
    if isinstance(error, Problem):
        return _print_error(error, error.code)
    if isinstance(error, OSError):  # a place that no other check has looked at
        return _print_error(
            f"'{error.filename}': {error.strerror}; check the path, its permissions and the disk",
            USAGE,
        )
    if isinstance(error, MemoryError):
        return _print_error(
            "out of memory; lower --batch-size, --image-size or the sizes of the parts", USAGE
        )
    traceback.print_exception(error)
    return FAULT


def _print_error(text, code: int) -> int:
    with contextlib.suppress(OSError):
        print(f"error: {printable(text)}", file=sys.stderr)
    return code


def first_ten(items: list[str]) -> str:
    """The first ten of a list of faults, and how many there are in all."""
    listed = ", ".join(items[:10])
    if len(items) > 10:
        listed += f", ... ({len(items)} in all)"
    return listed


def printable(text) -> str:
    """`text` on one line, with everything escaped that a terminal cannot show.

    File names need not be UTF-8.
    """
    encoded = str(text).encode("utf-8", "backslashreplace")
    return encoded.decode("utf-8").replace("\n", " ")
