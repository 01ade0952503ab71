"""The report's `evidence`: metrics of predictions beyond accuracy."""

from collections.abc import Hashable

import numpy as np

from kd.reports import metrics
from kd.reports.calibration import calibration


def summarise(
    logits: np.ndarray,
    labels: np.ndarray,
    studies: list[Hashable | None],
    temperature: float | None,
    graded: bool,
) -> dict:
    """Return the metrics beyond accuracy for labelled images.

    F1 and recall are means over the classes that are present. logits [N, K], labels [N], studies
    [N] (None: unknown).

    temperature  fitted on other data, for the calibration after scaling; None if none was found
    graded       whether the classes are ordered grades; if so, the result also has kappa and
                 referable AUC
    """
    averages = metrics.macro_averages(logits, labels)
    return {
        "macro_f1": averages["f1-score"],
        "balanced_accuracy": averages["recall"],
        "study": metrics.by_study(logits, labels, studies),
        "calibration": calibration(logits, labels, temperature),
        "grades": metrics.grades(logits, labels) if graded else None,
    }
