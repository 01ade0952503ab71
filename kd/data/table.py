"""Tables on disk -> (columns, [(row number, fields)]):

CSV and legacy Excel, each read in this one place.
"""

import csv
import io
from pathlib import Path

from kd.system.errors import Problem

Table = tuple[list[str], list[tuple[int, list[str]]]]


def read_csv(table: Path) -> Table:
    """The stripped column names and the rows that hold anything, with their line numbers, of a CSV
    in UTF-8 (with BOM or not).

    Raises Problem for what is no such text. Rows may have more or fewer fields than there are
    columns.
    """
    try:
        text = table.read_bytes().decode("utf-8-sig")
        if "\0" in text:
            raise csv.Error(f"row {text[: text.index(chr(0))].count(chr(10)) + 1} holds a NUL byte")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        columns = [name.strip() for name in next(reader, ())]
        return columns, [
            (reader.line_num, fields) for fields in reader if any(map(str.strip, fields))
        ]
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise Problem(
            f"'{table}': cannot be read as CSV ({error}); save it as UTF-8 text with commas"
        ) from None


def read_xls(table: Path) -> Table:
    """The same of the first sheet of a legacy Excel file.

    Raises Problem for one that is damaged, and where xlrd is missing.
    """
    try:
        import xlrd  # here: one data set alone needs it
    except ImportError:
        raise Problem(
            f"'{table}': the package xlrd reads it and is not installed; pip install -r"
            " requirements.txt"
        ) from None

    def text(cell) -> str:
        if cell.ctype == xlrd.XL_CELL_NUMBER:
            return f"{cell.value:.15g}"
        # str(cell) names its type: a truth value or an error's code must not pass for a number.
        return cell.value.strip() if isinstance(cell.value, str) else str(cell)

    try:
        with xlrd.open_workbook(table, logfile=io.StringIO()) as book:
            rows = [[text(cell) for cell in row] for row in book.sheet_by_index(0).get_rows()]
    except (
        Exception
    ) as error:  # xlrd raises anything from AssertionError to struct.error for bad files
        raise Problem(
            f"'{table}': cannot be read as a legacy Excel file"
            f" ({str(error) or type(error).__name__}); unpack or download it again"
        ) from None
    width = max((place + 1 for row in rows for place, field in enumerate(row) if field), default=0)
    rows = [row[:width] for row in rows]  # a sheet's size counts cells that are only formatted
    return (rows[0] if rows else []), [
        (number, fields) for number, fields in enumerate(rows[1:], 2) if any(fields)
    ]
