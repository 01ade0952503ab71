"""Boxes around findings that a table of images has, in the pixels of the decoded images."""

import math
from collections.abc import Iterable
from typing import NamedTuple

from PIL import Image

from kd.data.images.fundus import LARGEST, disc_square
from kd.data.images.pixels import decode, file_bytes, to_8_bits
from kd.data.index import Index
from kd.data.store import Store
from kd.system.errors import Problem, counted, first_names, printable

# Columns of a table, in pixels of the upright image in the file. A cell with several numbers,
# separated by blanks or semicolons, is about as many boxes.
COLUMNS = ("box_x", "box_y", "box_width", "box_height")


class Box(NamedTuple):
    """The edges of a rectangle in pixels, from the upper left corner of an image."""

    left: float
    top: float
    right: float
    bottom: float

    def has(self, x: int, y: int) -> bool:
        """Return whether the centre of a pixel is inside."""
        return self.left <= x + 0.5 <= self.right and self.top <= y + 0.5 <= self.bottom

    @property
    def area(self) -> float:
        return (self.right - self.left) * (self.bottom - self.top)


def read_boxes(store: Store, rows: Iterable[int]) -> dict[int, list[Box]] | None:
    """Return the boxes of rows in the pixels of the store's images; None if there are no columns.

    Rows without a box are left out. Boxes are cut at the borders of the image. Raises Problem if
    only some of the columns exist, and for boxes that are none or lie outside of their image.
    """
    index = store.index
    known = [name for name in COLUMNS if name in index.extra]
    if not known:
        return None
    if len(known) < len(COLUMNS):
        missing = [name for name in COLUMNS if name not in known]
        raise Problem(
            f"The table of '{index.name}' has {', '.join(known)}, but not {', '.join(missing)}. A"
            f" box needs all of {', '.join(COLUMNS)}: complete the columns, or rename them."
        )
    found = {}
    faults = []
    for row in map(int, rows):
        try:
            boxes = _boxes(index, row)
            if boxes:
                found[row] = _placed_in(store, row, boxes)
        except ValueError as error:
            faults.append(f"{printable(index.samples[row].path)} ({error})")
    if faults:
        images = counted(len(faults), "image has", "images have")
        raise Problem(
            f"{images} a box that cannot be used: {first_names(faults)}. Correct the columns"
            f" {', '.join(COLUMNS)} of the table, or leave them empty."
        )
    return found


def _boxes(index: Index, row: int) -> list[Box]:
    """Return the boxes of a row as the table has them. Raises ValueError if they are none."""
    columns = []
    for name in COLUMNS:
        texts = index.extra[name][row].replace(";", " ").split()
        numbers = [_number(text) for text in texts]
        if not all(map(math.isfinite, numbers)):
            raise ValueError(f"{name} is not a number")
        columns.append(numbers)
    if len(set(map(len, columns))) > 1:
        raise ValueError("its four columns have different counts of numbers")
    boxes = []
    for x, y, width, height in zip(*columns):
        if not (width > 0 and height > 0):
            raise ValueError("its width or height is not above 0")
        boxes.append(Box(x, y, x + width, y + height))
    return boxes


def _number(text: str) -> float:
    """Return the number in a text; nan if it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _placed_in(store: Store, row: int, boxes: list[Box]) -> list[Box]:
    """Return boxes of a row in the pixels of the store. Raises ValueError if one is outside."""
    decoded = decode(file_bytes(store.index.file(row)))
    image, _ = to_8_bits(decoded, store.ranges)
    boxes = [_cut(box, *image.size) for box in boxes]
    if store.crop == "fundus":
        boxes, image = _in_disc(boxes, image)
    boxes = [placed(box, *image.size, store.size, store.resize) for box in boxes]
    return [_cut(box, store.size, store.size) for box in boxes]


def _cut(box: Box, width: float, height: float) -> Box:
    """Return the part of a box in an image. Raises ValueError if there is none."""
    inside = Box(
        max(0.0, box.left), max(0.0, box.top), min(width, box.right), min(height, box.bottom)
    )
    if not (inside.left < inside.right and inside.top < inside.bottom):
        raise ValueError("it is outside of the image")
    return inside


def _in_disc(boxes: list[Box], image: Image.Image) -> tuple[list[Box], Image.Image]:
    """Return boxes in the square around the disc of a fundus photograph, and that square."""
    small = image.convert("RGB")
    small.thumbnail((LARGEST, LARGEST))
    across, down = small.width / image.width, small.height / image.height
    left, top, side = disc_square(small)
    moved = []
    for box in boxes:
        xs = [across * x - left for x in (box.left, box.right)]
        ys = [down * y - top for y in (box.top, box.bottom)]
        moved.append(Box(xs[0], ys[0], xs[1], ys[1]))
    return moved, Image.new("1", (side, side))


def placed(box: Box, width: int, height: int, size: int, resize: str) -> Box:
    """Return a box of an image [height, width] after --resize to [size, size].

    `squash` changes both sides. `pad` keeps their ratio, and the image is in the middle: this is
    the rule of `PIL.ImageOps.pad`, with its rounding.
    """
    new_width, new_height, left, top = size, size, 0, 0
    if resize == "pad" and width > height:
        new_height = round(height / width * size)
        top = round((size - new_height) * 0.5)
    elif resize == "pad" and width < height:
        new_width = round(width / height * size)
        left = round((size - new_width) * 0.5)
    across, down = new_width / width, new_height / height
    return Box(
        left + across * box.left,
        top + down * box.top,
        left + across * box.right,
        top + down * box.bottom,
    )
