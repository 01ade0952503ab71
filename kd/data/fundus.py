"""The bright disc of a fundus photograph: where it is, and the image cropped to it."""

import numpy as np
from PIL import Image, ImageChops, ImageFilter

SMALL = 256  # longest side of the copy on which the disc is searched
LARGEST = 4096  # longest side of an image before it becomes a square
TRIPLES = 400  # circles that are tried
TOLERANCE = 1.5  # distance of edge and circle in pixels of the copy, up to which they agree


def crop_to_circle(image: Image.Image) -> Image.Image:
    """The square around the disc of a fundus photograph, in RGB.

    The square is black where it leaves the image. `image` has 8 bits a channel.

    The disc is what is brighter than the near-black background in the image's corners, on a small
    copy without specks. Of many circles through three points of its edge, that one is chosen which
    most of the other points lie on, and it is fitted to these by least squares. Where the image
    cuts the disc off there is no edge, and the remaining arcs give the circle. So text, dark
    patches and cuts do not move it. Where there is no visible disc (all dark, no dark corners, no
    circle), the whole image is padded to a square.
    """
    image = image.convert("RGB")
    # The square of a long, thin image would not fit into memory.
    image.thumbnail((LARGEST, LARGEST))
    found = _circle(image)
    if found is None:
        return _square(image, image.width / 2, image.height / 2, max(image.size))
    x, y, radius = found
    return _square(image, x, y, max(1, round(2 * radius)))


def _square(image: Image.Image, x: float, y: float, side: int) -> Image.Image:
    left = round(x - side / 2)
    top = round(y - side / 2)
    return image.crop((left, top, left + side, top + side))


def _circle(image: Image.Image) -> tuple[float, float, float] | None:
    """(x, y, radius) of the disc in pixels of an RGB image, or None."""
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
    """The largest channel of each pixel, without specks: float64 [H, W].

    The rim of a dim disc is all but black in green and blue.
    """
    red, green, blue = image.split()
    grey = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    return np.asarray(grey.filter(ImageFilter.MedianFilter(5)), dtype=np.float64)


def _bright(grey: np.ndarray) -> np.ndarray | None:
    """Which pixels are brighter than the background: bool [H, W].

    None where the corners are not near-black in comparison with the rest.
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
    """Where each row and column of the mask begins and ends, [n, 2] as (x, y).

    Without ends that the image cuts off.
    """
    of_rows = _line_ends(mask)
    of_columns = _line_ends(mask.T)[:, ::-1]
    return np.concatenate([of_rows, of_columns])


def _line_ends(mask: np.ndarray) -> np.ndarray:
    """The first ends of all rows of a mask, then the last ends: [n, 2] as (place, row)."""
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
    """(x, y, radius) of the circle that most points [n, 2] lie on.

    None where these are less than half of the points, or only a short arc.
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
    """The circles (x, y, radius) through three points each: [m, 3, 2] -> [m, 3].

    For three points on a line the circle is far away.
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
    """(x, y, radius) of the circle fitted to points [n, 2] by least squares (Kasa 1976).

    It minimises the sum of (distance^2 - radius^2)^2 over the points.
    """
    system = np.concatenate([2 * points, np.ones((len(points), 1))], 1)
    x, y, rest = np.linalg.lstsq(system, (points**2).sum(1), rcond=None)[0]
    return x, y, float(np.sqrt(max(0.0, rest + x**2 + y**2)))
