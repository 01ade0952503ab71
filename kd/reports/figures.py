"""Pictures of results, drawn with matplotlib and written whole or not at all."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from kd.reports.evidence import confidence_bins
from kd.system.errors import printable
from kd.system.files import replacing

matplotlib.rcParams["text.parse_math"] = False  # a class or folder may be called "$5"
BLUE, ORANGE, GREY = "#2b6cb0", "#c05621", "#718096"


def confusion(matrix: list[list[int]], classes: tuple[str, ...], title: str):
    """A matplotlib figure: counts and shares of the true class; rows are true, columns predicted."""
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
    """Accuracy by confidence, one panel for each (name -> (p [N, K], labels [N])): on the diagonal
    a network is calibrated.
    """
    figure = Figure(figsize=(4.2 * len(panels), 4.4), layout="constrained", dpi=110)
    for number, (name, (p, labels)) in enumerate(panels.items()):
        bins = confidence_bins(p, labels)
        width = 1 / len(bins)
        axes = figure.add_subplot(1, len(panels), number + 1)
        axes.plot(
            [0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="calibrated", zorder=3
        )
        centres = (np.arange(len(bins)) + 0.5) * width
        axes.bar(
            centres,
            [row["accuracy"] or 0 for row in bins],
            width * 0.94,
            color=BLUE,
            label="accuracy",
        )
        axes.bar(
            centres,
            [row["count"] / len(labels) for row in bins],
            width * 0.4,
            color=ORANGE,
            label="share of images",
        )
        axes.set(
            xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy, share", title=name
        )
        axes.legend(loc="upper left", fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    return figure


def pixels(figure: Figure) -> np.ndarray:
    """A figure drawn once, for every place it goes to: uint8 [H, W, 3]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save(path: Path, drawn: np.ndarray) -> None:
    """Write pixels uint8 [H, W, 3] as PNG, whole or not at all."""
    with replacing(path) as temporary:
        Image.fromarray(drawn).save(temporary, format="png")


def heat_map(table: dict, title: str) -> Figure:
    """Students by teachers; colour and number are the difference in test accuracy to the student
    alone, in points.
    """
    students = list(dict.fromkeys(cell["student"] for cell in table["cells"]))
    teachers = [row["teacher"] for row in table["teachers"]]
    gaps = {(cell["student"], cell["teacher"]): cell["minus_alone"] for cell in table["cells"]}
    run = {(cell["student"], cell["teacher"]) for cell in table["cells"] if cell["n"]}
    points = np.array(
        [[100 * gaps[s, t]["mean"] if gaps[s, t] else np.nan for t in teachers] for s in students]
    )
    figure = Figure(
        figsize=(max(5.0, 1.7 * len(teachers) + 3), 0.7 * len(students) + 2.4),
        layout="constrained",
        dpi=110,
    )
    axes = figure.add_subplot()
    limit = max(1.0, float(np.nanmax(np.abs(points)))) if np.isfinite(points).any() else 1.0
    shown = axes.imshow(points, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    for (row, column), value in np.ndenumerate(points):
        gap = gaps[students[row], teachers[column]]
        absent = "no run alone" if (students[row], teachers[column]) in run else "not run"
        text = (
            f"{value:+.1f}\n[{100 * gap['low']:+.1f}, {100 * gap['high']:+.1f}]" if gap else absent
        )
        axes.text(
            column,
            row,
            text,
            ha="center",
            va="center",
            fontsize=8,
            color="white" if abs(value) > 0.6 * limit else "black",
        )
    axes.set_xticks(range(len(teachers)), [f"<- {printable(name)}" for name in teachers])
    axes.set_yticks(range(len(students)), [printable(name) for name in students])
    figure.colorbar(shown, ax=axes, label="points of test accuracy above alone")
    axes.set_title(
        f"{printable(table['title'])}: student minus the same network alone", fontsize=10
    )
    figure.supxlabel(printable(title), fontsize=7)
    return figure


def arms(found: dict, names: dict[str, str]) -> Figure:
    """Test accuracy against the number of labelled images, a line an arm, with standard deviations
    over seeds.

    `found` is a group of arms.json, `names` the arms' captions.
    """
    figure = Figure(figsize=(7.2, 4.8), layout="constrained", dpi=110)
    axes = figure.add_subplot()
    for number, (arm, caption) in enumerate(names.items()):
        aside = 1.03 ** (number - len(names) / 2)  # so that bars do not cover each other
        rows = [
            (aside * np.mean(row["images"]), row["cells"][arm]["accuracy"])
            for row in found["rows"]
            if arm in row["cells"]
        ]
        if rows:
            own = GREY if number == len(names) - 1 else f"C{number}"
            axes.errorbar(
                [images for images, _ in rows],
                [score["mean"] for _, score in rows],
                yerr=[score["sd"] or 0 for _, score in rows],
                capsize=3,
                marker="o",
                markersize=4,
                label=caption,
                color=own,
                linestyle="--" if own == GREY else "-",
            )
    ticks = [float(np.mean(row["images"])) for row in found["rows"]]
    axes.set(xscale="log", xlabel="labelled images", ylabel="test accuracy")
    axes.set_xticks(
        ticks,
        [f"{images:g}\n{100 * row['fraction']:g} %" for images, row in zip(ticks, found["rows"])],
    )
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
    axes.set_title(
        printable(f"{found['student']} <- {found['teacher']} {found['tag']}"), fontsize=10
    )
    figure.supxlabel(printable(found["data"]), fontsize=7)
    return figure


def curves(histories: dict[str, list[dict]]) -> Figure:
    """Learning curves of runs: name -> rows of the report's history.

    Loss, train and validation accuracy by epoch.
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
    """Test accuracy against the strength of each shift, one panel a shift, a line a network, with
    standard deviations over seeds.

    `result` is shift.json.
    """
    rows, styles = result["networks"], {"teacher": "--", "teachers together": "-.", "alone": ":"}
    figure = Figure(figsize=(13.5, 7.6 + 0.2 * len(rows)), layout="constrained", dpi=110)
    panels = figure.subplots(2, 3, sharey=True).flat
    for axes, (name, shift) in zip(panels, result["shifts"].items()):
        places = range(len(shift["strengths"]) + 1)
        for number, row in enumerate(rows):
            scores = [row["mean"]["clean"], *row["accuracy"][name]]
            axes.errorbar(
                places,
                [score["mean"] for score in scores],
                yerr=[score["sd"] or 0 for score in scores],
                capsize=2,
                marker="o",
                markersize=3,
                label=printable(row["caption"]),
                color=f"C{number % 10}",
                linestyle=styles.get(row["kind"], "-"),
            )
        axes.set_xticks(
            places,
            ["0\nclean", *(f"{k}\n{amount:g}" for k, amount in enumerate(shift["strengths"], 1))],
        )
        axes.set(title=name, xlabel=f"strength ({shift['unit']})")
        axes.grid(alpha=0.3)
    figure.supylabel("test accuracy", fontsize=10)
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=2,
        fontsize=8,
        frameon=False,
    )
    data = result["data"]
    figure.suptitle(
        printable(f"{data['name']}, {data['images']} test images, {data['image_size']} px"),
        fontsize=10,
    )
    return figure
