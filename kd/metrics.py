"""Logits and labels -> numbers. Pure functions of arrays."""

import numpy as np
from sklearn import metrics as sklearn_metrics


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Fraction of rows whose largest logit is the label's. logits [N, K], labels [N], N >= 1."""
    return float((logits.argmax(1) == labels).mean())


def nll(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood (nats) of the labels. logits [N, K], labels [N], N >= 1."""
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(1, keepdims=True)
    log_sum = np.log(np.exp(shifted).sum(1))
    return float((log_sum - shifted[np.arange(len(labels)), labels]).mean())


def confusion_matrix(logits: np.ndarray, labels: np.ndarray) -> list[list[int]]:
    """counts[true class][predicted class] over all K columns of the logits."""
    return sklearn_metrics.confusion_matrix(labels, logits.argmax(1), labels=range(logits.shape[1])).tolist()


def classification_report(logits: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> dict:
    """scikit-learn's report as a dictionary: precision, recall, f1-score and support for each class and the averages.

    A figure that is not defined (a class never predicted, or absent from the labels) is None.
    """
    report = sklearn_metrics.classification_report(labels, logits.argmax(1), labels=range(len(classes)),
                                                   target_names=classes, output_dict=True, zero_division=np.nan)
    # All labels are listed, so scikit-learn may call the accuracy "micro avg"; the two are the same number here.
    report.pop("micro avg", None)
    report["accuracy"] = accuracy(logits, labels)
    return {key: _defined(value) for key, value in report.items()}


def report_text(report: dict, classes: tuple[str, ...]) -> str:
    """`classification_report`'s dictionary as the table that scikit-learn prints."""
    rows = [*classes, "macro avg", "weighted avg"]
    width = max(map(len, rows))
    columns = ("precision", "recall", "f1-score")
    lines = [" " * width + "".join(f"{name:>11}" for name in (*columns, "support"))]
    for name in rows:
        figures = "".join(f"{'-' if report[name][c] is None else format(report[name][c], '.4f'):>11}" for c in columns)
        lines.append(f"{name:<{width}}{figures}{int(report[name]['support']):>11}")
    total = int(report["macro avg"]["support"])
    lines.append(f"{'accuracy':<{width}}{'':>22}{report['accuracy']:>11.4f}{total:>11}")
    return "\n".join(lines)


def _defined(value):
    if isinstance(value, dict):
        return {key: _defined(entry) for key, entry in value.items()}
    return None if np.isnan(value) else float(value)
