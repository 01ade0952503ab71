"""Teachers that are no better than chance, or whose classes seem to be in another order."""

import numpy as np
from scipy.optimize import linear_sum_assignment

from kd.data.dataset import Dataset
from kd.system.errors import first_ten
from kd.teachers.ensemble import Teacher

# An accuracy this far above chance is not called chance, however few the images are.
ALLOWED = 0.05
ONE_SIDED = 1.64  # standard errors of a one-sided test at 5 %
# By how much another order of the classes must raise the accuracy, and in how many standard errors.
# They are many, because the best of all orders is compared.
FAR_BETTER = 0.1
SURE = 4


def warning(member: Teacher, logits: np.ndarray, dataset: Dataset) -> str:
    """Return a warning about a teacher's logits [n, K] on the validation split, or "".

    The warning says that the teacher is not shown to be better than chance, or that another order
    of its outputs would be far better.
    """
    classes, rows = dataset.index.classes, dataset.splits.valid
    labels = dataset.index.labels[rows]
    units = np.array([dataset.index.unit(row) for row in rows])
    if len(np.unique(labels)) < 2:
        return ""
    name = f"Teacher {member.name} ({member.source})"
    accuracy = float((logits.argmax(1) == labels).mean())
    order, reordered = better_order(logits, labels, units)
    if order is not None:
        return (
            f"{name} has validation accuracy {accuracy:.4f}, but {reordered:.4f} if its outputs are"
            f" taken in another order ({_pairs(order, labels, classes)}). The data set's order is"
            f" {_expected(classes)}. Reorder the rows of its classifier, unless the labels are"
            " wrong."
        )
    if not is_chance(logits, labels, units):
        return ""
    common = np.bincount(labels, minlength=len(classes))
    text = (
        f"{name} is not shown to be better than chance: its validation accuracy is {accuracy:.4f},"
        f" and '{classes[common.argmax()]}' for every image gives {common.max() / len(labels):.4f}."
    )
    if member.trained.about is None:
        return (
            f"{text} Its outputs are taken as {_expected(classes)}, and images are normalized as"
            " timm does for this network. Check both, and what it was trained on."
        )
    return f"{text} Train it longer or with other settings."


def is_chance(logits: np.ndarray, labels: np.ndarray, units: np.ndarray) -> bool:
    """Return whether a network's accuracy and mean recall are not better than chance.

    Chance is the share of the most common class (at least 1/K), and 1/K for the mean recall, which
    tells a network that finds a rare class from one that always gives the same answer. Only what
    exceeds it by more than chance alone does (a one-sided test at 5 %), or by ALLOWED, is better.

    units  the patient of each image: images of a patient are alike and count once in the test
    """
    right = logits.argmax(1) == labels
    shares = np.bincount(labels, minlength=logits.shape[1]) / len(labels)
    chance = max(shares.max(), 1 / logits.shape[1])
    if right.mean() > chance + _allowance(chance, [len(np.unique(units))]):
        return False
    present = np.flatnonzero(shares)
    recall = np.mean([right[labels == one].mean() for one in present])
    counts = [len(np.unique(units[labels == one])) for one in present]
    return bool(recall <= 1 / len(present) + _allowance(1 / len(present), counts))


def _allowance(chance: float, counts: list[int]) -> float:
    """Return by how much a mean over groups of `counts` patients may exceed chance by accident."""
    variance = chance * (1 - chance) * np.mean([1 / count for count in counts]) / len(counts)
    return min(ONE_SIDED * float(np.sqrt(variance)), ALLOWED)


def better_order(
    logits: np.ndarray, labels: np.ndarray, units: np.ndarray
) -> tuple[np.ndarray | None, float]:
    """Return the output that is each class in a far better order, and the accuracy in it.

    If no order is far better and clearly above chance, returns (None, the accuracy as it is).
    """
    count = logits.shape[1]
    predicted = logits.argmax(1)
    confusion = np.zeros((count, count), int)
    np.add.at(confusion, (labels, predicted), 1)
    order = linear_sum_assignment(-confusion)[1]
    accuracy = confusion.trace() / len(labels)
    reordered = confusion[np.arange(count), order].sum() / len(labels)
    number = len(np.unique(units))
    chance = max(np.bincount(labels).max() / len(labels), 1 / count)
    gain = max(FAR_BETTER, SURE * 0.5 / np.sqrt(number))
    spread = np.sqrt(chance * (1 - chance) / number)
    if reordered - accuracy < gain or reordered < min(chance + 3 * spread, 1.0):
        return None, float(accuracy)
    return order, float(reordered)


def _pairs(order: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> str:
    """Return which output is which class, for the classes of the split that change their place."""
    moved = [one for one in np.unique(labels) if order[one] != one]
    pairs = sorted((int(order[one]), classes[one]) for one in moved)
    return first_ten([f"{output} = {name}" for output, name in pairs])


def _expected(classes: tuple[str, ...]) -> str:
    return first_ten([f"{number} = {name}" for number, name in enumerate(classes)])
