"""Figures that clinical readers expect: ROC, precision-recall, calibration and net benefit."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from sklearn.metrics import precision_recall_curve, roc_curve

from kd.reports import figure_layout as layout
from kd.reports.calibration import BINS, frequency_bins
from kd.reports.decision_curve import decision_curve
from kd.reports.figures import Axes, Figure
from kd.system.errors import counted

NAMED = 10  # classes with a style of their own; the others are grey
WIDTH = 5.6  # inches
BLUE = "#0072b2"
ORANGE = "#d55e00"
GREY = "#606060"
PALE = "#b0b0b0"
BORDER = (-0.02, 1.02)  # of axes from 0 to 1, so that curves along their border are seen


class Estimate(NamedTuple):
    """A metric with its interval.

    value  None if the metric is undefined
    low    None without an interval; so is `high`
    """

    value: float | None
    low: float | None = None
    high: float | None = None


class OperatingPoint(NamedTuple):
    """A threshold of the probability of the positive class, and how the network performs at it.

    name       how the threshold was chosen, for the legend
    precision  None if no image is at or above the threshold
    """

    name: str
    threshold: float
    sensitivity: float
    specificity: float
    precision: float | None


@dataclass(frozen=True)
class TwoClasses:
    """Predictions of a network for two classes, one of which is the positive one.

    p                  [N]: probability of the positive class
    positive           [N]: whether the image is of the positive class
    name               name of the positive class
    auroc              area under the ROC curve
    average_precision  summary of the precision-recall curve
    points             operating points to mark
    """

    p: np.ndarray
    positive: np.ndarray
    name: str
    auroc: Estimate | None = None
    average_precision: Estimate | None = None
    points: Sequence[OperatingPoint] = ()


@dataclass(frozen=True)
class ManyClasses:
    """Predictions of a network for more than two classes, each of them against the rest.

    p        [N, K]: probabilities
    labels   [N]
    classes  K names
    areas    class -> the area under its curve, as far as it is known
    mean     the mean of the areas over the classes
    """

    p: np.ndarray
    labels: np.ndarray
    classes: Sequence[str]
    areas: Mapping[int, Estimate] = field(default_factory=dict)
    mean: Estimate | None = None


class _Mark(NamedTuple):
    """An operating point in a figure; it is only in the legend if y is None."""

    x: float
    y: float | None
    label: str


class _Kind(NamedTuple):
    """A kind of curve of one class against the rest.

    points    (positive [N], p [N]) -> x and y
    area      name of the area under the curve
    baseline  positive [N] -> y at x = 0 and at x = 1 of predictions that know nothing
    level     name of the baseline
    shared    whether all classes have the same baseline
    """

    points: Callable
    xlabel: str
    ylabel: str
    area: str
    drawstyle: str
    baseline: Callable
    level: str
    shared: bool


def _roc_points(positive: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    false_positive_rate, sensitivity, _ = roc_curve(positive, p)
    return false_positive_rate, sensitivity


def _recall_and_precision(positive: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    precision, recall, _ = precision_recall_curve(positive, p)
    # At recall 0, scikit-learn adds a precision of 1, whatever the predictions are.
    found = recall > 0
    return np.append(recall[found], 0), np.append(precision[found], precision[found][-1])


def _diagonal(positive: np.ndarray) -> tuple[float, float]:
    return 0.0, 1.0


def _prevalence(positive: np.ndarray) -> tuple[float, float]:
    return positive.mean(), positive.mean()


_ROC = _Kind(
    points=_roc_points,
    xlabel="1 - specificity",
    ylabel="sensitivity",
    area="AUROC",
    drawstyle="default",
    baseline=_diagonal,
    level="chance",
    shared=True,
)
# The area under the steps is the average precision. Straight lines between the points would be too
# optimistic (Davis and Goadrich 2006, "The relationship between precision-recall and ROC curves").
_PRECISION_RECALL = _Kind(
    points=_recall_and_precision,
    xlabel="recall (sensitivity)",
    ylabel="precision (positive predictive value)",
    area="average precision",
    drawstyle="steps-post",
    baseline=_prevalence,
    level="prevalence",
    shared=False,
)


def roc(data: TwoClasses, title: str, notes: Sequence[str] = ()) -> Figure:
    """Draw the ROC curve of the positive class with the operating points.

    If all images are of one class, there is no curve, and the figure says so.

    notes  lines below the legend, for example what the intervals are
    """
    marks = []
    for point in data.points:
        label = f"{_point_text(point)}, specificity {point.specificity:.3f}"
        marks.append(_Mark(1 - point.specificity, point.sensitivity, label))
    return _one_curve(_ROC, data, data.auroc, marks, title, notes)


def precision_recall(data: TwoClasses, title: str, notes: Sequence[str] = ()) -> Figure:
    """Draw the precision-recall curve of the positive class with the operating points.

    Its baseline is the prevalence. An operating point without precision is only in the legend. For
    images of one class, and for `notes`, see `roc`.
    """
    marks = []
    for point in data.points:
        precision = "undefined" if point.precision is None else f"{point.precision:.3f}"
        label = f"{_point_text(point)}, precision {precision}"
        marks.append(_Mark(point.sensitivity, point.precision, label))
    return _one_curve(_PRECISION_RECALL, data, data.average_precision, marks, title, notes)


def roc_of_classes(data: ManyClasses, title: str, notes: Sequence[str] = ()) -> Figure:
    """Draw a ROC curve per class, each against all others.

    The 10 classes with the most images have a style of their own, and their area is in the legend.
    The other curves are grey. A class that has no image, or all of them, has no curve. For `notes`,
    see `roc`.
    """
    return _many_curves(_ROC, data, title, notes)


def precision_recall_of_classes(data: ManyClasses, title: str, notes: Sequence[str] = ()) -> Figure:
    """Draw a precision-recall curve per class, each against all others; see `roc_of_classes`.

    Dotted lines are the prevalences of the classes that have a style of their own.
    """
    return _many_curves(_PRECISION_RECALL, data, title, notes)


def _point_text(point: OperatingPoint) -> str:
    return f"{point.name}: threshold {point.threshold:.4f}, sensitivity {point.sensitivity:.3f}"


def _one_curve(
    kind: _Kind,
    data: TwoClasses,
    area: Estimate | None,
    marks: list[_Mark],
    title: str,
    notes: Sequence[str],
) -> Figure:
    """Draw the curve of the positive class with operating points."""
    figure, axes = _square(kind.xlabel, kind.ylabel)
    positive = np.asarray(data.positive, dtype=bool)
    handles = []
    if positive.any() and not positive.all():
        label = _estimate_text(f"{_short(data.name)}: {kind.area}", area)
        style = {"color": BLUE, "linewidth": 2, "drawstyle": kind.drawstyle}
        handles += axes.plot(*kind.points(positive, data.p), label=label, **style)
        ends = kind.baseline(positive)
        label = kind.level if kind.shared else f"{kind.level} {ends[0]:.3f}"
        handles += axes.plot([0, 1], ends, color=GREY, linestyle=":", label=label)
        handles += [_draw_mark(axes, number, mark) for number, mark in enumerate(marks)]
    else:
        _say_undefined(axes)
    layout.complete(figure, WIDTH - 0.4, title, notes, handles)
    return figure


def _draw_mark(axes: Axes, number: int, mark: _Mark):
    """Draw an operating point; returns its legend handle."""
    place = ([], []) if mark.y is None else ([mark.x], [mark.y])
    style = {"marker": "osD^v"[number % 5], "color": ORANGE, "markeredgecolor": "black"}
    style |= {"markersize": 8, "linestyle": "none", "zorder": 4, "label": mark.label}
    [handle] = axes.plot(*place, **style)
    return handle


def _many_curves(kind: _Kind, data: ManyClasses, title: str, notes: Sequence[str]) -> Figure:
    """Draw the curves of all classes."""
    figure, axes = _square(kind.xlabel, kind.ylabel)
    images = np.bincount(data.labels, minlength=len(data.classes))
    drawn = [k for k, count in enumerate(images) if 0 < count < len(data.labels)]
    handles = []
    if drawn:
        named = sorted(sorted(drawn, key=lambda k: -images[k])[:NAMED])
        handles += _draw_named(axes, kind, data, named)
        handles += _draw_others(axes, kind, data, [k for k in drawn if k not in named])
        handles += _draw_baselines(axes, kind, data, named)
    else:
        _say_undefined(axes)
    notes = [*_class_notes(kind, data, len(drawn)), *notes]
    layout.complete(figure, WIDTH - 0.4, title, notes, handles)
    return figure


def _draw_named(axes: Axes, kind: _Kind, data: ManyClasses, named: list[int]) -> list:
    """Draw the curves of classes that have a style of their own; returns the legend handles."""
    names = {k: data.classes[k] for k in named}
    texts = layout.short_names(names, layout.NAME_WIDTH, layout.NAME_SIZE)
    handles = []
    for number, (k, text) in enumerate(zip(named, texts)):
        style = layout.series_style(number) | {"drawstyle": kind.drawstyle, "markersize": 4.5}
        style["markevery"] = (0.03 + 0.015 * number, 0.25)  # so that markers do not hide each other
        label = _estimate_text(f"{text}:", data.areas.get(k))
        handles += axes.plot(*_points(kind, data, k), label=label, **style)
    return handles


def _draw_others(axes: Axes, kind: _Kind, data: ManyClasses, others: list[int]) -> list:
    """Draw the curves of the other classes in grey; returns the legend handle, if any."""
    style = {"color": PALE, "linewidth": 0.8, "drawstyle": kind.drawstyle, "zorder": 1}
    style["label"] = counted(len(others), "other class", "other classes")
    lines = [axes.plot(*_points(kind, data, k), **style)[0] for k in others]
    return lines[:1]


def _draw_baselines(axes: Axes, kind: _Kind, data: ManyClasses, named: list[int]) -> list:
    """Draw the baselines of the named classes; returns the legend handle."""
    if kind.shared:
        ends = kind.baseline(data.labels == named[0])
        return axes.plot([0, 1], ends, color=GREY, linestyle=":", label=kind.level)
    for number, k in enumerate(named):
        color = layout.series_style(number)["color"]
        ends = kind.baseline(data.labels == k)
        axes.plot([0, 1], ends, color=color, linestyle=":", linewidth=1, zorder=1)
    return axes.plot([], [], color=GREY, linestyle=":", label=f"{kind.level} of the class")


def _points(kind: _Kind, data: ManyClasses, k: int) -> tuple[np.ndarray, np.ndarray]:
    return kind.points(data.labels == k, data.p[:, k])


def _class_notes(kind: _Kind, data: ManyClasses, drawn: int) -> list[str]:
    """Return the notes on the curves of several classes."""
    if not drawn:
        return []
    note = f"{kind.area} of each class against the rest"
    if data.mean is not None:
        note = _estimate_text(f"{note}; mean of the classes:", data.mean)
    notes = [note]
    if drawn > NAMED:
        notes.append(f"named are the {NAMED} classes with the most images")
    missing = len(data.classes) - drawn
    if missing:
        images = counted(missing, "class without images has", "classes without images have")
        notes.append(f"{images} no curve")
    return notes


def net_benefit(data: TwoClasses, title: str, notes: Sequence[str] = ()) -> Figure:
    """Draw the decision curve of the network (see `decision_curve`).

    `data.p` must be calibrated, because it is compared with the threshold. Far below 0, where
    treating none is better anyway, the curves leave the figure. For `notes`, see `roc`.
    """
    positive = np.asarray(data.positive, dtype=bool)
    curve = decision_curve(data.p, positive)
    figure = layout.new(WIDTH)
    axes = figure.add_subplot()
    lines = {
        "network": ("network", {"color": BLUE, "linestyle": "-", "linewidth": 2}),
        "all": ("treat all", {"color": ORANGE, "linestyle": "--", "linewidth": 1.4}),
        "none": ("treat none", {"color": "black", "linestyle": ":", "linewidth": 1.4}),
    }
    handles = []
    for key, (label, style) in lines.items():
        handles += axes.plot(curve["thresholds"], curve[key], label=label, **style)
    top = max(0.01, curve["network"].max(), curve["all"].max())
    lowest = np.clip(curve["network"].min(), -0.25 * top, -0.05 * top)
    axes.set(xlim=(0, 1), ylim=(1.05 * lowest, 1.05 * top))
    axes.set(xlabel=f"threshold probability of {_short(data.name)}", ylabel="net benefit")
    layout.linear_axis(axes.yaxis)
    axes.grid(alpha=0.3)
    prevalence = (
        f"prevalence among these images, on which net benefit depends: {positive.mean():.3f}"
    )
    layout.complete(figure, 3.8, title, [prevalence, *notes], handles)
    return figure


def calibration_plot(
    panels: Mapping[str, tuple[np.ndarray, np.ndarray]],
    name: str,
    title: str,
    notes: Sequence[str] = (),
) -> Figure:
    """Draw the observed frequency of the positive class against its predicted probability.

    Each point is a group of images with similar probabilities; the groups have about equal counts
    (see `frequency_bins`). For `notes`, see `roc`.

    panels  title of a panel -> (p [N], positive [N]) as in `TwoClasses`, for example before and
            after temperature scaling
    name    name of the positive class
    """
    figure, grid, height = layout.square_panels(panels, 4.4)
    for axes, (p, positive) in zip(grid, panels.values()):
        handles = _draw_frequencies(axes, p, np.asarray(positive, dtype=bool))
        axes.set(xlim=BORDER, ylim=BORDER, ylabel="observed frequency")
        axes.set_xlabel(f"predicted probability of {_short(name)}")
    layout.complete(figure, height, title, notes, handles)
    return figure


def _draw_frequencies(axes: Axes, p: np.ndarray, positive: np.ndarray) -> list:
    """Draw a panel of a calibration plot; returns the legend handles."""
    rows = frequency_bins(p, positive)
    predicted = [row["predicted"] for row in rows]
    observed = [row["observed"] for row in rows]
    counts, edges = np.histogram(np.clip(p, 0, 1), BINS, (0, 1))
    style = {"color": PALE, "hatch": "////", "edgecolor": "white", "align": "edge"}
    share = axes.bar(edges[:-1], counts / len(p), 0.94 / BINS, **style)
    share.set_label("share of the images")
    [diagonal] = axes.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1)
    diagonal.set_label("perfectly calibrated")
    [line] = axes.plot(predicted, observed, "o-", color=BLUE, markersize=5)
    line.set_label("observed frequency in up to 10 groups of about equal size")
    return [line, diagonal, share]


def _square(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """Return a figure with square axes from 0 to 1."""
    figure = layout.new(WIDTH)
    axes = figure.add_subplot()
    axes.set(xlim=BORDER, ylim=BORDER, xlabel=xlabel, ylabel=ylabel, aspect="equal")
    axes.grid(alpha=0.3)
    return figure, axes


def _say_undefined(axes: Axes) -> None:
    """Say why there is no curve: sensitivity or specificity is undefined."""
    text = "undefined: all images are of one class"
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", color=GREY)


def _short(name: str) -> str:
    """Return the name of a class, shortened for the legend or the label of an axis."""
    return layout.shortened(layout.drawable(name), 1.6, 10)


def _estimate_text(text: str, estimate: Estimate | None) -> str:
    """Return `text` with an estimate and its interval: `AUROC 0.912 [0.890, 0.934]`."""
    if estimate is None:
        return text
    if estimate.value is None:
        return f"{text} undefined"
    interval = ""
    if estimate.low is not None and estimate.high is not None:
        interval = f" [{estimate.low:.3f}, {estimate.high:.3f}]"
    return f"{text} {estimate.value:.3f}{interval}"
