"""Which of two classes is the positive one."""

import re
from collections.abc import Sequence

from kd.system.errors import Problem, printable

# Names of the class without the finding, in the data sets and languages that are common.
_NEGATIVE = {
    "negative", "neg", "normal", "no", "none", "healthy", "benign", "absent", "control", "controls",
    "false", "0", "nofinding", "nofindings", "unremarkable", "normale", "gesund", "sain", "sano",
}  # fmt: skip


def positive_class(classes: Sequence[str], named: str | None) -> int | None:
    """Return the position of the positive one of two classes; None for another number of classes.

    It is the class `named` by --positive. By default, it is the class that is not named like a
    normal finding (`normal`, `no pneumonia`), or the second one if that cannot be told.

    Raises Problem if `named` is not one of the two classes, or if there are more than two.
    """
    if named is not None and (len(classes) != 2 or named not in classes):
        names = ", ".join(printable(name) for name in classes[:10])
        raise Problem(
            f"--positive '{printable(named)}' is not valid: it must be one of two classes, but the"
            f" classes are {names}. Remove --positive, or name one of two classes."
        )
    if len(classes) != 2:
        return None
    if named is not None:
        return list(classes).index(named)
    negative = [_is_negative(name) for name in classes]
    return 0 if negative == [False, True] else 1


def _is_negative(name: str) -> bool:
    """Return whether a class is named like a normal finding."""
    words = re.split(r"[\W_]+", name.lower())
    return "".join(words) in _NEGATIVE or words[0] in ("no", "non", "not", "without", "sans")
