"""What the script `predict.py` has in place of modules that it does not contain.

The script is written from the source of modules of this program (`kd.studies.export.script`). It
does not read DICOM files, for which it would need pydicom.
"""

_NO_DICOM = (
    "a DICOM file, which predict.py does not read; save it as a PNG with all its bits, or use"
    " evaluate.py of the program that exported the network"
)


class Problem(Exception):
    """An error that ends the script with one line on stderr."""


def decode_dicom(content: bytes, max_pixels: int):
    """Raise ValueError, by which the image is reported as unreadable."""
    raise ValueError(_NO_DICOM)


def first_names(items: list[str]) -> str:
    """Return the first ten items of a list as text."""
    return ", ".join(items[:10])
