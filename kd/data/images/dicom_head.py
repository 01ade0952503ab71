"""Recognise DICOM files by their first bytes.

This module needs nothing but the standard library: it is part of the script that predicts images
without this program (`kd.studies.export.script`).
"""

import struct

HEAD_BYTES = 1024  # of a file, for `is_dicom`
# Value representations with a length of 4 bytes, and all others.
_LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_SHORT = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
# The beginning of the element MediaStorageSOPClassUID, and the classes (PS3.4, B.5) of waveforms,
# presentation states, reports, key objects, encapsulated documents, radiotherapy structures, plans
# and records, registrations and directories.
_MEDIA_CLASS = b"\x02\x00\x02\x00UI"
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_WITHOUT_IMAGES = (
    *(f"{_STORAGE}{kind}" for kind in ("9.", "11.", "66", "88.", "104.")),
    *(f"{_STORAGE}481.{kind}" for kind in (3, 4, 5, 6, 7, 8, 9)),
    "1.2.840.10008.1.3.10",
)


def is_dicom(head: bytes) -> bool:
    """Return whether a file is DICOM, from its first HEAD_BYTES bytes.

    A file that lacks the preamble is recognised by the elements that it begins with.
    """
    if head[128:132] == b"DICM":
        return True
    return (
        _count_elements(head, "<", explicit=True) >= 2
        or _count_elements(head, ">", explicit=True) >= 2
        or _count_elements(head, "<", explicit=False) >= 3
    )


def states_no_image(head: bytes) -> bool:
    """Return whether a DICOM file is a report, a plan and the like, from its first bytes."""
    start = head.find(_MEDIA_CLASS)
    if start < 0:
        return False
    start += len(_MEDIA_CLASS)
    length = int.from_bytes(head[start : start + 2], "little")
    uid = head[start + 2 : start + 2 + length].decode("ascii", "replace")
    return uid.startswith(_WITHOUT_IMAGES)


def _count_elements(head: bytes, order: str, explicit: bool) -> int:
    """Return how many elements in ascending order a file begins with, from group 2 or 8 on."""
    count, start, previous = 0, 0, (0, -1)
    while start + 12 <= len(head):
        tag = struct.unpack_from(f"{order}HH", head, start)
        if tag <= previous or (count == 0 and tag[0] not in (2, 8)) or tag[0] > 0x20:
            break
        length, begin = _element_length(head, start, order, explicit)
        if length % 2 or (not explicit and length > HEAD_BYTES):
            break
        count, start, previous = count + 1, begin + length, tag
    return count


def _element_length(head: bytes, start: int, order: str, explicit: bool) -> tuple[int, int]:
    """Return (length of an element's value, where it begins); the length is 1 if it is invalid."""
    representation = head[start + 4 : start + 6]
    if not explicit:
        return struct.unpack_from(f"{order}I", head, start + 4)[0], start + 8
    if representation in _SHORT:
        return struct.unpack_from(f"{order}H", head, start + 6)[0], start + 8
    if representation in _LONG and head[start + 6 : start + 8] == b"\0\0":
        length = struct.unpack_from(f"{order}I", head, start + 8)[0]
        return (0 if length == 0xFFFFFFFF else length), start + 12
    return 1, start
