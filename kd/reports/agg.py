"""Import matplotlib for drawing to files, whatever the environment says about windows.

Every other module that needs matplotlib imports this one first.
"""

import contextlib
import logging
import os

# matplotlib logs where it keeps its cache if the home folder cannot be written, and more of the
# kind. It must not mix with this program's output.
logging.getLogger("matplotlib").addHandler(logging.NullHandler())


def _import_without_backend():
    """Import and return matplotlib, without the backend in the environment.

    Notebooks export MPLBACKEND to the programs they start, and importing matplotlib fails if the
    package of that backend is not installed. No window is opened here. The variable is kept for the
    processes that this one starts, and the setting for other code in this process if it is valid.
    """
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = backend
    return matplotlib


matplotlib = _import_without_backend()
