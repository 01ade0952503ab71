"""Which classes are the positive ones: what sensitivity, specificity and AUROC are of."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from kd.system.errors import Problem, printable

REFERABLE_GRADE = 2  # the lowest grade of referable disease
REFERABLE = f"grade >= {REFERABLE_GRADE}"
# Names of the class without the finding, in the data sets and languages that are common.
_NEGATIVE = {
    "negative", "neg", "normal", "no", "none", "healthy", "benign", "absent", "control", "controls",
    "false", "0", "nofinding", "nofindings", "unremarkable", "normale", "gesund", "sain", "sano",
}  # fmt: skip


class Positive(NamedTuple):
    """What sensitivity is of: one of two classes, or the grades of referable disease.

    name     the class, or `REFERABLE`
    classes  the positions of its classes
    """

    name: str
    classes: tuple[int, ...]


def positive_of(classes: Sequence[str], graded: bool, named: str | None) -> Positive | None:
    """Return the positive classes; None if there are more than two classes that are not grades.

    Of two classes, it is the one that is `named` by --positive. By default, it is the class that is
    not named like a normal finding (`normal`, `healthy control`, `no pneumonia`), or the second one
    if that cannot be told. Of more than two ordered grades, it is referable disease.

    Raises Problem if `named` is not one of the two classes, or if there are more than two.
    """
    if named is not None and (len(classes) != 2 or named not in classes):
        names = ", ".join(printable(name) for name in classes[:10])
        raise Problem(
            f"--positive '{printable(named)}' is not valid: it must be one of two classes, but the"
            f" classes are {names}. Remove --positive, or name one of two classes."
        )
    if graded and len(classes) > REFERABLE_GRADE:
        return Positive(REFERABLE, tuple(range(REFERABLE_GRADE, len(classes))))
    if len(classes) != 2:
        return None
    place = list(classes).index(named) if named is not None else _likely_positive(classes)
    return Positive(classes[place], (place,))


def classes_of(name: str | None, classes: Sequence[str]) -> tuple[int, ...] | None:
    """Return the positions of the positive classes that a report names; None if it names none."""
    if name is None:
        return None
    if name in classes:
        return (list(classes).index(name),)
    return tuple(range(REFERABLE_GRADE, len(classes)))


def _likely_positive(classes: Sequence[str]) -> int:
    negative = [_is_negative(name) for name in classes]
    return 0 if negative == [False, True] else 1


def _is_negative(name: str) -> bool:
    """Return whether a class is named like a normal finding."""
    words = [word for word in re.split(r"[\W_]+", name.lower()) if word]
    starts = {"".join(words), *words[:1]}  # "nofinding", or "normal" of "normal findings"
    return not starts.isdisjoint(_NEGATIVE | {"non", "not", "without", "sans"})
