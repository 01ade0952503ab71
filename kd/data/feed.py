"""How pictures get to the device: from memory they already lie in, or gathered by a thread one step
ahead.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from kd.data.store import Joined, Store
from kd.system.devices import to_device

# slots of each batch -> uint8 [B, C, S, S] on the device, one a batch
Feed = Callable[[Iterable[np.ndarray]], Iterator[torch.Tensor]]
RESIDENT_SHARE = 0.25  # of the device's free memory: the rest is for networks and activations


def feed(store: Store | Joined, rows: np.ndarray, device: torch.device) -> Feed:
    """The fastest way for a part, whose slots stand for `rows` of the store, on a device."""
    if device.type == "cpu":
        return mapped(store, rows)
    free = 0
    if device.type == "cuda":  # what torch keeps for later is free, too
        free = (
            torch.cuda.mem_get_info(device)[0]
            + torch.cuda.memory_reserved(device)
            - torch.cuda.memory_allocated(device)
        )
    if len(np.unique(rows)) * math.prod(store.shape) <= RESIDENT_SHARE * free:
        return resident(store, rows, device)
    return ahead(store, rows, device)


def mapped(store: Store | Joined, rows: np.ndarray) -> Feed:
    """Rows of the memory map as they are asked for: on a CPU they are in the page cache, where the
    network is.
    """
    return lambda batches: (store.gather(rows[slots]) for slots in batches)


def resident(store: Store | Joined, rows: np.ndarray, device: torch.device) -> Feed:
    """All distinct pictures of the part, copied to the device once; a step then copies the places
    of its rows alone.
    """
    distinct, places = np.unique(rows, return_inverse=True)
    pictures = torch.empty(len(distinct), *store.shape, dtype=torch.uint8, device=device)
    for start in range(0, len(distinct), 1024):
        pictures[start : start + 1024] = store.gather(distinct[start : start + 1024]).to(device)
    places = torch.from_numpy(places)
    return lambda batches: (pictures[to_device(places[slots], device)] for slots in batches)


def ahead(store: Store | Joined, rows: np.ndarray, device: torch.device) -> Feed:
    """A thread gathers the next batch into page-locked memory, which the device copies while it
    computes.
    """
    pinned = device.type == "cuda"

    def gather(slots):
        # torch gives a page-locked block out again only after the copies that read it are done.
        return store.gather(
            rows[slots], torch.empty(len(slots), *store.shape, dtype=torch.uint8, pin_memory=pinned)
        )

    def batches_of(batches):
        with ThreadPoolExecutor(1) as thread:
            coming = []
            for slots in batches:
                coming.append(thread.submit(gather, slots))
                if len(coming) > 1:
                    yield to_device(coming.pop(0).result(), device)
            for last in coming:
                yield to_device(last.result(), device)

    return batches_of
