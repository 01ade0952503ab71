"""Figures of results, drawn with matplotlib and written whole or not at all."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from kd.reports.calibration import confidence_bins
from kd.reports.text import difference_texts
from kd.system.errors import printable
from kd.system.files import replacing

matplotlib.rcParams["text.parse_math"] = False  # a class or folder may be called "$5"
BLUE = "#2b6cb0"
ORANGE = "#c05621"
GREY = "#718096"


def confusion(matrix: list[list[int]], classes: tuple[str, ...], title: str) -> Figure:
    """Counts and shares of the true class; rows are true, columns predicted."""
    counts = np.array(matrix)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = max(4.5, 0.85 * len(classes) + 1.8)
    figure = Figure(figsize=(side, side), layout="constrained", dpi=110)
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        axes.text(
            column,
            row,
            f"{count}\n{shares[row, column]:.0%}",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if shares[row, column] > 0.55 else "black",
        )
    names = [printable(name) for name in classes]
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(title, fontsize=10)
    return figure


def reliability(panels: dict[str, tuple[np.ndarray, np.ndarray]], title: str) -> Figure:
    """Accuracy by confidence: on the diagonal a network is calibrated.

    One panel for each name -> (p [N, K], labels [N]).
    """
    figure = Figure(figsize=(4.2 * len(panels), 4.4), layout="constrained", dpi=110)
    for number, (name, (p, labels)) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), number + 1)
        _draw_bins(axes, p, labels)
        axes.set(
            xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy, share", title=name
        )
        axes.legend(loc="upper left", fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    return figure


def _draw_bins(axes: Axes, p: np.ndarray, labels: np.ndarray) -> None:
    """The accuracy of each bin of confidence, its share of the images, and the diagonal."""
    bins = confidence_bins(p, labels)
    width = 1 / len(bins)
    centres = (np.arange(len(bins)) + 0.5) * width
    accuracies = [row["accuracy"] or 0 for row in bins]
    shares = [row["count"] / len(labels) for row in bins]
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="calibrated", zorder=3)
    axes.bar(centres, accuracies, width * 0.94, color=BLUE, label="accuracy")
    axes.bar(centres, shares, width * 0.4, color=ORANGE, label="share of images")


def pixels(figure: Figure) -> np.ndarray:
    """A figure, drawn once for every file it goes to: uint8 [H, W, 3]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save(path: Path, drawn: np.ndarray) -> None:
    """Write pixels uint8 [H, W, 3] as PNG, whole or not at all."""
    with replacing(path) as temporary:
        Image.fromarray(drawn).save(temporary, format="png")


def heat_map(table: dict, title: str) -> Figure:
    """Students by teachers: the difference in test accuracy to the student alone, in points.

    `table` is a table of tables.json.
    """
    students = list(dict.fromkeys(cell["student"] for cell in table["cells"]))
    teachers = [row["teacher"] for row in table["teachers"]]
    cells = {(cell["student"], cell["teacher"]): cell for cell in table["cells"]}
    points = np.full((len(students), len(teachers)), np.nan)
    for row, column in np.ndindex(points.shape):
        gap = cells[students[row], teachers[column]]["minus_alone"]
        if gap:
            points[row, column] = 100 * gap["mean"]
    figure = Figure(
        figsize=(max(5.0, 1.7 * len(teachers) + 3), 0.7 * len(students) + 2.4),
        layout="constrained",
        dpi=110,
    )
    axes = figure.add_subplot()
    limit = 1.0
    if np.isfinite(points).any():
        limit = max(limit, float(np.nanmax(np.abs(points))))
    shown = axes.imshow(points, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    for (row, column), value in np.ndenumerate(points):
        text = _heat_text(cells[students[row], teachers[column]])
        color = "white" if abs(value) > 0.6 * limit else "black"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(len(teachers)), [f"<- {printable(name)}" for name in teachers])
    axes.set_yticks(range(len(students)), [printable(name) for name in students])
    figure.colorbar(shown, ax=axes, label="points of test accuracy above alone")
    caption = f"{printable(table['title'])}: student minus the same network alone"
    axes.set_title(caption, fontsize=10)
    figure.supxlabel(printable(title), fontsize=7)
    return figure


def _heat_text(cell: dict) -> str:
    """What stands in a cell of the heat map."""
    if cell["minus_alone"]:
        return "\n".join(difference_texts(cell["minus_alone"], digits=1, factor=100))
    return "no run alone" if cell["n"] else "not run"


def arms(group: dict, captions: dict[str, str]) -> Figure:
    """Test accuracy against the number of labelled images, a line an arm.

    With standard deviations over seeds. `group` is one of arms.json, `captions` are the arms', the
    last one in grey.
    """
    figure = Figure(figsize=(7.2, 4.8), layout="constrained", dpi=110)
    axes = figure.add_subplot()
    images = [float(np.mean(row["images"])) for row in group["rows"]]
    for number, (arm, caption) in enumerate(captions.items()):
        aside = 1.03 ** (number - len(captions) / 2)  # so that bars do not cover each other
        last = number == len(captions) - 1
        style = {"color": GREY, "linestyle": "--"} if last else {"color": f"C{number}"}
        places = []
        scores = []
        for place, row in zip(images, group["rows"]):
            if arm in row["cells"]:
                places.append(aside * place)
                scores.append(row["cells"][arm]["accuracy"])
        if scores:
            _error_bars(axes, places, scores, capsize=3, markersize=4, label=caption, **style)
    axes.set(xscale="log", xlabel="labelled images", ylabel="test accuracy")
    ticks = [f"{n:g}\n{100 * row['fraction']:g} %" for n, row in zip(images, group["rows"])]
    axes.set_xticks(images, ticks)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
    caption = printable(f"{group['student']} <- {group['teacher']} {group['tag']}")
    axes.set_title(caption, fontsize=10)
    figure.supxlabel(printable(group["data"]), fontsize=7)
    return figure


def _error_bars(axes: Axes, places, scores: list[dict], **style) -> None:
    """A line through means, with standard deviations (none where there is one value)."""
    means = [score["mean"] for score in scores]
    deviations = [score["sd"] or 0 for score in scores]
    axes.errorbar(places, means, yerr=deviations, marker="o", **style)


def curves(histories: dict[str, list[dict]]) -> Figure:
    """Learning curves: train loss, train accuracy and validation accuracy by epoch.

    `histories` is name of a run -> rows of its report's history.
    """
    figure = Figure(figsize=(13.5, 4.2 + 0.16 * len(histories)), layout="constrained", dpi=110)
    panels = figure.subplots(1, 3)
    shown = {
        "train_loss": "train loss (with the KD term, where there is one)",
        "train_accuracy": "train accuracy (augmented views)",
        "valid_accuracy": "validation accuracy",
    }
    for (key, label), axes in zip(shown.items(), panels):
        for number, (name, rows) in enumerate(histories.items()):
            axes.plot(
                [row["epoch"] for row in rows],
                [row.get(key, np.nan) for row in rows],
                marker="o",
                markersize=3,
                label=printable(name),
                color=f"C{number % 10}",
                linestyle=("-", "--", ":", "-.")[number // 10 % 4],
            )
        axes.set(xlabel="epoch", title=label, yscale="log" if key == "train_loss" else "linear")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=min(3, len(labels)),
        fontsize=8,
        frameon=False,
    )
    return figure


def shifts(result: dict) -> Figure:
    """Test accuracy against the strength of each shift, one panel a shift, a line a network.

    With standard deviations over seeds. `result` is shift.json.
    """
    networks = result["networks"]
    figure = Figure(figsize=(13.5, 7.6 + 0.2 * len(networks)), layout="constrained", dpi=110)
    panels = figure.subplots(2, 3, sharey=True).flat
    for axes, (name, shift) in zip(panels, result["shifts"].items()):
        _draw_shift(axes, name, shift, networks)
    figure.supylabel("test accuracy", fontsize=10)
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=2,
        fontsize=8,
        frameon=False,
    )
    data = result["data"]
    caption = printable(f"{data['name']}, {data['images']} test images, {data['image_size']} px")
    figure.suptitle(caption, fontsize=10)
    return figure


def _draw_shift(axes: Axes, name: str, shift: dict, networks: list[dict]) -> None:
    """The panel of one shift."""
    styles = {"teacher": "--", "teachers together": "-.", "alone": ":"}
    places = range(len(shift["strengths"]) + 1)
    for number, network in enumerate(networks):
        _error_bars(
            axes,
            places,
            [network["mean"]["clean"], *network["accuracy"][name]],
            capsize=2,
            markersize=3,
            label=printable(network["caption"]),
            color=f"C{number % 10}",
            linestyle=styles.get(network["kind"], "-"),
        )
    ticks = [f"{strength}\n{amount:g}" for strength, amount in enumerate(shift["strengths"], 1)]
    axes.set_xticks(places, ["0\nclean", *ticks])
    axes.set(title=name, xlabel=f"strength ({shift['unit']})")
    axes.grid(alpha=0.3)
