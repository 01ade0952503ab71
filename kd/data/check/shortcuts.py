"""Find out whether properties of the files alone, without their pixels, tell the class.

A network can learn such a shortcut instead of the content: in a public set of COVID radiographs,
the size of an image is enough to tell its class.
"""

import numpy as np

from kd.data.check.inspection import PROPERTIES, Finding
from kd.data.index import Index
from kd.system.errors import counted, first_ten, printable

FOLDS = 5
DEPTH = 4  # of a decision tree: at most 16 rules
FEWEST = 10  # patients in a class: with 5, sizes drawn at random tell two classes in 29 % of sets
MOST_VALUES = 20  # of a property; rarer ones are treated as not stated


def told_by_properties(index: Index, findings: list[Finding], sound: list[int]) -> dict:
    """Return how well a small decision tree tells the class from properties of the files alone.

    The value is the balanced accuracy in a cross-validation with 5 folds, stratified by class, with
    no patient in two folds. `chance` is 1 / number of classes, and the warning begins half way from
    chance to 1.

    The result is `{"skipped": reason}`, or `{"skipped": None, "images", "classes", "left_out",
    "chance", "threshold", "all": value for all properties, "single": {property: value}}`. Classes
    with images of fewer than FEWEST patients are left out.
    """
    rows, left_out = _usable_rows(index, sound)
    labels = index.labels[rows]
    classes = len(np.unique(labels))
    if classes < 2:
        return {
            "skipped": f"fewer than two classes have readable images of {FEWEST} patients"
            f" ({first_ten(left_out)})"
        }
    folds = _folds(labels, np.array([index.samples[row].patient for row in rows]))
    features = _features([findings[row] for row in rows])
    single = {}
    for name, columns in features.items():
        single[name] = _balanced_accuracy(columns, labels, folds)
    everything = np.concatenate([np.empty((len(rows), 0)), *features.values()], axis=1)
    chance = 1 / classes
    return {
        "skipped": None,
        "images": len(rows),
        "classes": classes,
        "left_out": left_out,
        "chance": chance,
        "threshold": (1 + chance) / 2,
        "all": _balanced_accuracy(everything, labels, folds),
        "single": single,
    }


def is_told(found: dict) -> bool:
    """Return whether the properties, all together or one of them, tell the class too well."""
    if found["skipped"]:
        return False
    return max(found["all"], *found["single"].values(), 0) > found["threshold"]


def _usable_rows(index: Index, sound: list[int]) -> tuple[list[int], list[str]]:
    """Return (rows of the classes with enough patients, texts for the other classes)."""
    patients = {label: set() for label in range(len(index.classes))}
    for row in sound:
        sample = index.samples[row]
        if sample.label >= 0:
            patients[sample.label].add(sample.patient)
    left_out = []
    for label, own in patients.items():
        if len(own) < FEWEST:
            name = printable(index.classes[label])
            left_out.append(f"{name}: {counted(len(own), 'patient', 'patients')}")
    rows = []
    for row in sound:
        label = index.samples[row].label
        if label >= 0 and len(patients[label]) >= FEWEST:
            rows.append(row)
    return rows, left_out


def _features(findings: list[Finding]) -> dict[str, np.ndarray]:
    """Return the columns of each property that differs between files: {words: float64 [N, k]}."""
    columns = {}
    for name, words in PROPERTIES.items():
        columns[words] = _one_hot([finding.properties[name] for finding in findings])
    sides = np.array([finding.size for finding in findings], dtype=np.float64)
    columns["width"] = sides[:, :1]
    columns["height"] = sides[:, 1:]
    columns["aspect ratio"] = sides[:, :1] / sides[:, 1:]
    return {words: own for words, own in columns.items() if own.size and np.ptp(own, 0).any()}


def _one_hot(values: list[str]) -> np.ndarray:
    """Return a column for each of the most frequent values: float64 [N, at most MOST_VALUES]."""
    names, counts = np.unique(values, return_counts=True)
    frequent = names[np.argsort(-counts, kind="stable")[:MOST_VALUES]]
    return (np.array(values)[:, None] == frequent).astype(np.float64)


def _folds(labels: np.ndarray, patients: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (rows to fit a tree to, rows to judge it on) for each fold."""
    # Imported here, because nothing else in this package needs it.
    from sklearn.model_selection import StratifiedGroupKFold

    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    return [fold for fold in folds.split(labels, labels, patients) if len(fold[1])]


def _balanced_accuracy(columns: np.ndarray, labels: np.ndarray, folds: list) -> float:
    """Return the mean recall of the classes for files that the tree was not fitted to."""
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.tree import DecisionTreeClassifier

    if not columns.size:
        return 1 / len(np.unique(labels))
    predicted = np.full(len(labels), -1)
    for fitted, judged in folds:
        tree = DecisionTreeClassifier(max_depth=DEPTH, class_weight="balanced", random_state=0)
        predicted[judged] = tree.fit(columns[fitted], labels[fitted]).predict(columns[judged])
    return float(balanced_accuracy_score(labels, predicted))
