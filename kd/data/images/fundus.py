"""Find the bright disc of a fundus photograph and crop the image to it."""

import numpy as np
from PIL import Image, ImageChops, ImageFilter

SMALL = 256  # longest side of the small copy in which the disc is searched
LARGEST = 4096  # longest side of an image before it is cropped or padded to a square
TRIPLES = 400  # number of candidate circles
TOLERANCE = 1.5  # an edge point this close to a circle is on it, in pixels of the copy


def crop_to_circle(image: Image.Image) -> Image.Image:
    """Return the square around the disc of a fundus photograph, in RGB.

    The square is black outside the image. `image` must have 8 bits per channel.

    The disc is searched in a small copy without specks. It consists of the pixels that are brighter
    than the near-black background in the corners of the image. Many candidate circles are drawn
    through three points of its edge each. The circle with the most other edge points is chosen, and
    is fitted to these points by least squares. Where the image cuts the disc off, there is no edge,
    and the circle follows from the remaining arcs. Text, dark patches and cuts therefore do not
    move the circle. If no disc is visible (the image is dark everywhere, has no dark corners, or
    has no circle), the whole image is padded to a square.
    """
    image = image.convert("RGB")
    # The square of a long, thin image would not fit into memory.
    image.thumbnail((LARGEST, LARGEST))
    left, top, side = disc_square(image)
    return image.crop((left, top, left + side, top + side))


def disc_square(image: Image.Image) -> tuple[int, int, int]:
    """Return (left, top, side) of the square around the disc of an RGB image, in its pixels.

    Without a visible disc it is the square around the whole image, see `crop_to_circle`.
    """
    found = _circle(image)
    if found is None:
        return _square(image.width / 2, image.height / 2, max(image.size))
    x, y, radius = found
    return _square(x, y, max(1, round(2 * radius)))


def _square(x: float, y: float, side: int) -> tuple[int, int, int]:
    return round(x - side / 2), round(y - side / 2), side


def _circle(image: Image.Image) -> tuple[float, float, float] | None:
    """Return (x, y, radius) of the disc in pixels of an RGB image, or None if none is found."""
    small = image.copy()
    small.thumbnail((SMALL, SMALL), Image.Resampling.BOX)
    mask = _bright(_largest_channel(small))
    if mask is None:
        return None
    points = _edge(mask)
    if len(points) < 12:
        return None
    fit = _fit(points)
    if fit is None:
        return None
    x, y, radius = fit
    height, width = mask.shape
    if not min(height, width) / 8 < radius < np.hypot(height, width) / 2:
        return None
    across = image.width / small.width
    down = image.height / small.height
    return x * across, y * down, radius * (across + down) / 2


def _largest_channel(image: Image.Image) -> np.ndarray:
    """Return the largest channel of each pixel, without specks: float64 [H, W].

    The rim of a dim disc is nearly black in green and blue.
    """
    red, green, blue = image.split()
    grey = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    return np.asarray(grey.filter(ImageFilter.MedianFilter(5)), dtype=np.float64)


def _bright(grey: np.ndarray) -> np.ndarray | None:
    """Return which pixels are brighter than the background: bool [H, W].

    The result is None if the corners are not nearly black in comparison with the rest.
    """
    patch = max(1, min(grey.shape) // 20)
    corners = np.stack(
        [grey[:patch, :patch], grey[:patch, -patch:], grey[-patch:, :patch], grey[-patch:, -patch:]]
    )
    dark = np.median(corners)
    bright = np.percentile(grey, 99)
    if bright - dark < 12 or dark > 0.3 * bright:
        return None
    return grey > dark + max(6, 0.12 * (bright - dark))


def _edge(mask: np.ndarray) -> np.ndarray:
    """Return where each row and column of the mask begins and ends: [n, 2] as (x, y).

    Ends that the border of the image cuts off are excluded.
    """
    of_rows = _line_ends(mask)
    of_columns = _line_ends(mask.T)[:, ::-1]
    return np.concatenate([of_rows, of_columns])


def _line_ends(mask: np.ndarray) -> np.ndarray:
    """Return the first ends of all rows of a mask, then the last ends: [n, 2] as (column, row)."""
    length = mask.shape[1]
    rows = np.flatnonzero(mask.any(1))
    first = mask[rows].argmax(1)
    last = length - mask[rows, ::-1].argmax(1)
    begins = first > 1
    ends = last < length - 1
    return np.concatenate(
        [
            np.stack([first[begins], rows[begins] + 0.5], 1),
            np.stack([last[ends], rows[ends] + 0.5], 1),
        ]
    )


def _fit(points: np.ndarray) -> tuple[float, float, float] | None:
    """Return (x, y, radius) of the circle through most of the points [n, 2].

    The result is None if it passes through less than half of the points, or if these points cover
    only a short arc.
    """
    triples = np.random.default_rng(0).integers(0, len(points), (TRIPLES, 3))
    circles = _through(points[triples])
    offsets = points[None] - circles[:, None, :2]
    distances = np.hypot(offsets[:, :, 0], offsets[:, :, 1])
    far = np.abs(distances - circles[:, 2:])
    best = (far < TOLERANCE).sum(1).argmax()
    on = far[best] < TOLERANCE
    if on.mean() < 0.5:
        return None
    x, y, radius = _least_squares(points[on])
    angles = np.arctan2(points[on, 1] - y, points[on, 0] - x)
    tens_of_degrees = np.unique(np.rad2deg(angles) // 10)
    return (x, y, radius) if len(tens_of_degrees) >= 9 else None


def _through(triples: np.ndarray) -> np.ndarray:
    """Return the circles (x, y, radius) through three points each: [m, 3, 2] -> [m, 3].

    For three points on a line, the circle is very large and its centre far away.
    """
    a, b, c = triples.astype(np.float64).transpose(1, 0, 2)
    b = b - a
    c = c - a
    twice = 2 * (b[:, 0] * c[:, 1] - b[:, 1] * c[:, 0])
    twice[twice == 0] = 1e-9
    bb = (b**2).sum(1)
    cc = (c**2).sum(1)
    x = c[:, 1] * bb - b[:, 1] * cc
    y = b[:, 0] * cc - c[:, 0] * bb
    centre = np.stack([x, y], 1) / twice[:, None]
    radius = np.hypot(centre[:, 0], centre[:, 1])
    return np.concatenate([centre + a, radius[:, None]], 1)


def _least_squares(points: np.ndarray) -> tuple[float, float, float]:
    """Return (x, y, radius) of the circle fitted to points [n, 2] by least squares (Kasa 1976).

    The fit minimises the sum of (distance^2 - radius^2)^2 over the points.
    """
    system = np.concatenate([2 * points, np.ones((len(points), 1))], 1)
    x, y, rest = np.linalg.lstsq(system, (points**2).sum(1), rcond=None)[0]
    return x, y, float(np.sqrt(max(0.0, rest + x**2 + y**2)))
