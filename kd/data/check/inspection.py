"""Read every image file of a data set once, and record what kind of file it is."""

import contextlib
import hashlib
import io
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image

from kd.data import ranges
from kd.data.check.near_duplicates import thumbnail
from kd.data.images import dicom, pixels
from kd.data.images.decoded import INTEGER
from kd.data.index import Index
from kd.system.console import progress
from kd.system.errors import printable

# What is recorded of each file, and the words for it. The value of each is a text, empty if the
# file does not state it. `bits used` are those that the values of an integer image with more than
# 8 bits need, if the file does not state its range.
PROPERTIES = {
    "format": "format",
    "mode": "mode",
    "bits": "bits per channel",
    "bits_used": "bits used",
    "numbers": "numbers",
    "photometric": "photometric interpretation",
    "manufacturer": "manufacturer",
    "modality": "modality",
    "bits_stored": "BitsStored",
    "window": "window",
    "burned_in": "BurnedInAnnotation",
}
INVERTED = ("MONOCHROME1", "WhiteIsZero")
_MAKE = 271  # tag of the manufacturer, in TIFF and in Exif
_PHOTOMETRIC = 262
_TIFF_PHOTOMETRICS = {0: "WhiteIsZero", 1: "BlackIsZero"}


class Finding(NamedTuple):
    """What is known of an image.

    fault       why it cannot be read, otherwise empty. Then all other fields are empty
    digest      SHA-256 of the file
    size        (width, height) in pixels
    properties  {name in PROPERTIES: text}
    window      of a DICOM file: `CENTRE/WIDTH`, `LUT` or `none`
    thumbnail   see `near_duplicates.thumbnail`; None for a flat image
    ends        (kind, lowest, highest value) with more than 8 bits and no stated range, or None
    """

    fault: str = ""
    digest: bytes = b""
    size: tuple[int, int] = (0, 0)
    properties: dict[str, str] = {}
    window: str = ""
    thumbnail: np.ndarray | None = None
    ends: tuple[str, float, float] | None = None

    @property
    def is_deep(self) -> bool:
        """Whether the image has more than 8 bits per channel."""
        return int(self.properties["bits"]) > 8

    @property
    def is_inverted(self) -> bool:
        """Whether the lowest value in the file is white."""
        return self.properties["photometric"] in INVERTED


def inspect_all(index: Index, bits: int | None) -> list[Finding]:
    """Return the finding of each row of an index, and show the progress.

    Values outside the range of `bits` (--bits) are faults, as in training.
    """

    def inspect(row: int) -> Finding:
        try:
            if index.draw is not None:
                return _inspect_drawing(index.draw(row))
            return _inspect_file(pixels.file_bytes(index.file(row)), bits)
        except Exception as error:  # Pillow raises exceptions of any type, see the store
            return Finding(pixels.why_unreadable(error))

    rows = range(len(index.samples))
    findings = []
    with (
        ThreadPoolExecutor(os.cpu_count()) as threads,
        progress(len(rows), "reading", "images") as shown,
    ):
        for finding in threads.map(inspect, rows):
            findings.append(finding)
            shown.update()
    return findings


def _inspect_drawing(drawing: np.ndarray) -> Finding:
    image = Image.fromarray(drawing)
    properties = _properties(format="drawing", mode=image.mode, bits="8")
    digest = hashlib.sha256(drawing.tobytes()).digest()
    return Finding("", digest, image.size, properties, thumbnail=thumbnail(image))


def _inspect_file(content: bytes, bits: int | None) -> Finding:
    """Raises whatever `pixels.decode` raises for a bad file."""
    # A large image is held in memory alone, until its thumbnail is made.
    with contextlib.ExitStack() as hold:
        decoded = pixels.decode(content, hold=hold)
        if bits is not None and decoded.image is None:
            with contextlib.suppress(pixels.RangeNeeded):
                pixels.to_8_bits(decoded, ranges.given(bits))
        file_format, _, mode = decoded.source.partition(" ")
        stated = {"format": file_format, "mode": mode, "bits": str(decoded.bits)}
        stated |= _values_of(decoded)
        ends = None
        if "numbers" in stated:
            ends = decoded.kind, float(decoded.values.min()), float(decoded.values.max())
        window = ""
        if file_format == "DICOM":
            header = dicom.header_of(content)
            stated |= _stated_in_dicom(header)
            window = header.window or "none"
        else:
            stated |= _stated_in_other(content, file_format)
        if decoded.image is not None:
            size = decoded.image.size
            small = thumbnail(decoded.image)
        else:
            size = decoded.values.shape[1::-1]
            small = thumbnail(_reduced(decoded))
    digest = hashlib.sha256(content).digest()
    return Finding("", digest, size, _properties(**stated), window, small, ends)


def _properties(**stated: str) -> dict[str, str]:
    """Return all properties of a file, empty texts for those that are not stated."""
    return dict.fromkeys(PROPERTIES, "") | stated


def _values_of(decoded: pixels.Pixels) -> dict[str, str]:
    """Return what the values of an image show that has more than 8 bits and states no range."""
    if decoded.image is not None or decoded.limits is not None:
        return {}
    found = {"numbers": decoded.kind}
    if decoded.kind == INTEGER and decoded.values.min() >= 0:
        found["bits_used"] = str(int(decoded.values.max()).bit_length())
    return found


def _stated_in_dicom(header: dicom.Header) -> dict[str, str]:
    return {
        "photometric": _text(header.photometric),
        "manufacturer": _text(header.manufacturer),
        "modality": _text(header.modality),
        "bits_stored": str(header.bits_stored or ""),
        "window": "yes" if header.window else "no",
        "burned_in": _text(header.burned_in).upper(),
    }


def _stated_in_other(content: bytes, file_format: str) -> dict[str, str]:
    """Return what the tags of a TIFF or JPEG file state. Other formats are not searched."""
    if file_format not in ("TIFF", "JPEG", "MPO"):
        return {}
    try:
        with Image.open(io.BytesIO(content), formats=(file_format,)) as image:
            tags = image.tag_v2 if file_format == "TIFF" else image.getexif()
            found = {"manufacturer": _text(tags.get(_MAKE))}
            if file_format == "TIFF":
                found["photometric"] = _TIFF_PHOTOMETRICS.get(tags.get(_PHOTOMETRIC), "")
            return found
    except Exception:  # the pixels are sound, so damaged tags are no fault
        return {}


def _text(value) -> str:
    """Return a value of a header as text without surrounding blanks; empty if there is none."""
    return "" if value is None else " ".join(printable(value).replace("\0", " ").split())


def _reduced(decoded: pixels.Pixels) -> Image.Image:
    """Return a small floating-point image of values with more than 8 bits, black below white.

    Every n-th row and column is enough for a thumbnail, and takes little memory.
    """
    step = max(1, min(decoded.values.shape[:2]) // 512)
    values = decoded.values[::step, ::step].astype(np.float32)
    if values.ndim == 3:
        values = values.mean(2)
    return Image.fromarray(-values if decoded.inverted else values)


def counted_by(findings: Iterable[Finding], name: str) -> dict[str, int]:
    """Return how many files have each value of a property, the most frequent first.

    Files that do not state the property are not counted.
    """
    counts = {}
    for finding in findings:
        value = finding.properties[name]
        if value:
            counts[value] = counts.get(value, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
