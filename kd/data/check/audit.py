"""Check a data set: everything that training would refuse or that would make its results worthless.

Every file is read once (`inspection`). `audit_text` says what is wrong.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from kd.config.settings import Data
from kd.data import ranges
from kd.data.check import audit_text
from kd.data.check.by_class import class_of, mixed, properties_by_class, sizes
from kd.data.check.inspection import Finding, counted_by, inspect_all
from kd.data.check.near_duplicates import find_pairs
from kd.data.check.passed_over import passed_over
from kd.data.check.shortcuts import told_by_properties
from kd.data.duplicates import groups, without_copies
from kd.data.index import Index, Sample
from kd.data.readers.mura import FOLDERS
from kd.data.readers.mura import PARTS as BODY_PARTS
from kd.data.readers.retinopathy import RETINOPATHY
from kd.data.splits import WORDS, Splits, split
from kd.data.tables.spelling import missing_values, spelled_twice
from kd.system.errors import Problem, counted, first_ten, printable
from kd.system.names import with_names

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
FIRST = 1000  # pairs of near-duplicates that are listed


def audit(index: Index, how: Data = Data()) -> dict:
    """Read every image once and return what was found, as plain values.

    The result holds the counts, `problems` (faults) and `warnings`: one line for each kind, both
    empty for a sound data set. `how` are the settings that the index was read with, and that
    training is tried with. The splits are otherwise those that the data set specifies. For MURA,
    these are its folder train and its folder valid, which is the test split here.
    """
    findings = inspect_all(index, how.bits)
    sound = [row for row, finding in enumerate(findings) if not finding.fault]
    official = _official(index)
    result = {
        "name": index.name,
        "images": len(index.samples),
        "hidden_files": index.skipped,
        "other_files": {printable(name): count for name, count in index.others.items()},
        "counts": _counts(index),
        "official": official,
        **_properties(index, findings, sound),
        **_unreadable(index, findings),
        **_names(index),
        **_copies(index, findings, sound),
        **_patients(index),
        "near_duplicates": _near_duplicates(index, findings, sound),
        "shortcuts": told_by_properties(index, findings, sound),
        "passed_over": [],
        "classes_without_images": [],
        "broken_links": [],
        "linked_twice": [],
        **_training(index, how),
    }
    notes = (*index.notes, *_differences(official), *result.pop("notes"))
    result["notes"] = list(map(printable, notes))
    # An archive of which a table lists a part is not searched.
    if index.root is not None and how.table is None:
        result |= passed_over(index)
    return result | audit_text.remarks(result)


def _properties(index: Index, findings: list[Finding], sound: list[int]) -> dict:
    """Return the kinds and sizes of the files, of all together and by class."""
    own = [findings[row] for row in sound]
    bits = counted_by(own, "bits")
    flat = [index.samples[row].path for row in sound if findings[row].thumbnail is None]
    return {
        "formats": counted_by(own, "format"),
        "modes": counted_by(own, "mode"),
        "bits": {depth: bits[depth] for depth in sorted(bits, key=int)},
        "bits_used": _most_bits_used(own),
        "sizes": sizes([finding.size for finding in own]),
        "by_class": properties_by_class(index, findings, sound),
        "mixed": mixed(index, findings, sound),
        "burned_in": _burned_in(index, findings, sound),
        "flat": list(map(printable, flat)),
        "uneven_ranges": _uneven_ranges(index, findings, sound),
    }


def _most_bits_used(findings: list[Finding]) -> dict[str, int]:
    """Return how many bits the values of all files together use, by bits per channel."""
    most = {}
    for finding in findings:
        used = finding.properties["bits_used"]
        if used:
            depth = finding.properties["bits"]
            most[depth] = max(most.get(depth, 0), int(used))
    return most


def _uneven_ranges(index: Index, findings: list[Finding], sound: list[int]) -> list[str]:
    """Return a text for each kind of values of which most images use a small part of the range."""
    by_kind = defaultdict(list)
    for row in sound:
        if findings[row].ends is not None:
            ends = ranges.Extremes(*findings[row].ends, index.samples[row].path)
            by_kind[ends.kind].append(ends)
    texts = []
    for images in by_kind.values():
        texts += map(with_names, ranges.uneven(images))
    return texts


def _burned_in(index: Index, findings: list[Finding], sound: list[int]) -> dict[str, int]:
    """Return the number of files of each class that state burned-in annotations."""
    rows = [row for row in sound if findings[row].properties["burned_in"] == "YES"]
    return dict(Counter(class_of(index, row) for row in rows))


def _unreadable(index: Index, findings: list[Finding]) -> dict:
    bad = []
    readable = set()
    for sample, finding in zip(index.samples, findings):
        if finding.fault:
            bad.append(printable(f"{sample.path} ({finding.fault})"))
        else:
            readable.add(sample.label)
    empty = [name for label, name in enumerate(index.classes) if label not in readable]
    return {"unreadable": bad, "classes_not_readable": list(map(printable, empty))}


def _names(index: Index) -> dict:
    """Return names of classes and patients that are missing or probably spelled in two ways."""
    known = {sample.known_patient for sample in index.samples} - {None}
    result = {"classes_missing": list(map(printable, missing_values(index.classes)))}
    for key, names in (("classes", index.classes), ("patients", known)):
        twice = [" = ".join(map(printable, group)) for group in spelled_twice(names)]
        result[f"{key}_spelled_twice"] = twice
    return result


def _counts(index: Index) -> dict:
    """Return the number of images of each class in each split that the data set specifies."""
    counts = defaultdict(Counter)
    is_split = any(sample.split for sample in index.samples)
    for row, sample in enumerate(index.samples):
        counts[class_of(index, row)][_split_of(sample) if is_split else "all"] += 1
    return {name: dict(counts[name]) for name in sorted(counts)}


def _split_of(sample: Sample) -> str:
    """Return the split of an image as in training: it is in `train` if none is specified."""
    return sample.split or "train"


def _official(index: Index) -> dict | None:
    """Return the differences from MURA's official counts by body part and folder.

    The result is `{"elbow train": [images found, images expected], ...}`, or None for other data
    sets.
    """
    if index.space != "mura":
        return None
    found = Counter((sample.study.split("/")[1].lower(), sample.split) for sample in index.samples)
    differences = {}
    for body_part in BODY_PARTS:
        for (folder, split_name), expected in zip(FOLDERS.items(), OFFICIAL[body_part]):
            if found[body_part, split_name] != expected:
                differences[f"{body_part} {folder}"] = [found[body_part, split_name], expected]
    return differences


def _differences(official: dict | None) -> list[str]:
    """Return a note on counts that are not MURA's: a part of MURA is a data set, too."""
    if not official:
        return []
    texts = [f"{key}: {found} instead of {expected}" for key, (found, expected) in official.items()]
    counts = counted(len(texts), "count differs", "counts differ")
    return [f"{counts} from the official counts of MURA v1.1: {first_ten(texts)}."]


def _copies(index: Index, findings: list[Finding], sound: list[int]) -> dict:
    """Return the number of files with an identical copy, and the suspicious groups of copies.

    A group is suspicious if it is in more than one split, or has more than one label or known
    patient.
    """
    total = 0
    crossing = []
    contrary = []
    for group in groups(findings[row].digest for row in sound):
        samples = [index.samples[sound[place]] for place in group]
        line = " = ".join(printable(sample.path) for sample in samples)
        total += len(samples)
        if len(set(map(_split_of, samples))) > 1:
            crossing.append(line)
        labels = {sample.label for sample in samples if sample.label >= 0}
        patients = {sample.known_patient for sample in samples} - {None}
        if len(labels) > 1 or len(patients) > 1:
            contrary.append(line)
    return {
        "copies": total,
        "copies_across_parts": crossing,
        "copies_that_disagree": contrary,
    }


def _patients(index: Index) -> dict:
    """Return the patients in more than one split, and counts of patients.

    The counts are the number of known patients, of those with images of several classes (body
    parts), and of images whose patients are not known.
    """
    parts = defaultdict(set)
    classes = defaultdict(set)
    unknown = 0
    for row, sample in enumerate(index.samples):
        if not index.has_patient(row):
            unknown += 1
            continue
        parts[sample.patient].add(_split_of(sample))
        classes[sample.patient].add(sample.label)
    return {
        "patients": len(parts),
        "without_patient": unknown,
        "patients_across_parts": [printable(p) for p, own in parts.items() if len(own) > 1],
        "patients_with_several_classes": sum(len(own) > 1 for own in classes.values()),
    }


def _near_duplicates(index: Index, findings: list[Finding], sound: list[int]) -> dict:
    """Return the number of pairs of near-duplicates, and those that should not be.

    These are pairs in different splits, of different classes, and of different patients (an image
    without a patient is a patient of its own). Flat images are not compared, and of identical files
    only the first is.
    """
    first = {}
    for row in sound:
        if findings[row].thumbnail is not None:
            first.setdefault(findings[row].digest, row)
    rows = np.array(list(first.values()), dtype=np.int64)
    thumbnails = np.array([findings[row].thumbnail for row in rows], dtype=np.uint8)
    pairs, is_complete = find_pairs(thumbnails.reshape(len(rows), 32, 32))
    pairs = rows[pairs]
    result = {"pairs": len(pairs), "complete": is_complete}
    samples = index.samples
    compared = {
        "parts": map(_split_of, samples),
        "classes": (sample.label for sample in samples),
        "patients": (sample.patient for sample in samples),
    }
    for key, values in compared.items():
        codes = _codes(values)
        differ = codes[pairs[:, 0]] != codes[pairs[:, 1]]
        if key == "classes":
            differ &= (index.labels[pairs] >= 0).all(1)
        lines = []
        for one, other in pairs[differ][:FIRST]:
            lines.append(printable(f"{samples[one].path} = {samples[other].path}"))
        result[f"across_{key}"] = {"pairs": int(differ.sum()), "first": lines}
    return result


def _codes(values: Iterable) -> np.ndarray:
    """Return a number for each value, equal for equal values: int64 [N]."""
    numbers = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], dtype=np.int64)


def _training(index: Index, how: Data) -> dict:
    """Return what training would say: why it would refuse the data set, or its notes.

    refused         the reason, or empty
    refused_sizes   the reason if training is possible with other sizes of the splits: a part of
                    MURA may be smaller than the splits of the thesis
    classes_absent  {validation or test: classes of which the split has no images}
    notes           on copies and splits
    """
    result = {"split": how.split, "refused": "", "refused_sizes": "", "classes_absent": {}}
    result["notes"] = []
    chosen = index
    try:
        # As in `open_dataset`.
        if how.split != "thesis" or how.dataset in RETINOPATHY:
            chosen = without_copies(index)
        splits = _split(chosen, how)
    except Problem as problem:
        result["refused"] = str(problem)
        if not index.sizes:
            return result
        try:
            splits = _split(replace(chosen, sizes=None), how)
        except Problem:
            return result
        result |= {"refused": "", "refused_sizes": str(problem)}
    result["notes"] = [*chosen.notes[len(index.notes) :], *splits.notes]
    for name in ("valid", "test"):
        absent = set(range(len(index.classes))) - set(chosen.labels[getattr(splits, name)].tolist())
        if absent:
            names = [printable(index.classes[label]) for label in sorted(absent)]
            result["classes_absent"][WORDS[name]] = names
    return result


def _split(index: Index, how: Data) -> Splits:
    sizes = (how.train_per_class, how.valid_per_class, how.test_per_class)
    return split(index, how.split, how.split_seed, sizes)
