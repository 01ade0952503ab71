"""Pictures of results, drawn with matplotlib and written whole or not at all."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from kd import checkpoint
from kd.errors import printable
from kd.results.evidence import confidence_bins

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
        axes.text(column, row, f"{count}\n{shares[row, column]:.0%}", ha="center", va="center", fontsize=8,
                  color="white" if shares[row, column] > 0.55 else "black")
    names = [printable(name) for name in classes]
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(title, fontsize=10)
    return figure


def reliability(panels: dict[str, tuple[np.ndarray, np.ndarray]], title: str) -> Figure:
    """Accuracy by confidence, one panel for each (name -> (p [N, K], labels [N])): on the diagonal a network is calibrated."""
    figure = Figure(figsize=(4.2 * len(panels), 4.4), layout="constrained", dpi=110)
    for number, (name, (p, labels)) in enumerate(panels.items()):
        bins = confidence_bins(p, labels)
        width = 1 / len(bins)
        axes = figure.add_subplot(1, len(panels), number + 1)
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="calibrated")
        centres = (np.arange(len(bins)) + 0.5) * width
        axes.bar(centres, [row["accuracy"] or 0 for row in bins], width * 0.94, color=BLUE, label="accuracy")
        axes.bar(centres, [row["count"] / len(labels) for row in bins], width * 0.4, color=ORANGE, label="share of images")
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy, share", title=name)
        axes.legend(loc="upper left", fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    return figure


def save(path: Path, figure) -> None:
    """Write a figure as PNG, whole or not at all."""
    with checkpoint.replacing(path) as temporary:
        figure.savefig(temporary, format="png")
