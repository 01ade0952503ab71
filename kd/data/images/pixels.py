"""Decode image files to pixels, and map values of any depth to 8 bits.

Except for DICOM files, this needs nothing but numpy, Pillow and the modules beside it: it is part
of the script that predicts images without this program (`kd.studies.export.script`).
"""

import contextlib
import io
import logging
import math
import sys
import threading
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from kd.data.images.decoded import FLOAT, Pixels
from kd.data.images.dicom import decode as decode_dicom
from kd.data.images.dicom_head import HEAD_BYTES, is_dicom
from kd.data.images.fundus import crop_to_circle
from kd.system.errors import Problem
from kd.system.messages import first_line

MAX_PIXELS = 100_000_000
MAX_BYTES = 1 << 30
# Images above this size are decoded one at a time, which bounds the memory of all threads together.
LARGE = 16_000_000
STRIP = 1 << 20  # values that are converted at a time
# Only these are tried, whatever the name of a file: Pillow starts Ghostscript for an EPS file.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF")
BITS = "--bits"  # the rule of a range that images must not exceed begins with this
# What `to_8_bits` reports about an image that has the range of its data set.
DEEP = 1  # it has more than 8 bits
REAL = 2  # these are floating-point values, not integers
CLIPPED = 4  # it has values outside the range
MISFIT = 8  # more than SOME of its values are outside the range
BRIGHT = 16  # it has values in the upper half of the range
SOME = 0.01  # so few values may be a marker, or damaged pixels of a detector
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
# The names that Pillow has for orders of bytes, and the opposite of each; N is the machine's own.
_OTHER_ORDER = {
    ";16B": ";16L",
    ";16L": ";16B",
    ";16N": ";16B" if sys.byteorder == "little" else ";16L",
}
_PNG_HAS_COLOUR_OR_ALPHA = (2, 4, 6)
_FREQUENT = (b"\xff\xd8\xff", b"\x89PNG")  # how JPEG and PNG files begin, but no DICOM file

# Pillow reports odd values of a file by warnings and in its log, which must not mix with this
# program's output: an image that cannot be read is reported as such.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())
# This module has its own limit, which is checked before pixels are decoded. Pillow's would print a
# warning for each image that is slightly smaller.
Image.MAX_IMAGE_PIXELS = None
_large_images = threading.Lock()


class RangeNeeded(Exception):
    """An image has more than 8 bits, and the range of its kind (the only argument) is not known."""


class Range(NamedTuple):
    """The values that become black and white, and the rule that they come from."""

    low: float
    high: float
    rule: str


@dataclass(frozen=True)
class Recipe:
    """How a decoded image becomes an array of a store: uint8 [C, S, S].

    size      S, in pixels
    resize    `squash` or `pad`
    channels  C: 1 (grey) or 3 (colour)
    crop      `none` or `fundus`
    ranges    kind -> range of images with more than 8 bits that do not state their own
    """

    size: int
    resize: str
    channels: int
    crop: str = "none"
    ranges: dict[str, Range] = field(default_factory=dict)

    @property
    def needed(self) -> int:
        """Side of the smallest image that suffices."""
        # The disc is smaller than the image, so twice the size is read.
        return 2 * self.size if self.crop == "fundus" else self.size


def file_bytes(path: Path) -> bytes:
    """Read an image file.

    Raises OSError if it is empty, too large, not a regular file or not readable.
    """
    if not path.is_file():
        raise OSError("not a regular file")
    size = path.stat().st_size
    if size == 0:  # includes files of /proc, which may be endless
        raise OSError("empty")
    if size > MAX_BYTES:
        raise OSError(f"{size} bytes, more than {MAX_BYTES >> 30} GiB")
    return path.read_bytes()


def why_unreadable(error: Exception) -> str:
    """Return why an image cannot be read, from what Pillow or this module raised for it."""
    if isinstance(error, UnidentifiedImageError):  # its own text has an address in memory
        return "not an image of a known format"
    if "MAX_TEXT_CHUNK" in str(error) or "MAX_TEXT_MEMORY" in str(error):
        return "a text in the file, a comment for example, is too large"
    if isinstance(error, OSError) and error.strerror:  # its own text has the path again
        return error.strerror
    return first_line(error)


def decode(
    content: bytes, size: int = 0, channels: int = 0, hold: contextlib.ExitStack | None = None
) -> Pixels:
    """Decode the bytes of an image file, upright and without transparency.

    A JPEG is decoded at its smallest scale that is not below `size`, which is several times faster
    than at full scale; `size` 0 decodes at full scale. With `channels` 1, a colour JPEG may be
    decoded to grey directly. While an image above LARGE is decoded, and as long as `hold` is open,
    no other such image is.

    Raises ValueError with a text for the user, or whatever Pillow raises for a bad file.
    """
    if hold is None:
        with contextlib.ExitStack() as own:
            return decode(content, size, channels, own)
    is_frequent = content.startswith(_FREQUENT)
    if not is_frequent and is_dicom(content[:HEAD_BYTES]):
        _wait_for_memory(len(content) // 2, hold)
        return decode_dicom(content, MAX_PIXELS)
    image = _opened(content)
    source = f"{image.format} {image.mode}"
    if size:
        image.draft("L" if channels == 1 else "RGB", (size, size))
    _wait_for_memory(image.width * image.height, hold)
    if _has_16_bit_colour(image, content):
        return _deep(_colour_values(image, content), image, 16, source)
    image.load()
    bits = 1 if image.mode == "1" else 8
    if image.mode.startswith("I") or image.mode == "F":
        return _deep(_grey_values(image), image, _stored_bits(image), source)
    return Pixels(_on_black(ImageOps.exif_transpose(image)), bits=bits, source=source)


def square(content: bytes, recipe: Recipe) -> tuple[np.ndarray, int]:
    """Return (an image as uint8 [C, S, S], its flags as of `to_8_bits`).

    Raises RangeNeeded, ValueError, or whatever Pillow raises for a bad file.
    """
    with contextlib.ExitStack() as hold:
        pixels = decode(content, recipe.needed, recipe.channels, hold)
        image, flags = to_8_bits(pixels, recipe.ranges)
        return resized(image, recipe), flags


def resized(image: Image.Image, recipe: Recipe) -> np.ndarray:
    """Convert an image with 8 bits per channel to a square array: uint8 [C, S, S]."""
    if recipe.crop == "fundus":
        image = crop_to_circle(image)
    image = image.convert("L" if recipe.channels == 1 else "RGB")
    shape = (recipe.size, recipe.size)
    if recipe.resize == "pad":
        image = ImageOps.pad(image, shape, Image.Resampling.BILINEAR, color=0)
    else:
        image = image.resize(shape, Image.Resampling.BILINEAR)
    array = np.asarray(image)
    return array[None] if recipe.channels == 1 else array.transpose(2, 0, 1)


def to_8_bits(pixels: Pixels, ranges: dict[str, Range]) -> tuple[Image.Image, int]:
    """Return (an image with 8 bits per channel, its flags: DEEP, REAL, CLIPPED, MISFIT, BRIGHT).

    low <= value <= high becomes round(255 * (value - low) / (high - low)), and 255 minus that if
    the lowest value is white. The flags are 0 for an image of 8 bits or with a range of its own.

    Raises RangeNeeded if the file does not state its range and `ranges` has none for its kind, and
    ValueError for values outside a range that --bits specifies.
    """
    if pixels.image is not None:
        return pixels.image, 0
    flags = 0
    if pixels.limits is not None:
        low, high = pixels.limits
    elif pixels.kind in ranges:
        low, high, _ = ranges[pixels.kind]
        flags = _flags(pixels.values, ranges[pixels.kind])
    else:
        raise RangeNeeded(pixels.kind)
    scaled = _scaled(pixels.values, low, high)
    if pixels.inverted:
        np.subtract(255, scaled, out=scaled)
    return Image.fromarray(scaled), flags


def _flags(values: np.ndarray, limits: Range) -> int:
    """Return the flags of values to which a range applies; see `to_8_bits`."""
    lowest, highest = values.min(), values.max()
    flags = DEEP if values.dtype.kind in "iu" else DEEP | REAL
    if lowest < limits.low or highest > limits.high:
        if limits.rule.startswith(BITS):
            raise ValueError(
                f"values {lowest:g} to {highest:g}, but {limits.rule} means {limits.low:g} to"
                f" {limits.high:g}"
            )
        flags |= CLIPPED
        outside = np.count_nonzero(values < limits.low) + np.count_nonzero(values > limits.high)
        if outside > SOME * values.size:
            flags |= MISFIT
    if highest > (limits.low + limits.high) / 2:
        flags |= BRIGHT
    return flags


def _scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return values of any type as uint8 of the same shape, in strips to bound the memory."""
    factor = 255.0 / (high - low) if high > low else 0.0
    result = np.empty(values.shape, np.uint8)
    rows = max(1, STRIP // max(1, values[0].size))
    for start in range(0, len(values), rows):
        strip = (values[start : start + rows].astype(np.float64) - low) * factor
        result[start : start + rows] = np.clip(np.round(strip), 0, 255)
    return result


def range_for(kind: str, lowest: float, highest: float, rule: str) -> Range:
    """Return the range of a data set whose values lie between `lowest` and `highest`.

    Integers from 0 on have the range of the fewest bits (8 or more) that hold them: 0 to 4095 for
    12 bits. Floating-point values from 0 on have the range 0 to 1, or 0 to the highest value if
    that is above 1. If values are below 0, the range is that of the values.

    Raises Problem if the range is too wide for a floating-point number.
    """
    if not math.isfinite(float(highest) - float(lowest)):
        raise Problem(
            f"Images have values from {lowest:g} to {highest:g}, a range too wide to be shown."
            " Remove the images with such values."
        )
    if lowest < 0:
        return Range(float(lowest), float(highest), rule)
    if kind == FLOAT:
        return Range(0.0, max(1.0, float(highest)), rule)
    bits = max(8, int(highest).bit_length())
    return Range(0.0, float(2**bits - 1), rule)


def range_of_bits(bits: int) -> Range:
    """Return the range that --bits specifies."""
    return Range(0.0, float(2**bits - 1), f"{BITS} {bits}")


def _wait_for_memory(pixels: int, hold: contextlib.ExitStack) -> None:
    """Wait until no other large image is in memory, and hold that place until `hold` is closed."""
    if pixels > LARGE:
        hold.enter_context(_large_images)


def _opened(content: bytes) -> Image.Image:
    """Return an image whose size and checksum are valid, but whose pixels are not decoded yet."""
    image = Image.open(io.BytesIO(content), formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(
            f"{image.width} x {image.height} pixels, more than {MAX_PIXELS // 10**6} million"
        )
    # The first image of an MPO file is the photograph, and the others are previews of it.
    has_one = image.format in ("JPEG", "MPO", "BMP")
    frames = 1 if has_one else getattr(image, "n_frames", 1)
    if frames > 1:
        raise ValueError(f"{frames} pages or frames, but one image is needed")
    if image.format == "PNG":
        # Decoding does not verify the checksum of the pixels.
        Image.open(io.BytesIO(content), formats=("PNG",)).verify()
    return image


def _on_black(image: Image.Image) -> Image.Image:
    """Return an image with 8 bits per channel, on black where it is transparent."""
    transparent = image.mode in ("LA", "La", "PA", "RGBA", "RGBa")
    if not transparent and "transparency" not in image.info:
        return image.convert("RGB") if image.mode == "P" else image
    image = image.convert("RGBA")
    black = Image.new("RGBA", image.size, (0, 0, 0, 255))
    black.alpha_composite(image)
    return black.convert("RGB")


def _has_16_bit_colour(image: Image.Image, content: bytes) -> bool:
    """Return whether an image has 16 bits in colour or with alpha: Pillow keeps 8 of them."""
    if image.format == "PNG":  # bytes 24 and 25 are the depth and the type of colour
        return content[24] == 16 and content[25] in _PNG_HAS_COLOUR_OR_ALPHA
    if image.format == "TIFF" and image.mode not in ("I", "I;16", "I;16B", "F"):
        return max(image.tag_v2.get(_BITS_PER_SAMPLE, (1,))) > 8
    return False


def _colour_values(image: Image.Image, content: bytes) -> np.ndarray:
    """Return the values of an image with 16 bits in colour: uint16 [H, W, 3], on black.

    Pillow keeps the upper 8 of 16 bits. It decodes the lower ones if the order of the bytes is
    exchanged.
    """
    if image.mode not in ("RGB", "RGBA") or "transparency" in image.info:
        raise ValueError("16 bits with transparency or as CMYK; save it as 16-bit RGB without both")
    lower = Image.open(io.BytesIO(content), formats=FORMATS)
    lower.tile = [tile._replace(args=_exchanged(tile.args)) for tile in lower.tile]
    values = np.asarray(image).astype(np.uint16)
    values <<= 8
    values |= np.asarray(lower)
    if values.shape[2] == 4:
        for row in values:  # row by row, because the product needs 32 bits
            alpha = row[:, 3:].astype(np.uint32)
            row[:, :3] = (row[:, :3] * alpha + 32767) // 65535
    return values[:, :, :3]


def _exchanged(arguments):
    """Return the arguments of a Pillow decoder for the other order of bytes."""
    first = arguments if isinstance(arguments, str) else arguments[0]
    order = first[-4:]
    # RGBa, with colours that are multiplied by alpha, is not decoded byte by byte.
    if first[:-4] not in ("RGB", "RGBA", "RGBX") or order not in _OTHER_ORDER:
        raise ValueError("16 bits in a layout that is not supported; save it as a 16-bit RGB PNG")
    changed = first[:-4] + _OTHER_ORDER[order]
    return changed if isinstance(arguments, str) else (changed, *arguments[1:])


def _grey_values(image: Image.Image) -> np.ndarray:
    """Return the values of a grey image with more than 8 bits: [H, W]."""
    values = np.asarray(image)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        missing = int(values.size - np.isfinite(values).sum())
        raise ValueError(f"{missing} of its values are NaN or infinite")
    if image.format == "TIFF" and image.mode == "I":
        has_no_sign = image.tag_v2.get(_SAMPLE_FORMAT, (1,))[0] == 1
        values = values.view(np.uint32) if has_no_sign else values
    transparent = image.info.get("transparency")
    if transparent is not None:
        values = np.where(values == transparent, 0, values).astype(values.dtype)
    return values


def _stored_bits(image: Image.Image) -> int:
    """Return the bits per value that a grey image with more than 8 bits states."""
    if image.format == "TIFF":
        return int(max(image.tag_v2.get(_BITS_PER_SAMPLE, (16,))))
    return 32 if image.mode in ("F", "I") else 16


def _deep(values: np.ndarray, image: Image.Image, bits: int, source: str) -> Pixels:
    """Return the pixels of an image with more than 8 bits, upright."""
    inverted = image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == 0
    turns = {3: 2, 6: 3, 8: 1}  # number of turns by 90 degrees to the left
    orientation = image.getexif().get(0x0112, 1)
    if orientation in (2, 4, 5, 7):
        values = np.flip(values, 0 if orientation == 4 else 1)
    turns |= {5: 1, 7: 3}
    values = np.rot90(values, turns.get(orientation, 0))
    return Pixels(None, values, inverted=inverted, bits=bits, source=source)
