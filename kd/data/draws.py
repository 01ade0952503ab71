"""Draw patients or images of each class from rows of an index."""

import numpy as np

FRACTION = 0.15  # of the patients, for a split that the data set does not have


def draw_patients(
    rows, labels, patients, per_class: int | None, random, fraction: float = FRACTION
) -> np.ndarray:
    """Return the rows of randomly drawn patients with enough images of each class.

    Enough means `per_class` images. If it is None, it means a fraction of each class, but at least
    one image.
    """
    need = _needed(labels[rows], per_class, fraction)
    by_patient = {}
    for row in rows:
        by_patient.setdefault(patients[row], []).append(row)
    order = list(by_patient)
    random.shuffle(order)
    drawn = []
    for patient in order:
        own = by_patient[patient]
        if any(need[labels[row]] > 0 for row in own):
            drawn += own
            for row in own:
                need[labels[row]] -= 1
    return np.array(sorted(drawn), dtype=np.int64)


def _needed(labels, per_class: int | None, fraction: float) -> dict:
    """Return how many images of each class are needed: {label: images}."""
    need = {}
    for label, count in zip(*np.unique(labels, return_counts=True)):
        need[label] = per_class or max(1, int(np.round(count * fraction)))
    return need


def balanced(rows, labels, per_class: int, random) -> np.ndarray:
    """Return `per_class` rows of each class.

    The rows are distinct if the class has enough. Otherwise, all its rows are used and repeated.
    """
    chosen = []
    for label in np.unique(labels[rows]):
        own = random.permutation(rows[labels[rows] == label])
        chosen.append(np.resize(own, per_class))
    return np.concatenate(chosen) if chosen else rows


def at_most(rows, labels, per_class: int, random) -> np.ndarray:
    """Return at most `per_class` rows of each class, all distinct."""
    chosen = []
    for label in np.unique(labels[rows]):
        own = random.permutation(rows[labels[rows] == label])
        chosen.append(own[:per_class])
    return np.concatenate(chosen) if chosen else rows
