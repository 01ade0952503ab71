"""ROC, precision-recall, decision curves and calibration plots: what they show, and that texts fit."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from test_figures import HEADING, LONG, check_layout, names

from kd.reports import calibration, figures
from kd.reports import clinical_figures as clinical
from kd.reports.clinical_figures import Estimate, ManyClasses, OperatingPoint, TwoClasses
from kd.reports.decision_curve import decision_curve
from kd.reports.evidence_figures import figures_of_many

# Matplotlib warns of missing glyphs and of layouts that do not fit, scikit-learn of undefined metrics.
pytestmark = pytest.mark.filterwarnings("error")
TITLE = "resnet34-resnet18, test split (n = 1715)"
NOTE = "brackets: 95 % intervals, patients resampled 2000 times"


def operating_point(p, positive, threshold, name="chosen on validation"):
    treated = p >= threshold
    precision = positive[treated].mean() if treated.any() else None
    return OperatingPoint(name, threshold, treated[positive].mean(), (~treated)[~positive].mean(), precision)


def two_classes(count=300, apart=2.0, name="abnormal", prevalence=0.4):
    """Predictions whose log-odds differ by `apart` standard deviations between the classes."""
    random = np.random.default_rng(0)
    positive = np.arange(count) < max(1, round(prevalence * count))
    p = 1 / (1 + np.exp(-random.normal(size=count) - apart * (positive - 0.5)))
    area, precision = roc_auc_score(positive, p), average_precision_score(positive, p)
    points = [operating_point(p, positive, threshold) for threshold in (0.5, 0.3712)]
    return TwoClasses(p, positive, name, Estimate(area, 0.8, 0.9), Estimate(precision), points)


def many_classes(classes, count=400):
    """Predictions for classes of which each has fewer images than the one before."""
    random = np.random.default_rng(0)
    labels = (len(classes) * random.uniform(size=count) ** 2).astype(int)
    logits = random.normal(size=(count, len(classes))) + 1.5 * np.eye(len(classes))[labels]
    areas = {k: Estimate(0.5 + 0.001 * k, 0.4, 0.6) for k in range(len(classes))}
    return ManyClasses(calibration.probabilities(logits), labels, classes, areas, Estimate(0.7, 0.65, 0.75))


def plot(data, title, notes=()):
    panels = {f"{name} scaling (T = 1.00): ECE 0.1": (data.p, data.positive) for name in ("before", "after")}
    return clinical.calibration_plot(panels, data.name, title, notes)


OF_TWO = [clinical.roc, clinical.precision_recall, clinical.net_benefit, plot]
OF_MANY = [clinical.roc_of_classes, clinical.precision_recall_of_classes]
INPUTS = {
    "good": {}, "useless": {"apart": 0}, "perfect": {"apart": 100}, "three images": {"count": 3}, "rare": {"prevalence": 0.01},
    "long": {"name": LONG * 3}, "other letters": {"name": "läsion 肺炎 Пневмо $x^2$ _"}, "no space": {"name": "W" * 80}}


def check_whole(figure):
    """Assert that texts fit, and that legend, axes, title and notes do not overlap."""
    check_layout(figure)
    renderer = figure.canvas.get_renderer()  # every text is in its place already
    parts = [*figure.axes, *figure.legends, *(text for text in figure.texts if text.get_text())]
    boxes = [part.get_tightbbox(renderer) for part in parts]
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:number])


@pytest.mark.parametrize("draw", OF_TWO)
@pytest.mark.parametrize("given", [
    pytest.param(given, id=name, marks=[] if name in ("three images", "long") else pytest.mark.slow) for name, given in INPUTS.items()])
def test_nothing_is_cut_or_overlaps_for_two_classes(draw, given):
    check_whole(draw(two_classes(**given), TITLE, [NOTE]))


@pytest.mark.parametrize("draw", OF_MANY)
@pytest.mark.parametrize("count, long", [(3, False), (7, True), (40, True)])
def test_nothing_is_cut_or_overlaps_for_many_classes(draw, count, long):
    title = HEADING * 2 if long else TITLE
    check_whole(draw(many_classes(names(count, long)), title, [NOTE]))


@pytest.mark.parametrize("draw", OF_TWO)
@pytest.mark.parametrize("label", [False, True])
def test_images_of_one_class_are_drawn_without_a_curve(draw, label):
    figure = draw(TwoClasses(np.array([0.2, 0.9]), np.array([label] * 2), "abnormal"), TITLE)
    check_whole(figure)
    if draw in OF_TWO[:2]:
        assert [text.get_text() for text in figure.axes[0].texts] == ["undefined: all images are of one class"]
        assert not figure.axes[0].lines


@pytest.mark.parametrize("draw", OF_MANY)
def test_a_class_without_images_has_no_curve(draw):
    data = many_classes(["a", "b", "c"])
    figure = draw(dataclasses.replace(data, labels=np.minimum(data.labels, 1)), TITLE)
    assert [text[:1] for text in legend(figure)[:-1]] == ["a", "b"]
    assert figure.texts[1].get_text().endswith("\n1 class without images has no curve")
    figure = draw(dataclasses.replace(data, labels=np.full(400, 2)), TITLE)
    assert not figure.axes[0].lines and figure.axes[0].texts[0].get_text().startswith("undefined")


def legend(figure):
    return [text.get_text().replace("\n", " ") for text in figure.legends[0].get_texts()]


def test_the_legends_of_two_classes_have_areas_and_operating_points():
    data = two_classes()
    point = data.points[0]._replace(precision=None)
    data = dataclasses.replace(data, points=[point])
    start = f"chosen on validation: threshold 0.5000, sensitivity {point.sensitivity:.3f}"
    assert legend(clinical.roc(data, TITLE)) == [
        f"abnormal: AUROC {data.auroc.value:.3f} [0.800, 0.900]", "chance",
        f"{start}, specificity {point.specificity:.3f}"]
    assert legend(clinical.precision_recall(data, TITLE)) == [
        f"abnormal: average precision {data.average_precision.value:.3f}", "prevalence 0.400",
        f"{start}, precision undefined"]
    bare = TwoClasses(data.p, data.positive, "abnormal", Estimate(None))
    assert legend(clinical.roc(bare, TITLE)) == ["abnormal: AUROC undefined", "chance"]
    assert legend(clinical.precision_recall(bare, TITLE))[0] == "abnormal: average precision"


def test_operating_points_are_on_their_curves():
    data = two_classes()
    for draw, second in ((clinical.roc, "specificity"), (clinical.precision_recall, "precision")):
        curve, _, *marks = draw(data, TITLE).axes[0].lines
        assert len(marks) == 2 and len({mark.get_marker() for mark in marks}) == 2
        for mark, point in zip(marks, data.points):
            place = np.array(mark.get_xydata()[0])
            known = {"specificity": (1 - point.specificity, point.sensitivity), "precision": (point.sensitivity, point.precision)}
            assert place.tolist() == pytest.approx(known[second])
            corners = curve.get_xydata()
            if second == "specificity":  # scikit-learn leaves out corners on straight parts
                corners = np.stack(roc_curve(data.positive, data.p, drop_intermediate=False)[:2], axis=1)
            assert np.abs(corners - place).max(1).min() < 1e-12


def test_the_areas_under_the_drawn_curves_are_those_of_scikit_learn():
    for data in (two_classes(), two_classes(apart=0), two_classes(3), dataclasses.replace(two_classes(), p=two_classes().p.round(1))):
        line, baseline, *_ = clinical.roc(data, TITLE).axes[0].lines
        assert np.trapezoid(line.get_ydata(), line.get_xdata()) == pytest.approx(roc_auc_score(data.positive, data.p))
        assert baseline.get_xydata().tolist() == [[0, 0], [1, 1]]
        line, baseline, *_ = clinical.precision_recall(data, TITLE).axes[0].lines
        assert line.get_drawstyle() == "steps-post" and line.get_xdata()[[0, -1]].tolist() == [1, 0]
        area = -np.diff(line.get_xdata()) @ line.get_ydata()[:-1]
        assert area == pytest.approx(average_precision_score(data.positive, data.p))
        assert baseline.get_ydata().tolist() == pytest.approx([data.positive.mean()] * 2) and baseline.get_linestyle() == ":"


def test_a_precision_recall_curve_does_not_begin_with_a_precision_that_nothing_has():
    p, positive = np.array([0.9, 0.8, 0.7, 0.6]), np.array([False, True, False, True])
    line = clinical.precision_recall(TwoClasses(p, positive, "abnormal"), TITLE).axes[0].lines[0]
    assert line.get_ydata().max() == 0.5  # scikit-learn adds (0, 1)


@pytest.mark.parametrize("draw, area, level", [
    (clinical.roc_of_classes, "AUROC", "chance"), (clinical.precision_recall_of_classes, "average precision", "prevalence of the class")])
def test_ten_classes_are_named_and_the_others_are_grey(draw, area, level):
    data = many_classes(names(13, False), 2000)
    data = dataclasses.replace(data, labels=np.where(data.labels == 0, 12, data.labels))  # class 0 is absent, 12 has the most
    figure = draw(data, TITLE, [NOTE])
    named = [f"class{k}: {0.5 + 0.001 * k:.3f} [0.400, 0.600]" for k in (1, 2, 3, 4, 5, 6, 7, 8, 9, 12)]
    assert legend(figure) == [*named, "2 other classes", level]
    assert figure.texts[1].get_text().split("\n") == [
        f"{area} of each class against the rest; mean of the classes: 0.700 [0.650, 0.750]",
        "named are the 10 classes with the most images", "1 class without images has no curve", NOTE]
    curves = figure.axes[0].lines[:12]
    assert [line.get_color() for line in curves[10:]] == [clinical.PALE] * 2
    assert len({(line.get_marker(), line.get_linestyle()) for line in curves[:10]}) == 10  # also without colours
    baselines = figure.axes[0].lines[12:]
    if area == "AUROC":
        assert len(baselines) == 1
        assert np.trapezoid(curves[9].get_ydata(), curves[9].get_xdata()) == pytest.approx(roc_auc_score(data.labels == 12, data.p[:, 12]))
    else:
        heights = [line.get_ydata()[0] for line in baselines[:10]]
        assert heights == pytest.approx([(data.labels == k).mean() for k in (1, 2, 3, 4, 5, 6, 7, 8, 9, 12)])
        assert [line.get_color() for line in baselines[:10]] == [line.get_color() for line in curves[:10]]


@pytest.mark.parametrize("given", INPUTS.values(), ids=INPUTS)
def test_a_decision_curve_ends_a_little_below_zero(given):
    data = two_classes(**given)
    figure = clinical.net_benefit(data, TITLE)
    low, high = figure.axes[0].get_ylim()
    curve = decision_curve(data.p, data.positive)
    assert -0.3 * high < low < 0 and high >= max(curve["network"].max(), curve["all"].max())
    lines = figure.axes[0].lines
    for line, key in zip(lines, ("network", "all", "none")):
        assert line.get_xydata().tolist() == np.stack([curve["thresholds"], curve[key]], axis=1).tolist()
    assert len({line.get_linestyle() for line in lines}) == 3
    assert figure.texts[1].get_text().endswith(f"{data.positive.mean():.3f}")


def test_a_calibration_plot_shows_observed_against_predicted_frequencies():
    data = two_classes(400)
    figure = plot(data, TITLE)
    assert legend(figure) == ["observed frequency in up to 10 groups of about equal size", "perfectly calibrated", "share of the images"]
    for axes in figure.axes:
        _, line = axes.lines
        rows = calibration.frequency_bins(data.p, data.positive)
        assert line.get_xydata().tolist() == [[row["predicted"], row["observed"]] for row in rows] and len(rows) == 10
        assert sum(bar.get_height() for bar in axes.patches) == pytest.approx(1)


def test_a_reliability_diagram_can_have_bins_of_equal_counts():
    data = many_classes(names(3, False))
    panels = {"before": (data.p, data.labels)}
    assert len(figures.reliability(panels, TITLE).axes[0].lines) == 1
    figure = figures.reliability(panels, TITLE, equal_counts=True)
    check_whole(figure)
    marks = [line for line in figure.axes[0].lines if line.get_marker() == "D"][0]
    gaps = np.abs(marks.get_xdata() - marks.get_ydata())
    counts = np.bincount(calibration.equal_counts(data.p.max(1)))
    assert np.average(gaps, weights=counts) == pytest.approx(calibration.adaptive_ece(data.p, data.labels))
    assert "accuracy in bins of equal counts" in legend(figure)


def test_each_class_has_the_area_of_its_curve_in_the_legend():
    data = many_classes(("cat", "dog", "fish"))
    logits = np.log(data.p)
    unknown = {"value": None, "low": None, "high": None}
    evidence = {"positive": None, "metrics": {"auroc": unknown, "auprc": unknown}}
    found = figures_of_many(SimpleNamespace(logits=logits, labels=data.labels), evidence, data.classes, TITLE)
    for name, area in (("roc", roc_auc_score), ("precision_recall", average_precision_score)):
        texts = legend(found[name])
        for k, word in enumerate(data.classes):
            assert f"{word}: {area(data.labels == k, data.p[:, k]):.3f}" in texts
