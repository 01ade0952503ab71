"""Read any folder of images, with or without labels.

The folder has class folders, or train/valid/test folders of class folders, or its images are listed
in a table.
"""

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from kd.config.layout import slug
from kd.config.settings import Reading
from kd.data.files import patients
from kd.data.files.find import (
    IMAGE_EXTENSIONS,
    NO_EXTENSION,
    Found,
    find_images,
    natural_key,
    split_name,
)
from kd.data.index import UNLABELED, Index, Sample
from kd.data.tables.corrections import corrected
from kd.data.tables.image_table import read_table
from kd.data.tables.spelling import plain
from kd.system.errors import Problem, counted, first_ten

TABLE = "images.csv"
_DICOM_EXTENSIONS = (".dcm", ".dicom", ".ima")
_DEFAULT = Reading()


class Contents(NamedTuple):
    """What a folder or a table contains.

    rows     one dictionary for each image, with the keys path, label, patient, study, split, site
             and extra
    notes    what the user should know
    skipped  see `Index`
    others   see `Index`
    """

    rows: list[dict]
    notes: list[str]
    skipped: int = 0
    others: dict[str, int] = {}


def read(
    data_dir: str | None, classes: tuple[str, ...] | None = None, how: Reading = _DEFAULT
) -> Index:
    """Read the index of a folder, or of the images that a table lists.

    The table is that of --table, or images.csv in the folder. `classes` sets the list of classes,
    for example to those of a trained network. By default, it is the list of the classes that are
    found, in natural order. Corrections (--errata) are applied.

    An image without a patient counts as a patient of its own, and a note reports it. Images
    outside class folders are unlabelled, and are accepted only if `classes` is given; if no folder
    is one of these classes, all images are unlabelled, and a note says so. Rows of a table without
    a label are always accepted, with a note if `classes` is not given. Raises Problem for an empty
    folder, a bad table (with row numbers), a folder that contains splits and other folders, and
    classes that are not in `classes`.
    """
    root, table = _places(data_dir, "--data-dir", how)
    if table is None:
        contents = _from_tree(root, classes)
    else:
        contents = _from_table(root, table, how, classes)
    _check_some(contents, root, "--data-dir")
    found = sorted({row["label"] for row in contents.rows if row["label"]}, key=natural_key)
    if classes is None:
        unlabelled = [row["path"] for row in contents.rows if not row["label"]]
        _check_classes(root, found, unlabelled, contents.rows, table)
    index = _index(root, classes or tuple(found), contents, how)
    if how.errata is not None:
        index = corrected(index, how.errata)
    notes = patients.unknown_patients(index)
    if classes is None:
        notes += _unlabelled_images(index)
    return replace(index, notes=(*index.notes, *notes))


def read_images(data_dir: str | None, flag: str, how: Reading = _DEFAULT) -> Index:
    """Read the index of the images of a folder without their labels and splits.

    The index has no classes. The folder may have any structure, and the patients are those of its
    table, if it has one. Messages name `flag` as the source of `data_dir`. Raises Problem for an
    empty folder and a bad table.
    """
    root, table = _places(data_dir, flag, how)
    if table is None:
        found = find_images(root)
        _check_runs(root, found.paths)
        rows = [_row(path) for path in found.paths]
        contents = Contents(rows, _other_files(found.others), found.skipped, found.others)
    else:
        contents = _from_table(root, table, how, None, ignored=("label", "split"))
    _check_some(contents, root, flag)
    index = _index(root, (), contents, how)
    return replace(index, notes=(*index.notes, *patients.unknown_patients(index)))


def _places(data_dir: str | None, flag: str, how: Reading) -> tuple[Path, Path | None]:
    """Return (the folder that paths are relative to, the table of the images or None)."""
    if data_dir is None and how.table is None:
        raise Problem(
            f"{flag} is not set: --dataset folder needs it. Use {flag} DIR, or --table FILE."
        )
    if data_dir is not None and not os.path.isdir(data_dir):
        raise Problem(f"{flag} '{data_dir}' is not valid: no such folder. Check the path.")
    if how.table is not None:
        table = Path(how.table)
        if not table.is_file():
            raise Problem(f"--table '{table}' cannot be read: no such file. Check the path.")
        return Path(data_dir) if data_dir is not None else table.parent, table
    root = Path(data_dir)
    if (root / TABLE).is_file():
        return root, root / TABLE
    for name, value in (("--columns", how.columns), ("--uncertain", how.uncertain)):
        if value:
            raise Problem(
                f"{name} is not valid without a table: {data_dir} contains no {TABLE}. Set the"
                f" table with --table FILE, or remove {name}."
            )
    return root, None


def _from_table(
    root: Path, table: Path, how: Reading, classes: tuple[str, ...] | None, ignored=()
) -> Contents:
    """Return the images that a table lists; for images.csv, also what else is in its folder.

    A folder for --table may be an archive of which the table lists a small part, so it is not
    searched.
    """
    listed = read_table(root, table, how, classes, ignored)
    if how.table is not None:
        return Contents(listed.rows, listed.notes)
    try:
        found = find_images(root)
    except Problem as problem:  # in folders that the table may not mention
        return Contents(listed.rows, [*listed.notes, str(problem)])
    others = dict(found.others)
    others[".csv"] -= 1  # the table itself
    others = {extension: count for extension, count in others.items() if count}
    notes = listed.notes + _other_files(others)
    known = {row["path"] for row in listed.rows}
    unlisted = [path for path in found.paths if path not in known]
    if unlisted:
        notes.append(
            f"{counted(len(unlisted), 'image was', 'images were')} found in {root} but not used,"
            f" because {TABLE} has no row for it or the row was left out: {first_ten(unlisted)}."
        )
    return Contents(listed.rows, notes, found.skipped, others)


def _from_tree(root: Path, classes: tuple[str, ...] | None) -> Contents:
    """Return the images in class folders or in split folders of class folders.

    Without `classes`, every folder with images is a class.
    """
    found = find_images(root)
    _check_runs(root, found.paths)
    has_splits = _has_splits(root, found.paths)
    rows = []
    for path in found.paths:
        folders = path.split("/")[:-1]
        split = split_name(folders.pop(0)) if has_splits else None
        rows.append(_row(path, folders[0] if folders else "", split))
    _check_spelling(root, rows, classes)
    notes = _other_files(found.others) + _folders_without_images(found, has_splits)
    if classes is not None and _all_unlabelled(root, rows, classes):
        notes += _no_class(root, rows, classes)
        rows = [row | {"label": ""} for row in rows]
    elif not has_splits:
        notes += _equal_folders(found.paths)
    return Contents(rows, notes, found.skipped, found.others)


def _check_runs(root: Path, paths: list[str]) -> None:
    """Raise Problem if figures of this program's own runs are among the images."""
    runs = []
    for path in paths:
        folder, _, name = path.rpartition("/")
        files = [root / folder / other for other in ("report.json", "settings.json")]
        if name == "confusion.png" and all(file.is_file() for file in files):
            runs.append(folder or ".")
    if runs:
        raise Problem(
            f"Folders in {root} are runs of this program, not data: {first_ten(runs)}. Move them"
            " out of the folder, or use another one."
        )


def _has_splits(root: Path, paths: list[str]) -> bool:
    """Return whether the top folders that contain images are splits, not classes.

    Raises Problem if some are splits and some are not, and if two are the same split.
    """
    tops = sorted({path.partition("/")[0] for path in paths if "/" in path}, key=natural_key)
    splits = [name for name in tops if split_name(name)]
    if not splits:
        return False
    rest = [name for name in tops if not split_name(name)]
    if any("/" not in path for path in paths):
        rest.append("the folder itself")
    if rest:
        be = "is a split" if len(splits) == 1 else "are splits"
        raise Problem(
            f"{_folders(splits)} of {root} {be}, but this is not so for {first_ten(rest)}, and all"
            " contain images. Move one kind out, rename a class that is named like a split, or"
            f" list the images in {TABLE}."
        )
    _check_splits(root, splits)
    return True


def _check_splits(root: Path, names: list[str]) -> None:
    """Raise Problem if two folders are the same split."""
    first = {}
    for name in names:
        split = split_name(name)
        other = first.setdefault(split, name)
        if other != name:
            raise Problem(
                f"Folders {other} and {name} of {root} are both the {split} split. Put their"
                " images into one folder, or move one of them out."
            )


def _check_spelling(root: Path, rows: list[dict], classes: tuple[str, ...] | None) -> None:
    """Raise Problem for names of classes that differ only as `plain` says, for example in case."""
    counts = Counter(row["label"] for row in rows if row["label"])
    spellings = {}
    for name in sorted(counts.keys() | set(classes or ()), key=natural_key):
        spellings.setdefault(plain(name), []).append(name)
    faults = []
    for names in spellings.values():
        if len(names) > 1 and any(name in counts and name not in (classes or ()) for name in names):
            faults.append(" = ".join(f"'{name}' ({_holders(name, counts)})" for name in names))
    if faults:
        raise Problem(
            f"Classes in {root} differ only in case, blanks or leading zeros: {first_ten(faults)}."
            " Rename their folders, so that each class has one name."
        )


def _holders(name: str, counts: Counter) -> str:
    """Return how many images a class has, for messages; classes of a network may have none."""
    return counted(counts[name], "image", "images") if name in counts else "of the network"


def _all_unlabelled(root: Path, rows: list[dict], classes: tuple[str, ...]) -> bool:
    """Return whether no folder is one of the network's classes.

    Raises Problem if some folders are and some are not.
    """
    names = {row["label"] for row in rows if row["label"]}
    unknown = sorted(names - set(classes), key=natural_key)
    if unknown and len(unknown) < len(names):
        images = sum(row["label"] in unknown for row in rows)
        raise Problem(
            f"{_folders(unknown)} in {root} ({counted(images, 'image', 'images')})"
            f" {'is' if len(unknown) == 1 else 'are'} unknown to the network: its classes are"
            f" {first_ten(list(classes))}. Rename what is unknown, or move it out of the folder."
        )
    return bool(unknown)


def _no_class(root: Path, rows: list[dict], classes: tuple[str, ...]) -> list[str]:
    """Return a note that no folder is a class, and one if folders below them may be classes."""
    names = sorted({row["label"] for row in rows if row["label"]}, key=natural_key)
    notes = [
        f"All {len(rows)} images are unlabelled: no folder in {root} is a class of the network"
        f" ({first_ten(names)})."
    ]
    below = {name for row in rows for name in row["path"].split("/")[1:-1]}
    lower = [name for name in classes if name in below]
    if lower:
        notes.append(
            f"Folders at a lower level are named like classes of the network"
            f" ({first_ten(lower)}), but are not read as such: to use these labels, set --data-dir"
            " to a folder that directly contains the class folders."
        )
    return notes


def _equal_folders(paths: list[str]) -> list[str]:
    """Return a note if all top folders contain the same folders, two or more.

    The lower folders may be the classes, and the upper ones hospitals. They may also be images and
    their masks.
    """
    below = {}
    for path in paths:
        folders = path.split("/")[:-1]
        if folders:
            below.setdefault(folders[0], set()).update(folders[1:2])
    shared = set.intersection(*below.values()) if below else set()
    if len(below) < 2 or len(shared) < 2:
        return []
    names = sorted(shared, key=natural_key)
    cure = (
        "if the lower ones are the classes, list all images in a table (--table FILE) with the"
        " columns path, label and site, or use one upper folder as --data-dir"
    )
    if all(split_name(name) for name in names):
        cure = "if the lower ones are splits, they must be the upper folders: SPLIT/CLASS"
    return [
        f"Folders {first_ten(sorted(below, key=natural_key))} all contain the folders"
        f" {first_ten(names)}, and the class is taken from the upper folder: {cure}."
    ]


def _folders_without_images(found: Found, has_splits: bool) -> list[str]:
    """Return a note that names folders that would be splits or classes if they had images.

    A class that has images in one split may have none in another.
    """
    used = {upper for path in found.paths for upper in _upper_folders(path)}
    files = Counter()
    for folder, count in found.folders.items():
        for upper in _upper_folders(folder + "/"):
            files[upper] += count
    classes = {folder.partition("/")[2] for folder in used}
    without = []
    for folder in sorted(found.folders.keys() - used - {""}, key=natural_key):
        upper, _, lower = folder.partition("/")
        is_class = has_splits and upper in used and "/" not in lower
        if lower and (not is_class or (not files[folder] and lower in classes)):
            continue
        others = counted(files[folder], "other file", "other files") if files[folder] else "empty"
        without.append(f"{folder} ({others})")
    if not without:
        return []
    have = counted(len(without), "folder has", "folders have")
    return [f"{have} no images: {first_ten(without)}."]


def _upper_folders(path: str) -> list[str]:
    """Return the paths of all folders that a file is in: a and a/b for a/b/c."""
    return [path[:place] for place, letter in enumerate(path) if letter == "/"]


def _other_files(others: dict[str, int]) -> list[str]:
    """Return a note that counts the files that are not images."""
    if not others:
        return []
    kinds = []
    for extension, count in others.items():
        if extension == NO_EXTENSION:
            kinds.append(f"{count} without an extension")
        elif extension in _DICOM_EXTENSIONS:
            kinds.append(f"{count} {extension} (no DICOM content)")
        else:
            kinds.append(f"{count} {extension}")
    total = sum(others.values())
    files = counted(total, "file is not an image and was", "files are not images and were")
    return [f"{files} skipped: {first_ten(kinds)}."]


def _check_some(contents: Contents, root: Path, flag: str) -> None:
    if not contents.rows:
        notes = "".join(f" {note}" for note in contents.notes[:1])
        raise Problem(
            f"{flag} '{root}' contains no images ({', '.join(IMAGE_EXTENSIONS)}, or DICOM).{notes}"
            " Use another folder."
        )


def _check_classes(
    root: Path, found: list[str], unlabelled: list[str], rows: list[dict], table: Path | None
) -> None:
    """Raise Problem unless the folder has classes that a network can be trained on.

    Images may have no label only if a table lists them.
    """
    if unlabelled and table is None:
        raise Problem(
            f"Images in {root} have no label: {first_ten(unlabelled)}. Put the images of each"
            f" class into a folder of its own, or list path,label in {TABLE}."
        )
    if len(found) < 2:
        without = ""
        if unlabelled:
            images = counted(len(unlabelled), "image has", "images have")
            without = f"; {images} no label in {table.name}"
        raise Problem(
            f"Classes in {root} are too few: only {found} found{without}. A classifier needs at"
            f" least two classes. {_more_classes(root, found, rows, table)}"
        )


def _more_classes(root: Path, found: list[str], rows: list[dict], table: Path | None) -> str:
    """Return the advice for a folder with one class: archives nest the classes in a folder."""
    below = {row["path"].split("/")[1] for row in rows if row["path"].count("/") > 1}
    if table is None and len(below) > 1 and rows[0]["path"].startswith(f"{found[0]}/"):
        return f"Use --data-dir '{root / found[0]}', if its folders are the classes or splits."
    return "Add images of other classes."


def _unlabelled_images(index: Index) -> list[str]:
    """Return a note if images have no label."""
    unlabelled = int((index.labels == UNLABELED).sum())
    if not unlabelled:
        return []
    return [
        (
            f"{unlabelled} of {len(index.samples)} images have no label: only distill.py --mode"
            " unlabeled uses them, except those that are marked as valid or test."
        )
    ]


def _folders(names: list[str]) -> str:
    return f"{'Folder' if len(names) == 1 else 'Folders'} {first_ten(names)}"


def _row(path: str, label: str = "", split: str | None = None) -> dict:
    """Return a row as of a table for an image that was found in a folder."""
    row = {"path": path, "label": label, "patient": "", "study": "", "split": split}
    return row | {"site": "", "extra": {}}


def _index(root: Path, classes: tuple[str, ...], contents: Contents, how: Reading) -> Index:
    """Return the index of rows in the order of their paths, with their patients."""
    rows = sorted(contents.rows, key=lambda row: row["path"])
    rows, patient_notes = patients.identified(root, rows, how)
    samples = []
    for row in rows:
        label = classes.index(row["label"]) if row["label"] else UNLABELED
        patient = row["patient"] or row["path"]
        samples.append(Sample(row["path"], label, patient, row["study"] or patient, row["split"]))
    names = dict.fromkeys(name for row in rows for name in row["extra"])
    extra = {name: tuple(row["extra"].get(name, "") for row in rows) for name in names}
    return Index(
        slug(root.resolve().name),
        classes,
        tuple(samples),
        root=root,
        skipped=contents.skipped,
        others=contents.others,
        extra=extra,
        notes=(*contents.notes, *patient_notes),
    )
