"""One exception for everything that a user can fix, with exit codes that scripts can act on."""

import contextlib
import os
import signal
import sys
import traceback

from kd.system.messages import bounded, first_line, printable, shortened
from kd.system.names import named, with_names

# Exit codes. FAULT is a bug in this program.
FAULT = 1
USAGE = 2
DIVERGED = 3
BAD_CHECKPOINT = 4
CANNOT_WRITE = 74
BUSY = 75
INTERRUPTED = 130
TERMINATED = 143

# How an exception says that memory ran out: the names of its classes, and its text.
NO_MEMORY_CLASSES = {"MemoryError", "OutOfMemoryError"}
NO_MEMORY_TEXTS = (
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)

# The characters of a list in a message, and of each of its items.
_LIST = 360
_ITEM = 240

STOPPED_AT_ONCE = "Interrupted. Run the same command again to continue."

in_script = False  # whether this process runs one of the scripts, so that it may be terminated


class Problem(Exception):
    """An error that ends the program with one line on stderr, `error: MESSAGE`, and an exit code.

    The message has the shape "What is wrong, where and why. What to do.", for example:

        --temperature 0 is not valid: it must be above 0. See --help.
        Run folder 'runs/a/seed0' is in use by process 7 on host. Wait until it ends.

    It consists of one to three sentences on one line, each of which ends with a full stop, so that
    another sentence may follow. It begins with the setting, file or thing that is wrong. Names of
    images and patients are marked (`names.named`, `first_names`).

    marked  the message with the marks, for those who store it or make a note of it
    """

    def __init__(self, message: str, code: int = USAGE):
        super().__init__(with_names(message))
        self.marked = message
        self.code = code


class Stopped(Problem):
    """A stop that was requested by a signal or a time limit.

    It is raised only where no work is half done.
    """


def run_main(main) -> int:
    """Call a script's `main()`, report its errors on stderr, and return the exit code."""
    global in_script
    in_script = True
    _prepare_streams()
    try:
        code = _call(main)
        # From here on there is nothing left to interrupt.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    except KeyboardInterrupt:  # a second one, while the first was being reported
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
    """Return the exit code of `main()`; report its exceptions on stderr."""
    try:
        return main() or 0
    except (Problem, OSError, MemoryError) as error:
        return report_error(error)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return report_error(error)
    except KeyboardInterrupt:
        print_on_stderr(STOPPED_AT_ONCE)
        return INTERRUPTED


def _flush_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            # The reader is gone, or the disk of the log file is full. Without this, Python would
            # report it again on exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def reports_to_user() -> bool:
    """Return whether this process prints messages: it runs alone or is the first of torchrun's."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0"


def report_error(error: Exception) -> int:
    """Report an error on stderr and return the exit code.

    A problem is printed as one line, a bug in this program as a traceback. A stop was requested, so
    it is not called an error.
    """
    message, code = described(error)
    if isinstance(error, Stopped):
        if reports_to_user():  # all ranks stop together, and the first one reports it
            print_on_stderr(message)
    elif code == FAULT and not isinstance(error, Problem):
        traceback.print_exception(error)
    else:
        print_on_stderr(f"error: {message}")
    return code


def described(error: BaseException) -> tuple[str, int]:
    """Return the message of an error and its exit code."""
    if isinstance(error, Problem):
        return str(error), error.code
    if isinstance(error, KeyboardInterrupt):
        return STOPPED_AT_ONCE, INTERRUPTED
    if isinstance(error, OSError):  # a path that no other check covers
        what = f"'{error.filename}'" if error.filename is not None else "A file"
        why = error.strerror or first_line(error)
        return f"{what}: {why}. Check the path, its permissions and the disk.", USAGE
    if is_out_of_memory(error):
        cure = "Lower --batch-size, --image-size or the sizes of the splits."
        return f"Out of memory. {cure}", USAGE
    name = type(error).__name__
    why = " ".join(str(error).split())
    return f"A bug in this program ({name}: {why}). See the traceback that was printed.", FAULT


def is_out_of_memory(error: Exception) -> bool:
    """Return whether memory ran out, of the machine or of a GPU.

    torch has an exception class for its own allocations on GPUs. On a CPU and in the libraries of
    CUDA, only the message identifies the error.
    """
    classes = {kind.__name__ for kind in type(error).__mro__}
    if not classes.isdisjoint(NO_MEMORY_CLASSES):
        return True
    return any(text in str(error) for text in NO_MEMORY_TEXTS)


def print_on_stderr(text: str) -> None:
    """Print a line of bounded length on stderr and ignore failures.

    The terminal may be gone, or a signal may have interrupted another print.
    """
    with contextlib.suppress(OSError, RuntimeError):
        print(bounded(printable(text)), file=sys.stderr, flush=True)


def first_ten(items: list[str]) -> str:
    """Return the first ten items of a list as text, with the total number if there are more.

    Long items are shortened in the middle, and there are fewer than ten if they are long. A long
    item with marked names is marked as a whole, because a mark could be what is left out.
    """
    listed = ""
    for number, item in enumerate(items[:10]):
        shown = with_names(item)
        if len(shown) > _ITEM:
            item = shortened(shown, _ITEM) if shown == item else named(shortened(shown, _ITEM))
        longer = ", ".join([listed] * bool(number) + [item])
        if number and len(with_names(longer)) > _LIST:
            return f"{listed}, ... ({len(items)} in all)"
        listed = longer
    return f"{listed}, ... ({len(items)} in all)" if len(items) > 10 else listed


def first_names(items: list[str]) -> str:
    """Return `first_ten` of items that name images, folders or patients, marked by `named`."""
    return named(first_ten(items))


def counted(count: int, one: str, several: str) -> str:
    """Return a count and its noun: `one` if the count is 1, otherwise `several`."""
    return f"{count} {one if count == 1 else several}"
