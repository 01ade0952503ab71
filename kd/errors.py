"""One exception for everything a user can mend, with the exit code that a shell loop can act on."""

import contextlib
import os
import signal
import sys

USAGE, DIVERGED, BAD_CHECKPOINT, CANNOT_WRITE, BUSY, INTERRUPTED, TERMINATED = 2, 3, 4, 74, 75, 130, 143

STOPPED_AT_ONCE = "interrupted; run the same command again to go on"

in_script = False  # whether this process is a script of ours, which may end it


class Problem(Exception):
    """Ends the program with one line on stderr, `error: MESSAGE`, and an exit code.

    The message says what, where, why and what to do: "<what> '<value>' in <where>: <why>; <what to do>".
    """

    def __init__(self, message: str, code: int = USAGE):
        super().__init__(message)
        self.code = code


class Stopped(Problem):
    """A stop that was asked for: by a signal or a time budget. Nothing is half done where it is raised."""


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
        except Problem as problem:
            code = complain(problem, problem.code)
        except OSError as error:  # a place that no other check has looked at
            code = complain(f"'{error.filename}': {error.strerror}; check the path, its permissions and the disk", USAGE)
        except MemoryError:
            code = complain("out of memory; lower --batch-size, --image-size or the sizes of the parts", USAGE)
        except KeyboardInterrupt:
            code = complain(STOPPED_AT_ONCE, INTERRUPTED)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # on the way out there is nothing to stop any more
    except KeyboardInterrupt:  # one more, while the first was told
        code = INTERRUPTED
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # nobody reads any more, or the log's disk is full; Python would say so again as it exits
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return code


def complain(text, code: int) -> int:
    """Tell a problem on stderr, in one line; returns `code`."""
    with contextlib.suppress(OSError):
        print(f"error: {printable(text)}", file=sys.stderr)
    return code


def first_ten(items: list[str]) -> str:
    """The first ten of a list of faults, and how many there are in all."""
    return ", ".join(items[:10]) + (f", ... ({len(items)} in all)" if len(items) > 10 else "")


def printable(text) -> str:
    """`text` on one line, with what a terminal cannot show escaped (file names need not be UTF-8)."""
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8").replace("\n", " ")
