"""Decode the pixel data of a DICOM file to the integers or floating-point values it stores."""

import contextlib
import importlib.util
import struct
from typing import NamedTuple

import numpy as np

GREY = ("MONOCHROME1", "MONOCHROME2")
PALETTE = "PALETTE COLOR"
_PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_REQUIRED = ("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated")
_REQUIRED_OF_INTEGERS = ("BitsStored", "PixelRepresentation")
_JPEG_FAMILY = "1.2.840.10008.1.2.4."
# The markers of JPEG and JPEG-LS that state the size of an image.
_SIZE_MARKERS = frozenset((*range(0xC0, 0xD0), 0xF7)) - {0xC4, 0xC8, 0xCC}
_JPEG_2000 = ("1.2.840.10008.1.2.4.9", "1.2.840.10008.1.2.4.20")
_PLUGINS = ("pillow", "pylibjpeg", "pyjpegls", "gdcm")
_JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
_JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"


class Refused(ValueError):
    """A file that is not read, with a text for the user."""

    def __init__(self, message: str):
        # It may quote the file's own text.
        super().__init__("".join(sign if sign.isprintable() else " " for sign in message))


class Layout(NamedTuple):
    """How the pixels of a file are stored.

    keyword  the element that holds them: PixelData, FloatPixelData or DoubleFloatPixelData
    """

    rows: int
    columns: int
    samples: int
    photometric: str
    allocated: int
    bits: int
    signed: bool
    keyword: str

    @property
    def is_integer(self) -> bool:
        """Whether the pixels are integers."""
        return self.keyword == "PixelData"

    @property
    def limits(self) -> tuple[int, int]:
        """The lowest and the highest integer that can be stored."""
        if self.signed:
            return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        return 0, 2**self.bits - 1


def text(dataset, keyword: str) -> str:
    """Return an element as text, stripped, and empty if it is missing."""
    value = dataset.get(keyword)
    if value is None:
        return ""
    parts = list(value) if is_list(value) else [value]
    return "\\".join(str(part) for part in parts).replace("\0", "").strip()


def is_list(value) -> bool:
    """Return whether an element has several values, or is a sequence."""
    return hasattr(value, "__iter__") and not isinstance(value, (str, bytes))


def integer(dataset, keyword: str, default: int = 0) -> int:
    """Return an element as an integer, and `default` if it is missing or 0. Raises Refused."""
    try:
        return int(dataset.get(keyword) or default)
    except (TypeError, ValueError):
        raise Refused(f"its {keyword} is not a number") from None


def layout_of(dataset, max_pixels: int) -> Layout:
    """Return how the pixels are stored; refuse files without one image of a valid size."""
    keywords = [keyword for keyword in _PIXEL_KEYWORDS if keyword in dataset]
    if not keywords:
        raise Refused(_why_no_pixels(dataset))
    integers = keywords[0] == "PixelData"
    required = _REQUIRED + (_REQUIRED_OF_INTEGERS if integers else ())
    missing = [keyword for keyword in required if dataset.get(keyword) in (None, "")]
    if missing:
        raise Refused(f"its header lacks {', '.join(missing)}")
    layout = Layout(
        integer(dataset, "Rows"),
        integer(dataset, "Columns"),
        integer(dataset, "SamplesPerPixel"),
        text(dataset, "PhotometricInterpretation"),
        integer(dataset, "BitsAllocated"),
        integer(dataset, "BitsStored" if integers else "BitsAllocated"),
        integers and bool(dataset.PixelRepresentation),
        keywords[0],
    )
    _check_layout(layout, integer(dataset, "NumberOfFrames", 1), max_pixels)
    shown_as = text(dataset, "PixelPresentation")
    if layout.photometric in GREY and shown_as in ("COLOR", "MIXED"):
        raise Refused("grey pixels with supplemental colours, which are not read")
    high_bit = dataset.get("HighBit")
    if integers and high_bit is not None and high_bit != layout.bits - 1:
        raise Refused(f"HighBit {high_bit} contradicts BitsStored {layout.bits}")
    return layout


def _check_layout(layout: Layout, frames: int, max_pixels: int) -> None:
    if frames > 1:
        raise Refused(f"{frames} frames, but one image is needed")
    _check_size(layout.columns, layout.rows, max_pixels)
    if layout.rows < 1 or layout.columns < 1:
        raise Refused(f"{layout.columns} x {layout.rows} pixels")
    if layout.samples != (1 if layout.photometric in (*GREY, PALETTE) else 3):
        raise Refused(f"{layout.photometric} with {layout.samples} samples, which is not read")
    if not 1 <= layout.bits <= layout.allocated <= 64:
        raise Refused(f"BitsStored {layout.bits}, but BitsAllocated {layout.allocated}")


def _check_size(columns: int, rows: int, max_pixels: int) -> None:
    if columns * rows > max_pixels:
        raise Refused(f"{columns} x {rows} pixels, more than {max_pixels // 10**6} million")


def _why_no_pixels(dataset) -> str:
    """Return the text for a file without pixels: a report, a plan, or a truncated image."""
    if "Rows" in dataset:
        return "file is truncated: no pixel data follow its header"
    kind = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID")
    named = getattr(kind, "name", "")
    modality = text(dataset, "Modality")[:16] or "unknown"
    return f"no pixel data: modality {modality}{f', {named}' if named else ''}"


def stored_values(dataset, layout: Layout, max_pixels: int) -> tuple[np.ndarray, str]:
    """Return (stored values [H, W] or [H, W, 3], their photometric interpretation).

    Of a file that is not compressed, the result is a view of the pixels in the data set.
    """
    from pydicom.pixels import get_decoder

    syntax = _transfer_syntax(dataset)
    name = f"{syntax.name} ({syntax})"
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise Refused(_no_decoder(name)) from None
    plugins = [""]
    if syntax.is_encapsulated:
        bits = _check_frame(dataset, layout, max_pixels)
        plugins = _plugins(syntax, bits, decoder.available_plugins)
        if not decoder.is_available:
            raise Refused(f"its transfer syntax is {name}, which needs a decoder: {_cure(syntax)}")
        if not plugins:
            raise Refused(_no_decoder(f"{name} with {bits} bits"))
    else:
        _check_length(dataset, layout)
    try:
        array, found = _decoded(decoder, dataset, plugins)
    except Exception as error:
        raise Refused(_why_not_decoded(syntax, name)) from error
    channels = (3,) if layout.samples == 3 else ()
    if array.shape != (layout.rows, layout.columns, *channels):
        raise Refused("more pixel data than one image needs")
    order = array.dtype.newbyteorder("=")
    return array.astype(order, copy=False), str(found["photometric_interpretation"])


def _plugins(syntax: str, bits: int, available: tuple[str, ...]) -> list[str]:
    """Return those of pydicom's plug-ins that are tried, in their order.

    Those that are always installed come first, so that pixels do not depend on the others. These
    are not tried for data that the first ones should read: some of them accept damaged data, print
    on stderr or panic.
    """
    if "pydicom" in available:  # RLE
        return ["pydicom"]
    if syntax == _JPEG_EXTENDED and bits > 8:
        return [plugin for plugin in available if plugin == "pylibjpeg"]
    order = [plugin for plugin in _PLUGINS if plugin in available]
    return order[:1] if syntax in (_JPEG_BASELINE, _JPEG_EXTENDED) else order


def _decoded(decoder, dataset, plugins: list[str]) -> tuple[np.ndarray, dict]:
    """Return what the first plug-in returns that does not fail; raises what the last one raises."""
    from pydicom.pixels import as_pixel_options

    options = as_pixel_options(dataset, view_only=True, correct_unused_bits=False)
    for plugin in plugins[:-1]:
        with contextlib.suppress(Exception):
            return decoder.as_array(dataset, raw=True, decoding_plugin=plugin, **options)
    return decoder.as_array(dataset, raw=True, decoding_plugin=plugins[-1], **options)


def _transfer_syntax(dataset):
    """Return the transfer syntax, which files without meta information do not state."""
    from pydicom import uid

    if not dataset.file_meta.get("TransferSyntaxUID"):
        implicit, little_endian = dataset.original_encoding
        explicit = uid.ExplicitVRLittleEndian if little_endian else uid.ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else explicit
    return dataset.file_meta.TransferSyntaxUID


def _check_length(dataset, layout: Layout) -> None:
    """Refuse truncated pixel data that are not compressed."""
    bits = layout.rows * layout.columns * layout.samples * layout.allocated
    if layout.photometric == "YBR_FULL_422":  # two pixels share their colour
        bits = bits * 2 // 3
    needed, found = (bits + 7) // 8, len(dataset.get(layout.keyword) or b"")
    if found < needed:
        raise Refused(f"file is truncated: {found} of {needed} bytes of pixel data")


def _check_frame(dataset, layout: Layout, max_pixels: int) -> int:
    """Refuse compressed pixel data that are not one image of the stated size.

    Decoders trust the size in the compressed image, whatever the header says. Returns its bits per
    value, or 0 if it does not state them.
    """
    from pydicom.encaps import generate_frames

    offsets = None
    if "ExtendedOffsetTable" in dataset:
        offsets = dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths
    frames = list(generate_frames(dataset.PixelData, number_of_frames=1, extended_offsets=offsets))
    if len(frames) != 1:
        raise Refused(f"{len(frames)} frames, but one image is needed")
    if not dataset.file_meta.TransferSyntaxUID.startswith(_JPEG_FAMILY):
        return 0
    if not frames[0].rstrip(b"\0\xff").endswith(b"\xd9"):  # FF D9 ends it, then padding
        raise Refused("file is truncated: its compressed image has no end")
    columns, rows, samples, bits = _codestream(frames[0])
    _check_size(columns, rows, max_pixels)
    if (columns, rows, samples) != (layout.columns, layout.rows, layout.samples):
        raise Refused(
            f"its compressed image has {columns} x {rows} x {samples} values, but its header says"
            f" {layout.columns} x {layout.rows} x {layout.samples}"
        )
    return bits


def _codestream(frame: bytes) -> tuple[int, int, int, int]:
    """Return (columns, rows, samples, bits) of a compressed image: JPEG, JPEG-LS or JPEG 2000."""
    start = 0
    if frame[4:8] == b"jP  ":  # the JP2 format has boxes around the codestream
        start = 12
        while frame[start + 4 : start + 8] != b"jp2c":
            length = struct.unpack_from(">I", frame, start)[0]
            if length < 8:
                raise Refused("its compressed image is damaged")
            start += length
        start += 8
    if frame[start : start + 4] == b"\xff\x4f\xff\x51":
        right, lower, left, upper = struct.unpack_from(">4I", frame, start + 8)
        samples, precision = struct.unpack_from(">HB", frame, start + 40)
        return right - left, lower - upper, samples, (precision & 0x7F) + 1
    if frame[:2] != b"\xff\xd8":
        raise Refused("its compressed image is damaged")
    start = 2
    while frame[start + 1] not in _SIZE_MARKERS:
        start += 2 + struct.unpack_from(">H", frame, start + 2)[0]
    bits, rows, columns, samples = struct.unpack_from(">BHHB", frame, start + 4)
    return columns, rows, samples, bits


def _no_decoder(name: str) -> str:
    return (
        f"its transfer syntax is {name}, which cannot be decoded; convert it to an uncompressed one"
    )


def _cure(syntax: str) -> str:
    if syntax.startswith(_JPEG_2000):
        return "pip install pylibjpeg pylibjpeg-openjpeg"
    return "pip install python-gdcm"


def _why_not_decoded(syntax: str, name: str) -> str:
    """Return the text for pixel data that a decoder refuses."""
    # Pillow does not read all kinds of JPEG 2000.
    if syntax.startswith(_JPEG_2000) and importlib.util.find_spec("openjpeg") is None:
        return f"its pixel data ({name}) are damaged or need another decoder: {_cure(syntax)}"
    return f"its pixel data ({name}) are damaged"
