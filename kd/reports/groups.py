"""Groups of images by the values of a column: categories, or bands of a number."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from kd.data.index import Index
from kd.system.errors import Problem, first_ten, printable

UNKNOWN = "unknown"
OTHER = "other"
MOST = 20  # groups of a column with categories; the rarest are put together
MANY = 8  # distinct numbers above which a column of numbers is divided into bands
# Lower bounds of the bands of ages in years: children, young, middle-aged and older adults.
AGES = (0, 18, 40, 65)
_AGE_UNITS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)")


def groups_of(column: str, values: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the positions of the images of each group of a column: {name: int64 [n]}.

    Numbers are divided into bands: ages, in a column whose name has the word `age`, at AGES, and
    others at their quartiles if they have more than MANY distinct values. Other values are
    categories, of which the rarest are put together if there are more than MOST. Images without a
    value are a group.

    column  its name
    values  the text of each image, empty if unknown
    """
    texts = np.array([text.strip() for text in values], dtype=object)
    known = np.array([bool(text) and text != UNKNOWN for text in texts], dtype=bool)
    numbers = _numbers(column, texts[known])
    if numbers is None:
        own, order = _categories(texts[known])
    else:
        own, order = _bands(column, numbers)
    names = np.full(len(texts), UNKNOWN, dtype=object)
    names[known] = own
    if not known.all():
        order = [*order, UNKNOWN]
    return {name: np.flatnonzero(names == name) for name in order}


def _numbers(column: str, texts: np.ndarray) -> np.ndarray | None:
    """Return the numbers of a column for bands; None if its values are categories."""
    found = [_number(text, _is_age(column)) for text in texts]
    if not found or None in found:
        return None
    if len(set(found)) <= MANY and not _is_age(column):
        return None
    return np.array(found)


def _number(text: str, is_age: bool) -> float | None:
    """Return the number in a text, in years if it is an age as in DICOM (`064Y`); or None."""
    unit = _AGE_UNITS.get(text[-1].upper()) if is_age else None
    body = text[:-1] if unit is not None else text
    if not _NUMBER.fullmatch(body):
        return None
    return float(body.replace(",", ".")) * (unit or 1.0)


def _is_age(column: str) -> bool:
    return "age" in re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", column).lower())


def _bands(column: str, numbers: np.ndarray) -> tuple[list[str], list[str]]:
    """Return (the band of each number, the bands that have one in ascending order)."""
    if _is_age(column):
        bounds = list(AGES)
        names = [f"{low} to {high - 1}" for low, high in zip(bounds, bounds[1:])]
        names.append(f"{bounds[-1]} and above")
    else:
        inner = np.unique(np.quantile(numbers, [0.25, 0.5, 0.75], method="inverted_cdf"))
        bounds = [-np.inf, *inner[inner > numbers.min()]]
        names = [f"below {bounds[1]:g}"] if len(bounds) > 1 else ["all"]
        names += [f"{low:g} to below {high:g}" for low, high in zip(bounds[1:], bounds[2:])]
        if len(bounds) > 1:
            names.append(f"{bounds[-1]:g} and above")
    places = np.searchsorted(bounds, numbers, side="right") - 1
    places = places.clip(0)
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
