"""Read tables of images and their grades, and apply corrections to them.

Each row is checked, and all faults of a kind are reported together.
"""

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from kd.data.files.find import IMAGE_EXTENSIONS
from kd.data.tables.table import Table, read_csv
from kd.system.errors import Problem, counted, first_names, printable
from kd.system.names import named

DROP = "drop"
# The headers that a CSV of corrections may have: what names an image, and its label.
ERRATA_HEADERS = (("image", "grade"), ("image", "label"), ("path", "label"))


class Row(NamedTuple):
    """A row of a table.

    where  table, row number and first field, for messages
    stem   stem of the image's name, see `stem_of`
    grade  the grade as it is written, or None if the image has none on purpose
    split  the split that the table specifies for the image, or None
    """

    where: str
    stem: str
    grade: str | None
    split: str | None = None


def stem_of(name: str) -> str:
    """Return a file's name without its folders and without the extension of an image.

    The case of the extension does not matter. A name without such an extension is unchanged.
    """
    base, extension = os.path.splitext(name.rpartition("/")[2])
    return base if extension.lower() in IMAGE_EXTENSIONS else base + extension


def number(text: str) -> str:
    """Return a whole number without the `.0` that spreadsheets add, and other text unchanged.

    The mark may be a comma, but `1,000` may be a thousand, and is not changed.
    """
    found = re.fullmatch(r"(-?[0-9]+)(\.0*|,00?)", text)
    return found[1] if found else text


def rows_of(root: Path, name: str, header: tuple[str, ...], image: int, grade: int) -> list[Row]:
    """Return the rows of a CSV with exactly this header.

    `image` and `grade` are the positions of these columns. Raises Problem as `fields_of` does.
    """
    return [
        Row(where, stem_of(fields[image]), fields[grade])
        for where, fields in fields_of(root, name, header)
    ]


def fields_of(
    root: Path,
    name: str,
    header: tuple[str, ...],
    read: Callable[[Path], Table] = read_csv,
    other_headers: tuple[tuple[str, ...], ...] = (),
    further: bool = False,
) -> list[tuple[str, list[str]]]:
    """Return [(where, stripped fields)] of the table `name` below root.

    `where` names the table, the row and its first field. The header must be `header` or one of
    `other_headers`, but may differ in case. With `further`, these may be some of the columns in any
    order, and the other columns are ignored. Raises Problem if the table is missing, or has other
    columns, no rows, or rows of another length.
    """
    table = root / name
    if not table.is_file():
        raise Problem(
            f"'{name}' in {root} cannot be read: no such file. Set --data-dir to the folder that"
            " contains this table and its images."
        )
    columns, records, _ = read(table)
    headers = (header, *other_headers)
    places = _places(columns, headers, further)
    if not places:
        raise Problem(
            f"'{table}' has an invalid header '{named(','.join(columns)[:200])}': it must be"
            f" {' or '.join(map(','.join, headers))}. Fix row 1, or restore the original file."
        )
    if not records:
        raise Problem(f"'{table}' has no rows below its header. Download it again.")
    found = []
    uneven = []
    for line, fields in records:
        stripped = [field.strip() for field in fields]
        first = stripped[places[0]] if places[0] < len(stripped) else ""
        where = f"{name} row {line} '{printable(first)}'"
        if len(stripped) != len(columns):
            uneven.append(f"{where} (number of fields differs from the header)")
            continue
        found.append((where, [stripped[place] for place in places]))
    if uneven:
        raise Problem(f"Rows of tables in {root} cannot be used: {first_names(uneven)}. Fix them.")
    return found


def _places(columns: list[str], headers: tuple[tuple[str, ...], ...], further: bool) -> list[int]:
    """Return the places of the columns of the header that a table has, or nothing."""
    names = _lower(columns)
    fitting = []
    for header in map(_lower, headers):
        if names == header:
            return list(range(len(names)))
        if further and all(names.count(name) == 1 for name in header):
            fitting.append([names.index(name) for name in header])
    return fitting[0] if len(fitting) == 1 else []


def _lower(names: Iterable[str]) -> list[str]:
    return [name.lower() for name in names]


def by_stem(root: Path, rows: list[Row], scale: tuple[str, ...]) -> dict[str, Row]:
    """Return the rows that have a grade, by their stems.

    Raises Problem for an image with two rows, and for grades that are not on the scale.
    """
    found = {}
    faults = []
    for row in rows:
        if row.stem in found:
            faults.append(f"{row.where} (already listed in {found[row.stem].where})")
        elif row.grade is not None and number(row.grade) not in scale:
            faults.append(f"{row.where} (grade '{row.grade}' is not one of {', '.join(scale)})")
        found.setdefault(row.stem, row)
    if faults:
        raise Problem(f"Rows of tables in {root} cannot be used: {first_names(faults)}. Fix them.")
    graded = {}
    for stem, row in found.items():
        if row.grade is not None:
            graded[stem] = row._replace(grade=number(row.grade))
    return graded


def corrections_in(errata: str) -> list[tuple[str, str, str]]:
    """Return [(where, image, label)] of the rows of a CSV of corrections.

    Further columns, for example comments, are ignored.

    Raises Problem if there is no such file, and as `fields_of` does.
    """
    file = Path(errata)
    if not file.is_file():
        raise Problem(
            f"--errata '{errata}' cannot be read: no such file. Use a CSV file with the header"
            " image,label (or image,grade)."
        )
    first, *others = ERRATA_HEADERS
    fields = fields_of(file.parent, file.name, first, other_headers=tuple(others), further=True)
    return [(where, image, label) for where, (image, label) in fields]


def corrected(
    rows: dict[str, Row], errata: str, scale: tuple[str, ...]
) -> tuple[dict[str, Row], str]:
    """Return (the rows after the corrections of a CSV, a note that counts the corrections).

    The CSV has one of ERRATA_HEADERS, and the grade `drop` excludes an image. Raises Problem if
    rows of it name an image twice, an image that has no grade in the tables, or no valid grade.
    """
    file = Path(errata)
    corrections = []
    for where, image, grade in corrections_in(errata):
        corrections.append(Row(where, stem_of(image), grade))
    unknown = []
    for row in corrections:
        if row.stem not in rows:
            unknown.append(f"{row.where} (the tables have no grade for such an image)")
    if unknown:
        raise Problem(
            f"--errata '{errata}' has rows that cannot be used: {first_names(unknown)}. Fix them."
        )
    new = by_stem(file.parent, corrections, (*scale, DROP))
    kept = {}
    changed = 0
    dropped = 0
    for stem, row in rows.items():
        grade = new[stem].grade if stem in new else row.grade
        if grade == DROP:
            dropped += 1
            continue
        if grade != row.grade:
            changed += 1
        kept[stem] = row._replace(grade=grade)
    grades = counted(changed, "grade", "grades")
    images = counted(dropped, "image", "images")
    return kept, f"--errata '{file.name}' changed {grades} and dropped {images}."
