"""Figures of a report's `evidence`: ROC and PR curves, net benefit, calibration."""

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from kd.reports import clinical_figures as clinical
from kd.reports.calibration import probabilities
from kd.reports.clinical_figures import Estimate, ManyClasses, OperatingPoint, TwoClasses
from kd.reports.evidence import Labelled
from kd.reports.positive import classes_of
from kd.reports.resampling import DRAWS

NOTE = f"brackets: 95 % intervals over patients ({DRAWS} resamples)"


def figures_of_two(own: Labelled, evidence: dict, classes: Sequence[str], title: str) -> dict:
    """Return {name: Figure} of the positive classes against the others; {} if there are none.

    evidence  of the same images, see `kd.reports.evidence`
    """
    if evidence["positive"] is None:
        return {}
    chosen = list(classes_of(evidence["positive"], classes))
    positive = np.isin(own.labels, chosen)
    scaled = _likely(own, evidence)[:, chosen].sum(1)
    is_class = evidence["positive"] in classes
    two = TwoClasses(
        p=scaled,
        positive=positive,
        name=evidence["positive"],
        auroc=_estimate(evidence, "auroc" if is_class else "referable_auc"),
        average_precision=(
            _estimate(evidence, "auprc") if is_class else _area("auprc", positive, scaled)
        ),
        points=_points(evidence),
    )
    caption = "calibrated" if evidence["calibration"]["temperature"] else "not scaled"
    return {
        "roc": clinical.roc(two, title, [NOTE]),
        "precision_recall": clinical.precision_recall(two, title, [NOTE]),
        "decision_curve": clinical.net_benefit(two, title),
        "calibration": clinical.calibration_plot({caption: (scaled, positive)}, two.name, title),
    }


def figures_of_many(own: Labelled, evidence: dict, classes: Sequence[str], title: str) -> dict:
    """Return {name: Figure} of each class against the rest; {} if a class is positive."""
    if evidence["positive"] is not None:
        return {}
    found = {}
    for name, key, draw in (
        ("roc", "auroc", clinical.roc_of_classes),
        ("precision_recall", "auprc", clinical.precision_recall_of_classes),
    ):
        # Not scaled, like the scores of the areas: with several classes, a temperature changes
        # the order of the images.
        p = probabilities(own.logits)
        areas = {}
        for number in range(len(classes)):
            areas[number] = _area(key, own.labels == number, p[:, number])
        many = ManyClasses(
            p=p,
            labels=own.labels,
            classes=tuple(classes),
            areas=areas,
            mean=_estimate(evidence, key),
        )
        found[name] = draw(many, title, [NOTE])
    return found


def _likely(own: Labelled, evidence: dict) -> np.ndarray:
    """Return the probabilities [N, K], scaled by the temperature if there is one."""
    return probabilities(own.logits, evidence["calibration"]["temperature"] or 1.0)


def _area(metric: str, positive: np.ndarray, p: np.ndarray) -> Estimate:
    """Return the area under a curve as it is drawn, without an interval: `auroc` or `auprc`."""
    if positive.all() or not positive.any():
        return Estimate(None, None, None)
    area = roc_auc_score if metric == "auroc" else average_precision_score
    return Estimate(float(area(positive, p)), None, None)


def _estimate(evidence: dict, name: str) -> Estimate:
    one = evidence["metrics"][name]
    return Estimate(one["value"], one["low"], one["high"])


def _points(evidence: dict) -> tuple[OperatingPoint, ...]:
    """Return the operating point to mark, if it and its metrics are defined."""
    point = evidence["operating_point"]
    found = {name: evidence["metrics"][name]["value"] for name in ("sensitivity", "specificity")}
    if point is None or point["threshold"] is None or None in found.values():
        return ()
    precision = evidence["metrics"]["ppv"]["value"]
    return (OperatingPoint(point["rule"], point["threshold"], precision=precision, **found),)
