"""Read tables, CSV and legacy Excel, as (columns, [(row number, fields)])."""

import csv
import io
from pathlib import Path

from kd.system.errors import Problem

Table = tuple[list[str], list[tuple[int, list[str]]]]
_XLS_NUMBER = 2  # xlrd.XL_CELL_NUMBER


def read_csv(table: Path) -> Table:
    """Read a CSV file in UTF-8, with or without a BOM.

    Returns the stripped column names, and the rows that are not empty with their line numbers. A
    row may have more or fewer fields than columns. Raises Problem if the file cannot be read as
    such.
    """
    try:
        text = table.read_bytes().decode("utf-8-sig")
        if "\0" in text:
            line = text[: text.index("\0")].count("\n") + 1
            raise csv.Error(f"row {line} contains a NUL byte")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        columns = [name.strip() for name in next(reader, ())]
        rows = []
        for fields in reader:
            if any(field.strip() for field in fields):
                rows.append((reader.line_num, fields))
        return columns, rows
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise Problem(
            f"'{table}' cannot be read as CSV ({error}). Save it as UTF-8 text with commas."
        ) from None


def read_xls(table: Path) -> Table:
    """Read the first sheet of a legacy Excel file, and return the same as `read_csv`.

    Raises Problem for a damaged file, and if xlrd is not installed.
    """
    try:
        import xlrd  # imported here, because only one data set needs it
    except ImportError:
        raise Problem(
            f"'{table}' cannot be read: the package xlrd is not installed. Run 'pip install -r"
            " requirements.txt'."
        ) from None

    try:
        with xlrd.open_workbook(table, logfile=io.StringIO()) as book:
            sheet = book.sheet_by_index(0)
            rows = [list(map(_cell_text, row)) for row in sheet.get_rows()]
    except Exception as error:
        # For bad files, xlrd raises anything from AssertionError to struct.error.
        raise Problem(
            f"'{table}' cannot be read as a legacy Excel file"
            f" ({str(error) or type(error).__name__}). Unpack or download it again."
        ) from None
    # The size of a sheet also includes cells that are only formatted.
    width = max(map(_filled_width, rows), default=0)
    columns = rows[0][:width] if rows else []
    records = []
    for number, fields in enumerate(rows[1:], 2):
        if any(fields):
            records.append((number, fields[:width]))
    return columns, records


def _cell_text(cell) -> str:
    if isinstance(cell.value, str):
        return cell.value.strip()
    if cell.ctype == _XLS_NUMBER:
        return f"{cell.value:.15g}"
    # str(cell) includes the type, so that a Boolean or an error code is not taken for a number.
    return str(cell)


def _filled_width(fields: list[str]) -> int:
    """Return the number of fields of a row up to its last one that is not empty."""
    width = 0
    for place, field in enumerate(fields):
        if field:
            width = place + 1
    return width
