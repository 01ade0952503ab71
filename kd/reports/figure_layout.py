"""Layout of figures: text that fits, readable ticks, and a bounded size."""

import re
from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

import numpy as np

from kd.reports.agg import matplotlib  # isort: split

from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, ScalarFormatter

from kd.system.errors import printable

DPI = 110
MAX_SIDE = 16.0  # inches
GAP = 0.1  # inches between the parts of a figure
NAME_SIZE = 8  # points
NAME_WIDTH = 2.2  # inches
# Later fonts are used for characters that the first one lacks, if they are installed.
_FONTS = (
    "DejaVu Sans",
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "WenQuanYi Micro Hei",
    "Microsoft YaHei",
    "Malgun Gothic",
    "PingFang SC",
    "Hiragino Sans",
    "Arial Unicode MS",
)
# Colours for colour-blind readers (Okabe and Ito, without yellow). The lengths of the three lists
# have no common factor, so that 252 series differ.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_LINES = ("-", "--", "-.", ":")

_installed = set(font_manager.get_font_names())
matplotlib.rcParams["font.family"] = [name for name in _FONTS if name in _installed]
matplotlib.rcParams["text.parse_math"] = False  # a class or folder may be called "$5"


def new(width: float) -> Figure:
    """Return an empty figure that is `width` inches wide; `complete` sets its height."""
    return Figure(figsize=(width, MAX_SIDE), layout="constrained", dpi=DPI)


def series_style(number: int) -> dict:
    """Return the colour, marker and line style of a series; neighbours differ in all three."""
    return {
        "color": _COLORS[number % len(_COLORS)],
        "marker": _MARKERS[number % len(_MARKERS)],
        "linestyle": _LINES[number % len(_LINES)],
    }


@cache
def _characters() -> frozenset[int]:
    """Return the code points that the fonts cover."""
    codes = set()
    for family in matplotlib.rcParams["font.family"]:
        codes.update(font_manager.get_font(font_manager.findfont(family)).get_charmap())
    return frozenset(codes)


def drawable(text: str) -> str:
    """Return `text` on one line, with escapes for characters that no font covers."""
    characters = []
    for character in printable(text):
        known = ord(character) in _characters() and character.isprintable()
        escaped = character.encode("unicode_escape").decode("ascii")
        characters.append(character if known else escaped)
    return "".join(characters)


@cache
def _renderer() -> RendererAgg:
    return RendererAgg(8, 8, DPI)


def text_width(text: str, size: float) -> float:
    """Return the width of a line of text in inches; `size` is the font size in points."""
    font = font_manager.FontProperties(size=size)
    return _renderer().get_text_width_height_descent(text, font, False)[0] / DPI


def _count_fitting(longest: int, fits) -> int:
    """Return the largest count in 0..longest for which `fits(count)` holds, by bisection."""
    low, high = 0, longest
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def shortened(text: str, width: float, size: float) -> str:
    """Return `text` with an ellipsis for its middle if it is wider than `width` inches."""
    if text_width(text, size) <= width:
        return text

    def ends(count: int) -> str:
        return f"{text[: (count + 1) // 2]}…{text[len(text) - count // 2 :]}"

    return ends(_count_fitting(len(text), lambda count: text_width(ends(count), size) <= width))


def wrapped(text: str, width: float, size: float, lines: int = 8) -> str:
    """Return `text` in lines of at most `width` inches.

    Lines are broken at blanks, and inside words that are wider than a line. Text that needs more
    than `lines` lines is shortened in the middle.
    """
    rows = _rows(text, width, size)
    room = lines * width
    while len(rows) > lines:
        room *= 0.95
        rows = _rows(shortened(text, room, size), width, size)
    return "\n".join(rows)


def _rows(text: str, width: float, size: float) -> list[str]:
    rows = []
    row = ""
    for word in text.split():
        longer = f"{row} {word}" if row else word
        if text_width(longer, size) <= width:
            row = longer
            continue
        if row:
            rows.append(row)
        while text_width(word, size) > width:
            count = _break_in(word, width, size)
            rows.append(word[:count])
            word = word[count:]
        row = word
    return [*rows, row]


def _break_in(word: str, width: float, size: float) -> int:
    """Return how many characters of a wide word fit on a line, if possible up to a separator."""
    count = _count_fitting(len(word), lambda count: text_width(word[:count], size) <= width)
    separators = [match.end() for match in re.finditer(r"[-/_+,.=]", word[:count])]
    if separators and separators[-1] > count / 2:
        return separators[-1]
    return max(1, count)


def short_names(names: dict[int, str], width: float, size: float) -> list[str]:
    """Return names that are at most `width` inches wide.

    `names` is index -> name. Names that become equal are preceded by their number, counted from 1.
    """
    short = {number: shortened(drawable(name), width, size) for number, name in names.items()}
    times = Counter(short.values())
    for number, name in names.items():
        if times[short[number]] > 1:
            short[number] = shortened(f"{number + 1}: {drawable(name)}", width, size)
    return list(short.values())


class Ticks(NamedTuple):
    """The result of `name_ticks`.

    depth  inches that the tick labels need beside the axes
    note   an addition to the axis label if only some ticks are labelled, otherwise empty
    """

    depth: float
    note: str


def name_ticks(axes: Axes, side: str, names: list[str], pitch: float) -> Ticks:
    """Label the ticks 0, 1, ... of a side ("x" or "y") with names, `pitch` inches apart.

    Names on the x axis are rotated if they do not fit. If the ticks are too close, only every
    second, fifth, tenth, ... tick is labelled.
    """
    line = 0.145  # inches from one line of text to the next
    step = next(count for count in _round_steps() if count * pitch >= line)
    shown = {number: names[number] for number in range(0, len(names), step)}
    short = short_names(shown, NAME_WIDTH, NAME_SIZE)
    depth = max(text_width(name, NAME_SIZE) for name in short)
    style = {"fontsize": NAME_SIZE}
    if side == "x" and depth <= pitch - 0.08:
        depth = line
    elif side == "x" and step * pitch >= 1.5 * line:
        style |= {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        depth = 0.71 * (depth + line)
    elif side == "x":
        style |= {"rotation": 90}
    getattr(axes, f"set_{side}ticks")(list(shown), short, **style)
    if step == 1:
        return Ticks(depth, "")
    return Ticks(depth, f" (every {step}{'nd' if step == 2 else 'th'} name is shown)")


def _round_steps():
    """Yield 1, 2, 5, 10, 20, 50, ..."""
    unit = 1
    while True:
        yield from (unit, 2 * unit, 5 * unit)
        unit *= 10


def axes_and_bar(figure: Figure, width: float) -> tuple[Axes, Axes]:
    """Return axes that are `width` inches wide and narrow axes beside them for a colour bar."""
    axes, bar = figure.subplots(1, 2, width_ratios=(width, 0.2))
    bar.tick_params(labelsize=NAME_SIZE)
    bar.yaxis.label.set_size(9)
    return axes, bar


def square_panels(captions: Iterable[str], width: float) -> tuple[Figure, list[Axes], float]:
    """Return a figure with a panel `width` inches wide per caption, the panels, and their height.

    There are at most three panels in a row. The height of all rows is in inches.
    """
    captions = list(captions)
    columns = min(3, len(captions))
    rows = -(-len(captions) // columns)
    figure = new(width * columns)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(captions) :]:
        axes.set_axis_off()
    panels = grid.flat[: len(captions)].tolist()
    for axes, caption in zip(panels, captions):
        axes.set_title(wrapped(drawable(caption), width - 0.4, 9), fontsize=9)
        axes.set_aspect("equal")
    return figure, panels, width * rows


def linear_axis(axis) -> None:
    """Label the ticks of an axis with plain decimal numbers, without offset or exponent."""
    formatter = ScalarFormatter(useOffset=False)
    formatter.set_scientific(False)
    axis.set_major_formatter(formatter)


def whole_axis(axis) -> None:
    """Place the ticks of an axis at whole numbers only."""
    axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))


def log_ticks(low: float, high: float) -> list[float]:
    """Return round numbers as ticks of a logarithmic axis from `low` to `high` (both above 0)."""
    decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    for steps in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        values = np.outer(decades, steps).ravel()
        inside = values[(values >= low) & (values <= high)]
        if len(inside) >= 3:
            return inside[:: int(np.ceil(len(inside) / 8))].tolist()
    values = MaxNLocator(5).tick_values(low, high)
    return [value for value in values.tolist() if low <= value <= high]


def plain_number(value: float) -> str:
    """Return a number without an exponent: `0.00001`, `0.5`, `20`."""
    return np.format_float_positional(value, precision=6, fractional=False, trim="-")


def complete(figure: Figure, height: float, title: str, notes=(), handles=()) -> None:
    """Add title, legend and notes to a figure whose axes need `height` inches, and set its height.

    The title is above the axes. The legend of `handles` and the notes, each on its own line, are
    below them. All texts are wrapped to the width of the figure.
    """
    width = figure.get_figwidth()
    renderer = FigureCanvasAgg(figure).get_renderer()
    room = width - 2 * GAP
    above = wrapped(drawable(title), room, 10)
    below = "\n".join(wrapped(drawable(note), room, 8) for note in notes)
    head = figure.text(0.5, 1, above, ha="center", va="top", fontsize=10)
    foot = figure.text(0.5, 0, below, ha="center", va="bottom", fontsize=8)
    top = _height(head, renderer) + 2 * GAP
    bottom = _height(foot, renderer) + 2 * GAP if notes else GAP
    legend = None
    if handles:
        legend = _legend(figure, list(handles), renderer, MAX_SIDE - height - top - bottom - GAP)
    between = _height(legend, renderer) + GAP if legend else 0
    total = height + top + bottom + between
    figure.set_size_inches(width, total)
    head.set_y(1 - GAP / total)
    foot.set_y(GAP / total)
    if legend:
        legend.set_bbox_to_anchor((0.5, bottom / total), transform=figure.transFigure)
    below_axes = (bottom + between) / total
    figure.get_layout_engine().set(rect=(0, below_axes, 1, 1 - below_axes - top / total))


def _height(artist, renderer: RendererAgg) -> float:
    return artist.get_window_extent(renderer).height / DPI


def _legend(figure: Figure, handles: list, renderer: RendererAgg, room: float) -> Legend:
    """Add a legend that is at most `room` inches high.

    If not all entries fit, the last one is the number of the missing ones.
    """
    width = figure.get_figwidth()
    around = 0.75  # inches that an entry needs beside its text
    longest = 0.9 * width - around
    possible = handles[: 4 * max(1, int(room / 0.13))]  # more do not fit, even in four columns
    labels = [wrapped(drawable(one.get_label()), longest, 8, lines=3) for one in possible]
    widest = max(text_width(line, 8) for label in labels for line in label.split("\n"))
    columns = max(1, min(4, len(labels), int((width - 2 * GAP) / (widest + around))))
    count = len(labels)
    while True:
        shown = labels[:count]
        shown_handles = handles[:count]
        if count < len(handles):
            shown_handles[-1] = Line2D([], [], linestyle="none")
            shown[-1] = f"... and {len(handles) - count + 1} more"
        # Matplotlib skips entries that begin with "_".
        shown = [f" {label}" if label.startswith("_") else label for label in shown]
        legend = figure.legend(
            shown_handles,
            shown,
            loc="lower center",
            bbox_to_anchor=(0.5, 0),
            borderaxespad=0,
            ncols=columns,
            fontsize=8,
            handlelength=3.5,
            frameon=False,
        )
        height = _height(legend, renderer)
        if height <= room or count <= columns:
            return legend
        legend.remove()
        count = max(columns, min(count - columns, int(count * room / height)))
