"""Check a data set and report what is wrong with it.

The report covers counts, unreadable files, image modes, identical files, and patients in more than
one split.
"""

import hashlib
import os
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor

from PIL import Image
from tqdm import tqdm

from kd.data.duplicates import groups
from kd.data.index import Index, Sample
from kd.data.mura import FOLDERS
from kd.data.mura import PARTS as BODY_PARTS
from kd.data.store import decode, why_unreadable
from kd.system import markdown
from kd.system.console import shows_progress
from kd.system.errors import counted, printable

# Official counts of MURA v1.1: images in the folders train and valid.
OFFICIAL = {
    "elbow": (4931, 465),
    "finger": (5106, 461),
    "forearm": (1825, 301),
    "hand": (5543, 460),
    "humerus": (1272, 288),
    "shoulder": (8379, 563),
    "wrist": (9752, 659),
}
BITS = {"1": 1, "I;16": 16, "I;16B": 16, "I": 32, "F": 32}
LISTED = 20


def audit(index: Index) -> dict:
    """Read every image once and return what was found.

    The result holds the counts and `problems`: one line for each kind of fault, empty for a sound
    data set. The splits are those that the data set specifies. For MURA, these are its folder
    train and its folder valid, which is the test split here.
    """
    findings = _inspect_all(index)
    bad = []
    for sample, finding in zip(index.samples, findings):
        if finding["fault"]:
            bad.append(f"{sample.path} ({finding['fault']})")
    sound = [row for row, finding in enumerate(findings) if not finding["fault"]]
    bits = Counter(findings[row]["bits"] for row in sound)
    result = {
        "name": index.name,
        "images": len(index.samples),
        "hidden_files": index.skipped,
        "counts": _counts(index),
        "official": _official(index),
        "modes": dict(Counter(findings[row]["mode"] for row in sound).most_common()),
        "bits": {str(depth): bits[depth] for depth in sorted(bits)},
        "sizes": _sizes([findings[row]["size"] for row in sound]),
        "unreadable": list(map(printable, bad)),
        **_copies(index, findings, sound),
        **_patients(index),
        "notes": list(map(printable, index.notes)),
    }
    return result | {"problems": _problems(result)}


def _inspect_all(index: Index) -> list[dict]:
    """Return the result of `_inspect` for each row, and show a progress bar."""
    rows = range(len(index.samples))

    def inspect(row):
        return _inspect(index, row)

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        bar = tqdm(
            threads.map(inspect, rows),
            total=len(rows),
            desc="reading",
            unit="img",
            disable=not shows_progress(),
        )
        return list(bar)


def _inspect(index: Index, row: int) -> dict:
    """Return mode, bit depth, size and content hash of an image, or why it cannot be read."""
    try:
        if index.draw is not None:
            drawing = index.draw(row)
            content = drawing.tobytes()
            image = Image.fromarray(drawing)
        else:
            content, image = decode(index.file(row))
    except Exception as error:  # Pillow raises exceptions of any type, see the store
        return {"fault": why_unreadable(error)}
    return {
        "fault": "",
        "mode": image.mode,
        "bits": BITS.get(image.mode, 8),
        "size": image.size,
        "hash": hashlib.sha256(content).digest(),
    }


def _counts(index: Index) -> dict:
    """Return the number of images of each class in each split that the data set specifies."""
    counts = defaultdict(Counter)
    for sample in index.samples:
        name = "unlabelled"
        if sample.label >= 0:
            name = printable(index.classes[sample.label])
        counts[name][sample.split or "all"] += 1
    return {name: dict(counts[name]) for name in sorted(counts)}


def _official(index: Index) -> dict | None:
    """Return the differences from MURA's official counts by body part and folder.

    The result is `{"elbow train": [images found, images expected], ...}`, or None for other data
    sets.
    """
    if not index.name.startswith("mura"):
        return None
    found = Counter((sample.study.split("/")[1].lower(), sample.split) for sample in index.samples)
    differences = {}
    for body_part in BODY_PARTS:
        for (folder, split), expected in zip(FOLDERS.items(), OFFICIAL[body_part]):
            if found[body_part, split] != expected:
                differences[f"{body_part} {folder}"] = [found[body_part, split], expected]
    return differences


def _copies(index: Index, findings: list[dict], sound: list[int]) -> dict:
    """Return the number of files with an identical copy, and the suspicious groups of copies.

    A group is suspicious if it is in more than one split, or has more than one label or known
    patient.
    """
    total = 0
    crossing = []
    contrary = []
    for group in groups(findings[row]["hash"] for row in sound):
        samples = [index.samples[sound[place]] for place in group]
        line = " = ".join(printable(sample.path) for sample in samples)
        total += len(samples)
        if len({sample.split for sample in samples}) > 1:
            crossing.append(line)
        labels = {sample.label for sample in samples}
        patients = {_known_patient(sample) for sample in samples}
        if len(labels) > 1 or len(patients) > 1:
            contrary.append(line)
    return {
        "copies": total,
        "copies_across_parts": crossing,
        "copies_that_disagree": contrary,
    }


def _known_patient(sample: Sample) -> str | None:
    """Return the patient of an image, or None if unknown (then readers set it to the path)."""
    return sample.patient if sample.patient != sample.path else None


def _patients(index: Index) -> dict:
    """Return the patients in more than one split, and counts of patients.

    The counts are the number of all patients, and of those with images of several classes (body
    parts).
    """
    splits = defaultdict(set)
    classes = defaultdict(set)
    for sample in index.samples:
        splits[sample.patient].add(sample.split)
        classes[sample.patient].add(sample.label)
    return {
        "patients": len(splits),
        "patients_across_parts": [printable(p) for p, own in splits.items() if len(own) > 1],
        "patients_with_several_classes": sum(len(own) > 1 for own in classes.values()),
    }


def _sizes(sizes: list[tuple[int, int]]) -> dict | None:
    if not sizes:
        return None
    longest = sorted(max(size) for size in sizes)
    return {
        "longest_side_min": longest[0],
        "longest_side_median": longest[len(longest) // 2],
        "longest_side_max": longest[-1],
    }


def _problems(result: dict) -> list[str]:
    """Return what a user must fix or know before training, one line for each kind of fault."""
    counts = []
    for key, (found, expected) in (result["official"] or {}).items():
        counts.append(f"{key}: {found} instead of {expected}")
    copies = "of identical files"
    kinds = (
        ("file", "files", "cannot be read", result["unreadable"]),
        ("patient is", "patients are", "in more than one split", result["patients_across_parts"]),
        (
            f"group {copies} is",
            f"groups {copies} are",
            "in more than one split",
            result["copies_across_parts"],
        ),
        (
            f"group {copies} has",
            f"groups {copies} have",
            "more than one label or patient",
            result["copies_that_disagree"],
        ),
        ("count differs", "counts differ", "from the official counts", counts),
    )
    lines = []
    for one, several, what, items in kinds:
        if items:
            more = ", ..." if len(items) > LISTED else ""
            listed = ", ".join(items[:LISTED]) + more
            lines.append(f"{counted(len(items), one, several)} {what}: {listed}")
    return lines


def text(result: dict) -> str:
    """Return the audit as lines and a table."""
    lines = [
        (
            f"{result['name']}: {result['images']} images, {result['patients']} patients"
            f" ({result['patients_with_several_classes']} with images of several classes),"
            f" {result['hidden_files']} hidden files"
        ),
        "",
        *_table(result["counts"]),
        "",
        (
            f"modes: {_pairs(result['modes'])}; bits per channel: {_pairs(result['bits'])};"
            f" longest side: {_range(result['sizes'])}"
        ),
        f"identical files: {result['copies']}",
    ]
    lines += [f"note: {note}" for note in result["notes"]]
    if result["official"] == {}:
        lines.append("counts: equal to the official counts")
    return "\n".join(lines)


def _pairs(values: dict) -> str:
    """Return counts as text: `L (60 images), RGB (1 image)`."""
    texts = [f"{key} ({counted(value, 'image', 'images')})" for key, value in values.items()]
    return ", ".join(texts) or "-"


def _range(sizes: dict | None) -> str:
    """Return the smallest, median and largest longest side as text."""
    if sizes is None:
        return "-"
    smallest, median, largest = sizes.values()
    return f"{smallest} to {largest} px (median {median})"


def _table(counts: dict) -> list[str]:
    """Return the lines of a table of image counts by class and split."""
    splits = sorted(set().union(*counts.values()))
    rows = []
    for name, own in counts.items():
        rows.append([name, *[str(own.get(split, 0)) for split in splits]])
    return markdown.table(["images of class", *splits], rows)
