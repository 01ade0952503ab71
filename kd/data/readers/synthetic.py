"""Grey drawings of seven kinds of bones, to try everything without data.

They have patients and studies. A drawing is a pure function of (seed, row), and is the same on
every machine: random numbers come from a counter-based generator, and the arithmetic is limited to
+ - * / and square roots, which IEEE 754 rounds equally everywhere (the last bit of sin and exp
differs between processors).
"""

import functools

import numpy as np

from kd.data.index import Index, Sample

CANVAS = 128
CLASSES = ("elbow", "finger", "forearm", "hand", "humerus", "shoulder", "wrist")
VIEWS_PER_STUDY = 2
STUDIES_PER_PATIENT = 2
VIEWS_PER_PATIENT = VIEWS_PER_STUDY * STUDIES_PER_PATIENT
_GRID = (np.arange(CANVAS, dtype=np.float64) + 0.5) / CANVAS * 2 - 1


def read(images: int, seed: int) -> Index:
    """Return the index of `images` drawings.

    Consecutive rows are the views of a study, and consecutive studies belong to a patient. All
    drawings of a patient have the same class.
    """
    samples = []
    for row in range(images):
        patient = row // VIEWS_PER_PATIENT
        label = patient % len(CLASSES)
        name = f"patient{patient:05d}"
        study = f"study{row // VIEWS_PER_STUDY % STUDIES_PER_PATIENT + 1}"
        file = f"image{row % VIEWS_PER_STUDY + 1}.png"
        path = f"{CLASSES[label]}/{name}/{study}/{file}"
        samples.append(Sample(path, label, name, f"{name}/{study}"))
    return Index(
        "synthetic",
        CLASSES,
        tuple(samples),
        space="synthetic",
        draw=functools.partial(draw, seed=seed),
        channels=1,
        grows=False,
        stamp=f"synthetic drawings 1, seed {seed}",
    )


def draw(row: int, seed: int) -> np.ndarray:
    """Return the drawing of a row: uint8 [128, 128].

    The shape of the bones depends on the patient, and pose and exposure depend on the view.
    """
    patient = row // VIEWS_PER_PATIENT
    body = _random(seed, 0, patient)
    view = _random(seed, 1, row)
    build = _BUILDERS[patient % len(CLASSES)]
    bones = _pose(np.asarray(build(body, view)), view)
    soft = np.zeros((CANVAS, CANVAS))
    bone = np.zeros((CANVAS, CANVAS))
    for x0, y0, x1, y1, radius in bones:
        _stamp(soft, x0, y0, x1, y1, radius * 2.6 + 0.05, hollow=False)
        _stamp(bone, x0, y0, x1, y1, radius, hollow=True)
    return _expose(soft, bone, view)


def _random(seed: int, stream: int, number: int) -> np.random.Generator:
    key = (np.uint64(seed), np.uint64(stream << 48 | number))
    return np.random.Generator(np.random.Philox(key=np.array(key, dtype=np.uint64)))


def _between(random, low, high, size=None):
    return low + (high - low) * random.random(size)


def _turn(tangent_of_half):
    """Return (cos, sin) of an angle from the tangent of half the angle.

    This needs no transcendental functions.
    """
    square = tangent_of_half * tangent_of_half
    return (1 - square) / (1 + square), 2 * tangent_of_half / (1 + square)


def _ray(x, y, length, bend):
    """Return the end of a ray from (x, y) that points up, rotated by an angle.

    `bend` is the tangent of half the angle.
    """
    cos, sin = _turn(bend)
    return x + length * sin, y - length * cos


# Each builder returns rows of (x0, y0, x1, y1, radius): a bone is a segment with a radius, in units
# of half the image. `body` and `view` are random generators, and changing the order of their draws
# would change the drawings.


def _elbow(body, view):
    bend = _between(view, 0.3, 0.8)
    thick = _between(body, 0.085, 0.115)
    x, y = _ray(0, 0, 0.95, bend)
    gap = thick * _between(body, 0.9, 1.2)
    return [
        (0, 0.95, 0, 0.1, thick),
        (-0.06, 0.06, 0.06, 0.06, thick * 1.25),
        (gap, -0.03, x + gap, y, thick * 0.7),
        (-gap, -0.08, x - gap, y - 0.05, thick * 0.75),
    ]


def _finger(body, view):
    lengths = _between(body, 0.9, 1.1, 3) * (0.5, 0.38, 0.28)
    thick = _between(body, 0.055, 0.08)
    bend = _between(view, -0.1, 0.1)
    x, y = 0.0, 0.85
    bones = []
    for length in lengths:
        x1, y1 = _ray(x, y, length, bend)
        bones.append((x, y, x1, y1, thick))
        x, y = _ray(x1, y1, thick * 3, bend)
        bend = bend + _between(view, 0.0, 0.14)
        thick = thick * 0.85
    return bones


def _forearm(body, view):
    gap = _between(body, 0.13, 0.2)
    thick = _between(body, 0.06, 0.085)
    lean = _between(view, -0.05, 0.05)
    return [
        (-gap, 0.95, -gap + lean, -0.9, thick),
        (gap, 0.9, gap * 0.8 + lean, -0.95, thick * _between(body, 0.8, 1.1)),
        (-gap, 0.9, -gap, 0.95, thick * 1.4),
    ]


def _hand(body, view):
    thick = _between(body, 0.035, 0.05)
    spread = _between(view, 0.06, 0.11)
    bones = []
    for ray in range(5):
        x, y = (ray - 2) * 0.12, 0.45
        bend = (ray - 2) * spread
        shorter = 0.8 if ray in (0, 4) else 1.0
        lengths = np.array((0.42, 0.3, 0.2)) * _between(body, 0.9, 1.1) * shorter
        for length in lengths:
            x1, y1 = _ray(x, y, length, bend)
            bones.append((x, y, x1, y1, thick))
            x, y = _ray(x1, y1, thick * 2.6, bend)
    return bones


def _humerus(body, view):
    thick = _between(body, 0.095, 0.125)
    lean = _between(view, -0.08, 0.08)
    return [(0, 0.95, lean, -0.6, thick), (lean + 0.04, -0.68, lean + 0.08, -0.7, thick * 2.1)]


def _shoulder(body, view):
    thick = _between(body, 0.08, 0.11)
    drop = _between(view, -0.1, 0.1)
    return [
        (0.5, 0.9, 0.35, -0.15, thick),
        (0.3, -0.28, 0.33, -0.28, thick * 1.8),
        (-0.9, -0.6 + drop, 0.25, -0.62, thick * 0.55),
        (-0.1, -0.4, -0.35, 0.5 + drop, thick * 0.6),
        (-0.05, -0.2, -0.3, 0.1, thick * 1.3),
    ]


def _wrist(body, view):
    thick = _between(body, 0.085, 0.11)
    lean = _between(view, -0.04, 0.04)
    bones = [(-0.17, 0.95, -0.16 + lean, 0.3, thick), (0.17, 0.95, 0.15 + lean, 0.35, thick * 0.8)]
    for row in range(2):
        for column in range(4):
            x = (column - 1.5) * 0.13 + _between(body, -0.02, 0.02)
            y = 0.12 - row * 0.15 + _between(body, -0.02, 0.02)
            bones.append((x, y, x + 0.01, y, _between(body, 0.05, 0.065)))
    for ray in range(4):
        x = (ray - 1.5) * 0.15
        x1, y1 = _ray(x, -0.2, 0.6, (ray - 1.5) * 0.07)
        bones.append((x, -0.2, x1, y1, thick * 0.5))
    return bones


_BUILDERS = (_elbow, _finger, _forearm, _hand, _humerus, _shoulder, _wrist)


def _pose(bones: np.ndarray, view) -> np.ndarray:
    """Mirror, rotate (by up to about 44 degrees), scale and shift bones: [n, 5] -> [n, 5]."""
    cos, sin = _turn(_between(view, -0.4, 0.4))
    mirror = 1.0 if view.random() < 0.5 else -1.0
    scale = _between(view, 0.65, 0.95)
    shift = _between(view, -0.25, 0.25, 2)
    posed = bones * scale
    for column in (0, 2):
        x = posed[:, column] * mirror
        y = posed[:, column + 1].copy()
        posed[:, column] = x * cos - y * sin + shift[0]
        posed[:, column + 1] = x * sin + y * cos + shift[1]
    return posed


def _stamp(canvas, x0, y0, x1, y1, radius, hollow):
    """Add a segment of a given radius to the canvas, in place.

    A hollow segment is brighter at its rim, like cortical bone.
    """
    rows = _window(min(y0, y1) - radius, max(y0, y1) + radius)
    columns = _window(min(x0, x1) - radius, max(x0, x1) + radius)
    x = _GRID[columns][None, :] - x0
    y = _GRID[rows][:, None] - y0
    dx = x1 - x0
    dy = y1 - y0
    along = np.clip((x * dx + y * dy) / (dx * dx + dy * dy + 1e-12), 0.0, 1.0)
    away_x = x - along * dx
    away_y = y - along * dy
    depth = 1 - (away_x * away_x + away_y * away_y) / (radius * radius)
    inside = np.clip(depth, 0.0, 1.0)
    value = np.sqrt(inside)
    if hollow:
        value = value * (1.25 - 0.5 * inside)
    window = canvas[rows, columns]
    np.maximum(window, value, out=window)


def _window(low: float, high: float) -> slice:
    """Return the slice of canvas pixels between two coordinates of its grid (-1..1)."""
    first = int(max((low + 1) / 2 * CANVAS - 1, 0))
    end = int(max(min((high + 1) / 2 * CANVAS + 2, CANVAS), 0))
    return slice(first, end)


def _expose(soft: np.ndarray, bone: np.ndarray, view) -> np.ndarray:
    """Convert attenuation to grey values: uint8 [128, 128].

    Exposure is uneven, contrast varies, and noise is added. Some images have the dark edges of a
    collimator, and some are inverted.
    """
    slope = _between(view, -0.2, 0.2, 2)
    image = _between(view, 0.25, 0.5) * soft + _between(view, 0.3, 0.6) * bone
    image = image * (1 + slope[0] * _GRID[None, :] + slope[1] * _GRID[:, None])
    image = image + _between(view, 0.02, 0.15)
    if view.random() < 0.5:
        edge = int(_between(view, 0.0, 0.18) * CANVAS)
        image[:edge] = 0.02
        image[CANVAS - edge :] = 0.02
    if view.random() < 0.15:
        image = 1.0 - image
    grain = (view.random((4, CANVAS, CANVAS)).sum(0) - 2.0) * _between(view, 0.03, 0.12)
    return np.clip((image + grain) * 255.0 + 0.5, 0, 255).astype(np.uint8)
