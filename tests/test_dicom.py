"""DICOM files become the picture that their header describes, or one line of text."""

import importlib.util
import io
import random
import subprocess
import sys
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from films import deep, film
from PIL import Image, features

from kd.data.images import dicom, pixels
from kd.data.images.decoded import Pixels
from kd.data.images.dicom_stored import Refused

pydicom = pytest.importorskip("pydicom")

import dicom_files
from dicom_files import content_of, dataset, look_up, palette, write_dicom
from pydicom import uid
from pydicom.encaps import encapsulate, generate_frames

# pytest replaces the filter that keeps pydicom's warnings from the user; `test_nothing_is_printed` tests it.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

LIMIT = 10**6  # pixels
SHIPPED = Path(pydicom.__file__).parent / "data"
FILES = SHIPPED / "test_files"
FILM = film(3)
DEEP = deep(FILM, 12)
TWELVE = {"BitsStored": 12}
FULL_WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096}


def decode(content: bytes) -> Pixels:
    return dicom.decode(content, LIMIT)


def shown(content: bytes) -> np.ndarray:
    """Return the picture that the program trains on: uint8 [H, W] or [H, W, 3]."""
    decoded = decode(content)
    ranges = {}
    if decoded.image is None and decoded.limits is None:
        ranges[decoded.kind] = pixels.range_for(decoded.kind, decoded.values.min(), decoded.values.max(), "measured")
    return np.asarray(pixels.to_8_bits(decoded, ranges)[0])


def values_of(values: np.ndarray, **tags) -> list[float]:
    return decode(dicom_files.dicom(values, **tags)).values.tolist()[0]


def row(*numbers, kind=np.uint16) -> np.ndarray:
    return np.array([numbers], kind)


def why(content: bytes) -> str:
    """Return the text with which a file is refused."""
    with pytest.raises(ValueError) as caught:
        decode(content)
    text = str(caught.value)
    assert text and "\n" not in text and "0x" not in text and len(text) < 250
    return text


# The same film ---------------------------------------------------------------------------------

def inverse(values):
    return 4095 - values


def same_films():
    """Yield (name, content) of one film, written in each way that must give the same picture."""
    yield "12 bits", dicom_files.dicom(DEEP, **TWELVE)
    yield "8 bits", dicom_files.dicom(FILM)
    yield "MONOCHROME1", dicom_files.dicom(inverse(DEEP), PhotometricInterpretation="MONOCHROME1", **TWELVE)
    yield "window", dicom_files.dicom(DEEP, **TWELVE, **FULL_WINDOW)
    yield "two windows", dicom_files.dicom(DEEP, **TWELVE, WindowCenter=[2048, 9], WindowWidth=[4096, 5])
    yield "exact window", dicom_files.dicom(DEEP, **TWELVE, WindowCenter=2047.5, WindowWidth=4095, VOILUTFunction="LINEAR_EXACT")
    yield "window, MONOCHROME1", dicom_files.dicom(inverse(DEEP), **TWELVE, **FULL_WINDOW,
                                                       PhotometricInterpretation="MONOCHROME1")
    yield "window beyond the range", dicom_files.dicom(DEEP + 1000, BitsStored=16, WindowCenter=3048, WindowWidth=4096)
    yield "VOI table", dicom_files.dicom(DEEP, **TWELVE, VOILUTSequence=look_up(0, np.arange(4096) * 16 + 15, 16))
    inverted_table = look_up(0, np.arange(4096)[::-1], 12)
    yield "inverting VOI table", dicom_files.dicom(inverse(DEEP), **TWELVE, VOILUTSequence=inverted_table)
    yield "modality table", dicom_files.dicom(inverse(DEEP), **TWELVE, ModalityLUTSequence=inverted_table)
    yield "table before window", dicom_files.dicom(DEEP, **TWELVE, WindowCenter=9, WindowWidth=2,
                                                   VOILUTSequence=look_up(0, np.arange(4096), 12))
    yield "rescale", dicom_files.dicom(DEEP, **TWELVE, RescaleSlope=2, RescaleIntercept=-1024)
    yield "rescale by a fraction", dicom_files.dicom(DEEP, **TWELVE, RescaleSlope=0.684, RescaleIntercept=200)
    yield "rescale with a negative slope", dicom_files.dicom(inverse(DEEP), **TWELVE, RescaleSlope=-1, RescaleIntercept=4095)
    hounsfield = {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": 1024, "WindowWidth": 4096}
    yield "Hounsfield units", dicom_files.dicom(DEEP, **TWELVE, **hounsfield)
    signed = DEEP.astype(np.int16) - 2048
    yield "signed", dicom_files.dicom(signed, **TWELVE)
    yield "signed, its sign in the unused bits cut off", dicom_files.dicom((signed & 0xFFF).astype(np.int16), **TWELVE)
    yield "signed with window", dicom_files.dicom(signed, WindowCenter=0, WindowWidth=4096)
    yield "32 bits", dicom_files.dicom(DEEP.astype(np.uint32), BitsStored=12)
    yield "32 bits with window", dicom_files.dicom(DEEP.astype(np.int32), **FULL_WINDOW)
    yield "float with window", dicom_files.dicom(DEEP.astype(np.float32), **FULL_WINDOW)
    yield "double with window", dicom_files.dicom(DEEP.astype(np.float64), **FULL_WINDOW)
    for name, syntax in (("implicit", uid.ImplicitVRLittleEndian), ("big endian", uid.ExplicitVRBigEndian),
                         ("deflated", uid.DeflatedExplicitVRLittleEndian)):
        yield name, dicom_files.dicom(DEEP, syntax, **TWELVE)
    yield "big endian with window", dicom_files.dicom(DEEP, uid.ExplicitVRBigEndian, **TWELVE, **FULL_WINDOW)
    yield "RLE", dicom_files.dicom(DEEP, compression=uid.RLELossless, **TWELVE)
    yield "RLE of 8 bits", dicom_files.dicom(FILM, compression=uid.RLELossless)
    yield "RLE, MONOCHROME1", dicom_files.dicom(inverse(DEEP), compression=uid.RLELossless, **TWELVE,
                                                PhotometricInterpretation="MONOCHROME1")
    yield "enhanced", enhanced(DEEP, **hounsfield)
    yield "without preamble", dicom_files.dicom(DEEP, **TWELVE)[132:]
    yield "without meta information", without_meta(DEEP, **TWELVE)
    yield "implicit without meta information", without_meta(DEEP, implicit=True, **TWELVE)
    yield "one frame", dicom_files.dicom(DEEP, **TWELVE, NumberOfFrames=1)


def enhanced(values, RescaleSlope, RescaleIntercept, WindowCenter, WindowWidth) -> bytes:
    """Return a file whose transformations are in functional groups, one shared and one of the frame."""
    transformation, window, shared, frame = (pydicom.Dataset() for _ in range(4))
    transformation.RescaleSlope, transformation.RescaleIntercept = RescaleSlope, RescaleIntercept
    window.WindowCenter, window.WindowWidth = WindowCenter, WindowWidth
    shared.PixelValueTransformationSequence, frame.FrameVOILUTSequence = [transformation], [window]
    return dicom_files.dicom(values, **TWELVE, SharedFunctionalGroupsSequence=[shared], PerFrameFunctionalGroupsSequence=[frame])


def without_meta(values, implicit=False, **tags) -> bytes:
    """Return a file that begins with the data set, as old archives have them."""
    data, file = dataset(values, **tags), io.BytesIO()
    pydicom.dcmwrite(file, pydicom.Dataset(data), implicit_vr=implicit, little_endian=True, enforce_file_format=False)
    return file.getvalue()


@pytest.mark.parametrize(("name", "content"), [pytest.param(*pair, id=pair[0]) for pair in same_films()])
def test_the_same_film_gives_the_same_picture(name, content):
    assert dicom.is_dicom(content[:dicom.HEAD_BYTES])
    assert np.array_equal(shown(content), FILM)


@pytest.mark.skipif(importlib.util.find_spec("openjpeg") is None, reason="pylibjpeg-openjpeg is not installed")
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_the_same_film_in_jpeg_2000(photometric):
    values = inverse(DEEP) if photometric == "MONOCHROME1" else DEEP
    content = dicom_files.dicom(values, compression=uid.JPEG2000Lossless, PhotometricInterpretation=photometric, **TWELVE)
    assert np.array_equal(shown(content), FILM)


@pytest.mark.skipif(not features.check("jpg_2000"), reason="this Pillow reads no JPEG 2000")
def test_the_same_film_in_jpeg_2000_that_pillow_wrote():
    file = io.BytesIO()
    Image.fromarray(FILM).save(file, "JPEG2000", no_jp2=True)
    assert np.array_equal(shown(encapsulated(file.getvalue(), uid.JPEG2000Lossless)), FILM)


def test_the_same_film_in_jpeg_is_what_pillow_decodes():
    file = io.BytesIO()
    Image.fromarray(FILM).save(file, "JPEG", quality=95)
    assert np.array_equal(shown(encapsulated(file.getvalue(), uid.JPEGBaseline8Bit)), np.asarray(Image.open(file)))


def encapsulated(*frames: bytes, syntax=None, **tags) -> bytes:
    """Return a file with compressed frames of the 8-bit film; the last argument without a keyword is the syntax."""
    *frames, syntax = frames
    data = dataset(FILM, **tags)
    data.PixelData = encapsulate(list(frames))
    data["PixelData"].VR = "OB"
    data["PixelData"].is_undefined_length = True
    data.file_meta.TransferSyntaxUID = syntax
    return content_of(data)


# Values and limits -----------------------------------------------------------------------------

def test_values_and_limits_without_a_window():
    found = decode(dicom_files.dicom(DEEP, **TWELVE))
    assert found.limits == (0, 4095) and found.bits == 12 and not found.inverted and found.image is None
    assert found.values.dtype == np.uint16 and np.array_equal(found.values, DEEP) and found.source == "DICOM MONOCHROME2"
    assert found.kind == "integer"
    found = decode(dicom_files.dicom(DEEP, PhotometricInterpretation="MONOCHROME1", **TWELVE))
    assert found.inverted and found.limits == (0, 4095) and found.source == "DICOM MONOCHROME1"
    assert np.array_equal(found.values, DEEP)


@pytest.mark.parametrize(("kind", "tags", "limits"), [
    (np.uint8, {}, (0, 255)),
    (np.uint16, {"BitsStored": 10}, (0, 1023)),
    (np.uint16, {}, (0, 65535)),
    (np.int16, {}, None),
    (np.int16, {"BitsStored": 12}, None),
    (np.uint16, {"BitsStored": 12, "RescaleSlope": 1, "RescaleIntercept": -1024}, (-1024, 3071)),
    (np.uint16, {"BitsStored": 12, "RescaleSlope": -2, "RescaleIntercept": 10}, (-8180, 10)),
    (np.uint16, {"BitsStored": 12, "RescaleIntercept": -1024}, (-1024, 3071)),
    (np.uint32, {}, None),
    (np.uint16, {"BitsStored": 12, "WindowCenter": 40, "WindowWidth": 400}, (0, 4095)),
    (np.int16, {"WindowCenter": 40, "WindowWidth": 400, "RescaleSlope": 1, "RescaleIntercept": -1024}, (-33792, 31743)),
    (np.uint16, {"BitsStored": 12, "VOILUTSequence": look_up(0, range(256), 8)}, (0, 255)),
    (np.uint16, {"BitsStored": 12, "VOILUTSequence": look_up(0, range(0, 4096, 4), 12)}, (0, 4095)),
    (np.uint16, {"BitsStored": 12, "VOILUTSequence": look_up(0, range(0, 65536, 64), 12)}, (0, 65535)),  # more than 12 bits
    (np.uint16, {"BitsStored": 12, "ModalityLUTSequence": look_up(0, range(256), 8)}, (0, 255)),
    (np.float32, {}, None),
    (np.float64, {"WindowCenter": 0.5, "WindowWidth": 1, "VOILUTFunction": "LINEAR_EXACT"}, (0, 1)),
])
def test_limits_come_from_the_header(kind, tags, limits):
    assert decode(dicom_files.dicom(np.ones((2, 2), kind), **tags)).limits == limits


def test_padding_of_hounsfield_units_does_not_widen_their_range():
    found = decode(dicom_files.dicom(row(-2000, -1000, 40, 3000, kind=np.int16), PixelPaddingValue=-2000))
    assert found.values.tolist() == [[-1000, -1000, 40, 3000]] and found.limits is None and found.values.dtype == np.int32


def test_integers_stay_integers():
    hounsfield = decode(dicom_files.dicom(row(0, 24, 1064), **TWELVE, RescaleSlope=1, RescaleIntercept=-1024))
    assert hounsfield.values.tolist() == [[-1024, -1000, 40]] and hounsfield.values.dtype == np.int16
    fraction = decode(dicom_files.dicom(row(0, 100), **TWELVE, RescaleSlope=0.5, RescaleIntercept=0.25))
    assert fraction.values.tolist() == [[0.25, 50.25]] and fraction.values.dtype == np.float32


def test_linear_window():
    """The formula of the standard, by hand: black up to c - 0.5 - (w - 1) / 2, white above c - 0.5 + (w - 1) / 2."""
    found = values_of(row(0, 89, 90, 100, 110, 111, 4095), **TWELVE, WindowCenter=100.5, WindowWidth=21)
    assert found == pytest.approx([0, 0, 0, 4095 / 2, 4095, 4095, 4095])


def test_exact_window_and_sigmoid():
    tags = {"BitsStored": 12, "WindowCenter": 100, "WindowWidth": 20}
    found = values_of(row(90, 95, 100, 110, 4095), **tags, VOILUTFunction="LINEAR_EXACT")
    assert found == pytest.approx([0, 4095 / 4, 4095 / 2, 4095, 4095])
    found = values_of(row(100, 105, 0), **tags, VOILUTFunction="SIGMOID")
    assert found == pytest.approx([4095 / 2, 4095 / (1 + np.exp(-1)), 4095 / (1 + np.exp(20))], abs=1e-3)


def test_window_of_width_1_is_a_threshold():
    assert values_of(row(99, 100, 101), **TWELVE, WindowCenter=100.5, WindowWidth=1) == [0, 0, 4095]


def test_window_applies_after_the_rescale():
    found = values_of(row(1064, 1264, 0), **TWELVE, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=40.5, WindowWidth=401)
    assert found == pytest.approx([-1024 + 4095 / 2, 3071, -1024], abs=1e-3)


def test_dark_stays_dark_with_a_negative_slope():
    """pydicom's window turns such an image over."""
    tags = {"BitsStored": 12, "RescaleSlope": -1, "RescaleIntercept": 4095, "WindowCenter": 2048, "WindowWidth": 4096}
    assert values_of(row(0, 4095), **tags) == [4095, 0]
    data = pydicom.dcmread(io.BytesIO(dicom_files.dicom(row(0, 4095), **tags)))
    rescaled = pydicom.pixels.apply_modality_lut(data.pixel_array, data)
    assert pydicom.pixels.apply_voi_lut(rescaled, data).tolist() == [[0, 4095]]


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("signed", [False, True])
def test_windows_agree_with_pydicom(function, signed):
    stored = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    values = stored.astype(np.int16) - 2048 if signed else stored
    data = dataset(values, **TWELVE, RescaleSlope=1.5, RescaleIntercept=-20, WindowCenter=300, WindowWidth=611,
                   VOILUTFunction=function)
    expected = pydicom.pixels.apply_voi_lut(pydicom.pixels.apply_modality_lut(values, data), data)
    found = decode(content_of(data))
    assert np.allclose(found.values, expected, atol=1e-3)
    assert found.limits == pytest.approx((-2048 * 1.5 - 20, 2047 * 1.5 - 20) if signed else (-20, 4095 * 1.5 - 20))


def test_voi_table_has_its_first_and_last_entry_outside():
    tags = {"BitsStored": 12, "VOILUTSequence": look_up(100, [7, 8, 9], 16)}
    assert values_of(row(0, 99, 100, 101, 102, 103, 4095), **tags) == [7, 7, 7, 8, 9, 9, 9]


def test_voi_table_begins_below_zero():
    table = look_up(-1024, np.arange(4096), 12)
    hounsfield = {"BitsStored": 12, "RescaleSlope": 1, "RescaleIntercept": -1024}
    assert values_of(row(0, 5, 4095), **hounsfield, VOILUTSequence=table) == [0, 5, 4095]
    # Files with unsigned pixels often have the first value as an unsigned number.
    table[0].add_new("LUTDescriptor", "US", [4096, 0x10000 - 1024, 12])
    assert values_of(row(0, 5, 4095), **hounsfield, VOILUTSequence=table) == [0, 5, 4095]


def test_voi_table_of_8_bits_with_more_than_256_entries():
    """pydicom takes the index modulo 256."""
    tags = {"BitsStored": 12, "VOILUTSequence": look_up(0, np.arange(4096) // 16, 8)}
    assert values_of(row(0, 300, 2048, 4095), **tags) == [0, 18, 128, 255]


def test_two_entries_in_a_word():
    table = look_up(0, [0], 8)
    table[0].LUTDescriptor, table[0].LUTData = [4, 0, 8], bytes([10, 20, 30, 40])
    assert values_of(row(0, 1, 2, 3), **TWELVE, VOILUTSequence=table) == [10, 20, 30, 40]


def test_look_up_tables_of_a_big_endian_file():
    table = look_up(0, [0], 16)
    table[0].LUTDescriptor = [2, 0, 16]
    table[0].add_new("LUTData", "OW", b"\x01\x02\x03\x04")
    assert values_of(row(0, 1), syntax=uid.ExplicitVRBigEndian, **TWELVE, VOILUTSequence=table) == [0x102, 0x304]


def test_a_table_with_65536_entries_and_one_with_values_as_numbers():
    table = look_up(0, np.arange(65536)[::-1], 16)
    assert values_of(row(0, 65535), VOILUTSequence=table) == [65535, 0]
    table[0].LUTDescriptor = [2, 0, 16]
    table[0].add_new("LUTData", "US", [5, 6])
    assert values_of(row(0, 65535), VOILUTSequence=table) == [5, 6]


def test_an_incomplete_voi_table_leaves_the_window():
    table = look_up(0, [1, 2], 16)
    del table[0].LUTData
    assert values_of(row(0, 4095), **TWELVE, VOILUTSequence=table, **FULL_WINDOW) == [0, 4095]


# Padding and unused bits -----------------------------------------------------------------------

def test_padding_is_black():
    values = row(500, 0, 4095)
    assert shown(dicom_files.dicom(values, **TWELVE, PixelPaddingValue=500)).tolist() == [[0, 0, 255]]
    turned = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12}
    assert shown(dicom_files.dicom(row(500, 0, 4095, 1365), **turned, PixelPaddingValue=500)).tolist() == [[0, 255, 0, 170]]
    assert shown(dicom_files.dicom(values, **turned, **FULL_WINDOW, PixelPaddingValue=0)).tolist() == [[224, 0, 0]]
    assert shown(dicom_files.dicom(row(7, 8, 9, 10), PixelPaddingValue=9, PixelPaddingRangeLimit=7,
                                   VOILUTSequence=look_up(7, [9, 9, 9, 255], 8))).tolist() == [[0, 0, 0, 255]]


def test_padding_may_lie_outside_of_bits_stored_and_have_the_wrong_sign():
    data = dataset(row(63536, 0, 4095), **TWELVE)
    data.add_new("PixelPaddingValue", "SS", -2000)
    assert shown(content_of(data)).tolist() == [[0, 0, 255]]
    data = dataset(row(-2000, 0, 1000, kind=np.int16), RescaleSlope=1, RescaleIntercept=0, WindowCenter=500.5, WindowWidth=1001)
    data.add_new("PixelPaddingValue", "US", 63536)
    assert shown(content_of(data)).tolist() == [[0, 0, 255]]


def test_padding_of_floating_point_pixels_is_the_darkest_value():
    values = row(-9999, 1, 2, kind=np.float32)
    assert values_of(values, FloatPixelPaddingValue=-9999) == [1, 1, 2]
    assert values_of(values, FloatPixelPaddingValue=-9999, PhotometricInterpretation="MONOCHROME1") == [2, 1, 2]
    assert why(dicom_files.dicom(values[:, :1], FloatPixelPaddingValue=-9999)) == "all of its pixels are padding"


def test_an_overlay_in_unused_bits_is_not_part_of_the_picture():
    data = dataset(row(0x1000, 0x1FFF, 0x0800), **TWELVE)
    assert why(content_of(data)) == "values 2048 to 8191, but BitsStored 12 means 0 to 4095"
    data.add_new(0x60000100, "US", 16)
    data.add_new(0x60000102, "US", 12)
    assert decode(content_of(data)).values.tolist() == [[0, 4095, 2048]]


# Colour ----------------------------------------------------------------------------------------

COLOUR = np.stack([FILM, 255 - FILM, FILM // 2], axis=2)


@pytest.mark.parametrize("tags", [{}, {"compression": uid.RLELossless}, {"syntax": uid.ExplicitVRBigEndian}], ids=str)
def test_colour_of_8_bits(tags):
    found = decode(dicom_files.dicom(COLOUR, **tags))
    assert found.values is None and found.image.mode == "RGB" and found.bits == 8 and found.source == "DICOM RGB"
    assert np.array_equal(np.asarray(found.image), COLOUR)


def test_colour_planes_one_after_the_other():
    data = dataset(COLOUR, PlanarConfiguration=1)
    data.PixelData = COLOUR.transpose(2, 0, 1).tobytes()
    assert np.array_equal(shown(content_of(data)), COLOUR)


def test_luminance_and_chrominance_become_red_green_and_blue():
    stored = np.array(Image.fromarray(COLOUR).convert("YCbCr"))
    found = shown(dicom_files.dicom(stored, PhotometricInterpretation="YBR_FULL"))
    expected = np.asarray(Image.fromarray(stored, "YCbCr").convert("RGB"))
    assert np.abs(found.astype(int) - expected).max() <= 1 and np.abs(found.astype(int) - COLOUR).max() <= 3
    assert "YBR_PARTIAL_422" in why(dicom_files.dicom(stored, PhotometricInterpretation="YBR_PARTIAL_422"))


def test_colour_of_more_than_8_bits():
    deep_colour = deep(COLOUR, 12)
    found = decode(dicom_files.dicom(deep_colour, **TWELVE))
    assert found.limits == (0, 4095) and found.bits == 12 and np.array_equal(found.values, deep_colour)
    assert np.array_equal(shown(dicom_files.dicom(deep_colour, **TWELVE)), COLOUR)
    assert why(dicom_files.dicom(deep_colour, BitsStored=8)) == "values up to 4095, but BitsStored is 8"


@pytest.mark.parametrize("bits", [8, 16])
def test_palette(bits):
    colours = np.array([[0, 0, 255], [255, 0, 0], [10, 20, 30]])
    entries = colours if bits == 8 else colours * 257
    content = dicom_files.dicom(row(0, 1, 2, 3, kind=np.uint8), **palette(entries, bits))
    found = decode(content)
    assert np.asarray(found.image).tolist() == [[*colours.tolist(), [10, 20, 30]]]
    assert found.source == "DICOM PALETTE COLOR" and found.values is None
    content = dicom_files.dicom(row(0, 1001, 1002), **palette(entries, bits, first=1000))
    assert shown(content).tolist() == [colours.tolist()]


def test_palette_of_16_bits_that_uses_8():
    content = dicom_files.dicom(row(0, 1, kind=np.uint8), **palette(np.array([[0, 0, 0], [255, 128, 1]]), 16))
    assert shown(content).tolist() == [[[0, 0, 0], [255, 128, 1]]]


def test_palette_with_more_entries_than_colours_of_8_bits():
    colours = np.stack([np.arange(4096) // 16] * 3, axis=1)
    content = dicom_files.dicom(row(0, 300, 4095), **TWELVE, **palette(colours, 8))
    assert shown(content)[0, :, 0].tolist() == [0, 18, 255]


def test_transparent_colours_are_composed_over_black():
    content = dicom_files.dicom(row(0, 1, kind=np.uint8), **palette(np.array([[200, 100, 50, 255], [200, 100, 50, 51]]), 8))
    assert shown(content).tolist() == [[[200, 100, 50], [40, 20, 10]]]


def test_palette_in_segments():
    data = dataset(row(0, 1, 2, 3, kind=np.uint8), PhotometricInterpretation="PALETTE COLOR")
    for colour, top in (("Red", 90), ("Green", 60), ("Blue", 0)):
        setattr(data, f"{colour}PaletteColorLookupTableDescriptor", [4, 0, 8])
        # One entry of value 0, then a straight line of 3 entries up to `top`.
        setattr(data, f"Segmented{colour}PaletteColorLookupTableData", bytes([0, 1, 0, 1, 3, top]))
    assert shown(content_of(data)).tolist() == [[[0, 0, 0], [30, 20, 0], [60, 40, 0], [90, 60, 0]]]


def test_palette_that_is_incomplete():
    tags = palette(np.zeros((2, 3)), 8)
    del tags["BluePaletteColorLookupTableData"]
    assert why(dicom_files.dicom(row(0, 1, kind=np.uint8), **tags)) == "its palette lacks blue"
    short = palette(np.zeros((2, 3)), 8) | {"RedPaletteColorLookupTableDescriptor": [9, 0, 8]}
    assert why(dicom_files.dicom(row(0, 1, kind=np.uint8), **short)) == "its palette of red has 1 entries instead of 9"


# What is refused -------------------------------------------------------------------------------

def lacks(*keywords):
    data = dataset(DEEP, **TWELVE)
    for keyword in keywords:
        delattr(data, keyword)
    return content_of(data)


@pytest.mark.parametrize(("content", "text"), [
    (b"GIF89a", "not a DICOM file"),
    (b"", "not a DICOM file"),
    (bytes(128) + b"DICM", "file is truncated or empty"),
    (lacks("PixelData"), "file is truncated: no pixel data follow its header"),
    (lacks("PixelData", "Rows"), "no pixel data: modality DX, Secondary Capture Image Storage"),
    (lacks("Columns", "BitsStored"), "its header lacks Columns, BitsStored"),
    (dicom_files.dicom(DEEP, NumberOfFrames=7), "7 frames, but one image is needed"),
    (dicom_files.dicom(DEEP, Rows=64), "more pixel data than one image needs"),
    (dicom_files.dicom(np.zeros((4, 2), np.uint16), Rows=2), "more pixel data than one image needs"),
    (dicom_files.dicom(DEEP, **TWELVE)[:-2], "file is truncated: 32766 of 32768 bytes of pixel data"),
    (dicom_files.dicom(DEEP, **TWELVE)[:-32768], "file is truncated: 0 of 32768 bytes of pixel data"),
    (dicom_files.dicom(DEEP, compression=uid.RLELossless)[:-100], "file is truncated or empty"),
    (dicom_files.dicom(DEEP, uid.DeflatedExplicitVRLittleEndian)[:-100], "file is truncated"),
    (dicom_files.dicom(DEEP, Rows=40000, Columns=40000), "40000 x 40000 pixels, more than 1 million"),
    (dicom_files.dicom(DEEP, Rows=0), "128 x 0 pixels"),
    (dicom_files.dicom(DEEP, BitsStored=12, HighBit=15), "HighBit 15 contradicts BitsStored 12"),
    (dicom_files.dicom(DEEP, BitsStored=20), "BitsStored 20, but BitsAllocated 16"),
    (dicom_files.dicom(DEEP, SamplesPerPixel=3, PlanarConfiguration=0), "MONOCHROME2 with 3 samples, which is not read"),
    (dicom_files.dicom(DEEP, PhotometricInterpretation="HSV"), "HSV with 1 samples, which is not read"),
    (dicom_files.dicom(COLOUR, PhotometricInterpretation="HSV"), "DICOM HSV with 8 bits, which is not read"),
    (dicom_files.dicom(DEEP, RescaleSlope=0, RescaleIntercept=5), "RescaleSlope is 0"),
    (dicom_files.dicom(DEEP, RescaleSlope="1e308", RescaleIntercept=5), "a rescale to values from 5 to inf"),
    (dicom_files.dicom(DEEP, WindowCenter=5, WindowWidth=0), "its window 5/0 has no width"),
    (dicom_files.dicom(DEEP, WindowCenter=5, WindowWidth=0, VOILUTFunction="SIGMOID"), "its window 5/0 has no width"),
    (dicom_files.dicom(DEEP, WindowCenter=5, WindowWidth=9, VOILUTFunction="CUBIC"), "VOILUTFunction is CUBIC"),
    (dicom_files.dicom(DEEP, VOILUTSequence=look_up(0, [1, 2], 32)), "its VOI look-up table has 32 bits per entry"),
    (dicom_files.dicom(DEEP, PixelPresentation="COLOR"), "grey pixels with supplemental colours, which are not read"),
    (dicom_files.dicom(row(1, np.nan, np.inf, kind=np.float32)), "2 of its values are NaN or infinite"),
    (dicom_files.dicom(row(1, np.nan, kind=np.float64), **FULL_WINDOW), "1 of its values are NaN or infinite"),
])
def test_a_file_that_cannot_be_read_right_is_refused(content, text):
    assert why(content) == text


def test_a_number_that_is_none():
    data = dataset(DEEP, NumberOfFrames=11, WindowCenter=77, WindowWidth=77)
    content = content_of(data)
    assert why(content.replace(b"IS\x02\x0011", b"IS\x02\x001A")) == "its NumberOfFrames is not a number"
    assert "WindowCenter is" in why(content_of(dataset(DEEP, WindowCenter=777, WindowWidth=777)).replace(b"777.0 ", b"nan   ", 1))


def test_several_compressed_frames_in_a_file_that_states_one():
    file = io.BytesIO()
    Image.fromarray(FILM).save(file, "JPEG")
    assert why(encapsulated(file.getvalue(), file.getvalue(), uid.JPEGBaseline8Bit)) == "2 frames, but one image is needed"


def test_a_large_image_behind_a_small_header_is_not_decoded():
    file = io.BytesIO()
    Image.new("L", (3000, 3000)).save(file, "JPEG")
    content = encapsulated(file.getvalue(), uid.JPEGBaseline8Bit)
    assert why(content) == "3000 x 3000 pixels, more than 1 million"
    with pytest.raises(ValueError, match="its compressed image has 3000 x 3000 x 1 values, but its header says 128 x 128 x 1"):
        dicom.decode(content, 10**7)


def test_a_deflated_file_is_not_inflated_beyond_the_limit():
    content = dicom_files.dicom(np.zeros((4000, 4000), np.uint16), uid.DeflatedExplicitVRLittleEndian)
    tracemalloc.start()
    text = why(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert text == "more than 4000000 bytes when inflated" and peak < 16_000_000
    assert dicom.header_of(content).rows == 4000


def test_truncated_compressed_images():
    file = io.BytesIO()
    Image.fromarray(FILM).save(file, "JPEG")
    assert why(encapsulated(file.getvalue()[:-500], uid.JPEGBaseline8Bit)) == "file is truncated: its compressed image has no end"
    data = pydicom.dcmread(FILES / "MR_small_RLE.dcm")
    frame = next(generate_frames(data.PixelData, number_of_frames=1))
    data.PixelData = encapsulate([frame[:-500]])
    assert why(content_of(data)) == "its pixel data (RLE Lossless (1.2.840.10008.1.2.5)) are damaged"


def test_a_box_without_a_length_does_not_hang():
    box = b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(4) + b"ftyp" + bytes(40) + b"\xff\xd9"
    assert why(encapsulated(box, uid.JPEG2000Lossless)) == "its compressed image is damaged"


def test_a_missing_decoder_is_named_with_a_cure_that_works(monkeypatch):
    lossless, extended, unknown = (FILES / name for name in ("SC_rgb_jpeg_gdcm.dcm", "JPGExtended.dcm", "JPEG2000.dcm"))
    if not importlib.util.find_spec("gdcm"):
        assert why(lossless.read_bytes()).endswith("(1.2.840.10008.1.2.4.70), which needs a decoder: pip install python-gdcm")
    # python-gdcm and Pillow do not read this one.
    assert why(extended.read_bytes()).endswith("(1.2.840.10008.1.2.4.51) with 12 bits, which cannot be decoded; convert it to an"
                                               " uncompressed one")
    video = unknown.read_bytes().replace(b"1.2.840.10008.1.2.4.91", b"1.2.840.10008.1.2.4.10")
    assert "cannot be decoded; convert it to an uncompressed one" in why(video)
    monkeypatch.setattr(pydicom.pixels.decoders.JPEG2000Decoder, "_available", {})
    assert why(unknown.read_bytes()).endswith("(1.2.840.10008.1.2.4.91), which needs a decoder: pip install pylibjpeg"
                                              " pylibjpeg-openjpeg")


@pytest.mark.parametrize("module", ["pydicom", "pydicom.config", "pydicom.pixels"])
def test_without_pydicom_the_message_has_the_cure(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    assert why(dicom_files.dicom(FILM)) == "a DICOM file, which needs pydicom 3: pip install 'pydicom>=3.0,<4'"
    assert dicom.is_dicom(dicom_files.dicom(FILM)[:dicom.HEAD_BYTES])


def test_a_full_memory_is_no_fault_of_the_file(monkeypatch):
    def fill(*_, **__):
        raise MemoryError

    monkeypatch.setattr(pydicom, "dcmread", fill)
    with pytest.raises(MemoryError):
        decode(dicom_files.dicom(FILM))


def test_pydicom_is_imported_only_for_a_dicom_file():
    code = ("import sys; from kd.data.images import dicom\n"
            "try: dicom.decode(b'GIF89a', 9)\nexcept ValueError: pass\nsys.exit('pydicom' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# Recognition -----------------------------------------------------------------------------------

NOT_DICOM = {"README", "FileInfo.txt", "README.md", "README.txt", "crayons.icc", "rtplan.dump", "rtstruct.dump", "test1.json",
             "test_PN.json", "zipMR.gz", "hashes.json", "urls.json", "no_meta.dcm"}  # the last one has a byte too many


def shipped_files():
    return sorted(path for path in SHIPPED.rglob("*") if path.is_file() and not path.suffix.startswith(".py"))


def test_files_are_recognised_by_their_content():
    wrong = [path.name for path in shipped_files()
             if dicom.is_dicom(path.read_bytes()[:dicom.HEAD_BYTES]) == (path.name in NOT_DICOM)]
    assert not wrong


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "PDF", "PPM", "TGA", "ICO", "JPEG2000"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_other_images_are_not_dicom(image_format, mode):
    file = io.BytesIO()
    Image.fromarray(FILM).convert(mode).save(file, image_format)
    assert not dicom.is_dicom(file.getvalue()[:dicom.HEAD_BYTES])


def test_other_content_is_not_dicom():
    chance = random.Random(0)
    for content in (b"", b"DICM", bytes(5000), b"path,label\n" * 99, zlib.compress(bytes(range(256)) * 9), b"\x08\0" * 999,
                    b"\x08\0\x05\0CS" + bytes(999), b"\x02\0\0\0UL\x04\0" + bytes(999), np.arange(8, 999, dtype="<u2").tobytes(),
                    np.arange(8, 999, 2, dtype="<u4").tobytes(), bytes(129) + b"DICM" + bytes(99)):
        assert not dicom.is_dicom(content[:dicom.HEAD_BYTES])
    assert not any(dicom.is_dicom(b"\x08\0" + chance.randbytes(300)) for _ in range(20_000))
    assert not any(dicom.is_dicom(b"\x08\0\x05\0CS\x04\0" + chance.randbytes(300)) for _ in range(20_000))


def test_a_tiff_header_in_the_preamble_does_not_hide_a_dicom_file():
    content = dicom_files.dicom(FILM)
    assert dicom.is_dicom(b"II*\0" + content[4:dicom.HEAD_BYTES]) and np.array_equal(shown(b"II*\0" + content[4:]), FILM)


# The header ------------------------------------------------------------------------------------

def test_header(tmp_path):
    tags = dict(PatientID=" MRN7 ", IssuerOfPatientID="NORTH", AccessionNumber="A1", Manufacturer="Maker",
                BurnedInAnnotation="YES", WindowCenter=[40, 50], WindowWidth=[400, 500], **TWELVE)
    write_dicom(tmp_path / "IM1", DEEP[:100], **tags)
    instance = pydicom.dcmread(tmp_path / "IM1").SOPInstanceUID
    expected = dicom.Header("MRN7", "NORTH", "1.2.3", instance, "A1", "DX", "Maker", 12, "MONOCHROME2", "40/400",
                            "YES", 1, 100, 128)
    assert dicom.read_header(tmp_path / "IM1") == dicom.header_of((tmp_path / "IM1").read_bytes()) == expected
    assert {type(value) for value in dicom.read_header(tmp_path / "IM1")} == {str, int}


def test_header_of_a_file_that_states_little():
    data = dataset(FILM, PatientID=None, StudyInstanceUID=None, Modality=None)
    found = dicom.header_of(content_of(data))
    assert found._replace(instance="") == dicom.Header("", "", "", "", "", "", "", 8, "MONOCHROME2", "", "", 1, 128, 128)
    empty = dataset(FILM, PatientID="", NumberOfFrames="", WindowCenter="", WindowWidth="")
    assert dicom.header_of(content_of(empty))[:1] + dicom.header_of(content_of(empty))[9:12] == ("", "", "", 1)


def test_header_names_the_window_that_is_applied():
    def window(**tags):
        return dicom.header_of(dicom_files.dicom(DEEP, **TWELVE, **tags)).window

    table = look_up(0, range(4096), 12)
    assert window(VOILUTSequence=table, **FULL_WINDOW) == "LUT" and window(WindowCenter=40.5, WindowWidth=400) == "40.5/400"
    assert dicom.header_of(enhanced(DEEP, 1, 0, 40, 400)).window == "40/400"


def test_header_of_files_without_pixels_and_with_frames():
    assert dicom.read_header(FILES / "test-SR.dcm").modality == "SR"
    assert dicom.read_header(FILES / "rtdose.dcm").frames == 15
    assert dicom.read_header(FILES / "image_dfl.dcm").rows == 512


def test_the_name_of_a_patient_is_never_read(monkeypatch):
    assert not any("name" in field for field in dicom.Header._fields)
    assert "Jane" not in repr(dicom.header_of(dicom_files.dicom(FILM)))
    asked = []
    read = pydicom.dcmread
    monkeypatch.setattr(pydicom, "dcmread", lambda *args, **options: asked.append(options) or read(*args, **options))
    dicom.header_of(dicom_files.dicom(FILM))
    assert asked[0]["stop_before_pixels"] and "PatientID" in asked[0]["specific_tags"]
    assert "PatientName" not in asked[0]["specific_tags"]


def test_header_in_other_alphabets():
    data = dataset(FILM, SpecificCharacterSet="ISO_IR 192", PatientID="Ж1", Manufacturer="Müller")
    found = dicom.header_of(content_of(data))
    assert (found.patient, found.manufacturer) == ("Ж1", "Müller")


def test_header_of_bad_files(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"text")
    with pytest.raises(ValueError, match="^not a DICOM file$"):
        dicom.read_header(tmp_path / "a.dcm")
    with pytest.raises(ValueError, match="^its NumberOfFrames is not a number$"):
        dicom.read_header(FILES / "badVR.dcm")
    with pytest.raises(OSError):
        dicom.read_header(tmp_path / "none.dcm")


# pydicom's own files ---------------------------------------------------------------------------

def test_pictures_of_real_files():
    """Values by formulas that are written here, from the stored values of pydicom."""
    found = decode((FILES / "CT_small.dcm").read_bytes())
    stored = pydicom.dcmread(FILES / "CT_small.dcm").pixel_array.astype(int)
    assert np.array_equal(found.values, stored - 1024) and found.limits is None
    assert len(np.unique(shown((FILES / "CT_small.dcm").read_bytes()))) > 200  # 9 grey levels over the range of 16 bits
    folder = FILES / "dicomdirtests"
    for name, centre, width in (("98892001/CT5N/2062", 40, 400), ("98892001/CT2N/6293", 50, 500),
                                ("77654033/CT2/17106", 30, 100)):
        hounsfield = pydicom.dcmread(folder / name).pixel_array.astype(float) - 1024
        expected = np.clip((hounsfield - (centre - 0.5)) / (width - 1) + 0.5, 0, 1) * 255
        assert np.abs(shown((folder / name).read_bytes()) - expected).max() <= 0.51
    name = folder / "77654033/CR1/6154"  # MONOCHROME1 with a rescale by a fraction
    rescaled = pydicom.dcmread(name).pixel_array * 0.684 + 200
    expected = 255 - np.clip((rescaled - 1599.5) / 2799 + 0.5, 0, 1) * 255
    assert np.abs(shown(name.read_bytes()) - expected).max() <= 0.51


def test_the_same_image_in_several_transfer_syntaxes():
    names = ["MR_small", "MR_small_RLE", "MR_small_bigendian", "MR_small_implicit", "MR_small_expb", "MR_small_padded"]
    if features.check("jpg_2000"):
        names.append("MR_small_jp2klossless")
    pictures = [shown((FILES / f"{name}.dcm").read_bytes()) for name in names]
    assert all(np.array_equal(picture, pictures[0]) for picture in pictures) and len(np.unique(pictures[0])) > 100


def test_colours_of_real_files():
    """The test image of pydicom has bars of red, green, blue, black, dark grey, light grey and white, in each file."""
    bars = [(5, [255, 0, 0]), (25, [0, 255, 0]), (45, [0, 0, 255]), (65, [0, 0, 0]), (75, [64, 64, 64]), (85, [192, 192, 192]),
            (95, [255, 255, 255])]
    for name in ("SC_rgb_rle", "SC_rgb_rle_16bit", "SC_rgb_rle_32bit", "SC_rgb_dcmtk_+eb+cr", "SC_rgb_dcmtk_+eb+cy+n1",
                 "SC_rgb_dcmtk_+eb+cy+np", "SC_rgb_jpeg_dcmtk", "SC_ybr_full_422_uncompressed", "SC_rgb_gdcm_KY"):
        picture = shown((FILES / f"{name}.dcm").read_bytes()).astype(int)
        for line, colour in bars:
            assert np.abs(picture[line, 50] - colour).max() <= 6, (name, line, picture[line, 50])


def test_palette_of_a_real_file():
    data = pydicom.dcmread(FILES / "examples_palette.dcm")
    expected = pydicom.pixels.apply_color_lut(data.pixel_array, data)
    assert np.array_equal(shown((FILES / "examples_palette.dcm").read_bytes()),
                          expected >> 8 if expected.max() > 255 else expected)


def test_every_file_that_pydicom_ships_is_read_or_refused():
    read, refused = [], []
    for path in shipped_files():
        content = path.read_bytes()
        try:
            found = decode(content)
        except ValueError as error:
            assert type(error) is Refused and "\n" not in str(error) and "0x" not in str(error) and len(str(error)) < 250
            refused.append(path)
            continue
        header = dicom.read_header(path)
        shape = found.values.shape if found.image is None else np.asarray(found.image).shape
        assert shape[:2] == (header.rows, header.columns) and shape[2:] in ((), (3,))
        assert found.image is not None or np.isfinite(found.values).all()
        assert found.limits is None or found.limits[0] < found.limits[1]
        read.append(path)
    assert len(read) >= 86 and len(refused) >= 95 and len(read) + len(refused) == len(shipped_files())


# Noise, threads, memory ------------------------------------------------------------------------

def test_nothing_is_printed():
    code = f"""
import logging, pathlib, sys
logging.basicConfig(level=logging.DEBUG)
from kd.data.images import dicom
for path in sorted(pathlib.Path({str(SHIPPED)!r}).rglob("*")):
    if path.is_file():
        for read in (dicom.read_header, lambda path: dicom.decode(path.read_bytes(), 10**6)):
            try:
                read(path)
            except ValueError:
                pass
"""
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")
    lines = [line for line in found.stderr.splitlines() if "dicom" in line.lower() or "warn" in line.lower()]
    assert not lines


def test_threads_read_the_same():
    contents = [path.read_bytes() for path in sorted((FILES / "dicomdirtests").rglob("*")) if path.is_file()][:40] * 3
    contents += [content for _, content in same_films()]

    def digest(content):
        try:
            return decode(content).values.tobytes()
        except ValueError as error:
            return str(error)

    alone = [digest(content) for content in contents]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(digest, contents)) == alone


@pytest.mark.parametrize(("tags", "copies"), [({}, 1.2), ({"WindowCenter": 9, "WindowWidth": 99}, 3.2),
                                              ({"RescaleSlope": 0.7, "RescaleIntercept": 3}, 3.2)],
                         ids=["plain", "window", "rescale"])
def test_memory_is_bounded(tags, copies):
    """In copies of the pixel data, without that of the file; a result in float32 has two."""
    values = np.zeros((4000, 5000), np.uint16)
    content = dicom_files.dicom(values, **TWELVE, **tags)
    tracemalloc.start()
    dicom.decode(content, 10**8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < copies * values.nbytes


def damaged(chance: random.Random, content: bytes) -> bytes:
    """Return the content cut, with changed bytes, or with a part repeated or left out. Its head is hit most often."""
    content = bytearray(content)
    size = min(len(content), chance.choice([400, 1500, len(content)]))
    for _ in range(chance.choice([1, 1, 3, 30])):
        place, kind = chance.randrange(size), chance.randrange(4)
        if kind <= 1:
            content[place:place + 1] = bytes([chance.choice([0, 1, 127, 255, chance.randrange(256)])])
        elif kind == 2:
            content[place:place + chance.randrange(9)] = chance.randbytes(chance.randrange(9))
        else:
            content[place:place] = content[place:place + chance.randrange(99)]
    return bytes(content[:chance.randrange(len(content) + 1)] if chance.random() < 0.1 else content)


@pytest.mark.parametrize("count", [400, pytest.param(20_000, marks=pytest.mark.slow)])
def test_damaged_files_are_read_or_refused(count):
    chance = random.Random(5)
    contents = [(FILES / name).read_bytes() for name in (
        "CT_small.dcm", "MR_small_RLE.dcm", "SC_rgb_dcmtk_+eb+cy+np.dcm", "MR_small_jp2klossless.dcm", "MR_small_bigendian.dcm",
        "SC_rgb_small_odd.dcm", "dicomdirtests/77654033/CR1/6154", "SC_rgb_rle_16bit.dcm", "JPEG2000.dcm")]
    contents += [content for name, content in same_films() if name in ("VOI table", "modality table", "enhanced", "deflated")]
    contents.append(dicom_files.dicom(row(0, 1, kind=np.uint8), **palette(np.zeros((2, 3)), 8)))
    outcomes = {"read": 0, "refused": 0}
    for _ in range(count):
        content = damaged(chance, chance.choice(contents))
        for read in (dicom.header_of, decode):
            try:
                found = read(content)
            except Refused as error:
                assert "\n" not in str(error)
                outcomes["refused"] += 1
                continue
            outcomes["read"] += 1
            if read is decode:
                assert found.image is not None or (found.values.ndim in (2, 3) and np.isfinite(found.values).all())
    assert min(outcomes.values()) > count / 20, outcomes
