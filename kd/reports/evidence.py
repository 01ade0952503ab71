"""The report's `evidence`: metrics of predictions beyond accuracy."""

import numpy as np
from sklearn.metrics import f1_score, recall_score

from kd.reports import metrics
from kd.reports.calibration import calibration


def summarise(
    logits: np.ndarray, labels: np.ndarray, studies: list[str], temperature: float, graded: bool
) -> dict:
    """Return the metrics beyond accuracy for labelled images.

    F1 and recall are means over the classes that are present. logits [N, K], labels [N], studies
    [N].

    temperature  fitted on other data, for the calibration after scaling
    graded       whether the classes are ordered grades; if so, the result also has kappa and
                 referable AUC
    """
    predicted = logits.argmax(1)
    averaged = {"labels": np.unique(labels), "average": "macro", "zero_division": 0}
    return {
        "macro_f1": float(f1_score(labels, predicted, **averaged)),
        "balanced_accuracy": float(recall_score(labels, predicted, **averaged)),
        "study": metrics.by_study(logits, labels, studies),
        "calibration": calibration(logits, labels, temperature),
        "grades": metrics.grades(logits, labels) if graded else None,
    }
