"""The range that images with more than 8 bits have in common, and images that do not fit it.

This module needs nothing but numpy and the modules beside it: it is part of the script that
predicts images without this program (`kd.studies.export.script`).
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kd.data.images.pixels import DEEP, MISFIT, Range, decode, file_bytes, range_for


class Extremes(NamedTuple):
    """The kind of an image's values, the lowest and the highest of them, and its path."""

    kind: str
    lowest: float
    highest: float
    path: str


def extremes(file: Path) -> tuple[str, float, float] | None:
    """Return (kind, lowest value, highest value) of an image.

    Returns None if the image needs no range, and if it cannot be read: such images are reported
    when they are decoded.
    """
    try:
        with contextlib.ExitStack() as hold:
            decoded = decode(file_bytes(file), 64, hold=hold)
            if decoded.image is not None or decoded.limits is not None:
                return None
            return decoded.kind, float(decoded.values.min()), float(decoded.values.max())
    except MemoryError:
        raise
    except Exception:  # Pillow raises exceptions of any type, see the store
        return None


def common_range(images: Sequence[Extremes], kind: str, rule: str) -> Range:
    """Return the range of all values of a kind; `images` has at least one of that kind.

    Raises Problem if the range is too wide for a floating-point number.
    """
    lowest = min(one.lowest for one in images if one.kind == kind)
    highest = max(one.highest for one in images if one.kind == kind)
    return range_for(kind, lowest, highest, rule)


def are_misfits(flags: np.ndarray) -> bool:
    """Return whether many images have many values outside the range: it is that of other images.

    flags  as of `to_8_bits`, uint8 [N]
    """
    return 10 * _count(flags, MISFIT) > _count(flags, DEEP)


def exceptional(flags: np.ndarray) -> np.ndarray:
    """Return which images `are_misfits` would refuse all for, if these are few: bool [N].

    They have many values outside the range. If there is one of them, or if they are at most a tenth
    of all images, they are another kind of image and do not call the range into question.

    flags  as of `to_8_bits`, uint8 [N]
    """
    outside = (flags & MISFIT) > 0
    count = _count(flags, MISFIT)
    are_few = (count == 1 or 10 * count <= len(flags)) and count < len(flags)
    return outside if are_few and are_misfits(flags) else np.zeros(len(flags), bool)


def _count(flags: np.ndarray, flag: int) -> int:
    return int(np.count_nonzero(flags & flag))
