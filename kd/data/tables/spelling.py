"""Names that are probably one name in two spellings (a and A), or stand for a missing value."""

import re
import unicodedata
from collections.abc import Iterable

# What spreadsheets and pandas write for a missing value. `none` and `unknown` may be classes.
MISSING = frozenset(
    (
        "",
        "nan",
        "-nan",
        "na",
        "n/a",
        "<na>",
        "nat",
        "null",
        "#n/a",
        "#na",
        "#nv",
        "#div/0!",
        "#name?",
        "#null!",
        "#num!",
        "#ref!",
        "#value!",
    )
)
# Names of classes that mean the same, although some data set may use them otherwise.
_PROBABLY_MISSING = MISSING | {"nil", "?", "-"}


def is_missing(text: str) -> bool:
    """Return whether a text is empty, or what programs write for a value that is missing."""
    return text.casefold() in MISSING


def plain(text: str) -> str:
    """Return a text without differences of case, blanks, Unicode forms and leading zeros."""
    text = "".join(unicodedata.normalize("NFKC", text).casefold().split())
    return re.sub("^(-?)0+(?=[0-9]+$)", r"\1", text)


def spelled_twice(names: Iterable[str]) -> list[list[str]]:
    """Return groups of names that differ only in case, blanks, `_`, `-`, or zeros (1, 01, 1.0).

    A `-` that is not between two words is a sign: -1 is not 1, and HER2- is not HER2.

    The groups and the names in them are sorted.
    """
    groups = {}
    for name in set(names):
        groups.setdefault(_loose(name), []).append(name)
    return sorted(sorted(group) for group in groups.values() if len(group) > 1)


def missing_values(names: Iterable[str]) -> list[str]:
    """Return the names that stand for a missing value: nan, N/A, null ..."""
    return sorted({name for name in names if name.strip().casefold() in _PROBABLY_MISSING})


def _loose(name: str) -> str:
    """Return a name like `plain`, with `_` and `-` between words as blanks, which stay there."""
    words = re.sub(r"[\s_]+", " ", unicodedata.normalize("NFKC", name)).strip()
    words = re.sub(r"(?<=\w)(-| - )+(?=\w)| ", "/", words)
    return plain(re.sub(r"^(-?[0-9]+)\.0*$", r"\1", words))
