"""Any pictures: class folders, train/valid/test folders of class folders, or an images.csv; also
without labels.
"""

import os
from pathlib import Path

from kd.data.index import UNLABELED, Index, Sample, slug, walk
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

    `classes` fixes the class list (another network's); else it is what is found, sorted.

    Without a patient column every picture counts as a patient of its own, and a note says so.
    Pictures outside class folders are unlabelled: accepted only where `classes` is given; so are
    rows of images.csv without a label, with a note. Raises Problem for an empty folder, a bad CSV
    (with row numbers) and a class that `classes` does not have.
    """
    if data_dir is None:
        raise Problem("data_dir in --data-dir: not given; --dataset folder needs --data-dir DIR")
    root = _folder(data_dir, "--data-dir")
    listed = (root / TABLE).is_file()
    rows, skipped = _from_csv(root, root / TABLE, classes) if listed else _from_tree(root)
    _some(rows, data_dir, "--data-dir")
    found = sorted({row["label"] for row in rows if row["label"]})
    bare = [row["path"] for row in rows if not row["label"]]
    if classes is None:
        if bare and not listed:
            raise Problem(
                f"pictures in {root}: {first_ten(bare)} have no label; put each class into a"
                " folder, or list path,label in images.csv"
            )
        if len(found) < 2:
            without = f" ({len(bare)} pictures of {TABLE} have no label)" if bare else ""
            raise Problem(
                f"classes in {root}: only {found}{without}; a classifier needs at least two class"
                " folders"
            )
    unknown = [name for name in found if classes is not None and name not in classes]
    if unknown:
        raise Problem(
            f"classes {unknown} in {root}: the network knows {list(classes)}; rename the folders,"
            " or train on these"
        )
    unknown = sum(not row["patient"] for row in rows)
    notes = (
        (
            (
                f"{unknown} of {len(rows)} pictures have no patient (images.csv with"
                " path,label,patient gives them): each counts as a patient of its own"
            ),
        )
        if unknown
        else ()
    )
    if bare and classes is None:
        notes += (
            (
                f"{len(bare)} of {len(rows)} pictures have no label: only distill.py --mode"
                " unlabeled learns from them, and from none that is marked valid or test"
            ),
        )
    classes = tuple(found) if classes is None else classes
    samples = [
        _sample(row, classes.index(row["label"]) if row["label"] else UNLABELED)
        for row in sorted(rows, key=lambda row: row["path"])
    ]
    return Index(
        slug(root.resolve().name), classes, tuple(samples), root=root, skipped=skipped, notes=notes
    )


def read_pictures(data_dir: str, flag: str) -> Index:
    """The pictures of a folder, which `flag` names, without their labels and parts: an index
    without classes.

    Any tree will do; the patients are those of its images.csv, if there is one. Raises Problem for
    an empty folder and a bad CSV.
    """
    root = _folder(data_dir, flag)
    if (root / TABLE).is_file():
        rows, skipped = _from_csv(root, root / TABLE, None, ignored=("label", "split"))
    else:
        found, skipped = _pictures(root)
        rows = [
            {"path": "/".join((*inside, name)), "patient": "", "study": "", "split": None}
            for inside, name in found
        ]
    _some(rows, data_dir, flag)
    samples = tuple(_sample(row, UNLABELED) for row in sorted(rows, key=lambda row: row["path"]))
    return Index(slug(root.resolve().name), (), samples, root=root, skipped=skipped)


def _folder(data_dir: str, flag: str) -> Path:
    if not os.path.isdir(data_dir):
        raise Problem(
            f"folder '{data_dir}' in {flag}: no such folder; give the folder of the pictures"
        )
    return Path(data_dir)


def _some(rows: list[dict], data_dir: str, flag: str) -> None:
    if not rows:
        raise Problem(
            f"folder '{data_dir}' in {flag}: holds no pictures ({', '.join(PICTURES)}); give"
            " another folder"
        )


def _sample(row: dict, label: int) -> Sample:
    return Sample(
        row["path"],
        label,
        row["patient"] or row["path"],
        row["study"] or row["patient"] or row["path"],
        row["split"],
    )


def _pictures(root: Path) -> tuple[list[tuple[tuple[str, ...], str]], int]:
    """((folders from root down, file name) of every picture, hidden files passed over)."""
    found, skipped = [], 0
    for inside, files in walk(root):
        skipped += sum(name.startswith(".") for name in files)
        found += [
            (inside, name)
            for name in files
            if name.lower().endswith(PICTURES) and not name.startswith(".")
        ]
    return found, skipped


def _from_tree(root: Path) -> tuple[list[dict], int]:
    found, skipped = _pictures(root)
    parted = _has_parts(root, {inside[0] if inside else "" for inside, _ in found})
    rows = []
    for inside, name in found:
        label = (inside[1:2] if parted else inside[:1]) or ("",)
        rows.append(
            {
                "path": "/".join((*inside, name)),
                "label": label[0],
                "patient": "",
                "study": "",
                "split": PART_NAMES[inside[0].lower()] if parted else None,
            }
        )
    return rows, skipped


def _has_parts(root: Path, tops: set[str]) -> bool:
    """Whether the top folders that hold pictures are parts, not classes.

    Raises Problem where some are and some are not.
    """
    parts = {name for name in tops if name.lower() in PART_NAMES}
    if parts and parts != tops and any(PART_NAMES[name.lower()] == "train" for name in parts):
        raise Problem(
            f"folders of {root}: {sorted(parts)} are parts, {sorted(tops - parts)} are not, and all"
            " hold pictures; move those out, or list the pictures in images.csv"
        )
    return bool(parts) and parts == tops


def _from_csv(
    root: Path, table: Path, classes: tuple[str, ...] | None, ignored: tuple[str, ...] = ()
) -> tuple[list[dict], int]:
    columns, records = read_csv(table)
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
    rows, faults, seen, parts = [], [], {}, {}
    for number, fields in records:
        row = (
            {name: "" for name in COLUMNS}
            | dict(zip(columns, map(str.strip, fields)))
            | dict.fromkeys(ignored, "")
        )
        row["path"] = row["path"] and os.path.normpath(row["path"])
        fault = (
            "not as many fields as the header"
            if len(fields) != len(columns)
            else _fault(root, row, classes, seen, parts)
        )
        if fault:
            faults.append(f"row {number} '{row['path']}' ({fault})")
            continue
        part = PART_NAMES[row["split"].lower()] if row["split"] else None
        seen[row["path"]] = number
        if row["patient"] and part:
            parts.setdefault(row["patient"], (part, number))
        rows.append(row | {"split": part})
    if faults:
        raise Problem(f"rows of {table}: {first_ten(faults)}; mend them")
    return rows, 0


def _fault(root: Path, row: dict, classes: tuple[str, ...] | None, seen: dict, parts: dict) -> str:
    """Why a row cannot be used; empty where it can.

    `seen`: path -> row; `parts`: patient -> (part, row).
    """
    path, split, patient = row["path"], row["split"], row["patient"]
    if not path:
        return "no path"
    if path in seen:
        return f"stands in row {seen[path]} too"
    try:
        if os.path.isabs(path) or not (root / path).resolve().is_relative_to(root.resolve()):
            return "leads out of the folder"
        if not (root / path).is_file():
            return "no such file"
    except (OSError, RuntimeError) as error:  # a name that is too long, links in a circle
        return f"no file ({getattr(error, 'strerror', error)})"
    if classes is not None and row["label"] and row["label"] not in classes:
        return f"unknown label '{row['label']}', the network knows {', '.join(classes)}"
    if split and split.lower() not in PART_NAMES:
        return f"unknown split '{split}'"
    if split and parts.get(patient, (PART_NAMES[split.lower()],))[0] != PART_NAMES[split.lower()]:
        return (
            f"patient '{patient}' in {split}, but in {parts[patient][0]} in row {parts[patient][1]}"
        )
    return ""
