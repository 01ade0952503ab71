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
    return sklearn_metrics.confusion_matrix(
        labels, logits.argmax(1), labels=range(logits.shape[1])
    ).tolist()


def quadratic_weighted_kappa(logits: np.ndarray, labels: np.ndarray) -> float | None:
    """Cohen's kappa of predicted and true grade, a disagreement weighing (i - j)^2 (Cohen 1968,
    Psychological Bulletin 70).

    None where none is expected, so that kappa is 0 / 0: labels and predictions hold one and the
    same grade. logits [N, K], column k of grade k, labels [N], N >= 1.
    """
    predicted = logits.argmax(1)
    if len({*labels.tolist(), *predicted.tolist()}) < 2:
        return None
    return float(
        sklearn_metrics.cohen_kappa_score(
            labels, predicted, labels=range(logits.shape[1]), weights="quadratic"
        )
    )


def referable_auc(logits: np.ndarray, labels: np.ndarray, at: int = 2) -> float | None:
    """Area under the ROC curve of the probability of grades from `at` on, against whether the grade
    is one of them.

    The softmax's probabilities are summed and taken as log-odds: the order is the same, and none is
    lost near 0 and 1. None where all images are on one side or no grade is. logits [N, K], column k
    of grade k, labels [N], N >= 1.
    """
    referable = labels >= at
    if logits.shape[1] <= at or referable.all() or not referable.any():
        return None
    logits = logits.astype(np.float64)
    odds = np.logaddexp.reduce(logits[:, at:], axis=1) - np.logaddexp.reduce(logits[:, :at], axis=1)
    # Rounded: equal probabilities from different logits are a tie, which the last bits would break.
    return float(sklearn_metrics.roc_auc_score(referable, odds.round(10)))


def grades(logits: np.ndarray, labels: np.ndarray) -> dict:
    """The figures of ordered grades: `quadratic_kappa`, `referable_auc` (grade 2 on), and the
    `reason` why one is None, or None.

    logits [N, K], column k of grade k, labels [N], N >= 1.
    """
    kappa, auc = quadratic_weighted_kappa(logits, labels), referable_auc(logits, labels)
    reasons = (
        ["quadratic_kappa: labels and predictions hold one grade alone"] if kappa is None else []
    )
    if auc is None:
        why = (
            f"there are only {logits.shape[1]} grades"
            if logits.shape[1] <= 2
            else (
                "no image is of grade 2 or above"
                if (labels < 2).all()
                else "no image is below grade 2"
            )
        )
        reasons.append(f"referable_auc: {why}")
    return {"quadratic_kappa": kappa, "referable_auc": auc, "reason": "; ".join(reasons) or None}


def classification_report(logits: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> dict:
    """scikit-learn's report as a dictionary: precision, recall, f1-score and support for each class
    and the averages.

    A figure that is not defined (precision of a class never predicted, recall of one that is
    absent) is None; in the averages it counts as 0, as scikit-learn has it by default: leaving it
    out would flatter a collapsed network.
    """

    def report(zero_division):
        return sklearn_metrics.classification_report(
            labels,
            logits.argmax(1),
            labels=range(len(classes)),
            target_names=classes,
            output_dict=True,
            zero_division=zero_division,
        )

    single, averaged = report(np.nan), report(0)
    return {
        **{name: _defined(single[name]) for name in classes},
        "accuracy": accuracy(logits, labels),
        **{name: _defined(averaged[name]) for name in ("macro avg", "weighted avg")},
    }


def report_text(report: dict, classes: tuple[str, ...]) -> str:
    """`classification_report`'s dictionary as the table that scikit-learn prints."""
    rows = [*classes, "macro avg", "weighted avg"]
    width = max(map(len, rows))
    columns = ("precision", "recall", "f1-score")
    lines = [" " * width + "".join(f"{name:>11}" for name in (*columns, "support"))]
    for name in rows:
        figures = "".join(
            f"{'-' if report[name][c] is None else format(report[name][c], '.4f'):>11}"
            for c in columns
        )
        lines.append(f"{name:<{width}}{figures}{int(report[name]['support']):>11}")
    total = int(report["macro avg"]["support"])
    lines.append(f"{'accuracy':<{width}}{'':>22}{report['accuracy']:>11.4f}{total:>11}")
    return "\n".join(lines)


def _defined(row: dict) -> dict:
    return {key: None if np.isnan(value) else float(value) for key, value in row.items()}
