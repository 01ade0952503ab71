"""Read tables, CSV and legacy Excel, as (columns, [(row number, fields)], notes)."""

import csv
import io
import os
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from kd.system.errors import Problem, counted, first_names
from kd.system.messages import first_line
from kd.system.names import Note

# The types of cells of xlrd: XL_CELL_NUMBER, XL_CELL_BOOLEAN, XL_CELL_ERROR.
_XLS_NUMBER = 2
_XLS_BOOLEAN = 4
_XLS_ERROR = 5
_EXACT = 2**53  # whole numbers from here on lose digits in a spreadsheet
_SPREADSHEET_DIGITS = 10**15  # Excel rounds longer whole numbers when they are typed in
_SAMPLE = 20  # rows that decide about the delimiter
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
    notes    what was guessed about the file, for the user
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

    The delimiter (comma, semicolon, tab or vertical bar) is the one that divides most of the first
    rows, then the one that is most frequent in the header, or the one that a first line `sep=;`
    names. The text is UTF-8, UTF-16 with a byte order mark, or otherwise Windows-1252. Empty fields
    that only the header or only a row has at its end do not matter. Notes name a delimiter other
    than the comma, Windows-1252, which is a guess, and such fields. Raises Problem if the file
    cannot be read as such.
    """
    if table.exists() and not table.is_file():  # reading a pipe could wait forever
        raise Problem(f"'{table}' cannot be read as CSV: it is not a file. Use a file.")
    try:
        text, notes = _text(table)
        if "\0" in text:
            line = text[: text.index("\0")].count("\n") + 1
            raise csv.Error(f"row {line} contains a NUL byte")
        delimiter, skipped = _delimiter(text)
        rows = _rows(table, text, delimiter, skipped)
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise Problem(
            f"'{table}' cannot be read as CSV ({first_line(error)}). Save it as UTF-8 text with"
            " commas."
        ) from None
    if delimiter != ",":
        notes.append(f"'{table.name}' is separated by {_DELIMITERS[delimiter]}.")
    _, header = rows.pop(0) if rows else (0, [])
    columns = [name.strip() for name in header]
    rows, changed = _evened(columns, rows)
    if changed:
        notes.append(
            f"{counted(changed, 'row', 'rows')} of '{table.name}' and the header do not end with"
            " equally many empty fields, which does not matter."
        )
    return Table(columns, rows, tuple(notes))


def _rows(table: Path, text: str, delimiter: str, skipped: int) -> list[tuple[int, list[str]]]:
    """Return the rows of a CSV text that are not empty, from line `skipped` on.

    Raises Problem for quotes in wrong places, and csv.Error for other faults.
    """
    lines = io.StringIO(text, newline="")
    for _ in range(skipped):
        next(lines)
    reader = csv.reader(lines, strict=True, delimiter=delimiter)
    rows = []
    start = skipped + 1
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                rows.append((reader.line_num + skipped, fields))
            start = reader.line_num + skipped + 1
    except csv.Error as error:
        if "expected after" not in str(error) and "unexpected end" not in str(error):
            raise csv.Error(f"row {start}: {error}") from None
        raise Problem(
            f"'{table}' cannot be read as CSV: the field that begins with a quote (\") in row"
            f" {start} does not end with one, or contains a single one. Write a quote inside such a"
            ' field twice (""), or remove it.'
        ) from None
    return rows


def _evened(
    columns: list[str], rows: list[tuple[int, list[str]]]
) -> tuple[list[tuple[int, list[str]]], int]:
    """Return (rows without empty fields beyond the header, or with those it has, their number)."""
    width = len(columns)
    named = _filled_width(columns)
    even = []
    changed = 0
    for number, fields in rows:
        length = len(fields)
        if length > width and _filled_width([field.strip() for field in fields]) <= width:
            fields = fields[:width]
        elif named <= length < width:
            fields = fields + [""] * (width - length)
        changed += len(fields) != length
        even.append((number, fields))
    return even, changed


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
    counts = _header_counts(text)
    ranks = {}
    for place, mark in enumerate(_DELIMITERS):
        # The first of equals is used.
        ranks[mark] = (*_divided(text, mark, counts[mark]), counts[mark], -place)
    return max(ranks, key=ranks.get), 0


def _divided(text: str, delimiter: str, in_header: int) -> tuple[int, int]:
    """Return (how many of the first rows a delimiter divides, how many like the header).

    A delimiter that the header lacks (if it is only a title) must divide all of them alike.
    """
    reader = csv.reader(io.StringIO(text.lstrip(), newline=""), delimiter=delimiter)
    widths = []
    try:
        for fields in islice(reader, _SAMPLE):
            if any(field.strip() for field in fields):
                widths.append(len(fields))
    except csv.Error:  # reported when all rows are read
        pass
    rows = [width for width in widths[1:] if width > 1]
    if not in_header and (len(rows) < len(widths) - 1 or len(set(rows)) > 1):
        return 0, 0
    return len(rows), rows.count(in_header + 1)


def _header_counts(text: str) -> dict[str, int]:
    """Return how often the header of a CSV text contains each delimiter outside quotes."""
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
    return counts


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
            cells = list(sheet.get_rows())
    except Exception as error:
        # For bad files, xlrd raises anything from AssertionError to struct.error.
        raise Problem(
            f"'{table}' cannot be read as a legacy Excel file"
            f" ({first_line(error)}). Unpack or download it again."
        ) from None
    rows = [list(map(_cell_text, row)) for row in cells]
    # The size of a sheet also includes cells that are only formatted.
    width = max(map(_filled_width, rows), default=0)
    columns = rows[0][:width] if rows else []
    records = []
    for number, fields in enumerate(rows[1:], 2):
        if any(fields):
            records.append((number, fields[:width]))
    return Table(columns, records, _rounded_numbers(table, cells))


def _cell_text(cell) -> str:
    """Return the text of a cell as a spreadsheet exports it; an error is a missing value."""
    if isinstance(cell.value, str):
        return cell.value.strip()
    if cell.ctype == _XLS_BOOLEAN:
        return "TRUE" if cell.value else "FALSE"
    if cell.ctype == _XLS_ERROR:
        return "#N/A"
    if cell.ctype == _XLS_NUMBER:
        is_exact = cell.value.is_integer() and abs(cell.value) < _EXACT
        return str(int(cell.value)) if is_exact else f"{cell.value:.15g}"
    # str(cell) includes the type, so that a date is not taken for a number.
    return str(cell)


def _rounded_numbers(table: Path, cells: list[list]) -> tuple[str, ...]:
    """Return a note if a sheet has whole numbers of which digits may be lost."""
    long = []
    for row in cells:
        for cell in row:
            if cell.ctype == _XLS_NUMBER and abs(cell.value) >= _SPREADSHEET_DIGITS:
                long.append(_cell_text(cell))
    if not long:
        return ()
    numbers = counted(len(long), "number", "numbers")
    note = Note(
        f"{numbers} of '{table.name}' with more than 15 digits may have lost the last of them, as"
        f" Excel keeps only 15: {first_names(long)}. If these are names of patients or images, save"
        " the table again with the column formatted as text."
    )
    return (note,)


def _filled_width(fields: list[str]) -> int:
    """Return the number of fields of a row up to its last one that is not empty."""
    width = 0
    for place, field in enumerate(fields):
        if field:
            width = place + 1
    return width
