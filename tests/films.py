"""The same film in every format that a hospital may send, written with independent code."""

import functools
import struct
import zlib

import numpy as np
from PIL import Image

from kd.data.readers import synthetic

FORMATS = ("png8", "png10", "png12", "png16", "tiff8", "tiff12", "tiff16", "white-is-zero", "big-endian", "signed",
           "float-unit", "float", "rgb16", "tiff-rgb16")
DICOM_FORMATS = ("dicom", "dicom-monochrome1", "dicom-rle", "dicom-jpeg2000", "dicom-window", "dicom-8-bits")


@functools.cache
def film(row: int, side: int = 128) -> np.ndarray:
    """Return a drawing whose darkest value is 0 and whose brightest is 255: uint8 [side, side]."""
    grey = np.asarray(Image.fromarray(synthetic.draw(row, 0)).resize((side, side)), dtype=np.float64)
    grey = np.round((grey - grey.min()) * 255 / (grey.max() - grey.min())).astype(np.uint8)
    grey.setflags(write=False)  # it is shared by all tests
    return grey


def deep(grey: np.ndarray, bits: int) -> np.ndarray:
    """Return the film with more bits: uint16 of the same shape."""
    return np.round(grey.astype(np.float64) * (2**bits - 1) / 255).astype(np.uint16)


def write(kind: str, path, grey: np.ndarray) -> None:
    """Write a film, uint8 [H, W], in a format of FORMATS; `path` has no extension."""
    if kind in ("png8", "tiff8"):
        Image.fromarray(grey).save(f"{path}.{kind[:-1]}")
    elif kind.startswith("png"):
        Image.fromarray(deep(grey, int(kind[3:]))).save(f"{path}.png")
    elif kind in ("tiff12", "tiff16"):
        Image.fromarray(deep(grey, int(kind[4:]))).save(f"{path}.tif")
    elif kind == "white-is-zero":
        write_bytes(path, "tif", tiff(4095 - deep(grey, 12), photometric=0))
    elif kind == "big-endian":
        write_bytes(path, "tif", tiff(deep(grey, 12), order=">"))
    elif kind == "signed":
        write_bytes(path, "tif", tiff(deep(grey, 12).astype(np.int16) - 1024, sample_format=2))
    elif kind == "float-unit":
        Image.fromarray((grey / 255).astype(np.float32)).save(f"{path}.tif")
    elif kind == "float":
        Image.fromarray(deep(grey, 12).astype(np.float32)).save(f"{path}.tif")
    elif kind == "rgb16":
        write_bytes(path, "png", png(np.repeat(deep(grey, 12)[:, :, None], 3, 2)))
    elif kind == "tiff-rgb16":
        write_bytes(path, "tif", tiff(np.repeat(deep(grey, 12)[:, :, None], 3, 2)))


def write_dicom(kind: str, path, grey: np.ndarray, **tags) -> None:
    """Write a film, uint8 [H, W], in a format of DICOM_FORMATS; the file has no extension. Needs pydicom."""
    from dicom_files import dicom

    values, options = deep(grey, 12), {"BitsStored": 12}
    if kind == "dicom-8-bits":
        values, options = grey, {}
    elif kind == "dicom-monochrome1":
        values, options = 4095 - values, {"BitsStored": 12, "PhotometricInterpretation": "MONOCHROME1"}
    elif kind == "dicom-rle":
        options["compression"] = "1.2.840.10008.1.2.5"
    elif kind == "dicom-jpeg2000":
        options["compression"] = "1.2.840.10008.1.2.4.90"
    elif kind == "dicom-window":
        options |= {"WindowCenter": "2048", "WindowWidth": "4096"}
    with open(path, "wb") as file:
        file.write(dicom(values, **options, **tags))


def write_bytes(path, extension: str, content: bytes) -> None:
    with open(f"{path}.{extension}", "wb") as file:
        file.write(content)


def tiff(values: np.ndarray, order: str = "<", photometric: int | None = None, sample_format: int = 1) -> bytes:
    """Return an uncompressed 16-bit TIFF of [H, W] or [H, W, 3] integers."""
    height, width = values.shape[:2]
    channels = 1 if values.ndim == 2 else values.shape[2]
    if photometric is None:
        photometric = 1 if channels == 1 else 2
    data = values.astype(f"{order}i2" if sample_format == 2 else f"{order}u2").tobytes()
    count = 10
    after = 8 + 2 + 12 * count + 4
    start = after + 2 * channels

    def short(tag, value):
        return struct.pack(order + "HHIHH", tag, 3, 1, value, 0)

    def long(tag, value):
        return struct.pack(order + "HHII", tag, 4, 1, value)

    depths = short(258, 16) if channels == 1 else struct.pack(order + "HHII", 258, 3, channels, after)
    tags = [short(256, width), short(257, height), depths, short(259, 1), short(262, photometric), long(273, start),
            short(277, channels), long(278, height), long(279, len(data)), short(339, sample_format)]
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8) + struct.pack(order + "H", count)
    return head + b"".join(tags) + struct.pack(order + "I", 0) + struct.pack(order + "H", 16) * channels + data


def png(values: np.ndarray) -> bytes:
    """Return a 16-bit PNG of [H, W, C] values, uint16, where C is 1 to 4 (grey, alpha, colour)."""
    height, width, channels = values.shape
    rows = values.astype(">u2").tobytes()
    step = width * channels * 2
    data = b"".join(b"\0" + rows[start:start + step] for start in range(0, len(rows), step))
    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
