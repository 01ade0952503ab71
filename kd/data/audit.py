"""What is wrong with a data set, as a table: counts, unreadable files, modes, copies and patients
across parts.
"""

import hashlib
import os
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor

from PIL import Image
from tqdm import tqdm

from kd.data.index import Index
from kd.data.mura import PARTS as BODY_PARTS
from kd.data.store import decode
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
    """Read every picture once.

    Returns the counts and `problems`: one line for each kind of fault, empty for a sound set.

    Parts are those that the data give (MURA's train folder and its valid folder, which is judged on
    as test).
    """
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        looks = list(
            tqdm(
                threads.map(lambda row: _look(index, row), range(len(index.samples))),
                total=len(index.samples),
                desc="reading",
                unit="img",
                disable=not shows_progress(),
            )
        )
    bad = [
        f"{sample.path} ({look['fault']})"
        for sample, look in zip(index.samples, looks)
        if look["fault"]
    ]
    sound = [row for row, look in enumerate(looks) if not look["fault"]]
    copies, crossing, contrary = _copies(index, looks, sound)
    patients = _patients(index)
    result = {
        "name": index.name,
        "images": len(index.samples),
        "hidden_files": index.skipped,
        "counts": _counts(index),
        "official": _official(index),
        "modes": dict(Counter(looks[row]["mode"] for row in sound).most_common()),
        "bits": {
            str(bits): count
            for bits, count in sorted(Counter(looks[row]["bits"] for row in sound).items())
        },
        "sizes": _sizes([looks[row]["size"] for row in sound]),
        "unreadable": list(map(printable, bad)),
        "copies": copies,
        "copies_across_parts": crossing,
        "copies_that_disagree": contrary,
        **patients,
        "notes": list(map(printable, index.notes)),
    }
    return result | {"problems": _problems(result)}


def _look(index: Index, row: int) -> dict:
    """Mode, bit depth, size and content hash of one picture, or why it cannot be read."""
    try:
        if index.draw is not None:
            drawn = index.draw(row)
            content, picture = drawn.tobytes(), Image.fromarray(drawn)
        else:
            content, picture = decode(index.file(row))
    except Exception as error:  # as the store does: Pillow raises anything
        return {"fault": str(error) or type(error).__name__}
    return {
        "fault": "",
        "mode": picture.mode,
        "bits": BITS.get(picture.mode, 8),
        "size": picture.size,
        "hash": hashlib.sha256(content).digest(),
    }


def _counts(index: Index) -> dict:
    """Images of each class in each given part."""
    counts = defaultdict(Counter)
    for sample in index.samples:
        counts[printable(index.classes[sample.label]) if sample.label >= 0 else "unlabelled"][
            sample.part or "all"
        ] += 1
    return {name: dict(parts) for name, parts in sorted(counts.items())}


def _official(index: Index) -> dict | None:
    """Differences to MURA's official counts by body part and folder; None for other sets."""
    if not index.name.startswith("mura"):
        return None
    found = Counter((sample.study.split("/")[1].lower(), sample.part) for sample in index.samples)
    return {
        f"{body} {folder}": [found[body, part], OFFICIAL[body][place]]
        for body in BODY_PARTS
        for place, (folder, part) in enumerate((("train", "train"), ("valid", "test")))
        if found[body, part] != OFFICIAL[body][place]
    }


def _copies(index: Index, looks: list[dict], sound: list[int]) -> tuple[int, list[str], list[str]]:
    """(files that another equals byte for byte, groups of them in two parts, groups with two labels
    or two known patients).
    """
    groups = defaultdict(list)
    for row in sound:
        groups[looks[row]["hash"]].append(row)
    same = [rows for rows in groups.values() if len(rows) > 1]

    def differ(rows, key):
        return len({key(index.samples[row]) for row in rows}) > 1

    def known(sample):  # a picture without a patient is called by its path
        return sample.patient if sample.patient != sample.path else None

    crossing = [rows for rows in same if differ(rows, lambda sample: sample.part)]
    contrary = [
        rows for rows in same if differ(rows, lambda sample: sample.label) or differ(rows, known)
    ]
    crossing, contrary = (
        [" = ".join(printable(index.samples[row].path) for row in rows) for rows in groups]
        for groups in (crossing, contrary)
    )
    return sum(map(len, same)), crossing, contrary


def _patients(index: Index) -> dict:
    """Patients, those in two given parts, and those with images of two classes (body parts)."""
    parts, classes = defaultdict(set), defaultdict(set)
    for sample in index.samples:
        parts[sample.patient].add(sample.part)
        classes[sample.patient].add(sample.label)
    return {
        "patients": len(parts),
        "patients_across_parts": [printable(p) for p, own in parts.items() if len(own) > 1],
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
    """What a user must mend or know before training, a line each."""
    counts = [
        f"{key}: {found} for {wanted}"
        for key, (found, wanted) in (result["official"] or {}).items()
    ]
    kinds = {
        "files cannot be read": result["unreadable"],
        "patients stand in two parts": result["patients_across_parts"],
        "groups of identical files stand in two parts": result["copies_across_parts"],
        "groups of identical files have two labels or patients": result["copies_that_disagree"],
        "counts are not the official ones": counts,
    }
    return [
        f"{len(items)} {what}: {', '.join(items[:LISTED])}{', ...' if len(items) > LISTED else ''}"
        for what, items in kinds.items()
        if items
    ]


def text(result: dict) -> str:
    """The audit as lines and a table."""
    parts = sorted({part for counts in result["counts"].values() for part in counts})
    lines = [
        (
            f"{result['name']}: {result['images']} images, {result['patients']} patients"
            f" ({result['patients_with_several_classes']} with images of two classes),"
            f" {result['hidden_files']} hidden files"
        ),
        "",
        f"| class | {' | '.join(parts)} |",
        "|---" * (len(parts) + 1) + "|",
    ]
    lines += [
        f"| {name} | {' | '.join(str(counts.get(part, 0)) for part in parts)} |"
        for name, counts in result["counts"].items()
    ]
    lines += [
        "",
        f"modes {result['modes']}, bits a channel {result['bits']}, longest side {result['sizes']}",
        f"identical files {result['copies']}",
    ]
    lines += [f"note: {note}" for note in result["notes"]]
    if result["official"] == {}:
        lines.append("counts: the official ones")
    return "\n".join(lines)
