"""Properties of the files of each class, and properties that are mixed in one data set."""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from kd.data.check.inspection import PROPERTIES, Finding, counted_by
from kd.data.index import Index
from kd.system.errors import printable

UNLABELLED = "unlabelled"
_PLURALS = {
    "format": "formats",
    "mode": "modes",
    "photometric": "photometrics",
    "manufacturer": "manufacturers",
    "modality": "modalities",
    "window": "windows",
}
FEW_BITS = 12  # what most radiographs have: their values in a file of 16 bits stay below 4096


def class_of(index: Index, row: int) -> str:
    """Return the name of the class of a row, for messages."""
    label = index.samples[row].label
    return printable(index.classes[label]) if label >= 0 else UNLABELLED


def in_classes(index: Index, rows: list[int]) -> dict[str, list[int]]:
    """Return the rows of each class, in the order of the classes; unlabelled rows are last."""
    found = {printable(name): [] for name in index.classes}
    for row in rows:
        found.setdefault(class_of(index, row), []).append(row)
    return {name: own for name, own in found.items() if own}


def properties_by_class(index: Index, findings: list[Finding], sound: list[int]) -> dict:
    """Return the properties of the files of each class.

    The result is `{class: {"images": n, "sizes": ..., "formats": {"PNG": n}, ...}}`; a property
    that no file of the data set states is left out.
    """
    stated = [name for name in PROPERTIES if any(findings[row].properties[name] for row in sound)]
    result = {}
    for name, rows in in_classes(index, sound).items():
        own = [findings[row] for row in rows]
        entry = {"images": len(own), "sizes": sizes([finding.size for finding in own])}
        for key in stated:
            entry[_PLURALS.get(key, key)] = counted_by(own, key)
        if "windows" in entry:
            windows = Counter(finding.window for finding in own if finding.window)
            entry["windows"] = dict(windows.most_common())
        result[name] = entry
    return result


def sizes(found: list[tuple[int, int]]) -> dict | None:
    """Return the smallest, median and largest longest side in pixels, and how many sizes exist."""
    if not found:
        return None
    longest = sorted(max(size) for size in found)
    return {
        "longest_side_min": longest[0],
        "longest_side_median": longest[len(longest) // 2],
        "longest_side_max": longest[-1],
        "distinct_sizes": len(set(found)),
    }


def mixed(index: Index, findings: list[Finding], sound: list[int]) -> dict[str, dict]:
    """Return the properties that differ within the data set and should not.

    The result is `{kind in MIXED: {class: {value: images}}}`, only for kinds with several values.
    """
    classes = in_classes(index, sound)
    result = {}
    for kind, mixture in MIXED.items():
        counts = {}
        for name, rows in classes.items():
            values = (mixture.value_of(findings[row]) for row in rows)
            counts[name] = dict(sorted(Counter(value for value in values if value).items()))
        if len(set().union(*counts.values())) > 1:
            result[kind] = counts
    return result


def _depth(finding: Finding) -> str:
    return "more than 8 bits" if finding.is_deep else "8 bits"


def _polarity(finding: Finding) -> str:
    return "inverted" if finding.is_inverted else "not inverted"


def _window(finding: Finding) -> str:
    window = finding.properties["window"]
    return {"yes": "with a window", "no": "without one"}.get(window, "")


def _used_bits(finding: Finding) -> str:
    used = finding.properties["bits_used"]
    if not used or finding.properties["bits"] != "16":
        return ""
    few = int(used) <= FEW_BITS
    return f"at most {FEW_BITS} bits used" if few else f"more than {FEW_BITS} bits used"


def _numbers(finding: Finding) -> str:
    return finding.properties["numbers"]


class Mixture(NamedTuple):
    """A property of files that should be the same in a whole data set.

    words     what is mixed, for a warning
    value_of  the value of a file, empty if the property does not apply to it
    cure      what the user should do
    """

    words: str
    value_of: Callable[[Finding], str]
    cure: str


MIXED = {
    "depth": Mixture(
        "images with 8 bits and with more bits per channel",
        _depth,
        "They differ in how their brightness was scaled. Export all of them in the same way.",
    ),
    "numbers": Mixture(
        "integer and floating-point values",
        _numbers,
        "Each kind has a range of its own. Export all of them in the same way.",
    ),
    "bits_used": Mixture(
        f"16-bit files that use at most {FEW_BITS} bits and others",
        _used_bits,
        "One range applies to all of them, so that the former are dark. Scale them alike.",
    ),
    "polarity": Mixture(
        "images stored with the lowest value as white and as black",
        _polarity,
        "The former are inverted when they are read. Look at some of each, because the tag that"
        " says so is sometimes wrong.",
    ),
    "window": Mixture(
        "DICOM files with and without a window",
        _window,
        "Those without one show all of their values, with less contrast. Export all of them in the"
        " same way.",
    ),
}
