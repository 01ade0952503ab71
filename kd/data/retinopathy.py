"""EyePACS, APTOS 2019, Messidor and Messidor-2 as they are downloaded: grades from their tables,
pictures found by stem.
"""

import contextlib
import hashlib
import os
import re
import stat
from collections import defaultdict
from pathlib import Path

from kd.data.folder import PICTURES
from kd.data.grades import Row, by_stem, corrected, fields_of, number, rows_of, stem_of
from kd.data.index import Index, Sample, walk
from kd.data.table import read_xls
from kd.system.errors import Problem, first_ten

RETINOPATHY = ("eyepacs", "aptos", "messidor", "messidor2")
GRADES = {
    "eyepacs": 5,
    "aptos": 5,
    "messidor": 4,
    "messidor2": 5,
}  # Messidor's 0 to 3 are not on the others' scale
EYEPACS_TEST = ("testLabels.csv", "retinopathy_solution.csv")
MESSIDOR = ("Image name", "Ophthalmologic department", "Retinopathy grade", "Risk of macular edema")
MESSIDOR2 = ("image_id", "adjudicated_dr_grade", "adjudicated_dme", "adjudicated_gradable")


def read(kind: str, data_dir: str | None, errata: str | None = None) -> Index:
    """The index of one of RETINOPATHY below `data_dir`: class k is grade k, pictures are to be
    cropped to their disc.

    `errata` is a CSV of corrections, see `grades.corrected`. Of identical files one is kept;
    pictures without a row are left out; notes count both. Raises Problem for tables that are not as
    published, for missing pictures, for two pictures of one stem, and for identical files of
    different grades.
    """
    root = _root(kind, data_dir)
    pictures, others, skipped = _files(root, kind)
    rows, notes = _READERS[kind](root, others, pictures)
    scale = tuple(map(str, range(GRADES[kind])))
    graded = by_stem(root, rows, scale)
    if len(graded) < len(rows):
        notes.append(f"{len(rows) - len(graded)} pictures that are not gradable were left out")
    if errata is not None:
        graded, note = corrected(graded, errata, scale)
        notes.append(note)
    samples = _samples(kind, root, graded, pictures)
    samples, more = _without_copies(kind, root, samples)
    unlisted = len(pictures.keys() - {row.stem for row in rows})
    notes += more + ([f"{unlisted} pictures that no table lists were left out"] if unlisted else [])
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
    """The patient of a picture of a data set of that kind by its path alone; the path itself where
    that does not tell.
    """
    if kind == "eyepacs":
        return stem_of(path).partition("_")[0]
    if kind in ("messidor", "messidor2"):
        return stem_of(path)
    found = re.search(r"(?:^|/)(patient[^/]+)/", path) if kind == "mura" else None
    return found[1] if found else path


def copies(root: Path, samples: list[Sample]) -> list[list[Sample]]:
    """Groups of samples whose files are the same, byte for byte; files of which no other has the
    size are not read.
    """
    sizes, hashes = defaultdict(list), defaultdict(list)
    for sample in samples:
        # What is no file, empty or cannot be read is reported, with all other bad pictures, when it
        # is decoded.
        with contextlib.suppress(OSError):
            status = os.stat(root / sample.path)
            if stat.S_ISREG(status.st_mode) and status.st_size:
                sizes[status.st_size].append(sample)
    for sample in (sample for group in sizes.values() if len(group) > 1 for sample in group):
        with contextlib.suppress(OSError), open(root / sample.path, "rb") as file:
            hashes[hashlib.file_digest(file, "sha256").digest()].append(sample)
    return [group for group in hashes.values() if len(group) > 1]


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
    """({stem: path of its picture}, paths of all other files, hidden files passed over).

    Raises Problem for a stem twice.
    """
    # APTOS's test_images have no labels; they are not looked at.
    below = root / "train_images" if kind == "aptos" and (root / "train_images").is_dir() else root
    pictures, others, skipped = defaultdict(list), [], 0
    for inside, files in walk(below):
        shown = [name for name in files if not name.startswith(".")]
        skipped += len(files) - len(shown)
        for name in shown:
            path = "/".join((*below.relative_to(root).parts, *inside, name))
            if name.lower().endswith(PICTURES):
                pictures[stem_of(name)].append(path)
            else:
                others.append(path)
    twice = [" = ".join(paths) for paths in pictures.values() if len(paths) > 1]
    if twice:
        raise Problem(
            f"pictures in {root}: {first_ten(twice)} have the same name but for folder and"
            " extension, which tell no rows apart; move all but one of each out"
        )
    return {stem: path for stem, [path] in pictures.items()}, others, skipped


def _eyepacs(
    root: Path, others: list[str], pictures: dict[str, str]
) -> tuple[list[Row], list[str]]:
    """The rows, and notes.

    The first of EYEPACS_TEST that is there makes a test part, if pictures of it are there too.
    """
    train = rows_of(root, "trainLabels.csv", ("image", "level"), 0, 1)
    name = next((name for name in EYEPACS_TEST if (root / name).is_file()), None)
    test = rows_of(root, name, ("image", "level", "Usage"), 0, 1) if name else []
    if not any(row.stem in pictures for row in test):
        return train, (
            [f"{name} was passed over: none of its {len(test)} pictures is there"] if name else []
        )
    return [row._replace(part="train") for row in train] + [
        row._replace(part="test") for row in test
    ], []


def _aptos(root: Path, others: list[str], pictures: dict[str, str]) -> tuple[list[Row], list[str]]:
    return rows_of(root, "train.csv", ("id_code", "diagnosis"), 0, 1), []


def _messidor(
    root: Path, others: list[str], pictures: dict[str, str]
) -> tuple[list[Row], list[str]]:
    names = [
        path
        for path in others
        if re.fullmatch(r"annotation.*\.xls", path.rpartition("/")[2], re.IGNORECASE)
    ]
    if not names:
        raise Problem(
            f"'Annotation*.xls' in {root}: no such file; give the folder that holds them and their"
            " pictures"
        )
    return [
        Row(where, stem_of(fields[0]), fields[2])
        for name in names
        for where, fields in fields_of(root, name, MESSIDOR, read_xls)
    ], []


def _messidor2(
    root: Path, others: list[str], pictures: dict[str, str]
) -> tuple[list[Row], list[str]]:
    table = fields_of(root, "messidor_data.csv", MESSIDOR2)
    faults = [
        f"{where} (adjudicated_gradable '{fields[3]}' is neither 0 nor 1)"
        for where, fields in table
        if number(fields[3]) not in ("0", "1")
    ]
    if faults:
        raise Problem(f"rows in {root}: {first_ten(faults)}; mend them")
    return [
        Row(where, stem_of(fields[0]), fields[1] if number(fields[3]) == "1" else None)
        for where, fields in table
    ], []


_READERS = {"eyepacs": _eyepacs, "aptos": _aptos, "messidor": _messidor, "messidor2": _messidor2}


def _samples(kind: str, root: Path, rows: dict[str, Row], pictures: dict[str, str]) -> list[Sample]:
    """The rows with their pictures, by path.

    Raises Problem for rows without one, and where there are none.
    """
    missing = [
        f"{row.where} (no such picture)" for stem, row in rows.items() if stem not in pictures
    ]
    if missing:
        raise Problem(
            f"rows in {root}: {first_ten(missing)}; restore the pictures, or give them the grade"
            " drop in --errata FILE"
        )
    if not rows:
        raise Problem(
            f"tables in {root}: no picture has a grade; download {kind} again, or mend --errata"
        )
    found = sorted((pictures[stem], row) for stem, row in rows.items())
    return [
        Sample(path, int(row.grade), patient_of(kind, path), patient_of(kind, path), row.part)
        for path, row in found
    ]


def _without_copies(kind: str, root: Path, samples: list[Sample]) -> tuple[list[Sample], list[str]]:
    """(samples with one of each group of identical files, a test part's first; notes).

    Raises Problem where grades differ.
    """
    groups = copies(root, sorted(samples, key=lambda sample: sample.part != "test"))
    contrary = [
        " = ".join(f"{sample.path} (grade {sample.label})" for sample in group)
        for group in groups
        if len({sample.label for sample in group}) > 1
    ]
    if contrary:
        raise Problem(
            f"identical files in {root}: {first_ten(contrary)} have different grades; give all but"
            " one of each the grade drop in --errata FILE (header image,grade)"
        )
    left = {sample.path for group in groups for sample in group[1:]}
    if not left:
        return samples, []
    others = (
        sum(sample.patient != group[0].patient for group in groups for sample in group[1:])
        if kind == "eyepacs"
        else 0
    )
    note = f"{len(left)} pictures were left out: identical to another"
    return (
        [sample for sample in samples if sample.path not in left],
        [note + (f", {others} of them of another patient" if others else "")],
    )
