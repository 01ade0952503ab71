"""Tables of pictures and their grades, and corrections to them: each row checked, all its faults of
a kind told at once.
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
    """A row of a table: where it stands, the stem of its picture, its grade as written (None: has
    none on purpose), its part.
    """

    where: str
    stem: str
    grade: str | None
    part: str | None = None


def stem_of(name: str) -> str:
    """A file's name without folders and without a picture's extension, in whatever case; what has
    none stays as it is.
    """
    base, extension = os.path.splitext(name.rpartition("/")[2])
    return base if extension.lower() in PICTURES else base + extension


def number(text: str) -> str:
    """A whole number without the `.0` that spreadsheets give it; anything else as it is."""
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
    """[(where, stripped fields)] of a table `name` below root; `where` names table, row and first
    field.

    Columns may differ from `header` in case. Raises Problem where the table is not there, has other
    columns, no rows, or rows of another length.
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
    found = [
        (f"{name} row {line} '{printable(fields[0].strip())}'", list(map(str.strip, fields)))
        for line, fields in records
    ]
    uneven = [
        f"{where} (not as many fields as the header)"
        for where, fields in found
        if len(fields) != len(header)
    ]
    if uneven:
        raise Problem(f"rows in {root}: {first_ten(uneven)}; mend them")
    return found


def by_stem(root: Path, rows: list[Row], scale: tuple[str, ...]) -> dict[str, Row]:
    """The rows that have a grade by their stems.

    Raises Problem for a picture with two rows and for grades that are none.
    """
    found, faults = {}, []
    for row in rows:
        if row.stem in found:
            faults.append(f"{row.where} (stands in {found[row.stem].where} too)")
        elif row.grade is not None and number(row.grade) not in scale:
            faults.append(f"{row.where} (grade '{row.grade}' is none of {', '.join(scale)})")
        found.setdefault(row.stem, row)
    if faults:
        raise Problem(f"rows in {root}: {first_ten(faults)}; mend them")
    return {
        stem: row._replace(grade=number(row.grade))
        for stem, row in found.items()
        if row.grade is not None
    }


def corrected(
    rows: dict[str, Row], errata: str, scale: tuple[str, ...]
) -> tuple[dict[str, Row], str]:
    """(the rows after the corrections of a CSV image,grade, where a grade may be `drop`; a note
    that counts them).

    Raises Problem for rows of it that name no picture of the tables, no grade, or a picture twice.
    """
    if not os.path.isfile(errata):
        raise Problem(
            f"errata '{errata}' in --errata: no such file; give a CSV with the header image,grade"
        )
    file = Path(errata)
    corrections = rows_of(file.parent, file.name, ("image", "grade"), 0, 1)
    unknown = [
        f"{row.where} (the tables give no such picture a grade)"
        for row in corrections
        if row.stem not in rows
    ]
    if unknown:
        raise Problem(f"errata '{errata}' in --errata: {first_ten(unknown)}; mend them")
    new = by_stem(file.parent, corrections, (*scale, DROP))
    changed = sum(row.grade not in (DROP, rows[stem].grade) for stem, row in new.items())
    dropped = [stem for stem, row in new.items() if row.grade == DROP]
    kept = {
        stem: row._replace(grade=new[stem].grade) if stem in new else row
        for stem, row in rows.items()
        if stem not in dropped
    }
    return kept, f"errata {file.name}: {changed} grades changed, {len(dropped)} pictures dropped"
