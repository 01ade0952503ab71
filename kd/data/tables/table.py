"""Read tables, CSV and legacy Excel, as (columns, [(row number, fields)], notes)."""

import csv
import io
import os
from pathlib import Path
from typing import NamedTuple

from kd.system.errors import Problem

_XLS_NUMBER = 2  # xlrd.XL_CELL_NUMBER
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_UTF_8 = b"\xef\xbb\xbf"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_LEGACY_EXCEL = b"\xd0\xcf\x11\xe0"
# Files that are often passed as a table, by their first bytes, with what to do about them.
_NO_TEXT = {
    b"PK\x03\x04": "it is an Excel workbook (.xlsx) or a zip archive. Save it as CSV, or unpack it",
    b"\x1f\x8b": "it is compressed. Unpack it with gunzip",
    _LEGACY_EXCEL: "it is a legacy Excel file. Save it as CSV, or use it with --table FILE",
}


class Table(NamedTuple):
    """A table as text.

    columns  names of the columns, without blanks around them
    rows     [(line number, fields)] of the rows that are not empty. A row of a CSV file may have
             more or fewer fields than columns
    notes    what was guessed about the file and should be told to the user
    """

    columns: list[str]
    rows: list[tuple[int, list[str]]]
    notes: tuple[str, ...] = ()


def read(table: Path) -> Table:
    """Read a table in CSV or, if its content is that of such a file, in legacy Excel.

    Raises Problem as `read_csv` and `read_xls` do.
    """
    if not table.is_file() or not os.access(table, os.R_OK):
        return read_csv(table)  # which reports the error
    with open(table, "rb") as file:
        head = file.read(4096)
    is_excel = head.startswith(_LEGACY_EXCEL)
    if not is_excel and table.suffix.lower() == ".xls":
        is_excel = b"\0" in head and not head.startswith(_UTF_16)
    return read_xls(table) if is_excel else read_csv(table)


def read_csv(table: Path) -> Table:
    """Read a CSV file of any dialect.

    The delimiter (comma, semicolon, tab or vertical bar) is the one that is most frequent in the
    header, or the one that a first line `sep=;` names. The text is UTF-8, UTF-16 with a byte order
    mark, or otherwise Windows-1252. Notes name a delimiter other than the comma, and
    Windows-1252, which is a guess. Raises Problem if the file cannot be read as such.
    """
    if table.exists() and not table.is_file():  # reading a pipe could wait forever
        raise Problem(f"'{table}' cannot be read as CSV: it is not a file. Use a file.")
    try:
        text, notes = _text(table)
        if "\0" in text:
            line = text[: text.index("\0")].count("\n") + 1
            raise csv.Error(f"row {line} contains a NUL byte")
        delimiter, skipped = _delimiter(text)
        lines = io.StringIO(text, newline="")
        for _ in range(skipped):
            next(lines)
        reader = csv.reader(lines, strict=True, delimiter=delimiter)
        rows = []
        for fields in reader:
            if any(field.strip() for field in fields):
                rows.append((reader.line_num + skipped, fields))
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise Problem(
            f"'{table}' cannot be read as CSV ({error}). Save it as UTF-8 text with commas."
        ) from None
    if delimiter != ",":
        notes.append(f"'{table.name}' is separated by {_DELIMITERS[delimiter]}.")
    _, header = rows.pop(0) if rows else (0, [])
    return Table([name.strip() for name in header], rows, tuple(notes))


def _text(table: Path) -> tuple[str, list[str]]:
    """Return (the text of a file, notes on its encoding).

    Raises Problem for files of other kinds, and UnicodeDecodeError for damaged text.
    """
    content = table.read_bytes()
    for head, what in _NO_TEXT.items():
        if content.startswith(head):
            raise Problem(f"'{table}' cannot be read as CSV: {what}.")
    if content.startswith(_UTF_16):
        return content.decode("utf-16"), []
    try:
        return content.decode("utf-8-sig"), []
    except UnicodeDecodeError:
        # Letters beyond ASCII that are valid UTF-8 do not occur in other text by chance: this
        # is UTF-8 that was damaged.
        readable = content.decode("utf-8", "ignore")
        if content.startswith(_UTF_8) or not readable.isascii():
            raise
    note = (
        f"'{table.name}' is not UTF-8 text, and was read as Windows-1252 (Western European): check"
        " its letters beyond a to z, or save it as UTF-8."
    )
    return content.decode("cp1252"), [note]


def _delimiter(text: str) -> tuple[str, int]:
    """Return (the delimiter of a CSV text, number of lines before the header).

    Spreadsheets may write a first line `sep=;`, which is not a part of the table.
    """
    first, _, _ = text.partition("\n")
    named = first.strip().strip('"')
    if named[:4].lower() == "sep=" and named[4:] in _DELIMITERS:
        return named[4:], 1
    if first[:4].lower() == "sep=" and first.rstrip("\r")[4:] == "\t":
        return "\t", 1
    counts = dict.fromkeys(_DELIMITERS, 0)
    quoted = False
    previous = ","
    for character in text.lstrip():
        if character == '"':
            # A quote inside an unquoted field is a part of its text.
            quoted = not quoted and previous in (*_DELIMITERS, '"')
        elif character in "\r\n" and not quoted:
            break
        elif character in counts and not quoted:
            counts[character] += 1
        previous = character
    return max(counts, key=counts.get), 0  # the first of equals


def read_xls(table: Path) -> Table:
    """Read the first sheet of a legacy Excel file, and return the same as `read_csv`.

    Raises Problem for a damaged file, and if xlrd is not installed.
    """
    try:
        import xlrd  # imported here, because only such files need it
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
    return Table(columns, records)


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
