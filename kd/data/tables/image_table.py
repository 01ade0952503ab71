"""Read a table of images with their labels, patients, studies, splits and sites."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from kd.config.settings import Reading
from kd.data.files.find import split_name
from kd.data.files.patients import is_unknown
from kd.data.tables.columns import (
    Columns,
    Row,
    choose,
    distinct,
    has_lost_digits,
    note_on_extra,
    rows_of,
    shown,
)
from kd.data.tables.corrections import labels_by_path
from kd.data.tables.grades import number
from kd.data.tables.labels import missing_words, read_labels
from kd.data.tables.paths import locate
from kd.data.tables.spelling import is_missing, plain
from kd.data.tables.table import Table, read
from kd.system.errors import Problem, counted, first_names, first_ten
from kd.system.names import Note, named


class Listed(NamedTuple):
    """The images that a table lists.

    rows   one dictionary for each image: path (relative to the root with /, or absolute), label (""
           if it is unlabelled), patient ("" if unknown), study, split (None, train, valid or test),
           site ("" if there is none) and extra ({name of a further column: text})
    notes  what was read otherwise than it is written, and what was left out
    lost   images that were not found, {path in the table: reason}; only for a trained network
    """

    rows: list[dict]
    notes: list[str]
    lost: dict[str, str] = {}


def read_table(
    root: Path,
    table: Path,
    how: Reading,
    classes: tuple[str, ...] | None,
    ignored: tuple[str, ...] = (),
) -> Listed:
    """Read a table of images: CSV of any dialect, or legacy Excel.

    `root` is the folder that its paths are relative to; see `table_paths.locate` for other ways to
    name images. `how` has the meaning of the columns, of labels of -1, and the file of corrections:
    labels that it replaces need not be usable. `classes` are those of a trained network, if there
    is one. Columns for the keys in `ignored` are treated as absent, and nothing about them is
    checked.

    Raises Problem if the table cannot be read, for its header (see `table_columns.choose`), for
    rows that cannot be used (all of them are counted), and for its labels (see
    `table_labels.read_labels`). With `classes`, rows whose image is not found are left out, unless
    none is found.
    """
    content = read(table)
    _refuse_title(table, content)
    columns = choose(table, content.columns, how.columns, ignored)
    if classes is None and "label" not in ignored:
        _require_labels(table, content.columns, columns)
    if not content.rows:
        raise Problem(f"'{table}' has no rows below its header. List the images, or remove it.")
    rows, faults = rows_of(content, columns)
    lost = {}
    rows, path_notes = _with_paths(root, table, rows, faults, None if classes is None else lost)
    corrections = {}
    if how.errata is not None and columns.labels:
        corrections = labels_by_path(root, [row.path for row in rows], how.errata)
    label_notes = []
    if columns.labels:
        rows, label_notes = read_labels(table, rows, columns.labels, how, classes, corrections)
    patient_notes = _unify_patients(table, rows)
    _refuse_unknown_labels(table, rows, classes)
    rows, merge_notes = _merged(table, rows, corrections)
    notes = [*content.notes, *note_on_extra(table, columns), *path_notes]
    notes += label_notes + patient_notes + merge_notes
    return Listed([_as_dict(row) for row in rows], notes, lost)


def _refuse_title(table: Path, content: Table) -> None:
    """Raise Problem if the first row is a title: it has one text, but the rows below have more."""
    names = [name for name in content.columns if name]
    if len(names) != 1:
        return
    for line, fields in content.rows:
        filled = sum(bool(field.strip()) for field in fields)
        if filled > 1:
            raise Problem(
                f"'{table}' has no header in its first row: there is only"
                f" '{named(shown(names[0]))}', but row {line} has {filled} texts. Remove the lines"
                " above the names of the columns, or add these names."
            )


def _require_labels(table: Path, names: list[str], columns: Columns) -> None:
    """Raise Problem if there is no column of labels."""
    if not columns.labels:
        listed = first_names([f"'{shown(name)}'" for name in names])
        raise Problem(
            f"'{table}' has no column 'label': its columns are {listed}. Name the column of the"
            " labels with --columns label=NAME."
        )


def _with_paths(
    root: Path, table: Path, rows: list[Row], faults: list[str], lost: dict[str, str] | None
) -> tuple[list[Row], list[str]]:
    """Return (one row for each image that a row names, with its path and split, notes).

    Raises Problem for `faults`, which were found earlier, and for rows without images or with an
    unknown split. With `lost`, rows without images are added to it, unless there are no others.
    """
    located = locate(root, table, [row.name for row in rows])
    if lost is not None and located.paths:
        for row in rows:
            if row.name in located.faults:
                lost[row.name] = f"row {row.number} of {table.name}: {located.faults[row.name]}"
        rows = [row for row in rows if row.name not in lost]
    for row in rows:
        fault = located.faults.get(row.name) or _set_split(row)
        if fault:
            faults.append(f"{row.where} ({fault})")
    _refuse(table, faults)
    rows = [replace(row, path=path) for row in rows for path in located.paths[row.name]]
    return rows, located.notes


def _refuse(table: Path, faults: list[str]) -> None:
    if faults:
        faults.sort(key=lambda fault: int(fault.split()[1]))  # by row
        raise Problem(f"Rows of {table} cannot be used: {first_names(faults)}. Fix them.")


def _set_split(row: Row) -> str:
    """Set the split of a row, and return what is wrong with it, or an empty string."""
    text = row.split
    row.split = None if is_missing(text) else split_name(text)
    if row.split is None and not is_missing(text):
        return f"unknown split '{shown(text)}', it must be train, valid or test"
    return ""


def _refuse_unknown_labels(table: Path, rows: list[Row], classes: tuple[str, ...] | None) -> None:
    """Raise Problem for labels that are not classes of the network."""
    if classes is None:
        return
    faults = []
    for row in rows:
        if row.label and row.label not in classes:
            faults.append(
                f"{row.where} (unknown label '{shown(row.label)}', the network's classes are"
                f" {first_ten(list(classes))})"
            )
    _refuse(table, faults)


def _unify_patients(table: Path, rows: list[Row]) -> list[str]:
    """Empty unknown patients, studies and sites, remove `.0`, and return notes.

    Raises Problem for patients that are numbers without their last digits.
    """
    words = Counter()
    whole = set()
    decimal = Counter()
    for row in rows:
        row.study = "" if is_missing(row.study) else number(row.study)
        row.site = "" if is_missing(row.site) else row.site
        patient = number(row.patient)
        if is_missing(patient) or is_unknown(patient):
            words[row.patient] += 1
            patient = ""
        elif patient != row.patient:
            decimal[patient] += 1
        else:
            whole.add(patient)
        row.patient = patient
    notes = missing_words(table, words, "patient", "unknown")
    both = sum(count for text, count in decimal.items() if text in whole)
    if both:
        notes.append(
            f"{counted(both, 'patient is', 'patients are')} written with .0 in {table.name}, and"
            " elsewhere without it: these are one patient."
        )
    _refuse_cut_numbers(table, rows)
    return notes + _odd_patients(table, {row.patient for row in rows if row.patient})


def _refuse_cut_numbers(table: Path, rows: list[Row]) -> None:
    """Raise Problem for patients like 1.23457E+15: several patients may have become one."""
    cut = distinct([row for row in rows if has_lost_digits(row.patient)])
    if cut:
        texts = [f"{row.where} (patient {shown(row.patient)})" for row in cut]
        raise Problem(
            f"{counted(len(cut), 'row has', 'rows have')} a patient without the last digits in"
            f" '{table}', as spreadsheets write long numbers: {first_names(texts)}. Export the"
            " table again with this column formatted as text, so that different patients stay"
            " different."
        )


def _odd_patients(table: Path, patients: set[str]) -> list[str]:
    """Return a note on patients that may be one."""
    spellings = {}
    for patient in sorted(patients):
        spellings.setdefault(plain(patient), []).append(patient)
    alike = [" = ".join(map(shown, names)) for names in spellings.values() if len(names) > 1]
    if not alike:
        return []
    names = counted(len(alike), "patient", "patients")
    return [
        Note(
            f"{names} of {table.name} may be written in several ways, and count as different"
            f" patients: {first_names(alike)}. Write them in one way if they are the same."
        )
    ]


def _merged(
    table: Path, rows: list[Row], corrections: dict[str, str]
) -> tuple[list[Row], list[str]]:
    """Return (one row for each image, notes).

    Raises Problem for rows of one image that differ in anything but further columns. An image that
    will be dropped may have several labels.
    """
    first = {}
    contrary = {}
    faults = []
    extra = 0
    for row in rows:
        kept = first.setdefault(row.path, row)
        if row.label != kept.label:
            contrary.setdefault(row.path, [kept]).append(row)
        for key in ("patient", "study", "split", "site"):
            if getattr(row, key) != getattr(kept, key):
                faults.append(f"{row.where} (listed in row {kept.number} with another {key})")
                break
        extra += row.extra != kept.extra
    _refuse(table, faults)
    _refuse_contrary(table, [own for own in contrary.values() if own[0].path not in corrections])
    for own in contrary.values():
        own[0].labels = ()
    merged = list(first.values())
    if len(merged) == len(rows):
        return rows, []
    count = counted(len(rows) - len(merged), "row was", "rows were")
    differ = ""
    if extra:
        differ = f"; {counted(extra, 'row differs', 'rows differ')} in further columns"
    note = f"{count} left out of {table.name}: an earlier row lists the same image{differ}."
    return merged, [note]


def _refuse_contrary(table: Path, contrary: list[list[Row]]) -> None:
    """Raise Problem for images with several labels, each in a row of its own."""
    images = []
    for rows in contrary:
        texts = [f"{shown(row.label) or 'no label'} in row {row.number}" for row in rows]
        images.append(f"'{shown(rows[0].path)}' ({first_ten(texts)})")
    if images:
        raise Problem(
            f"{counted(len(images), 'image has', 'images have')} several labels in '{table}', but"
            f" an image has one class: {first_names(images)}. Exclude these images by --errata FILE"
            " with the label drop, or give them one label there."
        )


def _as_dict(row: Row) -> dict:
    return {
        "path": row.path,
        "label": row.label,
        "patient": row.patient,
        "study": row.study,
        "split": row.split,
        "site": row.site,
        "extra": row.extra,
    }
