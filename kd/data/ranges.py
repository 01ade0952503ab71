"""The range of images with more than 8 bits: one for the whole set, measured on its train split."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from kd.data.images import pixels
from kd.data.images.common_range import (
    Extremes,
    are_misfits,
    common_range,
    exceptional,
    extremes,
)
from kd.data.images.decoded import FLOAT, INTEGER
from kd.data.images.pixels import Range, RangeNeeded
from kd.data.index import Index, digest
from kd.data.store import Store
from kd.system.console import progress
from kd.system.errors import Problem, counted, printable
from kd.system.files import make_folder, write_json
from kd.system.names import named, without_names
from kd.system.signals import never_stop

_VERSION = "ranges 3"
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
    choices = [measured_on, ("all images used", rows)]
    while True:
        known = _known(store, cache_dir, choices)
        if known.keys() - store.ranges.keys():
            store = _with_ranges(store, cache_dir, known)
        try:
            store.ensure(rows, check_stop)
            return store
        except RangeNeeded as need:
            if need.args[0] in known:
                raise Problem(
                    f"Images in {store.index.root} changed while they were read. Run the same"
                    " command again."
                ) from None
            _measure_next(store, cache_dir, choices, need.args[0], check_stop)


def _known(store: Store, cache_dir: str, choices: list[tuple]) -> dict[str, Range]:
    """Return the ranges that were measured on these images before."""
    known = {}
    for words, rows in reversed(choices):
        known |= _read(_file(store, cache_dir, words, rows))
    return known


def _measure_next(store: Store, cache_dir: str, choices: list, kind: str, check_stop) -> None:
    """Measure the first of `choices` that was not measured yet, and keep the result in the cache.

    Raises Problem if images of this kind are in none of them.
    """
    for words, rows in choices:
        file = _file(store, cache_dir, words, rows)
        if not file.is_file():
            found = measure(store.index, rows, f"measured over {words}", check_stop)
            make_folder(file.parent)
            write_json(file, as_plain(found))
            if kind in found:
                return
    if kind not in _known(store, cache_dir, choices):
        raise Problem(
            f"Images in {store.index.root} have {kind} values that could not be measured. Run the"
            " same command again, or remove the folder 'ranges' of --cache-dir."
        )


def given(bits: int | None) -> dict[str, Range]:
    """Return the ranges that --bits specifies: that of integers, whose depth is in question."""
    return {} if bits is None else {INTEGER: pixels.range_of_bits(bits)}


def as_plain(ranges: dict[str, Range]) -> dict[str, list]:
    """Return ranges as plain values for JSON and model.pt: {kind: [low, high, rule]}."""
    return {kind: list(one) for kind, one in ranges.items()}


def from_plain(values: dict[str, list]) -> dict[str, Range]:
    """Return ranges from `as_plain`. Raises TypeError if the values are not as it writes them."""
    return {kind: Range(*one) for kind, one in values.items()}


def remarks(store: Store, rows: np.ndarray) -> list[str]:
    """Return a sentence for each kind of range in use, and one for values outside of them."""
    flags = store.flags(np.unique(rows))
    deep = (flags & pixels.DEEP) > 0
    real = (flags & pixels.REAL) > 0
    used = {INTEGER: deep & ~real, FLOAT: deep & real}
    found = []
    for kind, (low, high, rule) in sorted(store.ranges.items()):
        if used[kind].any():
            found.append(
                f"Images with more than 8 bits ({kind} values) are shown from {low:g} (black) to"
                f" {high:g} (white), {rule}."
            )
    clipped = int(((flags & pixels.CLIPPED) > 0).sum())
    if clipped:
        images = counted(clipped, "image has", "images have")
        found.append(f"{images} values outside this range, which are clipped.")
    return found


def check_other(
    store: Store, rows: np.ndarray, where: str, whose: str, has_bits: bool
) -> list[str]:
    """Check that the range of one data set fits the images of another, `rows` of this store.

    where     names the other images in messages, as a flag with its folder
    whose     names the data set of the range
    has_bits  whether the depth of the other images can be set with --bits

    Returns a remark if all images with more than 8 bits are darker than half of the range. Raises
    Problem if more than a tenth of them have many values outside of it.
    """
    flags = store.flags(rows)
    deep = np.flatnonzero(flags & pixels.DEEP)
    if are_misfits(flags):
        outside = np.count_nonzero(flags & pixels.MISFIT)
        raise Problem(
            f"{where} has {counted(outside, 'image', 'images')} with many values outside the range"
            f" of {whose} ({words(store.ranges)}). {_cure(store, rows[deep], has_bits)}"
        )
    if len(deep) and not (flags & pixels.BRIGHT).any():
        return [
            (
                f"All {len(deep)} images with more than 8 bits in {where} are darker than half of"
                f" the range of {whose} ({words(store.ranges)}). If their range is another one:"
                f" {_cure(store, rows[deep], has_bits)}"
            )
        ]
    return []


def exceptions(store: Store, rows: np.ndarray) -> np.ndarray:
    """Return those of `rows` for which `check_other` would refuse all of them, if they are few.

    See `common_range.exceptional`.
    """
    return rows[exceptional(store.flags(rows))]


def _cure(store: Store, rows: np.ndarray, has_bits: bool) -> str:
    """Return what to do about images whose values do not fit a range."""
    own = measure(store.index, rows, "")
    integers = own.get(INTEGER)
    if has_bits and len(own) == 1 and integers is not None and integers.low == 0:
        return f"Set their number of bits with --bits {int(integers.high).bit_length()}."
    return (
        f"They have values from {words(own)}: convert them, so that black and white have the same"
        " values there."
    )


def words(own: dict[str, Range]) -> str:
    """Return ranges for a message: `0 to 4095`."""
    return ", ".join(f"{low:g} to {high:g}" for low, high, _ in own.values())


def same(first: dict[str, list], second: dict[str, list]) -> bool:
    """Return whether two entries of reports have the same ranges, whatever their rules."""
    return {kind: one[:2] for kind, one in first.items()} == {
        kind: one[:2] for kind, one in second.items()
    }


def measure(index: Index, rows: np.ndarray, rule: str, check_stop=never_stop) -> dict[str, Range]:
    """Return the range of each kind of values with more than 8 bits: {kind: Range}.

    Only images that do not state their range count. Images that cannot be read are skipped: they
    are reported when they are decoded. The rule of a range says if most images use little of it.
    """
    found = []
    rows = np.unique(rows)
    with (
        ThreadPoolExecutor(os.cpu_count()) as threads,
        progress(len(rows), "measuring", "images") as shown,
    ):
        for start in range(0, len(rows), CHUNK):
            chunk = [int(row) for row in rows[start : start + CHUNK]]
            files = [index.file(row) for row in chunk]
            for row, ends in zip(chunk, threads.map(extremes, files)):
                shown.update()
                if ends is not None:
                    found.append(Extremes(*ends, index.samples[row].path))
            check_stop()
    measured = {}
    for kind in sorted({one.kind for one in found}):
        more = "".join(f" ({text})" for text in uneven([one for one in found if one.kind == kind]))
        # The rule is stored in the report and in model.pt; --check-data names the image.
        measured[kind] = common_range(found, kind, rule + without_names(more))
    return measured


def uneven(images: list[Extremes]) -> list[str]:
    """Return a text if more than half of the images use less than a quarter of their joint range.

    One damaged pixel, or a few images with another scale, then leave few grey levels to the others.
    The name of the image with the widest range is marked (`names.named`).
    """
    if not images:
        return []
    span = max(one.highest for one in images) - min(one.lowest for one in images)
    few = sum(4 * (one.highest - one.lowest) < span for one in images)
    if 2 * few <= len(images):
        return []
    widest = max(images, key=lambda one: one.highest - one.lowest)
    return [
        f"{few} of {len(images)} images use less than a quarter of it, but"
        f" {named(printable(widest.path))} has values from {widest.lowest:g} to {widest.highest:g}"
    ]


def _with_ranges(store: Store, cache_dir: str, ranges: dict[str, Range]) -> Store:
    return type(store)(
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
