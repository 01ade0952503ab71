"""Console output: plain lines, printed above a progress bar if there is one."""

import contextlib
import sys
import threading

from tqdm import tqdm

from kd.system import ranks
from kd.system.errors import printable

# tqdm's own lock has a semaphore that all forked processes share: a process that is killed while
# it prints would block the others.
tqdm.set_lock(threading.RLock())


def log(text: str) -> None:
    """Print plain lines on the first rank, above a progress bar if there is one.

    A closed stdout is ignored, so that the program continues when nobody reads its output.
    """
    if not ranks.is_main_rank():
        return
    with contextlib.suppress(OSError):
        tqdm.write("\n".join(map(printable, text.split("\n"))), file=sys.stdout)
        sys.stdout.flush()


def shows_progress() -> bool:
    """Return whether the output goes to a terminal, so that progress bars are useful."""
    return sys.stderr.isatty() and ranks.is_main_rank()
