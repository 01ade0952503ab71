"""Read EyePACS, APTOS 2019, Messidor and Messidor-2 as they are downloaded.

The grades come from the tables of the data sets, and images are found by their stems.
"""

import os
import re
from collections import defaultdict
from pathlib import Path

from kd.data.files.find import IMAGE_EXTENSIONS, count_extensions, walk
from kd.data.index import Index, Sample
from kd.data.tables.grades import Row, by_stem, corrected, fields_of, number, rows_of, stem_of
from kd.data.tables.table import read_xls
from kd.system.errors import Problem, counted, first_names

RETINOPATHY = ("eyepacs", "aptos", "messidor", "messidor2")
# Messidor's grades 0 to 3 are on a different scale from the grades of the others.
GRADES = {"eyepacs": 5, "aptos": 5, "messidor": 4, "messidor2": 5}
# The values of `Index.space`. Messidor and Messidor-2 name images, not patients, but both have the
# same names for the images that they share.
SPACES = {
    "eyepacs": "eyepacs",
    "aptos": "aptos",
    "messidor": "messidor",
    "messidor2": "messidor",
    "mura": "mura",
}
EYEPACS_TEST = ("testLabels.csv", "retinopathy_solution.csv")
MESSIDOR = ("Image name", "Ophthalmologic department", "Retinopathy grade", "Risk of macular edema")
MESSIDOR2 = ("image_id", "adjudicated_dr_grade", "adjudicated_dme", "adjudicated_gradable")


def read(kind: str, data_dir: str | None, errata: str | None = None) -> Index:
    """Read the index of a data set of RETINOPATHY below `data_dir`.

    Class k is grade k, and images are to be cropped to their disc. `errata` is a CSV file of
    corrections, see `grades.corrected`. Images without a row are excluded, and a note counts them.
    Raises Problem for tables that are not as published, for missing images, and for two images with
    the same stem.
    """
    root = _root(kind, data_dir)
    images, others, skipped = _files(root, kind)
    rows, notes = _READERS[kind](root, others, images)
    scale = tuple(str(grade) for grade in range(GRADES[kind]))
    graded = by_stem(root, rows, scale)
    if len(graded) < len(rows):
        ungradable = counted(len(rows) - len(graded), "image was", "images were")
        notes.append(f"{ungradable} excluded: not gradable.")
    if errata is not None:
        graded, note = corrected(graded, errata, scale)
        notes.append(note)
    samples = _samples(kind, root, graded, images)
    unlisted = len(images.keys() - {row.stem for row in rows})
    if unlisted:
        notes.append(
            f"{counted(unlisted, 'image was', 'images were')} excluded: not listed in any table."
        )
    if kind != "eyepacs":
        notes.append(
            f"None of the {len(samples)} images has a known patient, because {kind} does not"
            " specify patients: each counts as a patient of its own, even if two images are the"
            " two eyes of one patient."
        )
    return Index(
        kind,
        scale,
        tuple(samples),
        space=SPACES[kind],
        root=root,
        channels=3,
        skipped=skipped,
        others=count_extensions(others),
        notes=tuple(notes),
        graded=True,
        crop="fundus",
    )


def patient_of(kind: str, path: str) -> str:
    """Return the patient of an image, derived only from its path and the kind of its data set.

    The result is the path itself if it does not name the patient.
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
        raise Problem(f"--data-dir is not set: --dataset {kind} needs it. Use --data-dir DIR.")
    if not os.path.isdir(data_dir):
        raise Problem(
            f"--data-dir '{data_dir}' is not valid: no such folder, or it is not accessible. Use"
            f" the folder that contains the tables and images of {kind}."
        )
    return Path(data_dir)


def _files(root: Path, kind: str) -> tuple[dict[str, str], list[str], int]:
    """Return ({stem: path of its image}, paths of all other files, number of skipped files).

    Raises Problem if two images have the same stem.
    """
    below = root
    if kind == "aptos" and (root / "train_images").is_dir():
        below = root / "train_images"  # the images in test_images have no labels
    images = defaultdict(list)
    others = []
    skipped = 0
    for folder in walk(below):
        skipped += folder.skipped
        for name in folder.files:
            path = "/".join((*below.relative_to(root).parts, *folder.inside, name))
            if name.lower().endswith(IMAGE_EXTENSIONS):
                images[stem_of(name)].append(path)
            else:
                others.append(path)
    _check_stems(root, images)
    return {stem: paths[0] for stem, paths in images.items()}, others, skipped


def _check_stems(root: Path, images: dict[str, list[str]]) -> None:
    """Raise Problem if two images have the same stem."""
    twice = [" = ".join(paths) for paths in images.values() if len(paths) > 1]
    if twice:
        raise Problem(
            f"Images in {root} have the same name except for folder and extension, so their rows"
            f" are ambiguous: {first_names(twice)}. Move all but one of each out of the folder."
        )


# Each reader of tables takes (root, other files, {stem: path of its image}) and returns (rows,
# notes).


def _eyepacs(root: Path, others: list[str], images: dict[str, str]) -> tuple[list[Row], list[str]]:
    """Read EyePACS.

    The first file of EYEPACS_TEST that exists specifies a test split, if images of it exist too.
    """
    train = rows_of(root, "trainLabels.csv", ("image", "level"), 0, 1)
    present = [name for name in EYEPACS_TEST if (root / name).is_file()]
    if not present:
        return train, []
    name = present[0]
    test = rows_of(root, name, ("image", "level", "Usage"), 0, 1)
    if not any(row.stem in images for row in test):
        images = counted(len(test), "image", "images")
        return train, [f"{name} was skipped: none of its {images} exists."]
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
            f"'Annotation*.xls' in {root} cannot be read: no such file. Set --data-dir to the"
            " folder that contains these tables and their images."
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
        raise Problem(f"Rows of tables in {root} cannot be used: {first_names(faults)}. Fix them.")
    return rows, []


_READERS = {"eyepacs": _eyepacs, "aptos": _aptos, "messidor": _messidor, "messidor2": _messidor2}


def _samples(kind: str, root: Path, rows: dict[str, Row], images: dict[str, str]) -> list[Sample]:
    """Return the samples of graded rows, ordered by the paths of the images.

    Raises Problem for rows without an image, and if there are no rows.
    """
    missing = []
    for stem, row in rows.items():
        if stem not in images:
            missing.append(f"{row.where} (no such image)")
    if missing:
        raise Problem(
            f"Rows of tables in {root} cannot be used: {first_names(missing)}. Restore the images,"
            " or set their grade to 'drop' in --errata FILE."
        )
    if not rows:
        raise Problem(
            f"Tables in {root} cannot be used: no image has a grade. Download {kind} again, or fix"
            " --errata."
        )
    samples = []
    for path, row in sorted((images[stem], row) for stem, row in rows.items()):
        patient = patient_of(kind, path)
        samples.append(Sample(path, int(row.grade), patient, patient, row.split))
    return samples
