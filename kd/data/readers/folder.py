"""Read any folder of images, with or without labels.

The folder has class folders, or train/valid/test folders of class folders, or its images are listed
in a table.
"""

import os
from dataclasses import replace
from pathlib import Path

from kd.config.layout import slug
from kd.config.settings import Reading
from kd.data.files import patients
from kd.data.files.find import IMAGE_EXTENSIONS, find_images, natural_key
from kd.data.index import UNLABELED, Index, Sample
from kd.data.readers.new_images import read_new_images
from kd.data.readers.tree import TABLE, Contents, other_files, read_any_tree, read_classes
from kd.data.tables.corrections import corrected
from kd.data.tables.image_table import read_table
from kd.system.errors import Problem, counted, first_names
from kd.system.names import Note, named

_DEFAULT = Reading()


def read(
    data_dir: str | None,
    classes: tuple[str, ...] | None = None,
    how: Reading = _DEFAULT,
    lenient: bool = False,
) -> Index:
    """Read the index of a folder, or of the images that a table lists.

    The table is that of --table, or images.csv in the folder. `classes` sets the list of classes,
    for example to those of a trained network. By default, it is the list of the classes that are
    found, in natural order. Corrections (--errata) are applied. With
    `lenient`, a tree is not refused for what is odd in it: a finished run checks its images itself.

    An image without a patient counts as a patient of its own, and a note reports it. With
    `classes`, images may be unlabelled (see `read_new_images`), notes say where labels are from,
    splits are ignored, and what cannot be read is in `Index.lost`. Without it, only rows of a table
    may have no label. Raises Problem for an empty folder, a bad table (with row numbers), a tree
    whose classes are not clear (`read_classes`, `read_new_images`), and labels in a table that are
    not in `classes`.
    """
    root, table = _places(data_dir, "--data-dir", how)
    if table is not None:
        contents = _from_table(root, table, how, classes, ("split",) if classes else ())
    elif classes is not None:
        contents = read_new_images(root, classes)
    else:
        contents = read_classes(root, lenient)
    _check_some(contents, root, "--data-dir")
    found = sorted({row["label"] for row in contents.rows if row["label"]}, key=natural_key)
    if classes is None:
        unlabelled = [row["path"] for row in contents.rows if not row["label"]]
        _check_classes(root, found, unlabelled, contents.rows, table)
    index = _index(root, classes or tuple(found), contents, how, strict=classes is None)
    if how.errata is not None:
        index = corrected(index, how.errata)
    notes = patients.unknown_patients(index)
    if classes is None:
        notes += _unlabelled_images(index)
    elif table is not None:
        labelled = int((index.labels != UNLABELED).sum())
        notes.append(f"{labelled} of {len(index.samples)} images have a label in {table.name}.")
    return replace(index, notes=(*index.notes, *notes))


def read_images(data_dir: str | None, flag: str, how: Reading = _DEFAULT) -> Index:
    """Read the index of the images of a folder without their labels and splits.

    The index has no classes. The folder may have any structure, and the patients are those of its
    table, if it has one. Messages name `flag` as the source of `data_dir`. Raises Problem for an
    empty folder, a bad table, and folders of masks.
    """
    root, table = _places(data_dir, flag, how)
    if table is None:
        contents = read_any_tree(root)
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
        return Contents(listed.rows, listed.notes, lost=listed.lost)
    try:
        found = find_images(root)
    except Problem as problem:  # in folders that the table may not mention
        notes = [*listed.notes, Note(problem.marked)]
        return Contents(listed.rows, notes, lost=listed.lost)
    others = dict(found.others)
    others[".csv"] -= 1  # the table itself
    others = {extension: count for extension, count in others.items() if count}
    notes = listed.notes + other_files(others)
    known = {row["path"] for row in listed.rows}
    unlisted = [path for path in found.paths if path not in known]
    if unlisted:
        notes.append(
            Note(
                f"{counted(len(unlisted), 'image was', 'images were')} found in {root} but not"
                f" used, because {TABLE} has no row for it or the row was left out:"
                f" {first_names(unlisted)}."
            )
        )
    return Contents(listed.rows, notes, found.skipped, others, listed.lost)


def _check_some(contents: Contents, root: Path, flag: str) -> None:
    if not contents.rows:
        notes = "".join(f" {named(note)}" for note in contents.notes[:1])
        if contents.lost:
            faults = [f"{path} ({why})" for path, why in contents.lost.items()]
            notes = f" Nothing in it can be read: {first_names(faults)}."
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
            f"Images in {root} have no label: {first_names(unlabelled)}. Put the images of each"
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


def _index(
    root: Path, classes: tuple[str, ...], contents: Contents, how: Reading, strict: bool = True
) -> Index:
    """Return the index of rows in the order of their paths, with their patients.

    strict  see `patients.identified`
    """
    rows = sorted(contents.rows, key=lambda row: row["path"])
    rows, patient_notes = patients.identified(root, rows, how, strict)
    samples = []
    for row in rows:
        label = classes.index(row["label"]) if row["label"] else UNLABELED
        patient = row["patient"] or row["path"]
        samples.append(Sample(row["path"], label, patient, row["study"] or patient, row["split"]))
    names = dict.fromkeys(name for row in rows for name in row["extra"])
    extra = {name: tuple(row["extra"].get(name, "") for row in rows) for name in names}
    sites = tuple(row["site"] for row in rows)
    if any(sites):
        extra.setdefault("site", sites)
    return Index(
        slug(root.resolve().name),
        classes,
        tuple(samples),
        root=root,
        skipped=contents.skipped,
        others=contents.others,
        lost=contents.lost,
        extra=extra,
        notes=(*contents.notes, *patient_notes),
    )
