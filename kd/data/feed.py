"""Transfer images to the device.

The images are on the device already, or they are read from a memory map, or a thread gathers them
one step ahead.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from kd.data.store import Joined, Store
from kd.system.devices import to_device

# Slots of each batch -> uint8 [B, C, S, S] on the device, one tensor per batch.
Feed = Callable[[Iterable[np.ndarray]], Iterator[torch.Tensor]]
# Share of the free device memory for images; the rest is for networks and activations.
RESIDENT_SHARE = 0.25


def feed(store: Store | Joined, rows: np.ndarray, device: torch.device) -> Feed:
    """Return the fastest feed for a split, where `rows` are the store's rows of its slots."""
    if device.type == "cpu":
        return mapped(store, rows)
    needed = len(np.unique(rows)) * math.prod(store.shape)
    if needed <= RESIDENT_SHARE * _free_bytes(device):
        return resident(store, rows, device)
    return ahead(store, rows, device)


def _free_bytes(device: torch.device) -> int:
    """Return the free memory of a GPU, including torch's unused cache; 0 for other devices."""
    if device.type != "cuda":
        return 0
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def mapped(store: Store | Joined, rows: np.ndarray) -> Feed:
    """Read rows from the memory map when they are needed.

    On a CPU no copy to a device is needed: the rows are in the page cache, in main memory.
    """

    def images_of(batches):
        for slots in batches:
            yield store.gather(rows[slots])

    return images_of


def resident(store: Store | Joined, rows: np.ndarray, device: torch.device) -> Feed:
    """Copy all distinct images to the device once; each step then transfers only positions."""
    distinct, places = np.unique(rows, return_inverse=True)
    images = torch.empty(len(distinct), *store.shape, dtype=torch.uint8, device=device)
    for start in range(0, len(distinct), 1024):
        images[start : start + 1024] = store.gather(distinct[start : start + 1024]).to(device)
    places = torch.from_numpy(places)

    def images_of(batches):
        for slots in batches:
            yield images[to_device(places[slots], device)]

    return images_of


def ahead(store: Store | Joined, rows: np.ndarray, device: torch.device) -> Feed:
    """Gather the next batch in a thread while the device computes.

    For a GPU, the batch is gathered into page-locked memory, which the GPU can copy while it
    computes.
    """
    pinned = device.type == "cuda"

    def gather(slots):
        # torch reuses a page-locked block only after all copies from it are done.
        block = torch.empty(len(slots), *store.shape, dtype=torch.uint8, pin_memory=pinned)
        return store.gather(rows[slots], block)

    def images_of(batches):
        with ThreadPoolExecutor(1) as thread:
            coming = []
            for slots in batches:
                coming.append(thread.submit(gather, slots))
                if len(coming) > 1:
                    yield to_device(coming.pop(0).result(), device)
            for last in coming:
                yield to_device(last.result(), device)

    return images_of
