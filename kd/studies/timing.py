"""Latencies of functions that take turns, so that a busy machine slows all of them equally."""

import time
from collections.abc import Callable, Mapping

import numpy as np

REPEATS = 15
WARM_UP = 2
FEWEST = 3  # repeats that are made in any case
LIMIT = 60.0  # seconds after which no more repeats than these are made


def take_turns(
    calls: Mapping[str, Callable[[], object]], wait: Callable[[], None] = lambda: None
) -> dict[str, list[float]]:
    """Return the seconds of each of REPEATS calls of each function, by name.

    There are fewer, but at least FEWEST, if they take longer than LIMIT in all, as on a machine
    whose cores are busy with other work.

    wait  is called before and after each call; it waits until the device has done its work
    """
    seconds = {name: [] for name in calls}
    begun = time.perf_counter()
    for repeat in range(REPEATS + WARM_UP):
        if repeat >= FEWEST + WARM_UP and time.perf_counter() - begun > LIMIT:
            break
        for name, call in calls.items():
            wait()
            start = time.perf_counter()
            call()
            wait()
            if repeat >= WARM_UP:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def spread(seconds: list[float]) -> dict[str, float]:
    """Return the median of durations and their quartiles, in seconds, and their number."""
    low, median, high = np.percentile(seconds, (25, 50, 75))
    return {
        "median": float(median),
        "low": float(low),
        "high": float(high),
        "repeats": len(seconds),
    }
