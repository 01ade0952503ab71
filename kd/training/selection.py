"""The choice of the epoch that a phase delivers, by a metric of the validation split (--select)."""

import numpy as np

from kd.reports import metrics
from kd.system.errors import Problem

# The metrics of SELECTIONS in the settings. Each takes logits [n, K] and labels [n].
METRICS = {
    "accuracy": metrics.accuracy,
    "balanced_accuracy": metrics.balanced_accuracy,
    "auroc": metrics.auroc,
    "kappa": metrics.kappa,
    "nll": metrics.nll,
}
FALLING = ("nll",)  # lower is better
NEED_CLASSES = ("auroc", "kappa")  # undefined if all labels are of one class, and only then


def column(select: str) -> str:
    """Return the key of a metric in the rows of the history."""
    return f"valid_{select}"


def is_better(row: dict, other: dict, select: str) -> bool:
    """Return whether the epoch of a row is better than the other one; an equal one is not."""
    value, compared = row[column(select)], other[column(select)]
    return value < compared if select in FALLING else value > compared


def in_words(select: str) -> str:
    """Return the name of a metric as in a sentence: `balanced accuracy`, `AUROC`."""
    return select.upper() if select in ("auroc", "nll") else select.replace("_", " ")


def better(select: str) -> str:
    """Return what a better epoch has, in words: `higher validation accuracy`."""
    return f"{'lower' if select in FALLING else 'higher'} validation {in_words(select)}"


def best(select: str) -> str:
    """Return what the best epoch has, in words: `highest validation accuracy`."""
    return f"{'lowest' if select in FALLING else 'highest'} validation {in_words(select)}"


def refuse_undefined(select: str, labels: np.ndarray, classes: tuple[str, ...]) -> None:
    """Raise Problem if a metric is undefined for the labels [n] of the validation split."""
    present = np.unique(labels)
    if select in NEED_CLASSES and len(present) < 2:
        raise Problem(
            f"--select {select} is undefined on the validation split: all of its {len(labels)}"
            f" images are of class '{classes[present[0]]}', and {in_words(select)} needs two"
            " classes. Use another --select, or a validation split with images of several classes."
        )
