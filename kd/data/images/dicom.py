"""Read DICOM files: a few header elements, and the pixels as the header says they are shown."""

import contextlib
import io
import logging
import struct
import warnings
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from kd.data.images.decoded import Pixels
from kd.data.images.dicom_head import HEAD_BYTES, is_dicom
from kd.data.images.dicom_stored import (
    GREY,
    PALETTE,
    Layout,
    Refused,
    integer,
    layout_of,
    stored_values,
    text,
)
from kd.data.images.dicom_values import (
    check_unused_bits,
    grey_values,
    in_strips,
    looked_up,
    palette_table,
    voi_item,
    window_of,
)

MAX_HEADER = 1 << 24  # bytes of a deflated file that are inflated for its header
_NEEDS_PYDICOM = "a DICOM file, which needs pydicom 3: pip install 'pydicom>=3.0,<4'"
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_YBR = ("YBR_FULL", "YBR_FULL_422")
_HEADER = (
    "PatientID",
    "IssuerOfPatientID",
    "StudyInstanceUID",
    "SOPInstanceUID",
    "AccessionNumber",
    "Modality",
    "Manufacturer",
    "BitsStored",
    "PhotometricInterpretation",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "VOILUTSequence",
    "PerFrameFunctionalGroupsSequence",
    "SharedFunctionalGroupsSequence",
    "BurnedInAnnotation",
    "NumberOfFrames",
    "Rows",
    "Columns",
)
# pydicom reports odd values by warnings. They must not mix with this program's output, and a filter
# that is set for one call would affect all threads.
warnings.filterwarnings("ignore", module=r"pydicom|kd\.data\.dicom")


class Header(NamedTuple):
    """What is read of a file's header: text is stripped and empty if missing, counts are 0.

    window   the window that is applied, as `CENTRE/WIDTH`, or `LUT` for a look-up table, or empty
    frames   number of frames, 1 if the file does not state it
    """

    patient: str
    issuer: str
    study: str
    instance: str
    accession: str
    modality: str
    manufacturer: str
    bits_stored: int
    photometric: str
    window: str
    burned_in: str
    frames: int
    rows: int
    columns: int


def read_header(path: Path | str) -> Header:
    """Read the header of a file; pixels are not read.

    Raises ValueError with a text for the user if it is not a DICOM file or damaged, and OSError if
    it cannot be opened.
    """
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
        _require_dicom(head)
        file.seek(0)
        if _DEFLATED in head:
            return header_of(file.read())
        with _described("a damaged DICOM file"):
            return _header(_parsed(file, header_only=True))


def header_of(content: bytes) -> Header:
    """Return the header of a file from its bytes; raises ValueError as `read_header` does."""
    _require_dicom(content[:HEAD_BYTES])
    with _described("a damaged DICOM file"):
        source = io.BytesIO(_inflated(content, MAX_HEADER, cut=True))
        return _header(_parsed(source, header_only=True))


def decode(content: bytes, max_pixels: int) -> Pixels:
    """Decode the bytes of a DICOM file with one image.

    Grey: `values` [H, W] after the modality look-up table or rescale, and then after the first VOI
    look-up table or window, if there is one. `limits` are the values that are black and white: the
    range of the look-up table or, with a window or neither, that of BitsStored after rescale.
    Without a window, floating-point pixels and integers that are signed or have more than 16 bits
    have no limits. Padding (PixelPaddingValue) is black.
    PhotometricInterpretation alone decides whether the lowest value is white.

    Colour: an image in RGB, or `values` [H, W, 3] if there are more than 8 bits.

    Raises ValueError with a text for the user.
    """
    _require_dicom(content[:HEAD_BYTES])
    with _described("a damaged DICOM file"):
        dataset = _parsed(io.BytesIO(_inflated(content, 4 * max_pixels)))
        layout = layout_of(dataset, max_pixels)
        array, photometric = stored_values(dataset, layout, max_pixels)
    with _described("a DICOM file whose header does not fit its pixels"):
        if layout.photometric in GREY:
            return _grey(array, dataset, layout)
        if layout.photometric == PALETTE:
            return _palette_colour(array, dataset, layout)
        return _colour(array, layout, photometric)


def _require_dicom(head: bytes) -> None:
    if not is_dicom(head):
        raise Refused("not a DICOM file")


@contextlib.contextmanager
def _described(fault: str):
    """Replace any exception but those of this module by a ValueError with the text `fault`.

    pydicom raises anything from AttributeError to struct.error for bad files, with texts of several
    lines.
    """
    try:
        yield
    except (Refused, MemoryError):
        raise
    except Exception as error:
        raise Refused(fault) from error


def _parsed(file, header_only: bool = False):
    """Return the pydicom data set of an open file."""
    try:
        import pydicom.config
        import pydicom.pixels  # which version 2 lacks
    except ImportError:
        raise Refused(_NEEDS_PYDICOM) from None
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    tags = list(_HEADER) if header_only else None
    dataset = pydicom.dcmread(file, force=True, stop_before_pixels=header_only, specific_tags=tags)
    if not len(dataset):  # pydicom drops all elements if the file ends within one without a length
        raise Refused(
            "file is truncated, or not an image" if header_only else "file is truncated or empty"
        )
    return dataset


def _inflated(content: bytes, limit: int, cut: bool = False) -> bytes:
    """Return a deflated file as an uncompressed one, and any other file as it is.

    pydicom would inflate it whatever its size. Beyond `limit` bytes, the rest is left out (`cut`)
    or the file is refused.
    """
    if _DEFLATED not in content[:HEAD_BYTES]:
        return content
    if content[132:138] != b"\x02\0\0\0UL":
        raise Refused("a deflated DICOM file without the length of its meta information")
    start = 144 + struct.unpack_from("<I", content, 140)[0]
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    data = stream.decompress(content[start:], limit)
    if not cut and not stream.eof:
        full = len(data) >= limit
        raise Refused(f"more than {limit} bytes when inflated" if full else "file is truncated")
    explicit = _DEFLATED.removesuffix(b".99").ljust(len(_DEFLATED), b"\0")
    return content[:start].replace(_DEFLATED, explicit) + data


def _header(dataset) -> Header:
    window = window_of(dataset)
    return Header(
        patient=text(dataset, "PatientID"),
        issuer=text(dataset, "IssuerOfPatientID"),
        study=text(dataset, "StudyInstanceUID"),
        instance=text(dataset, "SOPInstanceUID"),
        accession=text(dataset, "AccessionNumber"),
        modality=text(dataset, "Modality"),
        manufacturer=text(dataset, "Manufacturer"),
        bits_stored=integer(dataset, "BitsStored"),
        photometric=text(dataset, "PhotometricInterpretation"),
        window="LUT" if voi_item(dataset) else f"{window[0]:g}/{window[1]:g}" if window else "",
        burned_in=text(dataset, "BurnedInAnnotation"),
        frames=integer(dataset, "NumberOfFrames", 1),
        rows=integer(dataset, "Rows"),
        columns=integer(dataset, "Columns"),
    )


def _grey(array: np.ndarray, dataset, layout: Layout) -> Pixels:
    values, limits = grey_values(array, dataset, layout)
    inverted = layout.photometric == "MONOCHROME1"
    source = f"DICOM {layout.photometric}"
    return Pixels(None, values, limits, inverted, layout.bits, source)


def _palette_colour(array: np.ndarray, dataset, layout: Layout) -> Pixels:
    if not layout.is_integer or array.itemsize > 2:
        raise Refused(f"a palette for {layout.allocated} bits, which is not read")
    check_unused_bits(array, dataset, layout)
    table = palette_table(dataset, layout, array.itemsize)
    image = Image.fromarray(looked_up(array, table))
    return Pixels(image, None, None, False, 8, f"DICOM {layout.photometric}")


def _colour(array: np.ndarray, layout: Layout, photometric: str) -> Pixels:
    source = f"DICOM {layout.photometric}"
    if layout.signed or not layout.is_integer:
        raise Refused(f"{source} with a sign or floating-point values, which is not read")
    if photometric in _YBR and array.dtype == np.uint8:
        array = in_strips(array, _rgb, np.empty(array.shape, np.uint8))
    elif photometric != "RGB":
        raise Refused(f"{source} with {layout.bits} bits, which is not read")
    top = 2**layout.bits - 1
    if array.max() > top:
        raise Refused(f"values up to {array.max()}, but BitsStored is {layout.bits}")
    if layout.bits == 8 and array.itemsize == 1:
        image = Image.fromarray(np.ascontiguousarray(array))
        return Pixels(image, None, None, False, 8, source)
    values = array.astype(np.uint16) if array.itemsize == 1 else array
    return Pixels(None, values, (0, top), False, layout.bits, source)


def _rgb(strip: np.ndarray) -> np.ndarray:
    from pydicom.pixels import convert_color_space

    return convert_color_space(strip, "YBR_FULL", "RGB")
