"""The range of images with more than 8 bits: one for the whole set, measured on its train split."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from kd.data.images import pixels
from kd.data.images.pixels import Range, RangeNeeded
from kd.data.index import Index, digest
from kd.data.store import Store
from kd.system.console import shows_progress
from kd.system.errors import counted
from kd.system.files import make_folder, write_json
from kd.system.signals import never_stop

_VERSION = "ranges 1"
CHUNK = 256


def open_store(
    store: Store,
    cache_dir: str,
    rows: np.ndarray,
    measured_on: tuple[str, np.ndarray],
    check_stop=never_stop,
) -> Store:
    """Decode rows of a store and return it, or the store of the same images with their ranges.

    If images have more than 8 bits and neither they nor `store.ranges` state their range, it is
    measured once and kept in the cache.

    measured_on  (words for the user, rows) of the images that the range is measured on; on `rows`
                 if none of them has such values

    Raises Problem for images that cannot be decoded.
    """
    words, train = measured_on
    file = _file(store, cache_dir, words, train)
    saved = _read(file)
    if saved:
        store = _with_ranges(store, cache_dir, saved)
    while True:
        try:
            store.ensure(rows, check_stop)
            return store
        except RangeNeeded as need:
            found = measure(store.index, train, f"measured over {words}", check_stop)
            kind = need.args[0]
            if kind not in found:
                found |= measure(store.index, rows, "measured over all images used", check_stop)
            saved = saved | found
            make_folder(file.parent)
            write_json(file, as_plain(saved))
            store = _with_ranges(store, cache_dir, saved)


def given(bits: int | None) -> dict[str, Range]:
    """Return the ranges that --bits specifies: that of integers, whose depth is in question."""
    return {} if bits is None else {pixels.INTEGER: pixels.range_of_bits(bits)}


def as_plain(ranges: dict[str, Range]) -> dict[str, list]:
    """Return ranges as plain values for JSON and model.pt: {kind: [low, high, rule]}."""
    return {kind: list(one) for kind, one in ranges.items()}


def from_plain(values: dict[str, list]) -> dict[str, Range]:
    """Return ranges from `as_plain`. Raises TypeError if the values are not as it writes them."""
    return {kind: Range(*one) for kind, one in values.items()}


def remarks(store: Store, rows: np.ndarray) -> list[str]:
    """Return a sentence for each kind of range in use, and one for values outside of them."""
    flags = store.flags(np.unique(rows))
    found = []
    for kind, (low, high, rule) in sorted(store.ranges.items()):
        if (flags & pixels.DEEP).any():
            found.append(
                f"Images with more than 8 bits ({kind} values) are shown from {low:g} (black) to"
                f" {high:g} (white), {rule}."
            )
    clipped = int(((flags & pixels.CLIPPED) > 0).sum())
    if clipped:
        images = counted(clipped, "image has", "images have")
        found.append(f"{images} values outside this range, which are clipped.")
    return found


def measure(index: Index, rows: np.ndarray, rule: str, check_stop=never_stop) -> dict[str, Range]:
    """Return the range of each kind of values with more than 8 bits: {kind: Range}.

    Only images that do not state their range count. Images that cannot be read are skipped: they
    are reported when they are decoded.
    """
    extremes = {}
    rows = np.unique(rows)
    with (
        ThreadPoolExecutor(os.cpu_count()) as threads,
        tqdm(total=len(rows), desc="measuring", unit="img", disable=not shows_progress()) as bar,
    ):
        for start in range(0, len(rows), CHUNK):
            chunk = [index.file(int(row)) for row in rows[start : start + CHUNK]]
            for found in threads.map(_extremes, chunk):
                if found is not None:
                    kind, lowest, highest = found
                    low, high = extremes.get(kind, (lowest, highest))
                    extremes[kind] = min(low, lowest), max(high, highest)
            bar.update(len(chunk))
            check_stop()
    return {kind: pixels.range_for(kind, *ends, rule) for kind, ends in extremes.items()}


def _extremes(file: Path) -> tuple[str, float, float] | None:
    """Return (kind, lowest value, highest value) of an image, or None if it needs no range."""
    try:
        decoded = pixels.decode(pixels.file_bytes(file), 64)
    except Exception:  # Pillow raises exceptions of any type, see the store
        return None
    if decoded.image is not None or decoded.limits is not None:
        return None
    return decoded.kind, float(decoded.values.min()), float(decoded.values.max())


def _with_ranges(store: Store, cache_dir: str, ranges: dict[str, Range]) -> Store:
    return Store(
        store.index,
        cache_dir,
        store.size,
        store.resize,
        store.channels,
        store.crop,
        ranges | store.ranges,
    )


def _file(store: Store, cache_dir: str, words: str, rows: np.ndarray) -> Path:
    """Return the file that keeps the ranges of these files in their present state."""
    rows = np.unique(rows)
    paths = [store.index.samples[row].path for row in rows]
    place = str(store.index.root or "")
    key = digest([_VERSION, place, words, store.stamps[rows].tobytes().hex(), *paths])
    return Path(cache_dir) / "ranges" / f"{store.index.name}-{key}.json"


def _read(file: Path) -> dict[str, Range]:
    """Return the ranges in a file of the cache; none if it does not exist or is damaged."""
    try:
        content = json.loads(file.read_bytes())
        return from_plain(content)
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
