"""Any images: class folders, train/valid/test folders of class folders, or an images.csv.

Also without labels.
"""

import os
from pathlib import Path

from kd.config.layout import slug
from kd.data.index import UNLABELED, Index, Sample, walk
from kd.data.table import read_csv
from kd.system.errors import Problem, first_ten

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif")
PART_NAMES = {
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
    """The index of a folder.

    `classes` fixes the class list (another network's); otherwise it is what is found, sorted.

    Without a patient column every image counts as a patient of its own, and a note says so. Images
    outside class folders are unlabelled: accepted only where `classes` is given. So are rows of
    images.csv without a label, with a note. Raises Problem for an empty folder, a bad CSV (with row
    numbers) and a class that `classes` does not have.
    """
    if data_dir is None:
        raise Problem("data_dir in --data-dir: not given; --dataset folder needs --data-dir DIR")
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


def read_pictures(data_dir: str, flag: str) -> Index:
    """The images of a folder, which `flag` names, without their labels and splits.

    The index has no classes. Any tree will do; the patients are those of its images.csv, if there
    is one. Raises Problem for an empty folder and a bad CSV.
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
        raise Problem(
            f"folder '{data_dir}' in {flag}: no such folder; give the folder of the pictures"
        )
    return Path(data_dir)


def _check_some(rows: list[dict], data_dir: str, flag: str) -> None:
    if not rows:
        raise Problem(
            f"folder '{data_dir}' in {flag}: holds no pictures ({', '.join(PICTURES)}); give"
            " another folder"
        )


def _check_classes(root: Path, found: list[str], unlabelled: list[str], listed: bool) -> None:
    """Refuse folders without classes that a network could be trained on.

    `listed` says that images.csv lists the images: only then may some have no label.
    """
    if unlabelled and not listed:
        raise Problem(
            f"pictures in {root}: {first_ten(unlabelled)} have no label; put each class into a"
            " folder, or list path,label in images.csv"
        )
    if len(found) < 2:
        without = f" ({len(unlabelled)} pictures of {TABLE} have no label)" if unlabelled else ""
        raise Problem(
            f"classes in {root}: only {found}{without}; a classifier needs at least two class"
            " folders"
        )


def _check_known(root: Path, found: list[str], classes: tuple[str, ...]) -> None:
    """Refuse classes that are not among those of the network."""
    unknown = [name for name in found if name not in classes]
    if unknown:
        raise Problem(
            f"classes {unknown} in {root}: the network knows {list(classes)}; rename the folders,"
            " or train on these"
        )


def _unknown_patients(rows: list[dict]) -> list[str]:
    """A note where images have no patient."""
    unknown = sum(not row["patient"] for row in rows)
    if not unknown:
        return []
    return [
        (
            f"{unknown} of {len(rows)} pictures have no patient (images.csv with"
            " path,label,patient gives them): each counts as a patient of its own"
        )
    ]


def _unlabelled_images(rows: list[dict], unlabelled: list[str]) -> list[str]:
    """A note where images have no label."""
    if not unlabelled:
        return []
    return [
        (
            f"{len(unlabelled)} of {len(rows)} pictures have no label: only distill.py --mode"
            " unlabeled learns from them, and from none that is marked valid or test"
        )
    ]


def _row(path: str, label: str = "", split: str | None = None) -> dict:
    """What is known of an image of a tree, in the form of a row of images.csv."""
    return {"path": path, "label": label, "patient": "", "study": "", "split": split}


def _sample(row: dict, label: int) -> Sample:
    patient = row["patient"] or row["path"]
    return Sample(row["path"], label, patient, row["study"] or patient, row["split"])


def _find_images(root: Path) -> tuple[list[tuple[tuple[str, ...], str]], int]:
    """([(folders from root down, file name)] of all images, number of hidden files)."""
    found = []
    skipped = 0
    for inside, files in walk(root):
        for name in files:
            if name.startswith("."):
                skipped += 1
            elif name.lower().endswith(PICTURES):
                found.append((inside, name))
    return found, skipped


def _from_tree(root: Path) -> tuple[list[dict], int]:
    """(rows of all images below class folders or split folders, number of hidden files)."""
    found, skipped = _find_images(root)
    tops = {inside[0] if inside else "" for inside, _ in found}
    has_splits = _has_splits(root, tops)
    rows = []
    for inside, name in found:
        path = "/".join((*inside, name))
        split = PART_NAMES[inside[0].lower()] if has_splits else None
        class_folders = inside[1:] if has_splits else inside
        label = class_folders[0] if class_folders else ""
        rows.append(_row(path, label, split))
    return rows, skipped


def _has_splits(root: Path, tops: set[str]) -> bool:
    """Whether the top folders that hold images are splits, not classes.

    Raises Problem where some are and some are not.
    """
    splits = {name for name in tops if name.lower() in PART_NAMES}
    has_train = any(PART_NAMES[name.lower()] == "train" for name in splits)
    if splits != tops and has_train:
        raise Problem(
            f"folders of {root}: {sorted(splits)} are parts, {sorted(tops - splits)} are not, and"
            " all hold pictures; move those out, or list the pictures in images.csv"
        )
    return bool(splits) and splits == tops


def _from_csv(
    root: Path, table: Path, classes: tuple[str, ...] | None, ignored: tuple[str, ...] = ()
) -> tuple[list[dict], int]:
    """(the rows of images.csv, 0 hidden files); columns in `ignored` count as empty.

    Raises Problem for a bad header and for rows that cannot be used.
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
            fault = "not as many fields as the header"
        else:
            fault = _fault(root, row, classes, seen, splits)
        if fault:
            faults.append(f"row {number} '{row['path']}' ({fault})")
            continue
        split = PART_NAMES[row["split"].lower()] if row["split"] else None
        seen[row["path"]] = number
        if row["patient"] and split:
            splits.setdefault(row["patient"], (split, number))
        rows.append(row | {"split": split})
    if faults:
        raise Problem(f"rows of {table}: {first_ten(faults)}; mend them")
    return rows, 0


def _check_header(table: Path, columns: list[str], records: list) -> None:
    if "path" not in columns or not set(columns) <= COLUMNS or len(set(columns)) < len(columns):
        raise Problem(
            f"header '{','.join(columns)[:200]}' in {table}: must be"
            " path,label[,patient][,study][,split], with commas; mend line 1"
        )
    if not records:
        raise Problem(
            f"'{table}': has no rows below its header; list the pictures, or remove it to read the"
            " folders as they are"
        )


def _stripped(columns: list[str], fields: list[str], ignored: tuple[str, ...]) -> dict:
    """A row of images.csv by column, with all of COLUMNS and a normalised path."""
    row = dict.fromkeys(COLUMNS, "")
    for name, field in zip(columns, fields):
        row[name] = field.strip()
    for name in ignored:
        row[name] = ""
    if row["path"]:
        row["path"] = os.path.normpath(row["path"])
    return row


def _fault(root: Path, row: dict, classes: tuple[str, ...] | None, seen: dict, splits: dict) -> str:
    """Why a row cannot be used; empty where it can.

    `seen`: path -> row number; `splits`: patient -> (split, row number).
    """
    path = row["path"]
    if not path:
        return "no path"
    if path in seen:
        return f"stands in row {seen[path]} too"
    fault = _file_fault(root, path)
    if fault:
        return fault
    if classes is not None and row["label"] and row["label"] not in classes:
        return f"unknown label '{row['label']}', the network knows {', '.join(classes)}"
    return _split_fault(row["split"], row["patient"], splits)


def _file_fault(root: Path, path: str) -> str:
    try:
        if os.path.isabs(path) or not (root / path).resolve().is_relative_to(root.resolve()):
            return "leads out of the folder"
        if not (root / path).is_file():
            return "no such file"
    except (OSError, RuntimeError) as error:  # a name that is too long, links in a circle
        return f"no file ({getattr(error, 'strerror', error)})"
    return ""


def _split_fault(split: str, patient: str, splits: dict) -> str:
    if not split:
        return ""
    if split.lower() not in PART_NAMES:
        return f"unknown split '{split}'"
    if patient in splits:
        other, number = splits[patient]
        if other != PART_NAMES[split.lower()]:
            return f"patient '{patient}' in {split}, but in {other} in row {number}"
    return ""
