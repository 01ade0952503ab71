"""Figures of results, drawn with matplotlib and written whole or not at all."""

from pathlib import Path

import numpy as np
from PIL import Image

from kd.reports.agg import matplotlib  # isort: split

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from kd.reports import figure_layout as layout
from kd.reports.calibration import BINS, confidence_bins, frequency_bins
from kd.reports.text import difference_texts
from kd.system.files import replacing

BLUE = "#56b4e9"
ORANGE = "#d55e00"
GREY = "#606060"
PALE = "#f2f2f2"
HATCH = "#dcdcdc"
SCALE = 10  # points of test accuracy with the strongest colour of a heat map


def pixels(figure: Figure) -> np.ndarray:
    """Draw a figure, once for every file it goes to: uint8 [H, W, 3]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save(path: Path, drawn: np.ndarray) -> None:
    """Write pixels uint8 [H, W, 3] as PNG, whole or not at all."""
    with replacing(path) as temporary:
        Image.fromarray(drawn).save(temporary, format="png")


def confusion(matrix: list[list[int]], classes: tuple[str, ...], title: str) -> Figure:
    """Draw a confusion matrix: counts and their shares of the true class.

    Rows are true classes, columns are predicted ones. Zeros are not printed. If the cells are too
    small for numbers, they are only coloured.
    """
    counts = np.array(matrix)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    cell = 0.12 + max(layout.text_width(text, 8) for text in (str(counts.max()), "100%"))
    numbered = cell * len(classes) <= 11.5
    side = 10.0
    if numbered:
        side = max(3.3, cell * len(classes), min(0.8 * len(classes), 9.0))
    figure = layout.new(side)
    axes, bar = layout.axes_and_bar(figure, side)
    across = layout.name_ticks(axes, "x", list(classes), side / len(classes))
    down = layout.name_ticks(axes, "y", list(classes), side / len(classes))
    axes.set(xlabel=f"predicted{across.note}", ylabel=f"true{down.note}")
    # Without numbers, the colours must also show rare confusions.
    norm = Normalize(0, 1) if numbered else PowerNorm(0.5, 0, 1)
    image = axes.imshow(shares, "Blues", norm, aspect="auto", interpolation="nearest")
    if numbered:
        _print_counts(axes, counts, shares)
    ticks = (0, 0.25, 0.5, 0.75, 1) if numbered else (0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1)
    label = "share of the images of the true class"
    figure.colorbar(image, bar, label=label, ticks=ticks, format="{x:.0%}")
    figure.set_figwidth(max(5.0, side + down.depth + 1.35))
    layout.complete(figure, side + across.depth + 0.5, title)
    return figure


def _print_counts(axes: Axes, counts: np.ndarray, shares: np.ndarray) -> None:
    """Print counts above 0 and their shares in the cells of a confusion matrix."""
    for row, column in zip(*np.nonzero(counts)):
        share = shares[row, column]
        color = "white" if share > 0.55 else "black"
        percent = f"{share:.0%}" if share >= 0.005 else "<1%"
        text = f"{counts[row, column]}\n{percent}"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=color)


def reliability(
    panels: dict[str, tuple[np.ndarray, np.ndarray]], title: str, equal_counts: bool = False
) -> Figure:
    """Draw reliability diagrams, which show accuracy by confidence.

    `panels` is title of a panel -> (p [N, K], labels [N]). The accuracy of a calibrated network is
    on the diagonal.

    equal_counts  whether to also mark the accuracies in bins of about equal counts, which divide
                  the range where most confidences are (those of `adaptive_ece`)
    """
    figure, grid, height = layout.square_panels(panels, 4.4)
    for axes, (p, labels) in zip(grid, panels.values()):
        handles = _draw_bins(axes, p, labels)
        if equal_counts:
            handles.insert(1, _mark_equal_counts(axes, p, labels))
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy or share")
    layout.complete(figure, height, title, handles=handles)
    return figure


def _mark_equal_counts(axes: Axes, p: np.ndarray, labels: np.ndarray):
    """Mark accuracy against mean confidence in bins of about equal counts.

    Returns the legend handle.
    """
    rows = frequency_bins(p.max(1), p.argmax(1) == labels, BINS)
    predicted, observed = ([row[key] for row in rows] for key in ("predicted", "observed"))
    style = {"color": "white", "markeredgecolor": "black", "markersize": 5, "linestyle": "none"}
    [marks] = axes.plot(predicted, observed, marker="D", clip_on=False, zorder=4, **style)
    marks.set_label("accuracy in bins of equal counts")
    return marks


def _draw_bins(axes: Axes, p: np.ndarray, labels: np.ndarray) -> list:
    """Draw the accuracy of each confidence bin, its share of the images, and the diagonal.

    Returns the legend handles.
    """
    bins = confidence_bins(p, labels)
    width = 1 / len(bins)
    centres = (np.arange(len(bins)) + 0.5) * width
    accuracies = [row["accuracy"] or 0 for row in bins]
    shares = [row["count"] / len(labels) for row in bins]
    [diagonal] = axes.plot([0, 1], [0, 1], color="black", linestyle="--", zorder=3)
    diagonal.set_label("perfectly calibrated")
    accuracy = axes.bar(centres, accuracies, width * 0.94, color=BLUE, label="accuracy")
    share = axes.bar(centres, shares, width * 0.4, color=ORANGE, hatch="////", edgecolor="white")
    share.set_label("share of the images")
    return [accuracy, share, diagonal]


def heat_map(table: dict, title: str) -> Figure:
    """Draw the differences in test accuracy between students and the same networks trained alone.

    Rows are students, columns are teachers, differences are in percentage points. Only differences
    with the verdict "better" or "worse" are coloured. `table` is a table of tables.json, `title`
    the description of its protocol.
    """
    students = list(dict.fromkeys(cell["student"] for cell in table["cells"]))
    teachers = [row["teacher"] for row in table["teachers"]]
    cells = {(cell["student"], cell["teacher"]): cell for cell in table["cells"]}
    rows = [[cells[student, teacher] for teacher in teachers] for student in students]
    names = [layout.drawable(f"<- {name}") for name in teachers]
    width, height, lines = _cell_size(rows, names)
    figure = layout.new(width * len(teachers))
    axes, bar = layout.axes_and_bar(figure, max(4.0, width * len(teachers)))
    across = layout.name_ticks(axes, "x", names, width)
    down = layout.name_ticks(axes, "y", students, height)
    axes.set(xlabel=across.note.strip(" ()"), ylabel=down.note.strip(" ()"))
    handles = _color_cells(axes, bar, rows)
    if lines:
        _print_cells(axes, rows, lines)
    figure.set_figwidth(max(4.0, width * len(teachers)) + down.depth + 1.2)
    caption = f"{table['title']}: test accuracy minus that of the same network trained alone"
    area = max(1.6, height * len(students)) + across.depth + 0.3
    layout.complete(figure, area, caption, [title], handles)
    return figure


def _cell_size(rows: list[list[dict]], names: list[str]) -> tuple[float, float, int]:
    """Return the width and height of a heat map's cells in inches, and their number of text lines.

    `names` are the names of the columns.
    """
    texts = "\n".join(_cell_text(cell, 2) for row in rows for cell in row)
    for lines, widest in ((2, max(texts.split("\n"), key=len)), (1, "+100.0")):
        width = 0.16 + layout.text_width(widest, 8)
        height = 0.2 + 0.14 * lines
        if width * len(names) <= 11 and height * len(rows) <= 10:
            longest = 0.16 + max(layout.text_width(name, layout.NAME_SIZE) for name in names)
            return max(width, min(longest, 11 / len(names), 2.4)), height, lines
    return min(width, 11 / len(names)), min(height, 10 / len(rows)), 0


def _cell_text(cell: dict, lines: int) -> str:
    """Return the text of a heat map's cell; a single line has room for the difference only."""
    if cell["minus_alone"]:
        texts = difference_texts(cell["minus_alone"], digits=1, factor=100)
        return "\n".join(texts[:lines])
    if lines == 1:
        return ""
    if cell["n"]:
        return "no baseline"
    return ", ".join(cell.get("unfinished", ())) or "not run"


def _is_evidence(gap: dict | None) -> bool:
    """Return whether the verdict on a difference is "better" or "worse"."""
    return gap is not None and gap["says"] in ("better", "worse")


def _color_cells(axes: Axes, bar: Axes, rows: list[list[dict]]) -> list[Patch]:
    """Colour the cells and the colour bar of a heat map; returns the legend handles."""
    points = np.full((len(rows), len(rows[0])), np.nan)
    unclear = points.copy()
    for row, column in np.ndindex(points.shape):
        gap = rows[row][column]["minus_alone"]
        if _is_evidence(gap):
            points[row, column] = 100 * gap["mean"]
        elif gap:
            unclear[row, column] = 0
    # The palest colours are not used, so that every coloured cell differs from an uncoloured one.
    ends = np.concatenate([np.linspace(0, 0.38, 128), np.linspace(0.62, 1, 128)])
    colors = ListedColormap(matplotlib.colormaps["RdBu"](ends))
    image = axes.imshow(points, cmap=colors, vmin=-SCALE, vmax=SCALE, aspect="auto")
    edges = [np.arange(count + 1) - 0.5 for count in reversed(points.shape)]
    pale = {"cmap": ListedColormap([PALE]), "hatch": "////", "edgecolor": HATCH, "linewidth": 0}
    axes.pcolor(*edges, np.ma.masked_invalid(unclear), **pale)
    ticks = np.linspace(-SCALE, SCALE, 5)
    axes.figure.colorbar(image, bar, label="difference, points", ticks=ticks, extend="both")
    bar.set_yticks(ticks, [f"{tick:+g}" if tick else "0" for tick in ticks])
    return [
        Patch(color=colors(0.85), label="better"),
        Patch(color=colors(0.15), label="worse"),
        Patch(
            facecolor=PALE,
            edgecolor="#b0b0b0",
            hatch="////",
            label="no evidence, or no verdict",
        ),
        Patch(facecolor="white", edgecolor="#b0b0b0", label="no finished run, or no baseline"),
    ]


def _print_cells(axes: Axes, rows: list[list[dict]], lines: int) -> None:
    """Print the differences in the cells of a heat map."""
    for (row, column), cell in np.ndenumerate(np.array(rows)):
        gap = cell["minus_alone"]
        strong = _is_evidence(gap) and abs(100 * gap["mean"]) > 0.55 * SCALE
        color = "white" if strong else "black"
        text = _cell_text(cell, lines)
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=color)


def arms(group: dict, captions: dict[str, str]) -> Figure:
    """Draw test accuracy against the number of labelled images, one line per arm.

    Error bars are standard deviations over seeds. `group` is a group of arms.json, `captions` is
    arm -> caption. The last arm is grey if it is a teacher.
    """
    figure = layout.new(7.6)
    axes = figure.add_subplot()
    images = [float(np.mean(row["images"])) for row in group["rows"]]
    apart = _apart(images, len(captions))
    handles = []
    counts = []
    for number, (arm, caption) in enumerate(captions.items()):
        aside = 10 ** (
            apart * (number - (len(captions) - 1) / 2)
        )  # so that error bars do not overlap
        places = []
        scores = []
        for place, row in zip(images, group["rows"]):
            if arm in row["cells"]:
                places.append(aside * place)
                scores.append(row["cells"][arm]["accuracy"])
        if scores:
            style = layout.series_style(number)
            if number == len(captions) - 1 and arm.startswith("teacher"):
                style |= {"color": GREY, "linestyle": "--"}
            handles.append(_error_bars(axes, places, scores, label=caption, **style))
            counts += [score["n"] for score in scores]
    axes.set(xscale="log", xlabel="labelled images", ylabel="test accuracy")
    axes.minorticks_off()
    if len(set(images)) == 1:
        axes.set_xlim(images[0] / 2, images[0] * 2)
    _label_ticks(axes, images, [row["fraction"] for row in group["rows"]])
    layout.linear_axis(axes.yaxis)
    axes.grid(alpha=0.3)
    caption = f"{group['student']} <- {group['teacher']} {group['tag']}"
    layout.complete(figure, 4.4, caption, [_bars_note(counts), group["data"]], handles)
    return figure


def _apart(images: list[float], count: int) -> float:
    """Return the distance between `count` lines at the same number of images, as a log10."""
    gaps = np.diff(np.unique(np.log10(images)))
    return min([0.013, *(0.6 * gaps / count)])


def _label_ticks(axes: Axes, images: list[float], fractions: list[float]) -> None:
    """Label the numbers of labelled images and their fractions, as far as there is room."""
    percents = {}
    for place, fraction in zip(images, fractions):
        percents.setdefault(place, []).append(f"{100 * fraction:.3g} %")
    places = sorted(percents)
    texts = [f"{place:.0f}\n{', '.join(percents[place])}" for place in places]
    low, high = np.log10(axes.get_xlim())
    centres = 6.4 * (np.log10(places) - low) / (high - low)  # inches from the left
    last = np.inf
    for number in reversed(range(len(places))):
        half = 0.06 + max(layout.text_width(line, 10) for line in texts[number].split("\n")) / 2
        if centres[number] + half > last:
            texts[number] = ""
        else:
            last = centres[number] - half
    axes.set_xticks(places, texts)


def _error_bars(axes: Axes, places, scores: list[dict], **style):
    """Draw a line through means, with error bars at those that have a standard deviation.

    Returns the legend handle.
    """
    means = [score["mean"] for score in scores]
    deviations = [np.nan if score["sd"] is None else score["sd"] for score in scores]
    style = {"capsize": 2, "markersize": 4, "elinewidth": 1, **style}
    drawn = axes.errorbar(places, means, yerr=deviations, **style)
    if not np.isnan(deviations).all():
        return drawn
    [line, *_] = drawn.lines
    line.set_label(style["label"])
    return line


def _bars_note(counts: list[int]) -> str:
    """Return the note that explains the error bars of means over `counts` seeds."""
    several = sorted({count for count in counts if count > 1})
    if not several:
        return "one seed: no error bars"
    numbers = " to ".join(map(str, dict.fromkeys((several[0], several[-1]))))
    single = "; none where n = 1" if min(counts) == 1 else ""
    return f"error bars: standard deviation over seeds (n = {numbers}{single})"


def curves(histories: dict[str, list[dict]]) -> Figure:
    """Draw learning curves: train loss, train accuracy and validation accuracy by epoch.

    `histories` is name of a run -> rows of its report's history.
    """
    figure = layout.new(13.5)
    shown = {
        "train_loss": "train loss (with the KD term, if any)",
        "train_accuracy": "train accuracy (augmented views)",
        "valid_accuracy": "validation accuracy",
    }
    for (key, label), axes in zip(shown.items(), figure.subplots(1, 3, sharex=True)):
        values = []
        handles = []
        for number, (name, rows) in enumerate(histories.items()):
            epochs = [row["epoch"] for row in rows]
            own = np.array([row.get(key, np.nan) for row in rows], dtype=float)
            style = layout.series_style(number) | {"markersize": 4, "linewidth": 1.2}
            style["markevery"] = max(1, len(rows) // 20)
            handles += axes.plot(epochs, own, label=name, **style)
            values.append(own)
        axes.set_xlabel("epoch")
        axes.set_title(label, fontsize=10)
        axes.grid(alpha=0.3)
        _scale(axes, np.concatenate(values), key == "train_loss")
        layout.whole_axis(axes.xaxis)
    count = f"{len(histories)} runs" if len(histories) > 1 else "1 run"
    layout.complete(figure, 4.2, f"Learning curves of {count}", handles=handles)
    return figure


def _scale(axes: Axes, values: np.ndarray, logarithmic: bool) -> None:
    """Set up the y axis for the values of a panel, which may be nan."""
    known = values[np.isfinite(values)]
    if not len(known):
        axes.set(yticks=[], ylim=(0, 1))
        axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", color=GREY)
    elif logarithmic and known.min() > 0:
        axes.set_yscale("log")
        axes.minorticks_off()
        ticks = layout.log_ticks(*axes.get_ylim())
        axes.set_yticks(ticks, [layout.plain_number(tick) for tick in ticks])
    else:
        layout.linear_axis(axes.yaxis)


def shifts(result: dict) -> Figure:
    """Draw test accuracy against the strength of each shift: a panel per shift, a line per network.

    Error bars are standard deviations over seeds. `result` is the content of shift.json.
    """
    networks = result["networks"]
    figure = layout.new(13.5)
    panels = figure.subplots(2, 3, sharey=True)
    for axes, (name, shift) in zip(panels.flat, result["shifts"].items()):
        handles = _draw_shift(axes, name, shift, networks)
    for axes in panels[:, 0]:
        axes.set_ylabel("test accuracy")
        layout.linear_axis(axes.yaxis)
    data = result["data"]
    caption = f"{data['name']}, {data['images']} test images, {data['image_size']} px"
    note = _bars_note([network["n"] for network in networks])
    layout.complete(figure, 7.4, caption, [note], handles)
    return figure


def _draw_shift(axes: Axes, name: str, shift: dict, networks: list[dict]) -> list:
    """Draw the panel of one shift; returns the legend handles."""
    lines = {"teacher": "--", "teachers together": "-.", "alone": ":"}
    places = np.arange(len(shift["strengths"]) + 1)
    apart = min(0.05, 0.4 / len(networks))
    handles = []
    for number, network in enumerate(networks):
        style = layout.series_style(number) | {"linestyle": lines.get(network["kind"], "-")}
        aside = apart * (number - (len(networks) - 1) / 2)  # so that error bars do not overlap
        scores = [network["mean"]["clean"], *network["accuracy"][name]]
        style["label"] = network["caption"]
        handles.append(_error_bars(axes, places + aside, scores, **style))
    ticks = [f"{strength}\n{amount:g}" for strength, amount in enumerate(shift["strengths"], 1)]
    axes.set_xticks(places, ["0\nclean", *ticks])
    axes.set_title(name, fontsize=10)
    axes.set_xlabel(f"strength ({shift['unit']})")
    axes.grid(alpha=0.3)
    return handles
