"""Tables of images and their grades, and corrections to them.

Each row is checked, and all faults of a kind are reported at once.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from kd.data.folder import PICTURES
from kd.data.table import Table, read_csv
from kd.system.errors import Problem, first_ten, printable

DROP = "drop"


class Row(NamedTuple):
    """A row of a table.

    where  table, row and first field, for messages
    stem   of its image, see `stem_of`
    grade  as it is written; None where the image has none on purpose
    split  the split that the table gives it to, or None
    """

    where: str
    stem: str
    grade: str | None
    split: str | None = None


def stem_of(name: str) -> str:
    """A file's name without its folders and, in any case, an image's extension.

    A name without such an extension stays as it is.
    """
    base, extension = os.path.splitext(name.rpartition("/")[2])
    return base if extension.lower() in PICTURES else base + extension


def number(text: str) -> str:
    """A whole number without the `.0` that spreadsheets add; anything else stays as it is."""
    found = re.fullmatch(r"([0-9]+)\.0*", text)
    return found[1] if found else text


def rows_of(root: Path, name: str, header: tuple[str, ...], image: int, grade: int) -> list[Row]:
    """The rows of a CSV with exactly this header; `image` and `grade` are columns.

    Raises Problem as `fields_of` does.
    """
    return [
        Row(where, stem_of(fields[image]), fields[grade])
        for where, fields in fields_of(root, name, header)
    ]


def fields_of(
    root: Path, name: str, header: tuple[str, ...], read: Callable[[Path], Table] = read_csv
) -> list[tuple[str, list[str]]]:
    """[(where, stripped fields)] of the table `name` below root.

    `where` names table, row and first field. Columns may differ from `header` in case. Raises
    Problem where the table is missing, or has other columns, no rows, or rows of another length.
    """
    table = root / name
    if not table.is_file():
        raise Problem(
            f"'{name}' in {root}: no such file; give the folder that holds it and its pictures"
        )
    columns, records = read(table)
    if [column.lower() for column in columns] != [column.lower() for column in header]:
        raise Problem(
            f"header '{','.join(columns)[:200]}' in {table}: must be {','.join(header)}; mend row"
            " 1, or restore it"
        )
    if not records:
        raise Problem(f"'{table}': has no rows below its header; download it again")
    found = []
    uneven = []
    for line, fields in records:
        stripped = [field.strip() for field in fields]
        where = f"{name} row {line} '{printable(stripped[0])}'"
        found.append((where, stripped))
        if len(stripped) != len(header):
            uneven.append(f"{where} (not as many fields as the header)")
    if uneven:
        raise Problem(f"rows in {root}: {first_ten(uneven)}; mend them")
    return found


def by_stem(root: Path, rows: list[Row], scale: tuple[str, ...]) -> dict[str, Row]:
    """The rows that have a grade, by their stems.

    Raises Problem for an image with two rows, and for grades that are not on the scale.
    """
    found = {}
    faults = []
    for row in rows:
        if row.stem in found:
            faults.append(f"{row.where} (stands in {found[row.stem].where} too)")
        elif row.grade is not None and number(row.grade) not in scale:
            faults.append(f"{row.where} (grade '{row.grade}' is none of {', '.join(scale)})")
        found.setdefault(row.stem, row)
    if faults:
        raise Problem(f"rows in {root}: {first_ten(faults)}; mend them")
    graded = {}
    for stem, row in found.items():
        if row.grade is not None:
            graded[stem] = row._replace(grade=number(row.grade))
    return graded


def corrected(
    rows: dict[str, Row], errata: str, scale: tuple[str, ...]
) -> tuple[dict[str, Row], str]:
    """(the rows after the corrections of a CSV, a note that counts the corrections).

    The CSV has the columns image,grade; the grade `drop` leaves an image out. Raises Problem for
    rows of it that name an image twice, one that the tables do not have, or no grade.
    """
    if not os.path.isfile(errata):
        raise Problem(
            f"errata '{errata}' in --errata: no such file; give a CSV with the header image,grade"
        )
    file = Path(errata)
    corrections = rows_of(file.parent, file.name, ("image", "grade"), 0, 1)
    unknown = []
    for row in corrections:
        if row.stem not in rows:
            unknown.append(f"{row.where} (the tables give no such picture a grade)")
    if unknown:
        raise Problem(f"errata '{errata}' in --errata: {first_ten(unknown)}; mend them")
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
    return kept, f"errata {file.name}: {changed} grades changed, {dropped} pictures dropped"
