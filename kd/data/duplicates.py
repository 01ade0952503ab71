"""Find files that are identical, byte for byte, and leave out all but one of each."""

import contextlib
import hashlib
import os
import stat
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from kd.data.files.find import natural_key
from kd.data.index import Index, Sample
from kd.system.console import progress
from kd.system.errors import Problem, counted, first_names

# Bytes from the middle and from the end of a file that are compared before the file is read.
_BYTES = 4096
# Of identical files, the one in the first of these splits is kept.
_ORDER = ("test", "valid", "train")


def without_copies(index: Index) -> Index:
    """Return the index with one of each group of identical files, and a note on the others.

    The first is kept of: images of the test split that the data set specifies, of its validation
    split, others; images with a label, others; images of a known patient, others; and then the
    first in natural order of the paths. This depends on nothing but the content of the data set, so
    it is the same on every machine. A new copy is therefore left out, unless it comes first in this
    order: then it takes the place of the old file.

    Raises Problem for identical files with different labels. Images that are drawn have no files.
    """
    if index.root is None:
        return index
    order = sorted(range(len(index.samples)), key=lambda row: _precedence(index.samples[row]))
    copies = []
    for places in identical_files(index.root, [index.samples[row].path for row in order]):
        copies.append([order[place] for place in places])
    _check_labels(index, copies)
    excluded = set(repeats(copies))
    if not excluded:
        return index
    note = f"{counted(len(excluded), 'image was', 'images were')} excluded: identical to another"
    others = _of_other_patients(index, copies)
    note += f", {others} of them of another patient." if others else "."
    index = _with_patients(index, copies)
    kept = index.only([row for row in range(len(index.samples)) if row not in excluded], note)
    return replace(kept, copies=len(excluded))


def _with_patients(index: Index, copies: list[list[int]]) -> Index:
    """Return an index in which the file that is kept has the patient of its copies.

    Patients who have an identical file are in the same split: they may be one person.
    """
    samples = list(index.samples)
    same = {}

    def first(patient: str) -> str:
        while patient in same:
            patient = same[patient]
        return patient

    for rows in copies:
        known = [samples[row].known_patient for row in rows]
        patients = [patient for patient in known if patient is not None]
        if not patients:
            continue
        kept = samples[rows[0]]
        if kept.known_patient is None:
            study = kept.study if kept.study != kept.patient else patients[0]
            samples[rows[0]] = kept._replace(patient=patients[0], study=study)
        for patient in patients:
            ends = sorted({first(patient), first(patients[0])})
            if len(ends) == 2:
                same[ends[1]] = ends[0]
    return replace(index, samples=tuple(samples), same={name: first(name) for name in same})


def _precedence(sample: Sample) -> tuple:
    """Return the key by which the first of identical files is kept."""
    split = _ORDER.index(sample.split or "train")
    return split, sample.label < 0, sample.known_patient is None, natural_key(sample.path)


def _check_labels(index: Index, copies: list[list[int]]) -> None:
    """Raise Problem for identical files with different labels; `copies` are rows."""
    contrary = []
    for rows in copies:
        own = [index.samples[row] for row in rows if index.samples[row].label >= 0]
        if len({sample.label for sample in own}) > 1:
            contrary.append(_first_of_each_label(index, own))
    if contrary:
        # Only the retinopathy sets have grades and a space of their own.
        header = "image,grade" if index.graded and index.space else "image,label"
        raise Problem(
            f"Identical files in {index.root} have different labels: {first_names(contrary)}. Set"
            f" the label of all but one of each to 'drop' in --errata FILE (with header {header})."
        )


def _first_of_each_label(index: Index, samples: list[Sample]) -> str:
    """Return one of identical files for each label, and the number of all files if it is larger."""
    by_label = {}
    for sample in samples:
        by_label.setdefault(sample.label, sample)
    texts = [f"{one.path} (label {index.classes[one.label]})" for one in by_label.values()]
    more = f" ({len(samples)} files)" if len(samples) > len(texts) else ""
    return " = ".join(texts) + more


def _of_other_patients(index: Index, copies: list[list[int]]) -> int:
    """Return how many files have another known patient than the file that is kept."""
    if index.space == "messidor":  # its names identify the image, not the patient
        return 0
    count = 0
    for rows in copies:
        kept = index.samples[rows[0]].known_patient
        for row in rows[1:]:
            patient = index.samples[row].known_patient
            count += kept is not None and patient is not None and patient != kept
    return count


def groups(keys: Iterable[Hashable | None]) -> list[list[int]]:
    """Return the positions of equal keys: one list for each key that occurs more than once.

    The lists are ordered by their first position, and the positions in a list are ascending. A key
    of None is not equal to any key.
    """
    positions = defaultdict(list)
    for position, key in enumerate(keys):
        if key is not None:
            positions[key].append(position)
    return [group for group in positions.values() if len(group) > 1]


def identical_files(root: Path, paths: Sequence[str]) -> list[list[int]]:
    """Return the positions of paths with identical files, one list for each group.

    Only files of equal size are opened, and only those that are equal in the middle and at the end
    are read: uncompressed images of one camera have equal sizes and headers. A path belongs to no
    group if it is not a file, is empty or cannot be read: it is reported with all other bad images
    when it is decoded.
    """
    found = [list(range(len(paths)))]
    for key_of in (_size, _hash_of_parts, _hash_of_content):
        alike = []
        with progress(sum(map(len, found)), "comparing", "files", short=True) as shown:
            for positions in found:
                keys = []
                for position in positions:
                    keys.append(key_of(root / paths[position]))
                    shown.update()
                for group in groups(keys):
                    alike.append([positions[place] for place in group])
        found = alike
    return sorted(found)


def repeats(groups_of_equals: Iterable[list[int]]) -> list[int]:
    """Return all positions except the first of each group: those to exclude to keep one of each."""
    excluded = []
    for group in groups_of_equals:
        excluded += group[1:]
    return excluded


def _size(file: Path) -> int | None:
    """Return the size of a regular file that is not empty, otherwise None."""
    with contextlib.suppress(OSError):
        status = os.stat(file)
        if stat.S_ISREG(status.st_mode) and status.st_size:
            return status.st_size
    return None


def _hash_of_parts(file: Path) -> bytes | None:
    """Return a hash of a few bytes from the middle and from the end of a file."""
    with contextlib.suppress(OSError), open(file, "rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        sha = hashlib.sha256()
        for start in (size // 2, max(0, size - _BYTES)):
            opened.seek(start)
            sha.update(opened.read(_BYTES))
        return sha.digest()
    return None


def _hash_of_content(file: Path) -> bytes | None:
    with contextlib.suppress(OSError), open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").digest()
    return None
