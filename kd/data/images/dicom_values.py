"""The values that a DICOM file stores, and those it shows: look-up tables, windows, palettes."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kd.data.images.dicom_stored import Layout, Refused, is_list

STRIP = 1 << 20  # values that are converted at a time
_WINDOW_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
_PALETTE = "{}PaletteColorLookupTable{}"
_COLOURS = ("Red", "Green", "Blue")


def window_of(dataset) -> tuple[float, float, str] | None:
    """Return the first window as (centre, width, function), or None."""
    centre, width = _number(dataset, "WindowCenter"), _number(dataset, "WindowWidth")
    if centre is None or width is None:
        return None
    function = str(_first(dataset, "VOILUTFunction") or "LINEAR").strip().upper()
    return centre, width, function


def voi_item(dataset):
    """Return the first VOI look-up table, or None. It has priority over a window."""
    item = _first(dataset, "VOILUTSequence")
    complete = item is not None and None not in (item.get("LUTDescriptor"), item.get("LUTData"))
    return item if complete else None


def _places(dataset):
    """Yield the data sets that may hold a transformation: the file's own, and those of its frame.

    Enhanced CT and MR files have them in functional groups.
    """
    yield dataset
    for groups in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        for group in list(dataset.get(groups) or [])[:1]:
            for macro in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                yield from list(group.get(macro) or [])[:1]


def _first(dataset, keyword: str):
    """Return the first value of an element, in any of `_places`, or None."""
    for place in _places(dataset):
        value = place.get(keyword)
        if is_list(value) and not hasattr(value, "keys"):
            value = next(iter(value), None)
        if value is not None and value != "":
            return value
    return None


def _number(dataset, keyword: str) -> float | None:
    """Return the first value of an element as a number, or None if it is missing."""
    value = _first(dataset, keyword)
    if value is None:
        return None
    if not math.isfinite(float(value)):
        raise Refused(f"{keyword} is {value}")
    return float(value)


@dataclass(frozen=True)
class LookUp:
    """A look-up table: `entries[value - first]`, and its first or last entry outside of it.

    top  the highest value that an entry may have
    """

    first: int
    entries: np.ndarray
    top: int

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Return the entries for values of any shape, as float64."""
        index = np.clip(np.rint(values) - self.first, 0, len(self.entries) - 1)
        return self.entries[index.astype(np.intp)].astype(np.float64)


def _look_up(descriptor, data, lowest: float, big_endian: bool, name: str) -> LookUp:
    """Return the table of a descriptor (entries, first value, bits per entry) and its data.

    `lowest` is the lowest value that the table is applied to. pydicom's own functions fail for
    12-bit modality tables, and are wrong for tables of more than 256 entries with 8 bits.
    """
    count, first, bits = (int(value) for value in descriptor)
    count = (count & 0xFFFF) or 0x10000
    # The standard lets the sign of the values decide how the 16 bits are read.
    first &= 0xFFFF
    if lowest < 0 and first >= 0x8000:
        first -= 0x10000
    if not 1 <= bits <= 16:
        raise Refused(f"its {name} has {bits} bits per entry")
    entries = _entries(data, count, bits, big_endian, name)
    # Some files state fewer bits than their entries have.
    bits = max(bits, int(entries.max()).bit_length())
    return LookUp(first, entries, 2**bits - 1)


def _entries(data, count: int, bits: int, big_endian: bool, name: str) -> np.ndarray:
    """Return the entries of a table: one in each word of 16 bits, or two if they have 8 bits."""
    if isinstance(data, bytes):
        data += b"\0" * (len(data) % 2)
        words = np.frombuffer(data, ">u2" if big_endian else "<u2")
    else:
        words = np.atleast_1d(np.asarray(data, np.int64)) & 0xFFFF
    if len(words) >= count:
        return words[:count].astype(np.uint16)
    octets = words.astype("<u2").view(np.uint8)
    if bits <= 8 and len(octets) >= count:
        return octets[:count].astype(np.uint16)
    raise Refused(f"its {name} has {len(words)} entries instead of {count}")


@dataclass(frozen=True)
class _Display:
    """What a file states between its stored values and those that are shown.

    limits   the values that are black and white, or None if the file does not state them
    padding  the lowest and the highest stored value that is no part of the image, or None
    black    the value of padding, or None if there are no limits
    """

    modality: LookUp | None
    slope: float
    intercept: float
    voi: LookUp | None
    window: tuple[float, float, str] | None
    limits: tuple[float, float] | None
    padding: tuple[float, float] | None
    black: float | None

    @property
    def changes_nothing(self) -> bool:
        same = self.modality is None and (self.slope, self.intercept) == (1.0, 0.0)
        return same and self.voi is None and self.window is None and self.padding is None

    def shown(self, stored: np.ndarray) -> np.ndarray:
        """Return the values that are shown for stored ones of any shape, as float64."""
        values = stored.astype(np.float64)
        if self.modality is not None:
            values = self.modality.apply(values)
        else:
            values = values * self.slope + self.intercept
        if self.voi is not None:
            return self.voi.apply(values)
        if self.window is not None:
            low, high = self.limits
            return _windowed(values, *self.window) * (high - low) + low
        return values


def _windowed(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """Return values from 0 (black) to 1 (white), as in PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    if function == "SIGMOID":
        with np.errstate(over="ignore"):
            return 1 / (1 + np.exp(-4 * (values - centre) / width))
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    if width == 0:
        return (values > centre).astype(np.float64)
    return np.clip((values - centre) / width + 0.5, 0, 1)


def _display(dataset, layout: Layout) -> _Display:
    """Read the transformations of a grey image."""
    big_endian = dataset.original_encoding[1] is False
    modality, slope, intercept = _modality(dataset, layout, big_endian)
    limits = _limits(layout, modality, slope, intercept)
    voi, window = voi_item(dataset), None
    if voi is not None:
        lowest = limits[0] if limits else -1
        voi = _look_up(voi.LUTDescriptor, voi.LUTData, lowest, big_endian, "VOI look-up table")
        limits = (0, voi.top)
    else:
        window = _valid_window(window_of(dataset))
        if window is not None and limits is None:
            limits = (0, 1)
        if window is None and modality is None and (layout.signed or layout.bits > 16):
            # Such files hold Hounsfield units or doses, and use a small part of their range.
            limits = None
    black = limits[layout.photometric == "MONOCHROME1"] if limits else None
    padding = _padding(dataset, layout)
    return _Display(modality, slope, intercept, voi, window, limits, padding, black)


def _modality(dataset, layout: Layout, big_endian: bool) -> tuple[LookUp | None, float, float]:
    """Return (the modality look-up table or None, slope, intercept)."""
    item = _first(dataset, "ModalityLUTSequence")
    if item is not None:
        lowest, name = layout.limits[0], "modality look-up table"
        table = _look_up(item.LUTDescriptor, item.LUTData, lowest, big_endian, name)
        return table, 1.0, 0.0
    slope, intercept = _number(dataset, "RescaleSlope"), _number(dataset, "RescaleIntercept")
    if slope == 0:
        raise Refused("RescaleSlope is 0")
    return None, 1.0 if slope is None else slope, intercept or 0.0


def _limits(
    layout: Layout, modality: LookUp | None, slope: float, intercept: float
) -> tuple[float, float] | None:
    """Return the range of values after the modality transformation; None for floating point."""
    if modality is not None:
        return 0, modality.top
    if not layout.is_integer:
        return None
    # A negative slope exchanges them.
    low, high = sorted(value * slope + intercept for value in layout.limits)
    if not math.isfinite(high - low) or low == high:
        raise Refused(f"a rescale to values from {low:g} to {high:g}")
    return low, high


def _valid_window(window: tuple[float, float, str] | None) -> tuple[float, float, str] | None:
    if window is None:
        return None
    centre, width, function = window
    if function not in _WINDOW_FUNCTIONS:
        raise Refused(f"VOILUTFunction is {function}")
    if width < 1 if function == "LINEAR" else width <= 0:
        raise Refused(f"its window {centre:g}/{width:g} has no width")
    return window


def _padding(dataset, layout: Layout) -> tuple[float, float] | None:
    """Return the range of stored values that are padding, or None."""
    prefix = layout.keyword.removesuffix("PixelData")
    ends = [dataset.get(f"{prefix}PixelPadding{end}") for end in ("Value", "RangeLimit")]
    if ends[0] is None:
        return None
    ends = [end for end in ends if end is not None]
    if layout.is_integer:
        ends = [_as_stored(int(end), layout) for end in ends]
    return min(ends), max(ends)


def _as_stored(value: int, layout: Layout) -> int:
    """Return an integer that may have been read with the wrong sign as pixels are stored."""
    value &= 2**layout.allocated - 1
    negative = layout.signed and value >= 2 ** (layout.allocated - 1)
    return value - 2**layout.allocated if negative else value


def grey_values(
    array: np.ndarray, dataset, layout: Layout
) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Return (the values that are shown, the two that are black and white or None).

    array  stored values [H, W]; unused bits may be set

    The result has more than 8 bits: integers if only integers can occur, otherwise float32.
    Raises Refused.
    """
    display = _display(dataset, layout)
    if layout.is_integer:
        check_unused_bits(array, dataset, layout)
    else:
        _check_finite(array)
    if array.itemsize <= 2 and layout.is_integer and display.limits is not None:
        # A table of all values that can be stored needs less memory than the values as float64.
        stored = all_values(layout, array.itemsize)
        table = _compact(_shown(stored, display, layout))
        used = (stored >= array.min()) & (stored <= array.max())
        same = table.dtype == array.dtype and np.array_equal(table[used], stored[used])
        return (array if same else looked_up(array, table)), display.limits
    if display.changes_nothing and not layout.is_integer:
        return array, display.limits
    values = np.empty(array.shape, np.float32)
    in_strips(array, lambda strip: _shown(strip, display, layout), values)
    padding = np.isnan(values)
    if padding.any():  # without limits, the darkest value of the image is black
        if padding.all():
            raise Refused("all of its pixels are padding")
        end = np.nanmax if layout.photometric == "MONOCHROME1" else np.nanmin
        values[padding] = end(values)
    if layout.is_integer and float(display.slope).is_integer() and np.abs(values).max() < 2**24:
        values = values.astype(np.int32)  # exact, because float32 holds these integers
    return values, display.limits


def _shown(raw: np.ndarray, display: _Display, layout: Layout) -> np.ndarray:
    """Return the values that are shown, as float64; padding is black, or NaN without limits."""
    stored = _without_unused_bits(raw, layout)
    values = display.shown(stored)
    if display.padding is not None:
        low, high = display.padding
        # The value of padding may need more bits than are stored.
        padding = ((raw >= low) & (raw <= high)) | ((stored >= low) & (stored <= high))
        values[padding] = math.nan if display.black is None else display.black
    return values


def all_values(layout: Layout, itemsize: int) -> np.ndarray:
    """Return all integers of 1 or 2 bytes, in the order of their bit patterns."""
    patterns = np.arange(2 ** (8 * itemsize), dtype=f"u{itemsize}")
    return patterns.view(f"i{itemsize}") if layout.signed else patterns


def looked_up(array: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return the entries of a table in the order of bit patterns: [H, W], or [H, W, 3]."""
    patterns = array.view(f"u{array.itemsize}")
    result = np.empty(array.shape + table.shape[1:], table.dtype)
    return in_strips(patterns, lambda strip: table[strip], result)


def in_strips(
    array: np.ndarray, convert: Callable[[np.ndarray], np.ndarray], result: np.ndarray
) -> np.ndarray:
    """Convert an array row by row into `result`, and return it; this bounds the memory."""
    rows = max(1, STRIP // array[0].size)
    for start in range(0, len(array), rows):
        result[start : start + rows] = convert(array[start : start + rows])
    return result


def _without_unused_bits(raw: np.ndarray, layout: Layout) -> np.ndarray:
    """Return integers of BitsStored bits, with their sign; floating-point values as they are."""
    if not layout.is_integer or layout.bits == 8 * raw.itemsize:
        return raw
    stored = raw.astype(np.int64) & (2**layout.bits - 1)
    if layout.signed:
        stored -= (stored >> (layout.bits - 1)) << layout.bits
    return stored


def check_unused_bits(array: np.ndarray, dataset, layout: Layout) -> None:
    """Refuse integers that need more bits than BitsStored, unless the others hold an overlay."""
    if layout.bits == 8 * array.itemsize:
        return
    low, high = layout.limits
    smallest, largest = int(array.min()), int(array.max())
    has_no_sign_bits = layout.signed and smallest >= 0 and largest < 2**layout.bits
    if (low <= smallest and largest <= high) or has_no_sign_bits:
        return
    if any(_overlay_bit(dataset, group) >= layout.bits for group in range(0x6000, 0x6020, 2)):
        return
    outside = array[(array < low) | (array > high)]
    padding = _padding(dataset, layout)
    if padding is None or outside.min() < padding[0] or outside.max() > padding[1]:
        raise Refused(
            f"values {smallest} to {largest}, but BitsStored {layout.bits} means {low} to {high}"
        )


def _overlay_bit(dataset, group: int) -> int:
    """Return the bit of the pixels in which an overlay is stored, or 0."""
    return int(getattr(dataset.get((group, 0x0102)), "value", None) or 0)


def _check_finite(array: np.ndarray) -> None:
    finite = in_strips(array, np.isfinite, np.empty(array.shape, bool))
    missing = int(finite.size - np.count_nonzero(finite))
    if missing:
        raise Refused(f"{missing} of its values are NaN or infinite")


def _compact(values: np.ndarray) -> np.ndarray:
    """Return float64 values as the smallest integers of at least 16 bits, or as float32."""
    whole = np.rint(values)
    if np.abs(values - whole).max() < 1e-6:
        for kind in (np.uint16, np.int16, np.int32):
            limits = np.iinfo(kind)
            if limits.min <= whole.min() and whole.max() <= limits.max:
                return whole.astype(kind)
    return values.astype(np.float32)


def palette_table(dataset, layout: Layout, itemsize: int) -> np.ndarray:
    """Return the colours of all values that can be stored: uint8 [N, 3]. Raises Refused.

    Colours of 16 bits are reduced to 8, and transparent ones are composed over black.
    """
    stored = _without_unused_bits(all_values(layout, itemsize), layout)
    if _PALETTE.format("Red", "Data") in dataset:
        big_endian = dataset.original_encoding[1] is False
        palettes = [_palette(dataset, colour, layout, big_endian) for colour in _colours(dataset)]
        colours = np.stack([palette.apply(stored) for palette in palettes], axis=-1)
    else:
        colours = _segmented_palette(dataset, stored)
    # Some files have 8 bits per colour and state 16.
    top = 255 if colours.max() <= 255 else 65535
    if colours.shape[1] == 4:
        colours = colours[:, :3] * (colours[:, 3:] / top)
    return (colours if top == 255 else colours / 256).astype(np.uint8)


def _colours(dataset) -> tuple[str, ...]:
    return _COLOURS + (("Alpha",) if _PALETTE.format("Alpha", "Data") in dataset else ())


def _palette(dataset, colour: str, layout: Layout, big_endian: bool) -> LookUp:
    # Alpha has the descriptor of the other colours.
    descriptor = dataset.get(_PALETTE.format(_COLOURS[0], "Descriptor"))
    data = dataset.get(_PALETTE.format(colour, "Data"))
    if descriptor is None or data is None:
        raise Refused(f"its palette lacks {colour.lower()}")
    lowest = layout.limits[0]
    return _look_up(descriptor, data, lowest, big_endian, f"palette of {colour.lower()}")


def _segmented_palette(dataset, stored: np.ndarray) -> np.ndarray:
    """Return the colours of stored values from a compressed palette: [N, 3 or 4]."""
    from pydicom.pixels import apply_color_lut

    descriptor = dataset.get(_PALETTE.format("Red", "Descriptor"))
    if descriptor is None:
        raise Refused("it has no palette")
    count, first, bits = (int(value) for value in descriptor)
    count = (count & 0xFFFF) or 0x10000
    if bits == 8 and count > 256:  # pydicom takes the index modulo 256
        raise Refused(f"its palette has {count} entries of 8 bits in segments, which is not read")
    entries = apply_color_lut(np.arange(first, first + count, dtype=np.int64), dataset)
    return entries[np.clip(stored - first, 0, count - 1)].astype(np.float64)
