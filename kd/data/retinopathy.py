"""EyePACS, APTOS 2019, Messidor and Messidor-2 as they are downloaded.

Grades come from their tables, and images are found by their stems.
"""

import os
import re
from collections import defaultdict
from pathlib import Path

from kd.data.duplicates import identical_files, repeats
from kd.data.folder import PICTURES
from kd.data.grades import Row, by_stem, corrected, fields_of, number, rows_of, stem_of
from kd.data.index import Index, Sample, walk
from kd.data.table import read_xls
from kd.system.errors import Problem, first_ten

RETINOPATHY = ("eyepacs", "aptos", "messidor", "messidor2")
# Messidor's grades 0 to 3 are on another scale than the others.
GRADES = {"eyepacs": 5, "aptos": 5, "messidor": 4, "messidor2": 5}
EYEPACS_TEST = ("testLabels.csv", "retinopathy_solution.csv")
MESSIDOR = ("Image name", "Ophthalmologic department", "Retinopathy grade", "Risk of macular edema")
MESSIDOR2 = ("image_id", "adjudicated_dr_grade", "adjudicated_dme", "adjudicated_gradable")


def read(kind: str, data_dir: str | None, errata: str | None = None) -> Index:
    """The index of one of RETINOPATHY below `data_dir`.

    Class k is grade k, and images are to be cropped to their disc. `errata` is a CSV of
    corrections, see `grades.corrected`. Of identical files one is kept, and images without a row
    are left out; notes count both. Raises Problem for tables that are not as published, for missing
    images, for two images of one stem, and for identical files of different grades.
    """
    root = _root(kind, data_dir)
    images, others, skipped = _files(root, kind)
    rows, notes = _READERS[kind](root, others, images)
    scale = tuple(str(grade) for grade in range(GRADES[kind]))
    graded = by_stem(root, rows, scale)
    if len(graded) < len(rows):
        notes.append(f"{len(rows) - len(graded)} pictures that are not gradable were left out")
    if errata is not None:
        graded, note = corrected(graded, errata, scale)
        notes.append(note)
    samples = _samples(kind, root, graded, images)
    samples, more = _without_copies(kind, root, samples)
    notes += more
    unlisted = len(images.keys() - {row.stem for row in rows})
    if unlisted:
        notes.append(f"{unlisted} pictures that no table lists were left out")
    if kind != "eyepacs":
        notes.append(
            f"{len(samples)} of {len(samples)} pictures have no patient ({kind} tells none): each"
            " counts as a patient of its own, also where two are a patient's two eyes"
        )
    return Index(
        kind,
        scale,
        tuple(samples),
        root=root,
        channels=3,
        skipped=skipped,
        notes=tuple(notes),
        graded=True,
        crop="fundus",
    )


def patient_of(kind: str, path: str) -> str:
    """The patient of an image in a data set of that kind, by the image's path alone.

    The path itself where it does not name the patient.
    """
    if kind == "eyepacs":
        return stem_of(path).partition("_")[0]
    if kind in ("messidor", "messidor2"):
        return stem_of(path)
    if kind == "mura":
        found = re.search(r"(?:^|/)(patient[^/]+)/", path)
        if found:
            return found[1]
    return path


def _root(kind: str, data_dir: str | None) -> Path:
    if data_dir is None:
        raise Problem(f"data_dir in --data-dir: not given; --dataset {kind} needs --data-dir DIR")
    if not os.path.isdir(data_dir):
        raise Problem(
            f"data_dir '{data_dir}' in --data-dir: no such folder, or not within reach; give the"
            f" folder of {kind}'s tables and pictures"
        )
    return Path(data_dir)


def _files(root: Path, kind: str) -> tuple[dict[str, str], list[str], int]:
    """({stem: path of its image}, paths of all other files, number of hidden files).

    Raises Problem where two images have the same stem.
    """
    below = root
    if kind == "aptos" and (root / "train_images").is_dir():
        below = root / "train_images"  # the test_images beside it have no labels
    images = defaultdict(list)
    others = []
    skipped = 0
    for inside, files in walk(below):
        for name in files:
            path = "/".join((*below.relative_to(root).parts, *inside, name))
            if name.startswith("."):
                skipped += 1
            elif name.lower().endswith(PICTURES):
                images[stem_of(name)].append(path)
            else:
                others.append(path)
    _check_stems(root, images)
    return {stem: paths[0] for stem, paths in images.items()}, others, skipped


def _check_stems(root: Path, images: dict[str, list[str]]) -> None:
    """Raise Problem where two images have the same stem."""
    twice = [" = ".join(paths) for paths in images.values() if len(paths) > 1]
    if twice:
        raise Problem(
            f"pictures in {root}: {first_ten(twice)} have the same name but for folder and"
            " extension, which tell no rows apart; move all but one of each out"
        )


# Each reader of tables gets (root, other files, {stem: path of its image}), and returns (rows,
# notes).


def _eyepacs(root: Path, others: list[str], images: dict[str, str]) -> tuple[list[Row], list[str]]:
    """The first of EYEPACS_TEST that is there makes a test split, if images of it are there too."""
    train = rows_of(root, "trainLabels.csv", ("image", "level"), 0, 1)
    present = [name for name in EYEPACS_TEST if (root / name).is_file()]
    if not present:
        return train, []
    name = present[0]
    test = rows_of(root, name, ("image", "level", "Usage"), 0, 1)
    if not any(row.stem in images for row in test):
        return train, [f"{name} was passed over: none of its {len(test)} pictures is there"]
    rows = [row._replace(split="train") for row in train]
    rows += [row._replace(split="test") for row in test]
    return rows, []


def _aptos(root: Path, others: list[str], images: dict[str, str]) -> tuple[list[Row], list[str]]:
    return rows_of(root, "train.csv", ("id_code", "diagnosis"), 0, 1), []


def _messidor(root: Path, others: list[str], images: dict[str, str]) -> tuple[list[Row], list[str]]:
    names = []
    for path in others:
        if re.fullmatch(r"annotation.*\.xls", path.rpartition("/")[2], re.IGNORECASE):
            names.append(path)
    if not names:
        raise Problem(
            f"'Annotation*.xls' in {root}: no such file; give the folder that holds them and their"
            " pictures"
        )
    rows = []
    for name in names:
        for where, fields in fields_of(root, name, MESSIDOR, read_xls):
            rows.append(Row(where, stem_of(fields[0]), fields[2]))
    return rows, []


def _messidor2(
    root: Path, others: list[str], images: dict[str, str]
) -> tuple[list[Row], list[str]]:
    rows = []
    faults = []
    for where, fields in fields_of(root, "messidor_data.csv", MESSIDOR2):
        gradable = number(fields[3])
        if gradable not in ("0", "1"):
            faults.append(f"{where} (adjudicated_gradable '{fields[3]}' is neither 0 nor 1)")
        rows.append(Row(where, stem_of(fields[0]), fields[1] if gradable == "1" else None))
    if faults:
        raise Problem(f"rows in {root}: {first_ten(faults)}; mend them")
    return rows, []


_READERS = {"eyepacs": _eyepacs, "aptos": _aptos, "messidor": _messidor, "messidor2": _messidor2}


def _samples(kind: str, root: Path, rows: dict[str, Row], images: dict[str, str]) -> list[Sample]:
    """The samples of graded rows, in the order of the images' paths.

    Raises Problem for rows without an image, and where there are no rows.
    """
    missing = []
    for stem, row in rows.items():
        if stem not in images:
            missing.append(f"{row.where} (no such picture)")
    if missing:
        raise Problem(
            f"rows in {root}: {first_ten(missing)}; restore the pictures, or give them the grade"
            " drop in --errata FILE"
        )
    if not rows:
        raise Problem(
            f"tables in {root}: no picture has a grade; download {kind} again, or mend --errata"
        )
    samples = []
    for path, row in sorted((images[stem], row) for stem, row in rows.items()):
        patient = patient_of(kind, path)
        samples.append(Sample(path, int(row.grade), patient, patient, row.split))
    return samples


def _without_copies(kind: str, root: Path, samples: list[Sample]) -> tuple[list[Sample], list[str]]:
    """(samples with one of each group of identical files, notes).

    An image of the test split is kept before others. Raises Problem where grades differ.
    """
    ordered = sorted(samples, key=lambda sample: sample.split != "test")
    groups = identical_files(root, [sample.path for sample in ordered])
    _check_grades(root, ordered, groups)
    left_out = {ordered[place].path for place in repeats(groups)}
    if not left_out:
        return samples, []
    note = f"{len(left_out)} pictures were left out: identical to another"
    if kind == "eyepacs":  # the others do not say which images are of one patient
        others = _of_other_patients(ordered, groups)
        note += f", {others} of them of another patient" if others else ""
    return [sample for sample in samples if sample.path not in left_out], [note]


def _check_grades(root: Path, samples: list[Sample], groups: list[list[int]]) -> None:
    """Raise Problem for identical files of different grades."""
    contrary = []
    for group in groups:
        own = [samples[place] for place in group]
        if len({sample.label for sample in own}) > 1:
            contrary.append(" = ".join(f"{one.path} (grade {one.label})" for one in own))
    if contrary:
        raise Problem(
            f"identical files in {root}: {first_ten(contrary)} have different grades; give all but"
            " one of each the grade drop in --errata FILE (header image,grade)"
        )


def _of_other_patients(samples: list[Sample], groups: list[list[int]]) -> int:
    """How many files equal the first one of their group and show another patient."""
    count = 0
    for group in groups:
        first = samples[group[0]].patient
        for place in group[1:]:
            count += samples[place].patient != first
    return count
