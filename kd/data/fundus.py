"""The bright disc of a fundus photograph: where it is, and the picture cropped to it."""

import numpy as np
from PIL import Image, ImageChops, ImageFilter

SMALL = 256  # longest side of the copy that is looked at
LARGEST = 4096
TRIPLES = 400
TOLERANCE = 1.5  # pixels of the copy that an edge may lie off the circle


def crop_to_circle(picture: Image.Image) -> Image.Image:
    """The square around the disc of a fundus photograph, in RGB, black where the square leaves the
    picture.

    The disc is what is brighter than the near-black background, which the picture's corners show,
    on a small copy without specks. The circle is the one, of those through three of its edge's
    points, that most of the others lie on, fitted to these by least squares. Where the picture cuts
    the disc off there is no edge, and the arcs that are left give the circle. So text, dark patches
    and cuts do not move it. Where no disc can be told (all dark, no dark corners, no circle), the
    whole picture is padded to a square. `picture` has 8 bits a channel.
    """
    picture = picture.convert("RGB")
    picture.thumbnail(
        (LARGEST, LARGEST)
    )  # squares of long, thin pictures would not fit into memory
    found = _circle(picture)
    if found is None:
        return _square(picture, picture.width / 2, picture.height / 2, max(picture.size))
    x, y, radius = found
    return _square(picture, x, y, max(1, round(2 * radius)))


def _square(picture: Image.Image, x: float, y: float, side: int) -> Image.Image:
    left, top = round(x - side / 2), round(y - side / 2)
    return picture.crop((left, top, left + side, top + side))


def _circle(picture: Image.Image) -> tuple[float, float, float] | None:
    """(x, y, radius) of the disc in pixels of an RGB picture, or None."""
    small = picture.copy()
    small.thumbnail((SMALL, SMALL), Image.Resampling.BOX)
    red, green, blue = small.split()
    # The largest channel: the rim of a dim disc is all but black in green and blue.
    grey = ImageChops.lighter(ImageChops.lighter(red, green), blue).filter(
        ImageFilter.MedianFilter(5)
    )
    mask = _bright(np.asarray(grey, dtype=np.float64))
    points = _edge(mask) if mask is not None else np.empty((0, 2))
    fit = _fit(points) if len(points) >= 12 else None
    if fit is None or not min(mask.shape) / 8 < fit[2] < np.hypot(*mask.shape) / 2:
        return None
    across, down = picture.width / small.width, picture.height / small.height
    return fit[0] * across, fit[1] * down, fit[2] * (across + down) / 2


def _bright(grey: np.ndarray) -> np.ndarray | None:
    """Which pixels are brighter than the background, bool [H, W]; None where the corners are not
    near-black beside the rest.
    """
    patch = max(1, min(grey.shape) // 20)
    corners = np.stack(
        [grey[:patch, :patch], grey[:patch, -patch:], grey[-patch:, :patch], grey[-patch:, -patch:]]
    )
    dark, bright = np.median(corners), np.percentile(grey, 99)
    if bright - dark < 12 or dark > 0.3 * bright:
        return None
    return grey > dark + max(6, 0.12 * (bright - dark))


def _edge(mask: np.ndarray) -> np.ndarray:
    """Where each row and column of the mask begins and ends, [n, 2] as (x, y), but for ends that
    the picture cuts off.
    """
    points = []
    for lines, turn in ((mask, False), (mask.T, True)):
        own = np.flatnonzero(lines.any(1))
        first, last = lines[own].argmax(1), lines.shape[1] - lines[own, ::-1].argmax(1)
        for end, inside in ((first, first > 1), (last, last < lines.shape[1] - 1)):
            found = np.stack([end[inside], own[inside] + 0.5], 1)
            points.append(found[:, ::-1] if turn else found)
    return np.concatenate(points)


def _fit(points: np.ndarray) -> np.ndarray | None:
    """(x, y, radius) of the circle that most points [n, 2] lie on; None where that is less than
    half, or a short arc.
    """
    triples = np.random.default_rng(0).integers(0, len(points), (TRIPLES, 3))
    circles = _through(points[triples])
    far = np.abs(
        np.hypot(*(points[None] - circles[:, None, :2]).transpose(2, 0, 1)) - circles[:, 2:]
    )
    on = far[(far < TOLERANCE).sum(1).argmax()] < TOLERANCE
    if on.mean() < 0.5:
        return None
    x, y, radius = _least_squares(points[on])
    angles = np.arctan2(points[on, 1] - y, points[on, 0] - x)
    tens_of_degrees = np.unique(np.rad2deg(angles) // 10)
    return np.array([x, y, radius]) if len(tens_of_degrees) >= 9 else None


def _through(triples: np.ndarray) -> np.ndarray:
    """The circles (x, y, radius) through three points each, [m, 3, 2] -> [m, 3]; for points on a
    line one far away.
    """
    a, b, c = triples.astype(np.float64).transpose(1, 0, 2)
    b, c = b - a, c - a
    twice = 2 * (b[:, 0] * c[:, 1] - b[:, 1] * c[:, 0])
    twice[twice == 0] = 1e-9
    bb, cc = (b**2).sum(1), (c**2).sum(1)
    centre = (
        np.stack([c[:, 1] * bb - b[:, 1] * cc, b[:, 0] * cc - c[:, 0] * bb], 1) / twice[:, None]
    )
    return np.concatenate([centre + a, np.hypot(*centre.T)[:, None]], 1)


def _least_squares(points: np.ndarray) -> tuple[float, float, float]:
    """(x, y, radius) that makes the sum of (distance^2 - radius^2)^2 over the points least (Kasa
    1976).
    """
    system = np.concatenate([2 * points, np.ones((len(points), 1))], 1)
    x, y, rest = np.linalg.lstsq(system, (points**2).sum(1), rcond=None)[0]
    return x, y, float(np.sqrt(max(0.0, rest + x**2 + y**2)))
