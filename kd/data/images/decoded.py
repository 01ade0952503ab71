"""A decoded image, before its values are mapped to 8 bits."""

from typing import NamedTuple

import numpy as np
from PIL import Image

INTEGER = "integer"
FLOAT = "float"


class Pixels(NamedTuple):
    """A decoded image: either `image` (8 bits per channel) or `values` (more than 8 bits).

    image     a Pillow image without transparency, in its final brightness
    values    [H, W] grey or [H, W, 3] colour: an integer or floating-point type of more than 8 bits
    limits    the values that are black and white, if the file states them; otherwise None, and the
              range of the data set applies
    inverted  whether the lowest value is white. Only for `values`
    bits      bits per channel in the file: 1, 8, 10, 12, 16, 32 ...
    source    kind of the file, for --check-data: `PNG L`, `TIFF I;16`, `DICOM MONOCHROME2`
    """

    image: Image.Image | None
    values: np.ndarray | None = None
    limits: tuple[float, float] | None = None
    inverted: bool = False
    bits: int = 8
    source: str = ""

    @property
    def kind(self) -> str:
        """INTEGER or FLOAT: values of these kinds have separate ranges."""
        return INTEGER if self.values.dtype.kind in "iu" else FLOAT
