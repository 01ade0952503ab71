"""Groups of images by the values of a column: categories, or bands of a number."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from kd.data.index import Index
from kd.system.errors import Problem, first_ten, printable

UNKNOWN = "unknown"
OTHER = "other"
NOT_PLAUSIBLE = "not plausible"
NO_NUMBER = "not a number"
# How tables write a value that is missing, in lower case. "none" may be a category of its own.
MISSING = {
    "", UNKNOWN, "na", "n/a", "nan", "null", "missing", "not available", "-", "--",
    "?", ".", "<na>", "#n/a", "unbekannt", "inconnu",
}  # fmt: skip
MOST = 20  # groups of a column with categories; the rarest are put together
MANY = 8  # distinct numbers above which a column of numbers is divided into bands
# Lower bounds of the bands of ages in years: children, young, middle-aged and older adults.
AGES = (0, 18, 40, 65)
OLDEST = 120  # years; a table has 999 for an age that is not known
_AGE_UNITS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)")


def groups_of(column: str, values: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the positions of the images of each group of a column: {name: int64 [n]}.

    Ages, in a column whose name has the word `age`, are divided into bands at AGES, so that no age
    of a single patient is a group. Ages that nobody has, and values that are no numbers, are a
    group each. Other numbers are divided at their quartiles if they have more than MANY distinct
    values. Other values are categories, of which the rarest are put together if there are more than
    MOST. Images without a value (MISSING) are a group.

    column  its name
    values  the text of each image, empty if unknown
    """
    texts = np.array([text.strip() for text in values], dtype=object)
    known = np.array([text.lower() not in MISSING for text in texts], dtype=bool)
    if _is_age(column):
        own, order = _ages(texts[known])
    else:
        own, order = _bands_or_categories(texts[known])
    names = np.full(len(texts), UNKNOWN, dtype=object)
    names[known] = own
    if not known.all():
        order = [*order, UNKNOWN]
    return {name: np.flatnonzero(names == name) for name in order}


def _is_age(column: str) -> bool:
    return "age" in re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", column).lower())


def _ages(texts: np.ndarray) -> tuple[list[str], list[str]]:
    """Return (the group of each age, the groups that have one in ascending order)."""
    bands = [f"{low} to {high - 1}" for low, high in zip(AGES, AGES[1:])]
    bands.append(f"{AGES[-1]} and above")
    names = []
    for text in texts:
        years = _years(text)
        if years is None:
            names.append(NO_NUMBER)
        elif not 0 <= years <= OLDEST:
            names.append(NOT_PLAUSIBLE)
        else:
            names.append(bands[np.searchsorted(AGES, years, side="right") - 1])
    return names, [name for name in (*bands, NOT_PLAUSIBLE, NO_NUMBER) if name in names]


def _years(text: str) -> float | None:
    """Return the age in a text, also as in DICOM (`064Y`); None if it is none."""
    unit = _AGE_UNITS.get(text[-1].upper())
    number = _number(text if unit is None else text[:-1])
    return None if number is None else number * (unit or 1.0)


def _number(text: str) -> float | None:
    return float(text.replace(",", ".")) if _NUMBER.fullmatch(text) else None


def _bands_or_categories(texts: np.ndarray) -> tuple[Sequence[str], list[str]]:
    """Return (the group of each value, the groups that have one in order)."""
    numbers = [_number(text) for text in texts]
    if None in numbers or len(set(numbers)) <= MANY:
        return _categories(texts)
    return _bands(np.array(numbers))


def _bands(numbers: np.ndarray) -> tuple[list[str], list[str]]:
    """Return (the band of each number, the bands that have one in ascending order)."""
    inner = np.unique(np.quantile(numbers, [0.25, 0.5, 0.75], method="inverted_cdf"))
    bounds = inner[inner > numbers.min()]
    if not len(bounds):
        return ["all"] * len(numbers), ["all"]
    # Enough digits that different bounds have different names: dates have eight.
    words = [np.format_float_positional(bound, trim="-") for bound in bounds]
    names = [f"below {words[0]}"]
    names += [f"{low} to below {high}" for low, high in zip(words, words[1:])]
    names.append(f"{words[-1]} and above")
    places = np.searchsorted(bounds, numbers, side="right")
    return [names[place] for place in places], [names[place] for place in np.unique(places)]


def _categories(names: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return (the category of each image, those that have one in alphabetical order)."""
    counts = Counter(names.tolist())
    kept = sorted(counts)
    if len(counts) > MOST:
        ranked = sorted(counts, key=lambda name: (-counts[name], name))
        kept = sorted(ranked[: MOST - 1])
        names = np.where(np.isin(names.astype(str), kept), names, OTHER)
        kept = [*(name for name in kept if name != OTHER), OTHER]
    return names, kept


def columns_of(index: Index, wanted: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return {name: text of each row} of the columns whose groups are reported.

    wanted  their names. Without any, they are all columns of a published data set, and none of a
            table, whose columns may be anything

    Raises Problem if the table has no such column.
    """
    if not wanted:
        return index.extra if index.space else {}
    for name in wanted:
        if name not in index.extra:
            has = "has no further columns"
            if index.extra:
                has = f"has {first_ten([printable(other) for other in index.extra])}"
            raise Problem(
                f"--subgroups '{printable(name)}' is not valid: the data set '{index.name}' {has}."
                " Name a further column of its table, exactly as it is written there."
            )
    return {name: index.extra[name] for name in wanted}
