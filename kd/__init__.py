"""Knowledge distillation on medical images.

A room imports only from those below it (see README.md).
"""

import ctypes
import os
import sys


def _keep_freed_memory() -> None:
    """Let glibc reuse large freed blocks instead of returning them to the kernel after every
    tensor.

    A training step on CPU spends 14 to 41 % of its time in page faults otherwise. Numbers do not
    change. It must run before torch is imported, hence here; KD_MALLOC=system leaves the allocator
    alone.
    """
    if sys.platform != "linux" or os.environ.get("KD_MALLOC") == "system":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has no mallopt
        return
    trim_threshold, mmap_max = -1, -4
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, -1)


_keep_freed_memory()
