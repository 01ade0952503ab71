"""Metrics from logits and labels. All functions are pure functions of arrays."""

from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from scipy.special import log_softmax, logsumexp, softmax
from sklearn import metrics as sklearn_metrics

NEWLY_WRONG_LISTED = 20
# The rows of a classification report that are no classes.
AVERAGES = ("accuracy", "macro avg", "weighted avg")


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the fraction of rows whose largest logit is that of the label.

    logits [N, K], labels [N], N >= 1.
    """
    return float((logits.argmax(1) == labels).mean())


def nll(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean negative log-likelihood (nats) of the labels.

    logits [N, K], labels [N], N >= 1.
    """
    log_p = log_softmax(logits.astype(np.float64), axis=1)
    return float(-log_p[np.arange(len(labels)), labels].mean())


def balanced_accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean recall over the classes that are present in the labels.

    logits [N, K], labels [N], N >= 1.
    """
    return macro_averages(logits, labels)["recall"]


def auroc(logits: np.ndarray, labels: np.ndarray) -> float | None:
    """Return the area under the ROC curve, by the probability of each class.

    With two classes, it is that of the second class against the first. With more, it is the mean of
    each class against the rest, over the classes that are present, as of scikit-learn's
    `roc_auc_score` with `multi_class="ovr"`. Returns None if all labels are of one class. logits
    [N, K], labels [N], N >= 1.
    """
    present = np.unique(labels)
    if len(present) < 2:
        return None
    areas = []
    for number in [1] if logits.shape[1] == 2 else present:
        others = np.delete(logits, number, axis=1)
        areas.append(_area(logits[:, [number]], others, labels == number))
    return float(np.mean(areas))


def _area(own: np.ndarray, others: np.ndarray, positive: np.ndarray) -> float:
    """Return the area under the ROC curve of some classes together against all others.

    The softmax probabilities are summed and converted to log-odds, which have the same order and
    keep it near 0 and 1.

    own, others  logits of these classes and of all others, [N, A] and [N, B]
    positive     bool [N], whether the label is one of these classes; not all are equal
    """
    own, others = own.astype(np.float64), others.astype(np.float64)
    odds = logsumexp(own, axis=1) - logsumexp(others, axis=1)
    # Different logits can give equal probabilities. Without rounding, their last bits would break
    # such ties.
    return float(sklearn_metrics.roc_auc_score(positive, odds.round(10)))


def by_study(logits: np.ndarray, labels: np.ndarray, studies: list[Hashable | None]) -> dict:
    """Return the number of studies and the accuracy of the mean probability over their views.

    A study whose images have different labels (a hand and a wrist, left and right) has no label of
    its own, so no single answer about it is right. It does not count, and neither does an image
    whose study is None, that is unknown; `several_labels` and `unknown` are the numbers of both. If
    no study is left, `accuracy` is None and `reason` explains why. logits [N, K], labels [N].
    """
    rows_of = {}
    for row, study in enumerate(studies):
        if study is not None:
            rows_of.setdefault(study, []).append(row)
    p = softmax(logits.astype(np.float64), axis=1)
    correct = []
    for rows in rows_of.values():
        [label, *others] = np.unique(labels[rows])
        if not others:
            correct.append(p[rows].mean(0).argmax() == label)
    reason = None
    if not correct:
        reason = "every study has several labels" if rows_of else "no image has a known study"
    return {
        "studies": len(correct),
        "accuracy": float(np.mean(correct)) if correct else None,
        "several_labels": len(rows_of) - len(correct),
        "unknown": sum(study is None for study in studies),
        "reason": reason,
    }


def macro_averages(logits: np.ndarray, labels: np.ndarray) -> dict:
    """Return the means of precision, recall and F1 over the classes that are present in the labels.

    A class without images cannot be classified correctly or wrongly, so it does not count. A class
    that is present but never predicted counts as 0, because excluding it would favour a collapsed
    network. logits [N, K], labels [N].
    """
    averages = sklearn_metrics.precision_recall_fscore_support(
        labels, logits.argmax(1), labels=np.unique(labels), average="macro", zero_division=0
    )
    return dict(zip(("precision", "recall", "f1-score"), map(float, averages[:3])))


def agreement(
    predicted: np.ndarray, teacher: np.ndarray, labels: np.ndarray, first_line: int
) -> dict:
    """Compare the predictions of student and teacher image by image.

    The result also lists the first newly wrong images: the teacher is right and the student is not.
    They are given by their lines in predictions.csv, because the path of an image can name its
    patient. predicted, teacher, labels: int [N].

    first_line  the line of the first image in predictions.csv, whose header is line 1
    """
    newly_wrong = np.flatnonzero((teacher == labels) & (predicted != labels))
    newly_right = int(((teacher != labels) & (predicted == labels)).sum())
    return {
        "same_prediction": float((predicted == teacher).mean()),
        "newly_wrong": len(newly_wrong),
        "newly_right": newly_right,
        "first_newly_wrong": [first_line + int(row) for row in newly_wrong[:NEWLY_WRONG_LISTED]],
    }


def confusion_matrix(logits: np.ndarray, labels: np.ndarray) -> list[list[int]]:
    """Return counts[true class][predicted class] over all K columns of the logits."""
    return sklearn_metrics.confusion_matrix(
        labels, logits.argmax(1), labels=range(logits.shape[1])
    ).tolist()


def kappa(logits: np.ndarray, labels: np.ndarray, weights: str | None = None) -> float | None:
    """Return Cohen's kappa of predicted and true classes: agreement beyond that by chance.

    Cohen 1960, Educational and Psychological Measurement 20. Returns None if no disagreement is
    expected, so that kappa is 0 / 0: labels and predictions contain one and the same class only.
    logits [N, K], labels [N], N >= 1.

    weights  of the disagreements, as in scikit-learn; None: all are equal
    """
    predicted = logits.argmax(1)
    if len({*labels.tolist(), *predicted.tolist()}) < 2:
        return None
    found = sklearn_metrics.cohen_kappa_score(
        labels, predicted, labels=range(logits.shape[1]), weights=weights
    )
    return float(found)


def quadratic_weighted_kappa(logits: np.ndarray, labels: np.ndarray) -> float | None:
    """Return Cohen's kappa of predicted and true grades, with disagreements weighted by (i - j)^2.

    Cohen 1968, Psychological Bulletin 70. Undefined as `kappa` is. logits [N, K], column k for
    grade k, labels [N], N >= 1.
    """
    return kappa(logits, labels, "quadratic")


def referable_auc(logits: np.ndarray, labels: np.ndarray, at: int = 2) -> float | None:
    """Return the area under the ROC curve of `grade >= at`, by the probability of those grades.

    Returns None if all images are below `at` or none is, or if no column is for a grade >= `at`.
    logits [N, K], column k for grade k, labels [N], N >= 1.
    """
    referable = labels >= at
    if logits.shape[1] <= at or referable.all() or not referable.any():
        return None
    return _area(logits[:, at:], logits[:, :at], referable)


def grades(logits: np.ndarray, labels: np.ndarray) -> dict:
    """Return `quadratic_kappa` and `referable_auc` (grade >= 2) of ordered grades, with a `reason`.

    The reason explains why one of the metrics is None. Otherwise it is None. logits [N, K],
    column k for grade k, labels [N], N >= 1.
    """
    quadratic = quadratic_weighted_kappa(logits, labels)
    auc = referable_auc(logits, labels)
    reasons = []
    if quadratic is None:
        reasons.append("quadratic_kappa: labels and predictions contain only one grade")
    if auc is None:
        reasons.append(f"referable_auc: {_why_no_auc(logits.shape[1], labels)}")
    return {
        "quadratic_kappa": quadratic,
        "referable_auc": auc,
        "reason": "; ".join(reasons) or None,
    }


def _why_no_auc(classes: int, labels: np.ndarray) -> str:
    if classes <= 2:
        return f"there are only {classes} grades"
    if (labels < 2).all():
        return "no image is of grade 2 or above"
    return "no image is below grade 2"


def class_keys(classes: Sequence[str]) -> list[str]:
    """Return the keys of the classes in a classification report: their names.

    A class that is named like one of its AVERAGES has another key, which no class has.
    """
    keys = []
    for name in classes:
        key = name
        while key in AVERAGES or (key != name and key in classes):
            key = f"class {key}"
        keys.append(key)
    return keys


def classification_report(logits: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> dict:
    """Return scikit-learn's classification report as a dictionary.

    It has precision, recall, f1-score and support for each class (see `class_keys`) and for the
    averages. An undefined metric (precision of a class that is never predicted, recall of a class
    that is absent) is None. The macro average is that of `macro_averages`, over the classes that
    are present; scikit-learn's own is over all classes. In the weighted average, an undefined
    metric counts as 0, as in scikit-learn by default. logits [N, K], labels [N].
    """
    rows = np.stack(_scores(logits, labels, None, np.nan), axis=1)  # [K, 4]
    *weighted, _ = _scores(logits, labels, "weighted", 0)
    return {
        **{key: _row(row) for key, row in zip(class_keys(classes), rows, strict=True)},
        "accuracy": accuracy(logits, labels),
        "macro avg": macro_averages(logits, labels) | {"support": float(len(labels))},
        "weighted avg": _row((*weighted, len(labels))),
    }


def _scores(logits: np.ndarray, labels: np.ndarray, average: str | None, undefined: float) -> tuple:
    """Return precision, recall, f1-score and support, of each class by number or averaged."""
    return sklearn_metrics.precision_recall_fscore_support(
        labels,
        logits.argmax(1),
        labels=range(logits.shape[1]),
        average=average,
        zero_division=undefined,
    )


def _row(values: Iterable[float]) -> dict:
    """Return a row of a classification report; an undefined value is None."""
    return {
        key: None if np.isnan(value) else float(value)
        for key, value in zip(("precision", "recall", "f1-score", "support"), values)
    }
