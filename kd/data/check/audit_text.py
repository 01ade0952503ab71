"""What an audit of a data set says: faults, warnings, and a summary to read in a minute."""

from collections.abc import Iterator

from kd.data.check import near_duplicates
from kd.data.check.by_class import MIXED
from kd.data.check.inspection import PROPERTIES
from kd.data.check.passed_over import by_extension
from kd.data.check.shortcuts import is_told
from kd.system import markdown
from kd.system.errors import counted, first_ten

MOST_CLASSES = 20  # rows of the table of properties
MOST_VALUES = 3  # in a cell of this table
SHARE = 0.1  # of the files of a class, above which a property is said to differ between classes


# Each kind of fault: (key of the result, subject for one and for several, what is wrong, cure).
_FAULTS = (
    ("unreadable", ("file", "files"), "cannot be read", "Replace or remove them."),
    (
        "classes_not_readable",
        ("class has", "classes have"),
        "no image that can be read",
        "Add images.",
    ),
    (
        "passed_over",
        ("file", "files"),
        "",  # with the extensions
        "Convert them to PNG, or move them out of the folder.",
    ),
    (
        "classes_without_images",
        ("folder looks like a class but has", "folders look like classes but have"),
        "no images",
        "Add images that can be read, or remove the folder.",
    ),
    (
        "broken_links",
        ("link points", "links point"),
        "nowhere",
        "Mount or restore what they point to, or remove them.",
    ),
    (
        "linked_twice",
        ("folder was", "folders were"),
        "not read, because the same folder is in another class",
        "Keep it in one class, and remove the other link.",
    ),
    (
        "classes_spelled_twice",
        ("class is", "classes are"),
        "spelled in more than one way",
        "Use one name.",
    ),
    (
        "classes_missing",
        ("class is a missing value", "classes are missing values"),
        "",
        "Set the label, or leave it empty.",
    ),
    (
        "patients_across_parts",
        ("patient is", "patients are"),
        "in more than one split",
        "Keep all images of a patient in one split.",
    ),
    (
        "copies_across_parts",
        ("group of identical files is", "groups of identical files are"),
        "in more than one split",
        "Keep one file of each.",
    ),
    (
        "copies_that_disagree",
        ("group of identical files has", "groups of identical files have"),
        "more than one label or patient",
        "Correct the labels or patients, or keep one file of each.",
    ),
)


def remarks(result: dict) -> dict[str, list[str]]:
    """Return `{"problems": lines, "warnings": lines}` for the findings of an audit.

    A line reads `what: names. What to do.` A problem is what a user must fix before training, and a
    warning is what a user must know.
    """
    return {"problems": list(_problems(result)), "warnings": list(_warnings(result))}


def what_is_wrong(line: str) -> str:
    """Return the first part of a line of `remarks`, without the names and the cure."""
    return line.partition(": ")[0].rstrip(".")


def _problems(result: dict) -> Iterator[str]:
    over = f"that may be images were passed over ({by_extension(result['passed_over'])})"
    for key, (one, several), what, cure in _FAULTS:
        if result[key]:
            what = over if key == "passed_over" else what
            yield _line(counted(len(result[key]), one, several), what, result[key], cure)
    if result["refused"]:
        yield f"training would stop: {result['refused']}"


def _warnings(result: dict) -> Iterator[str]:
    if result["refused_sizes"]:
        yield (
            f"training would stop with the default sizes of the splits: {result['refused_sizes']}"
            " Or set --train-per-class, --valid-per-class and --test-per-class."
        )
    for name, absent in result["classes_absent"].items():
        number = counted(len(absent), "class has", "classes have")
        cure = "Add patients of these classes, or no result on this split includes them."
        yield _line(number, f"no images in the {name} split", absent, cure)
    if is_told(result["shortcuts"]):
        yield _shortcut(result["shortcuts"])
    for kind, counts in result["mixed"].items():
        words, _, cure = MIXED[kind]
        yield _line(words, "are mixed", _by_class(counts), cure)
    if result["burned_in"]:
        number = counted(sum(result["burned_in"].values()), "file states", "files state")
        names = [f"{name} ({count})" for name, count in result["burned_in"].items()]
        cure = "Text in the pixels can name the patient or tell the class: look at these files."
        yield _line(number, "burned-in annotations", names, cure)
    for text in result["uneven_ranges"]:
        yield (
            f"images with more than 8 bits have one range, and {text}. Look for damaged pixels, and"
            " for images with another scale."
        )
    if result["flat"]:
        number = counted(len(result["flat"]), "image has", "images have")
        yield _line(number, "only one brightness", result["flat"], "Look at these files.")
    yield from _alike(result["near_duplicates"])
    if result["patients_spelled_twice"]:
        twice = result["patients_spelled_twice"]
        number = counted(len(twice), "patient may be", "patients may be")
        yield _line(number, "spelled in more than one way", twice, "Use one name for each patient.")


def _line(subject: str, what: str, names: list[str], cure: str) -> str:
    return f"{' '.join((subject, what)).strip()}: {first_ten(names)}. {cure}"


def _shortcut(found: dict) -> str:
    best = max(found["single"], key=found["single"].get)
    return (
        f"properties of the files alone, without their pixels, tell the class: balanced accuracy"
        f" {found['all']:.2f} in a cross-validation on {found['images']} images of"
        f" {found['classes']} classes, {found['single'][best]:.2f} with only the property '{best}'"
        f" (chance is {found['chance']:.2f}, and this warning begins above"
        f" {found['threshold']:.2f}). A network can learn this instead of the content: find out why"
        " the files of the classes differ, and convert all of them in the same way from their"
        " source."
    )


def _alike(found: dict) -> Iterator[str]:
    """Yield warnings on near-duplicates."""
    cure = "Look at some of them: if they show the same, keep one of each."
    kinds = (
        ("parts", "in different splits"),
        ("classes", "of different classes"),
        ("patients", "of different patients, or of unknown ones"),
    )
    for key, what in kinds:
        entry = found[f"across_{key}"]
        if entry["pairs"]:
            names = entry["first"][:10]
            more = f", ... ({entry['pairs']} in all)" if entry["pairs"] > len(names) else ""
            pairs = counted(
                entry["pairs"], "pair of near-duplicates is", "pairs of near-duplicates are"
            )
            yield f"{pairs} {what}: {', '.join(names)}{more}. {cure}"
    if not found["complete"]:
        yield (
            f"the search for near-duplicates ended after {near_duplicates.LIMIT} pairs: there are"
            " more. Look at the images: most of them seem to be alike."
        )


def _by_class(counts: dict[str, dict[str, int]]) -> list[str]:
    """Return counts by class as texts: `a (8 bits: 20)`."""
    texts = []
    for name, values in counts.items():
        if values:
            listed = ", ".join(f"{value}: {count}" for value, count in values.items())
            texts.append(f"{name} ({listed})")
    return texts


def text(result: dict) -> str:
    """Return the audit as lines and tables, without the lines of what is wrong."""
    hidden = counted(result["hidden_files"], "hidden file", "hidden files")
    unknown = ""
    if result["without_patient"]:
        unknown = f", {counted(result['without_patient'], 'image', 'images')} of unknown patients"
    lines = [
        (
            f"{result['name']}: {result['images']} images, {result['patients']} patients"
            f" ({result['patients_with_several_classes']} with images of several classes){unknown},"
            f" {hidden}"
        ),
        "",
        *_counts(result["counts"]),
        "",
        (
            f"formats: {_pairs(result['formats'])}; modes: {_pairs(result['modes'])}; bits per"
            f" channel: {_bits(result)}; longest side: {_range(result['sizes'])}"
        ),
        *_differing_properties(result),
        f"identical files: {result['copies']}; near-duplicates: {_number_alike(result)}",
        _told(result["shortcuts"]),
    ]
    lines += [f"note: {note}" for note in result["notes"]]
    if result["official"] == {}:
        lines.append("counts: equal to the official counts")
    return "\n".join(lines)


def _pairs(values: dict) -> str:
    """Return counts as text: `L (60 images), RGB (1 image)`."""
    texts = [f"{key} ({counted(value, 'image', 'images')})" for key, value in values.items()]
    return first_ten(texts) or "-"


def _bits(result: dict) -> str:
    """Return bits per channel as text: `16 (values use 12; 3 images)`."""
    texts = []
    for depth, number in result["bits"].items():
        images = counted(number, "image", "images")
        used = result["bits_used"].get(depth)
        texts.append(f"{depth} (values use {used}; {images})" if used else f"{depth} ({images})")
    return ", ".join(texts) or "-"


def _range(sizes: dict | None) -> str:
    """Return the smallest, median and largest longest side as text."""
    if sizes is None:
        return "-"
    return (
        f"{sizes['longest_side_min']} to {sizes['longest_side_max']} px (median"
        f" {sizes['longest_side_median']}, {counted(sizes['distinct_sizes'], 'size', 'sizes')})"
    )


def _number_alike(result: dict) -> str:
    found = result["near_duplicates"]
    number = counted(found["pairs"], "pair", "pairs")
    return number if found["complete"] else f"more than {number}"


def _told(found: dict) -> str:
    """Return how well the properties of the files tell the class."""
    if found["skipped"]:
        return f"class from file properties alone: not tested, because {found['skipped']}"
    line = (
        f"class from file properties alone: balanced accuracy {found['all']:.2f} (chance"
        f" {found['chance']:.2f})"
    )
    if found["left_out"]:
        line += f", without classes of few patients ({first_ten(found['left_out'])})"
    return line


def _counts(counts: dict) -> list[str]:
    """Return the lines of a table of image counts by class and split."""
    splits = sorted(set().union(*counts.values()))
    rows = []
    for name, own in counts.items():
        rows.append([name, *[str(own.get(split, 0)) for split in splits]])
    return markdown.table(["images of class", *splits], rows)


def _differing_properties(result: dict) -> list[str]:
    """Return the lines of a table of those properties that differ between the classes, if any."""
    classes = result["by_class"]
    columns = {}
    for key in dict.fromkeys(key for entry in classes.values() for key in entry):
        if key == "images":
            continue
        if key == "sizes":
            medians = [entry[key]["longest_side_median"] for entry in classes.values()]
            if max(medians) > (1 + SHARE) * min(medians):
                columns["longest side"] = [_range(entry[key]) for entry in classes.values()]
        elif _differs([entry[key] for entry in classes.values()]):
            columns[_title(key)] = [_cell(entry[key]) for entry in classes.values()]
    if not columns:
        return []
    rows = [list(row) for row in zip(classes, *columns.values())]
    lines = ["", *markdown.table(["files of class", *columns], rows[:MOST_CLASSES])]
    if len(rows) > MOST_CLASSES:
        lines.append(f"... ({len(rows)} classes in all)")
    return [*lines, ""]


def _title(key: str) -> str:
    return PROPERTIES.get(key, key)


def _differs(counts: list[dict[str, int]]) -> bool:
    """Return whether the share of a value differs by more than SHARE between two classes."""
    for value in set().union(*counts):
        shares = [own.get(value, 0) / max(1, sum(own.values())) for own in counts]
        if max(shares) - min(shares) > SHARE:
            return True
    return False


def _cell(counts: dict[str, int]) -> str:
    """Return the most frequent values as text: `PNG 12, JPEG 3`."""
    texts = [f"{value} {count}" for value, count in list(counts.items())[:MOST_VALUES]]
    if len(counts) > MOST_VALUES:
        texts.append(f"{len(counts) - MOST_VALUES} more")
    return ", ".join(texts) or "-"
