"""Figures with short and long names, few and many entries: texts fit and sizes are bounded."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import ErrorbarContainer
from matplotlib.text import Text

from kd.reports import figure_layout as layout
from kd.reports import figures
from kd.studies.robustness import SHIFTS

# Matplotlib warns of missing glyphs and of layouts that do not fit.
pytestmark = [
    pytest.mark.filterwarnings("error:Glyph"),
    pytest.mark.filterwarnings("error:constrained_layout"),
]
LONG = "a_network_in_a_variant_with_a_long_name_of_sixty_characters_"
TAG = "ablation-of-temperature-and-alpha-" + "x" * 120
HEADING = (
    "mura, split patient (seed 0, hash 0a00907080da9cd9, images d89a5d6ac00c4045), 224 px"
    " (letterbox, 3-channel,"
    " crop-black-borders), 13866 / 1575 / 1715 training / validation / test images"
)
ARMS = {"alone": "labels only", "normal": "KD", "teacher": "teacher"}


def names(count, long):
    """Names of 60 characters and more, in several scripts, or short ones."""
    return [f"läsion_肺炎_Пневмо{LONG}{k}" if long else f"class{k}" for k in range(count)]


def confusion(count, long):
    random = np.random.default_rng(0)
    matrix = random.poisson(0.2, (count, count)) + np.diag(random.integers(5, 2000, count))
    title = (
        f"{LONG}+{LONG}-{LONG}, test split (n = 1715)"
        if long
        else "resnet34-resnet18, test split (n = 1715)"
    )
    return figures.confusion(matrix.tolist(), tuple(names(count, long)), title)


def reliability(count, long):
    random = np.random.default_rng(0)
    p = random.dirichlet(np.ones(3), 200)
    panels = {
        f"{LONG * long}panel {k}: ECE 0.1": (p, random.integers(0, 3, 200)) for k in range(count)
    }
    return figures.reliability(panels, f"{LONG * (3 * long)}test split (n = 200)")


def table(students, teachers, long=False, gaps=((0.08, 0.02), (0.08, 0.09), (-0.12, 0.01), None)):
    """Cells with differences (mean, half of the interval); None is a cell without a baseline."""
    cells = []
    for row, student in enumerate(names(students, long)):
        for column, teacher in enumerate(names(teachers, long)):
            gap = gaps[(row * teachers + column) % len(gaps)]
            if gap:
                says = "no evidence" if abs(gap[0]) <= gap[1] else "better" if gap[0] > 0 else "worse"
                gap = {"mean": gap[0], "low": gap[0] - gap[1], "high": gap[0] + gap[1], "says": says}
            cells.append({"student": student, "teacher": teacher, "n": 3, "minus_alone": gap})
    rows = [{"teacher": teacher} for teacher in names(teachers, long)]
    return {
        "title": f"9.3.1 Normal KD {TAG}" if long else "9.3.1 Normal KD",
        "teachers": rows,
        "cells": cells,
    }


def heat_map(count, long):
    return figures.heat_map(table(count, count, long), ", ".join([HEADING] * (3 if long else 1)))


def score(mean, n):
    return {"n": n, "mean": mean, "sd": 0.02 if n > 1 else None}


def arms(count, long, n=3, counts=None):
    """`count` numbers of labelled images, some of them close together."""
    rows = []
    for k in range(count):
        cells = {arm: {"accuracy": score(0.5 + 0.04 * k, n)} for arm in ARMS}
        rows.append({"images": [28 + 2 ** (2 * k)], "fraction": 0.01 * (k + 1) / 3, "cells": cells})
    captions = {arm: (LONG * 3 if long else "") + caption for arm, caption in ARMS.items()}
    data = HEADING * 2 if long else HEADING
    tag, teacher = (TAG, LONG) if long else ("", "resnet34")
    return figures.arms(
        {"data": data, "student": "resnet18", "teacher": teacher, "tag": tag, "rows": rows},
        captions,
    )


def curves(count, long, epochs=20):
    histories = {}
    for k in range(count):
        rows = [
            {
                "epoch": epoch,
                "train_loss": 2.1 / epoch + 0.02 * k,
                "train_accuracy": None,
                "valid_accuracy": 1 - 0.5 / epoch,
            }
            for epoch in range(1, epochs + 1)
        ]
        histories[
            f"mura-patient-224/normal{f'-{TAG}' if long else ''}/resnet34-resnet18/seed{k}"
        ] = rows
    return figures.curves(histories)


def shifts(count, long, n=3):
    networks = []
    for k, kind in zip(
        range(count), ("teacher", "teachers together", "alone", "distilled") * count
    ):
        accuracy = {
            name: [score(0.9 - 0.1 * strength, n) for strength in range(1, 6)] for name in SHIFTS
        }
        caption = f"resnet{k} ({kind})" + (f", {TAG}, {TAG}" if long else "")
        networks.append(
            {
                "caption": caption,
                "kind": kind,
                "n": n,
                "mean": {"clean": score(0.9, n)},
                "accuracy": accuracy,
            }
        )
    own = {
        name: {"strengths": list(shift.amounts), "unit": shift.unit}
        for name, shift in SHIFTS.items()
    }
    data = {"name": LONG * 3 if long else "mura", "images": 308, "image_size": 32}
    return figures.shifts({"data": data, "shifts": own, "networks": networks})


def drawn(figure):
    """The canvas of a figure after drawing, which puts every text in its place."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas


def tick_labels(axis):
    """The labels of an axis that are visible."""
    low, high = sorted(axis.get_view_interval())
    return [
        tick.label1
        for tick in axis.get_major_ticks()
        if low <= tick.get_loc() <= high and tick.label1.get_visible() and tick.label1.get_text()
    ]


def check_layout(figure):
    """Assert that texts are inside the figure, tick labels apart, and the size bounded."""
    renderer = drawn(figure).get_renderer()
    width, height = figure.bbox.size
    assert max(width, height) <= 16 * layout.DPI + 1
    axes_labels = [
        label
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for label in tick_labels(axis)
    ]
    hidden = {
        id(tick.label1)
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
    }
    hidden -= {id(label) for label in axes_labels}
    for text in figure.findobj(Text):
        if text.get_text() and text.get_visible() and id(text) not in hidden:
            box = text.get_window_extent(renderer)
            if box.width and box.height:
                inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
                assert inside, f"{text.get_text()!r} at {box} is not inside {width} x {height}"
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            check_apart(axis, renderer)


def check_apart(axis, renderer):
    """Assert that the tick labels of an axis do not overlap, whatever their rotation."""
    labels = tick_labels(axis)
    for one, other in zip(labels, labels[1:]):
        if one.get_rotation() == 45:  # parallel lines: compare their distance with the font size
            gap = np.subtract(
                one.get_transform().transform(one.get_position()),
                other.get_transform().transform(other.get_position()),
            )
            assert abs(gap[0]) * np.sqrt(0.5) >= one.get_fontsize() * layout.DPI / 72, (one, other)
        else:
            assert not one.get_window_extent(renderer).overlaps(
                other.get_window_extent(renderer)
            ), (one, other)


SIZES = [(confusion, 2), (confusion, 7), (reliability, 2), (heat_map, 3), (arms, 1), (arms, 4), (curves, 1), (shifts, 1)]
LARGE = [(confusion, 1), (confusion, 22), (confusion, 50), (confusion, 300), (reliability, 1), (reliability, 5), (heat_map, 1),
         (heat_map, 9), (heat_map, 16), (heat_map, 60), (arms, 9), (curves, 12), (curves, 150), (shifts, 6), (shifts, 40)]


@pytest.mark.parametrize("long", [False, True], ids=["short", "long"])
@pytest.mark.parametrize("draw, count", [*SIZES, *(pytest.param(*size, marks=pytest.mark.slow) for size in LARGE)])
def test_no_text_is_cut_and_no_tick_labels_overlap(draw, count, long):
    check_layout(draw(count, long))


@pytest.mark.slow
def test_legends_do_not_cover_axes_or_notes():
    for figure in (
        curves(12, True),
        shifts(6, True),
        arms(4, True),
        reliability(2, True),
        heat_map(3, True),
    ):
        renderer = drawn(figure).get_renderer()
        [legend] = figure.legends
        box = legend.get_window_extent(renderer)
        others = [axes.get_tightbbox(renderer) for axes in figure.axes] + [
            text.get_window_extent(renderer) for text in figure.texts
        ]
        assert not any(box.overlaps(other) for other in others if other.width)


@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 20, 250])
def test_epochs_are_whole_and_losses_are_plain_numbers(epochs):
    figure = curves(2, False, epochs)
    drawn(figure)
    for axes in figure.axes:
        ticks = [float(label.get_text()) for label in tick_labels(axes.xaxis)]
        assert ticks and all(tick == int(tick) for tick in ticks) and len(set(ticks)) == len(ticks)
    losses = [label.get_text() for label in tick_labels(figure.axes[0].yaxis)]
    assert len(losses) >= 2 and all(set(text) <= set("0123456789.") for text in losses)
    if epochs == 20:
        assert losses == ["0.1", "0.2", "0.5", "1", "2"]
    assert [text.get_text() for text in figure.axes[1].texts] == ["not recorded"]


def test_ticks_of_logarithmic_axes():
    assert layout.log_ticks(0.4, 3) == pytest.approx([0.5, 1, 2])
    assert layout.log_ticks(0.009, 20) == pytest.approx([0.01, 0.1, 1, 10])
    assert layout.log_ticks(1.45, 3.5) == pytest.approx([1.5, 2, 3])
    assert [layout.plain_number(tick) for tick in layout.log_ticks(1.71, 1.79)] == [
        "1.72",
        "1.74",
        "1.76",
        "1.78",
    ]
    assert len(layout.log_ticks(1e-30, 1e30)) <= 8
    assert [layout.plain_number(number) for number in (1e-5, 0.5, 1.0, 20, 1e6)] == [
        "0.00001",
        "0.5",
        "1",
        "20",
        "1000000",
    ]


def test_a_loss_of_zero_or_none_is_drawn():
    rows = [{"epoch": 1, "train_loss": 0.0, "train_accuracy": None, "valid_accuracy": 0.5}]
    assert figures.curves({"_run": rows, "no epochs": []}).axes[0].get_yscale() == "linear"


@pytest.mark.parametrize("draw", [arms, shifts])
def test_error_bars_are_explained_and_one_seed_has_none(draw):
    for n, note in (
        (3, "error bars: standard deviation over seeds (n = 3)"),
        (1, "one seed: no error bars"),
    ):
        figure = draw(4, False, n)
        assert any(text.get_text().startswith(note) for text in figure.texts)
        bars = [
            one
            for axes in figure.axes
            for one in axes.containers
            if isinstance(one, ErrorbarContainer)
        ]
        heights = [
            segment[1, 1] - segment[0, 1]
            for one in bars
            for segment in one.lines[2][0].get_segments()
            if len(segment)
        ]
        known = [height for height in heights if np.isfinite(height)]
        assert known == [pytest.approx(0.04)] * (len(heights) if n > 1 else 0)
    assert (
        figures._bars_note([1, 2, 5])
        == "error bars: standard deviation over seeds (n = 2 to 5; none where n = 1)"
    )


def test_series_differ_not_only_in_colour():
    styles = [tuple(layout.series_style(number).values()) for number in range(252)]
    assert len(set(styles)) == 252 and len({style[1:] for style in styles}) == 36
    figure = curves(7, False)
    assert len({(line.get_marker(), line.get_linestyle()) for line in figure.axes[0].lines}) == 7


def test_only_evidence_is_coloured():
    canvas = drawn(figures.heat_map(table(2, 2), HEADING))
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].astype(int)
    axes = canvas.figure.axes[0]

    def cell(row, column):
        """The pixels of the upper left corner of a cell."""
        x, y = axes.transData.transform((column - 0.45, row - 0.45)).astype(int)
        return pixels[len(pixels) - y : len(pixels) - y + 5, x : x + 5].reshape(-1, 3)

    better, unclear, worse, missing = cell(0, 0), cell(0, 1), cell(1, 0), cell(1, 1)
    assert (better[:, 2] - better[:, 0] > 60).all() and (worse[:, 0] - worse[:, 2] > 60).all()
    assert (np.ptp(unclear, axis=1) <= 3).all() and unclear.min() > 200 and (missing == 255).all()
    labels = [text.get_text() for text in canvas.figure.legends[0].get_texts()]
    assert labels[2] == "no evidence, or no verdict"
    # The scale is the same for all tables.
    for gaps in ([(0.001, 0.0001)], [(0.4, 0.1)]):
        image = figures.heat_map(table(1, 1, gaps=gaps), HEADING).axes[0].images[0]
        assert image.get_clim() == (-10, 10)


def test_texts_are_wrapped_and_shortened_to_their_width():
    text = f"one two {LONG}{LONG} three"
    for width in (0.3, 1.0, 3.0):
        lines = layout.wrapped(text, width, 8, lines=99).split("\n")
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
        assert all(layout.text_width(line, 8) <= width for line in lines)
        assert len(layout.wrapped(text, width, 8, lines=3).split("\n")) <= 3
        short = layout.shortened(text, width, 8)
        assert (
            layout.text_width(short, 8) <= width
            and "…" in short
            and short[0] == "o"
            and short[-1] == "e"
        )
    assert layout.shortened("short", 1, 8) == "short" and layout.wrapped("", 1, 8) == ""


def test_names_that_are_equal_after_shortening_are_numbered():
    named = layout.short_names({0: f"{LONG}a{LONG}", 5: f"{LONG}b{LONG}", 6: "c"}, 2, 8)
    assert [name[:3] for name in named] == ["1: ", "6: ", "c"] and len(set(named)) == 3


def test_characters_without_a_glyph_are_escaped():
    assert layout.drawable("$x^2$ ä_\\alpha\n\x01\ue000") == "$x^2$ ä_\\alpha \\x01\\ue000"


def test_300_classes_need_little_memory():
    code = (
        "import resource, numpy as np; from kd.reports import figures\n"
        "def draw(n):\n"
        "    matrix, classes = np.eye(n, dtype=int).tolist(), tuple(map(str, range(n)))\n"
        "    figures.pixels(figures.confusion(matrix, classes, 'title'))\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "draw(2); before = peak(); draw(300); print((peak() - before) / 1024)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert float(run.stdout) < 200  # MB
