"""Read any folder of images, with or without labels.

The folder has class folders, train/valid/test folders of class folders, or an images.csv.
"""

import os
from pathlib import Path

from kd.config.layout import slug
from kd.data.index import UNLABELED, Index, Sample, walk
from kd.data.table import read_csv
from kd.system.errors import Problem, counted, first_ten

IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif")
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "test": "test",
}
TABLE = "images.csv"
COLUMNS = {"path", "label", "patient", "study", "split"}


def read(data_dir: str | None, classes: tuple[str, ...] | None = None) -> Index:
    """Read the index of a folder.

    `classes` sets the list of classes, for example to those of a trained network. By default, it
    is the sorted list of the classes that are found.

    An image without a patient counts as a patient of its own, and a note reports it. Images
    outside class folders are unlabelled, and are accepted only if `classes` is given. Rows of
    images.csv without a label are always accepted, with a note if `classes` is not given. Raises
    Problem for an empty folder, a bad CSV (with row numbers), and a class that is not in `classes`.
    """
    if data_dir is None:
        raise Problem("--data-dir is not set: --dataset folder needs it. Use --data-dir DIR.")
    root = _folder(data_dir, "--data-dir")
    listed = (root / TABLE).is_file()
    if listed:
        rows, skipped = _from_csv(root, root / TABLE, classes)
    else:
        rows, skipped = _from_tree(root)
    _check_some(rows, data_dir, "--data-dir")
    found = sorted({row["label"] for row in rows if row["label"]})
    unlabelled = [row["path"] for row in rows if not row["label"]]
    notes = _unknown_patients(rows)
    if classes is None:
        _check_classes(root, found, unlabelled, listed)
        notes += _unlabelled_images(rows, unlabelled)
        classes = tuple(found)
    else:
        _check_known(root, found, classes)
    samples = []
    for row in sorted(rows, key=lambda row: row["path"]):
        label = classes.index(row["label"]) if row["label"] else UNLABELED
        samples.append(_sample(row, label))
    return Index(
        slug(root.resolve().name),
        classes,
        tuple(samples),
        root=root,
        skipped=skipped,
        notes=tuple(notes),
    )


def read_images(data_dir: str, flag: str) -> Index:
    """Read the index of the images of a folder without their labels and splits.

    The index has no classes. The folder may have any structure, and the patients are those of its
    images.csv, if it has one. Messages name `flag` as the source of `data_dir`. Raises Problem for
    an empty folder and a bad CSV.
    """
    root = _folder(data_dir, flag)
    if (root / TABLE).is_file():
        rows, skipped = _from_csv(root, root / TABLE, None, ignored=("label", "split"))
    else:
        found, skipped = _find_images(root)
        rows = [_row("/".join((*inside, name))) for inside, name in found]
    _check_some(rows, data_dir, flag)
    rows.sort(key=lambda row: row["path"])
    samples = tuple(_sample(row, UNLABELED) for row in rows)
    return Index(slug(root.resolve().name), (), samples, root=root, skipped=skipped)


def _folder(data_dir: str, flag: str) -> Path:
    if not os.path.isdir(data_dir):
        raise Problem(f"{flag} '{data_dir}' is not valid: no such folder. Check the path.")
    return Path(data_dir)


def _check_some(rows: list[dict], data_dir: str, flag: str) -> None:
    if not rows:
        raise Problem(
            f"{flag} '{data_dir}' contains no images ({', '.join(IMAGE_EXTENSIONS)}). Use another"
            " folder."
        )


def _check_classes(root: Path, found: list[str], unlabelled: list[str], listed: bool) -> None:
    """Raise Problem unless the folder has classes that a network can be trained on.

    Images may have no label only if `listed` is true, that is if images.csv lists them.
    """
    if unlabelled and not listed:
        raise Problem(
            f"Images in {root} have no label: {first_ten(unlabelled)}. Put the images of each"
            " class into a folder of its own, or list path,label in images.csv."
        )
    if len(found) < 2:
        without = ""
        if unlabelled:
            without = (
                f"; {counted(len(unlabelled), 'image has', 'images have')} no label in {TABLE}"
            )
        raise Problem(
            f"Classes in {root} are too few: only {found} found{without}. A classifier needs at"
            " least two classes. Add images of other classes."
        )


def _check_known(root: Path, found: list[str], classes: tuple[str, ...]) -> None:
    """Raise Problem for classes that the network does not have."""
    unknown = [name for name in found if name not in classes]
    if unknown:
        raise Problem(
            f"Classes {unknown} in {root} are unknown to the network: its classes are"
            f" {list(classes)}. Rename the folders, or train a network on these classes."
        )


def _unknown_patients(rows: list[dict]) -> list[str]:
    """Return a note if images have no patient."""
    unknown = sum(not row["patient"] for row in rows)
    if not unknown:
        return []
    return [
        (
            f"{unknown} of {len(rows)} images have no patient: each counts as a patient of its own."
            " Specify the patients in images.csv (path,label,patient) if they are known."
        )
    ]


def _unlabelled_images(rows: list[dict], unlabelled: list[str]) -> list[str]:
    """Return a note if images have no label."""
    if not unlabelled:
        return []
    return [
        (
            f"{len(unlabelled)} of {len(rows)} images have no label: only distill.py --mode"
            " unlabeled uses them, except those that are marked as valid or test."
        )
    ]


def _row(path: str, label: str = "", split: str | None = None) -> dict:
    """Return a row as of images.csv for an image that was found in a folder."""
    return {"path": path, "label": label, "patient": "", "study": "", "split": split}


def _sample(row: dict, label: int) -> Sample:
    patient = row["patient"] or row["path"]
    return Sample(row["path"], label, patient, row["study"] or patient, row["split"])


def _find_images(root: Path) -> tuple[list[tuple[tuple[str, ...], str]], int]:
    """Return ([(folders from root down, file name)] of all images, number of hidden files)."""
    found = []
    skipped = 0
    for inside, files in walk(root):
        for name in files:
            if name.startswith("."):
                skipped += 1
            elif name.lower().endswith(IMAGE_EXTENSIONS):
                found.append((inside, name))
    return found, skipped


def _from_tree(root: Path) -> tuple[list[dict], int]:
    """Return (rows of all images in class folders or split folders, number of hidden files)."""
    found, skipped = _find_images(root)
    tops = {inside[0] if inside else "" for inside, _ in found}
    has_splits = _has_splits(root, tops)
    rows = []
    for inside, name in found:
        path = "/".join((*inside, name))
        split = SPLIT_NAMES[inside[0].lower()] if has_splits else None
        class_folders = inside[1:] if has_splits else inside
        label = class_folders[0] if class_folders else ""
        rows.append(_row(path, label, split))
    return rows, skipped


def _has_splits(root: Path, tops: set[str]) -> bool:
    """Return whether the top folders that contain images are splits, not classes.

    Raises Problem if some are splits and some are not.
    """
    splits = {name for name in tops if name.lower() in SPLIT_NAMES}
    has_train = any(SPLIT_NAMES[name.lower()] == "train" for name in splits)
    if splits != tops and has_train:
        raise Problem(
            f"Folders {sorted(splits)} of {root} are splits, but {sorted(tops - splits)} are not,"
            " and all contain images. Move the others out, or list the images in images.csv."
        )
    return bool(splits) and splits == tops


def _from_csv(
    root: Path, table: Path, classes: tuple[str, ...] | None, ignored: tuple[str, ...] = ()
) -> tuple[list[dict], int]:
    """Return (the rows of images.csv, 0 hidden files).

    Columns in `ignored` are treated as empty. Raises Problem for a bad header and for rows that
    cannot be used.
    """
    columns, records = read_csv(table)
    _check_header(table, columns, records)
    rows = []
    faults = []
    seen = {}
    splits = {}
    for number, fields in records:
        row = _stripped(columns, fields, ignored)
        if len(fields) != len(columns):
            fault = "number of fields differs from the header"
        else:
            fault = _fault(root, row, classes, seen, splits)
        if fault:
            faults.append(f"row {number} '{row['path']}' ({fault})")
            continue
        split = SPLIT_NAMES[row["split"].lower()] if row["split"] else None
        seen[row["path"]] = number
        if row["patient"] and split:
            splits.setdefault(row["patient"], (split, number))
        rows.append(row | {"split": split})
    if faults:
        raise Problem(f"Rows of {table} cannot be used: {first_ten(faults)}. Fix them.")
    return rows, 0


def _check_header(table: Path, columns: list[str], records: list) -> None:
    faults = []
    if "path" not in columns:
        faults.append("the column path is missing")
    for name in dict.fromkeys(columns):
        if name not in COLUMNS:
            faults.append(f"'{name[:40]}' is unknown")
        elif columns.count(name) > 1:
            faults.append(f"'{name}' appears twice")
    if faults:
        raise Problem(
            f"'{table}' has an invalid header '{','.join(columns)[:200]}': {first_ten(faults)}. It"
            " must be path,label[,patient][,study][,split], separated by commas. Fix line 1."
        )
    if not records:
        raise Problem(
            f"'{table}' has no rows below its header. List the images, or remove the file to read"
            " the folders as they are."
        )


def _stripped(columns: list[str], fields: list[str], ignored: tuple[str, ...]) -> dict:
    """Return a row of images.csv by column, with all of COLUMNS and a normalised path."""
    row = dict.fromkeys(COLUMNS, "")
    for name, field in zip(columns, fields):
        row[name] = field.strip()
    for name in ignored:
        row[name] = ""
    if row["path"]:
        row["path"] = os.path.normpath(row["path"])
    return row


def _fault(root: Path, row: dict, classes: tuple[str, ...] | None, seen: dict, splits: dict) -> str:
    """Return why a row cannot be used, or an empty string if it can.

    `seen` maps path -> row number, and `splits` maps patient -> (split, row number).
    """
    path = row["path"]
    if not path:
        return "no path"
    if path in seen:
        return f"already listed in row {seen[path]}"
    fault = _file_fault(root, path)
    if fault:
        return fault
    if classes is not None and row["label"] and row["label"] not in classes:
        return f"unknown label '{row['label']}', the network's classes are {', '.join(classes)}"
    return _split_fault(row["split"], row["patient"], splits)


def _file_fault(root: Path, path: str) -> str:
    try:
        if os.path.isabs(path) or not (root / path).resolve().is_relative_to(root.resolve()):
            return "points outside the folder"
        if not (root / path).is_file():
            return "no such file"
    except (
        OSError,
        RuntimeError,
    ) as error:  # for example a name that is too long, or a loop of links
        return f"not a file: {getattr(error, 'strerror', error)}"
    return ""


def _split_fault(split: str, patient: str, splits: dict) -> str:
    if not split:
        return ""
    if split.lower() not in SPLIT_NAMES:
        return f"unknown split '{split}'"
    if patient in splits:
        other, number = splits[patient]
        if other != SPLIT_NAMES[split.lower()]:
            return f"patient '{patient}' is in {split}, but is in {other} in row {number}"
    return ""
