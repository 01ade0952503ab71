"""The time that a run took, over all its starts."""

import datetime
import platform
import time
from importlib import metadata

import numpy as np
import PIL
import timm
import torch

from kd.system import ranks
from kd.system.commit import commit
from kd.system.devices import Precision


class Clock:
    """Counts the seconds of a run, including those of earlier starts up to their last save."""

    def __init__(self):
        self._before, self._mark, self.started = 0.0, time.monotonic(), now()

    def seconds(self) -> float:
        """Return the seconds up to now."""
        return self._before + time.monotonic() - self._mark

    def state(self) -> dict:
        """Return the values from which `restore` continues."""
        return {"seconds": self.seconds(), "started": self.started}

    def restore(self, state: dict) -> None:
        """Continue from the values that `state` returned."""
        self._before, self.started = state["seconds"], state["started"]

    def describe(self, device: torch.device, precision: Precision, images: int) -> dict:
        """Return the report's `clock`: everything that depends on the time or the machine.

        images  number of images in all steps of the optimizer
        """
        seconds = self.seconds()
        name = platform.processor() or platform.machine()
        if device.type == "cuda":
            name = torch.cuda.get_device_name(device)
        return {
            "seconds": round(seconds, 3),
            "device": f"{device.type} ({name})",
            "precision": precision.words,
            "threads": torch.get_num_threads(),
            "ranks": ranks.world_size(),
            "started": self.started,
            "finished": now(),
            "images_per_second": round(images / seconds, 3) if seconds > 0 else None,
            "versions": versions(),
        }


def versions() -> dict[str, str | None]:
    """Return the versions of the libraries that train and evaluate, and of this program.

    `kd` is the commit of this program, see `kd.system.commit`; None where it is not known.
    """
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "scikit-learn": metadata.version("scikit-learn"),
        "scipy": metadata.version("scipy"),
        "kd": commit(),
    }


def now() -> str:
    """Return the time in UTC as text."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
