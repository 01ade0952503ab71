"""Flags of networks that have learned nothing: they predict one class, or are at chance."""

import numpy as np

from kd.reports.statistics import SeedVariance, estimate, pair
from kd.studies.runs import Run
from kd.system.errors import counted


def flags(runs: dict[int, Run], teachers: bool = False) -> list[str]:
    """Return what is wrong with the networks of a cell, as short words; usually nothing.

    teachers  flag the teachers of the runs instead
    """
    own, taught = ([], [*runs.values()]) if teachers else ([*runs.values()], [])
    collapsed = one_class_note(own, taught)
    found = [collapsed] if collapsed else []
    return found + (["at chance"] if at_chance(runs, teachers) else [])


def one_class_note(runs: list[Run], taught: list[Run] = ()) -> str:
    """Return how many networks predict one class for all test images; empty if none does.

    Nothing is said about a test split whose labels are of one class.

    runs    whose own networks are counted
    taught  whose teachers are counted
    """
    answers = {run.report["student"]["weights_hash"]: run.test.logits.argmax(1) for run in runs}
    answers |= {run.report["teacher"]["hash"]: run.test.teacher for run in taught}
    labels = [run.test.labels for run in (*runs, *taught)]
    if not labels or len(np.unique(labels[0])) == 1:
        return ""
    count = sum(len(np.unique(own)) == 1 for own in answers.values())
    if not count:
        return ""
    return counted(count, "network predicts", "networks predict") + " one class"


def at_chance(runs: dict[int, Run], teachers: bool = False) -> bool:
    """Return whether runs are not shown to be better than a network that ignores the image.

    Such a network has a balanced accuracy of 1 / K for K classes, whatever it predicts. Runs are at
    chance if that is inside the 95 % interval of theirs, or above it.

    teachers  evaluate the teachers of the runs instead
    """
    if not runs:
        return False
    test = next(iter(runs.values())).test
    classes, counts = np.unique(test.labels, return_counts=True)
    if len(classes) == 1:
        return False
    # Each class has the same weight, scaled so that no image counts more than 1.
    weight_of = dict(zip(classes.tolist(), counts.min() / counts))
    weights = np.array([weight_of[label] for label in test.labels.tolist()])
    right = {seed: weights * _right(run, teachers) for seed, run in runs.items()}
    constant = dict.fromkeys(runs, weights / len(classes))
    compared = pair(right, constant, test.clusters)
    # These networks are flagged, not their kind, so the variance between seeds does not count.
    return compared is None or estimate(compared, SeedVariance(0.0, 0.0, 0)).interval[0] <= 0


def _right(run: Run, teachers: bool) -> np.ndarray:
    return run.test.teacher_right if teachers else run.test.right
