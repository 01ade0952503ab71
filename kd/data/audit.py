"""What is wrong with a data set, as a table.

It shows counts, unreadable files, modes, copies, and patients in more than one split.
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
from kd.data.store import decode
from kd.system import markdown
from kd.system.console import shows_progress
from kd.system.errors import printable

# MURA v1.1 as Stanford counts it, images by folder: train, valid.
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
    """Read every image once and count what was found.

    Returns the counts and `problems`: one line for each kind of fault, empty for a sound set.
    Splits are those that the data give (MURA's train folder, and its valid folder, which is the
    test split here).
    """
    looks = _look_at_all(index)
    bad = []
    for sample, look in zip(index.samples, looks):
        if look["fault"]:
            bad.append(f"{sample.path} ({look['fault']})")
    sound = [row for row, look in enumerate(looks) if not look["fault"]]
    bits = Counter(looks[row]["bits"] for row in sound)
    result = {
        "name": index.name,
        "images": len(index.samples),
        "hidden_files": index.skipped,
        "counts": _counts(index),
        "official": _official(index),
        "modes": dict(Counter(looks[row]["mode"] for row in sound).most_common()),
        "bits": {str(depth): bits[depth] for depth in sorted(bits)},
        "sizes": _sizes([looks[row]["size"] for row in sound]),
        "unreadable": list(map(printable, bad)),
        **_copies(index, looks, sound),
        **_patients(index),
        "notes": list(map(printable, index.notes)),
    }
    return result | {"problems": _problems(result)}


def _look_at_all(index: Index) -> list[dict]:
    """What `_look` finds for each row, under a progress bar."""
    rows = range(len(index.samples))

    def look(row):
        return _look(index, row)

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        bar = tqdm(
            threads.map(look, rows),
            total=len(rows),
            desc="reading",
            unit="img",
            disable=not shows_progress(),
        )
        return list(bar)


def _look(index: Index, row: int) -> dict:
    """Mode, bit depth, size and content hash of one image, or why it cannot be read."""
    try:
        if index.draw is not None:
            drawing = index.draw(row)
            content = drawing.tobytes()
            image = Image.fromarray(drawing)
        else:
            content, image = decode(index.file(row))
    except Exception as error:  # as in the store: Pillow raises exceptions of any type
        return {"fault": str(error) or type(error).__name__}
    return {
        "fault": "",
        "mode": image.mode,
        "bits": BITS.get(image.mode, 8),
        "size": image.size,
        "hash": hashlib.sha256(content).digest(),
    }


def _counts(index: Index) -> dict:
    """Images of each class in each split that the data give."""
    counts = defaultdict(Counter)
    for sample in index.samples:
        name = "unlabelled"
        if sample.label >= 0:
            name = printable(index.classes[sample.label])
        counts[name][sample.split or "all"] += 1
    return {name: dict(counts[name]) for name in sorted(counts)}


def _official(index: Index) -> dict | None:
    """Differences to MURA's official counts by body part and folder; None for other data sets.

    `{"elbow train": [images found, images expected], ...}`
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


def _copies(index: Index, looks: list[dict], sound: list[int]) -> dict:
    """How many files equal another byte for byte, and which groups of them are suspicious.

    Groups are suspicious that stand in two splits, and that have two labels or known patients.
    """
    total = 0
    crossing = []
    contrary = []
    for group in groups(looks[row]["hash"] for row in sound):
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
    """The patient of an image, or None: readers name unknown patients by the image's path."""
    return sample.patient if sample.patient != sample.path else None


def _patients(index: Index) -> dict:
    """Patients, those in two given splits, and those with images of two classes (body parts)."""
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
    """What a user must mend or know before training, one line for each kind."""
    counts = []
    for key, (found, expected) in (result["official"] or {}).items():
        counts.append(f"{key}: {found} for {expected}")
    kinds = {
        "files cannot be read": result["unreadable"],
        "patients stand in two parts": result["patients_across_parts"],
        "groups of identical files stand in two parts": result["copies_across_parts"],
        "groups of identical files have two labels or patients": result["copies_that_disagree"],
        "counts are not the official ones": counts,
    }
    lines = []
    for kind, items in kinds.items():
        if items:
            more = ", ..." if len(items) > LISTED else ""
            lines.append(f"{len(items)} {kind}: {', '.join(items[:LISTED])}{more}")
    return lines


def text(result: dict) -> str:
    """The audit as lines and a table."""
    lines = [
        (
            f"{result['name']}: {result['images']} images, {result['patients']} patients"
            f" ({result['patients_with_several_classes']} with images of two classes),"
            f" {result['hidden_files']} hidden files"
        ),
        "",
        *_table(result["counts"]),
        "",
        f"modes {result['modes']}, bits a channel {result['bits']}, longest side {result['sizes']}",
        f"identical files {result['copies']}",
    ]
    lines += [f"note: {note}" for note in result["notes"]]
    if result["official"] == {}:
        lines.append("counts: the official ones")
    return "\n".join(lines)


def _table(counts: dict) -> list[str]:
    """Images by class and split, as the lines of a table."""
    splits = sorted(set().union(*counts.values()))
    rows = []
    for name, own in counts.items():
        rows.append([name, *[str(own.get(split, 0)) for split in splits]])
    return markdown.table(["class", *splits], rows)
