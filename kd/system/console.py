"""What the user sees: plain lines, above a progress bar if there is one."""

import contextlib
import sys
import threading

from tqdm import tqdm

from kd.system import ranks
from kd.system.errors import printable

# tqdm's own lock has a semaphore that all forked children share: one that is killed while it prints
# would stop the others.
tqdm.set_lock(threading.RLock())


def log(text: str) -> None:
    """Plain lines for the user, above a progress bar if there is one, by the first rank.

    A reader that is gone ends nothing.
    """
    if not ranks.is_main_rank():
        return
    with contextlib.suppress(OSError):
        tqdm.write("\n".join(map(printable, text.split("\n"))), file=sys.stdout)
        sys.stdout.flush()


def shows_progress() -> bool:
    """Whether a person looks at the output: progress bars then, plain lines else."""
    return sys.stderr.isatty() and ranks.is_main_rank()
