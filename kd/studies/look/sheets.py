"""Contact sheets: the images of a class, and where each network looks in them."""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from kd.reports.agg import matplotlib  # isort: split

from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke

from kd.data.boxes import Box
from kd.reports import figure_layout as layout
from kd.system.seeds import random_stream

CHANGED = 4  # images of a sheet on which the answer changed
OTHERS = 2  # other images; more if fewer answers changed
SEED = 0
RIGHT = "#0072b2"
WRONG = "#d55e00"
RIGHT_WORDS = "✓ right: "
WRONG_WORDS = "✗ wrong: "
DASHES = (0, (3, 1.5))
OUTLINE = [withStroke(linewidth=2.4, foreground="black")]  # a white line is seen on any grey
_COLORS = matplotlib.colormaps["cividis"]
_STRENGTH = 0.55  # of the colours over the grey image
_CELL = 2.05  # inches
_LINE = 1.75  # inches of a line below a tile
_TILE = 1.35
_TEXT = 8  # points


class Choice(NamedTuple):
    """The images of a class on its sheet: positions, first those whose answer changed.

    changed, others          positions
    all_changed, all_others  how many there are
    """

    changed: np.ndarray
    others: np.ndarray
    all_changed: int
    all_others: int

    @property
    def rows(self) -> np.ndarray:
        return np.concatenate([self.changed, self.others])

    @property
    def left_out(self) -> int:
        """How many images of the class are not shown."""
        return self.all_changed + self.all_others - len(self.rows)


class Answer(NamedTuple):
    """What a network says of an image, and its map [S, S] for the label's class.

    predicted   the class of its answer
    p, p_label  the probabilities of this class and of the label's
    """

    predicted: int
    p: float
    p_label: float
    map: np.ndarray


class Shown(NamedTuple):
    """An image of a sheet.

    line     its line in predictions.csv
    changed  whether the student's answer differs from that of its teacher or of the network alone
    image    uint8 [C, S, S]
    answers  of each network
    boxes    in pixels of the image
    """

    line: int
    changed: bool
    image: np.ndarray
    answers: Sequence[Answer]
    boxes: Sequence[Box] = ()


def choose(labels: np.ndarray, changed: np.ndarray, label: int) -> Choice:
    """Return which images of a class are shown. Both groups are drawn with SEED and the class.

    labels [N], changed bool [N]
    """
    random = random_stream(SEED, label)
    groups = [np.flatnonzero((labels == label) & own) for own in (changed, ~changed)]
    first = np.sort(random.permutation(groups[0])[:CHANGED])
    second = np.sort(random.permutation(groups[1])[: CHANGED + OTHERS - len(first)])
    return Choice(first, second, len(groups[0]), len(groups[1]))


def sheet(
    images: Sequence[Shown], label: int, classes: Sequence[str], networks: Sequence[str], notes
) -> Figure:
    """Draw the sheet of a class: a row for each image, a column for each network.

    Whether an answer is right is said by a word, a sign, the colour and the dashes of the frame.

    label     the class, as a position in `classes`
    networks  the heading of each network's column
    notes     lines below the sheet
    """
    columns = 1 + len(networks)
    figure = layout.new(_CELL * columns + 0.75)
    grid = figure.subplots(len(images), columns, squeeze=False)
    for axes, heading in zip(grid[0], ("image", *networks)):
        axes.set_title(layout.wrapped(layout.drawable(heading), _CELL - 0.2, 9, 3), fontsize=9)
    names = _short_names(tuple(classes))
    for row, one in zip(grid, images):
        _draw_image(row[0], one, names[label])
        for axes, answer in zip(row[1:], one.answers):
            _draw_answer(axes, one, answer)
            _write_answer(axes, answer, label, names)
    _color_bar(figure, grid)
    title = f"Where the networks look for the class '{classes[label]}' (Grad-CAM)"
    handles = _handles(any(one.boxes for one in images))
    layout.complete(figure, (_TILE + 0.5) * len(images) + 0.55, title, notes, handles)
    return figure


@cache
def _short_names(classes: tuple[str, ...]) -> list[str]:
    """Return the names of the classes as they fit below a tile."""
    room = _LINE - layout.text_width(WRONG_WORDS, _TEXT)
    return layout.short_names(dict(enumerate(classes)), room, _TEXT)


def _draw_image(axes: Axes, one: Shown, name: str) -> None:
    image = one.image.transpose(1, 2, 0) if len(one.image) == 3 else one.image[0]
    axes.imshow(image, "gray", vmin=0, vmax=255, interpolation="nearest")
    group = "changed" if one.changed else "not changed"
    _write_below(axes, f"line {one.line}: {group}", f"label: {name}")
    _frame(axes, "#606060", "-", 0.8)
    _draw_boxes(axes, one.boxes)


def _draw_answer(axes: Axes, one: Shown, answer: Answer) -> None:
    """Draw a map over the grey image."""
    grey = one.image.astype(float).mean(0) / 255
    highest = answer.map.max()
    own = answer.map / highest if highest > 0 else answer.map
    axes.imshow(_blended(grey, own) if highest > 0 else grey, "gray", vmin=0, vmax=1)
    if highest <= 0:
        text = layout.wrapped("empty map: nothing speaks for this class", _TILE - 0.2, _TEXT)
        box = {"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 1.5}
        middle = (len(grey) - 1) / 2
        axes.text(middle, middle, text, ha="center", va="center", fontsize=_TEXT, bbox=box)
    elif own.min() < 0.5:
        line = axes.contour(own, levels=[0.5], colors="white", linewidths=1.2)
        line.set_path_effects(OUTLINE)
    _draw_boxes(axes, one.boxes)


def _write_answer(axes: Axes, answer: Answer, label: int, names: Sequence[str]) -> None:
    """Write a network's answer below its map."""
    name = names[answer.predicted]
    if answer.predicted == label:
        _write_below(axes, f"{RIGHT_WORDS}{name}", f"p = {answer.p:.2f}")
        _frame(axes, RIGHT, "-", 2)
    else:
        below = f"p = {answer.p:.2f}, label {answer.p_label:.2f}"
        _write_below(axes, f"{WRONG_WORDS}{name}", below)
        _frame(axes, WRONG, DASHES, 2.5)


def _blended(grey: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Return a map [S, S] in colours over an image [S, S] in grey, both in 0..1: [S, S, 3]."""
    return (1 - _STRENGTH) * grey[..., None] + _STRENGTH * _COLORS(own)[..., :3]


def _write_below(axes: Axes, *lines: str) -> None:
    axes.set_xlabel("\n".join(lines), fontsize=_TEXT, labelpad=3)


def _frame(axes: Axes, color: str, style, width: float) -> None:
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(edgecolor=color, linestyle=style, linewidth=width)


def _draw_boxes(axes: Axes, boxes: Sequence[Box]) -> None:
    for box in boxes:
        corner = (box.left - 0.5, box.top - 0.5)  # the middle of the first pixel is at 0
        size = (box.right - box.left, box.bottom - box.top)
        for color, style in (("black", "-"), ("white", (0, (3, 3)))):
            line = {"edgecolor": color, "linestyle": style, "linewidth": 1.2}
            axes.add_patch(Rectangle(corner, *size, facecolor="none", **line))


def _color_bar(figure: Figure, grid: np.ndarray) -> None:
    """Add the colours of a map as they are over a medium grey."""
    ramp = np.linspace(0, 1, 256)
    colors = ListedColormap(_blended(np.full_like(ramp, 0.5), ramp))
    mappable = matplotlib.cm.ScalarMappable(cmap=colors)
    shrink = min(1.0, 2.4 / len(grid))
    bar = figure.colorbar(mappable, ax=grid, ticks=(0, 0.5, 1), shrink=shrink, aspect=14, pad=0.02)
    bar.ax.tick_params(labelsize=_TEXT)
    bar.set_label("share of the map's maximum", fontsize=_TEXT)


def _handles(boxes: bool) -> list:
    handles = [
        Patch(facecolor="white", edgecolor=RIGHT, linewidth=2, label="✓ right answer"),
        Patch(
            facecolor="white",
            edgecolor=WRONG,
            linestyle=DASHES,
            linewidth=2,
            label="✗ wrong answer",
        ),
        Line2D(
            [],
            [],
            color="white",
            linewidth=1.2,
            path_effects=OUTLINE,
            label="half of the map's maximum",
        ),
    ]
    if boxes:
        style = {"color": "black", "linestyle": (0, (3, 3)), "linewidth": 1.2}
        handles.append(Line2D([], [], label="box of the table", **style))
    return handles
