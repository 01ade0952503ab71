"""Find the label of each row of a table, and refuse labels that do not mean one class.

The label is in one column, or each class has a column of 0 and 1.
"""

import re
from collections import Counter
from pathlib import Path

from kd.config.settings import Reading
from kd.data.tables.columns import Row, distinct, shown
from kd.data.tables.grades import DROP, number
from kd.data.tables.spelling import is_missing, plain
from kd.system.errors import Problem, counted, first_names, first_ten

# What programs write into a cell without a value, in lower case.
_UNCERTAIN = "-1"
_YES_AND_NO = {"true": "1", "false": "0"}
# Words for one and the same answer, in lower case.
_YES = frozenset(("1", "true", "yes", "y", "positive", "pos", "wahr", "ja", "j"))
_NO = frozenset(("0", "false", "no", "n", "negative", "neg", "falsch", "nein"))


def read_labels(
    file: Path,
    rows: list[Row],
    names: tuple[str, ...],
    how: Reading,
    classes: tuple[str, ...] | None,
    corrections: dict[str, str],
) -> tuple[list[Row], list[str]]:
    """Set the labels of rows, and return (the rows that remain, notes).

    `names` are the columns of the label, and `classes` those of a trained network, if there is one.
    `corrections` maps the paths of images to labels or DROP: such a label replaces that of the
    table, whatever it is, and an image that is dropped later may have any label.

    Raises Problem for labels of -1 unless `how` says what they mean, for several labels in a row,
    for rows without a 1 in columns of 0 and 1, for labels that differ only in their spelling, and
    for labels that are several words for yes or for no.
    """
    notes = _unify_cells(file, rows, classes)
    rows, uncertain = _without_uncertain(file, rows, how, classes, corrections)
    if len(names) > 1:
        _set_from_columns(file, rows, names)
    else:
        _set_from_texts(rows, classes)
    _correct(rows, names, classes, corrections)
    judged = [row for row in rows if corrections.get(row.path) != DROP]
    _refuse_none(file, judged, names)
    _refuse_several(file, judged)
    _refuse_spellings(file, judged)
    if classes is None:
        _refuse_synonyms(file, judged)
    found = {row.labels for row in judged}
    for row in rows:
        if corrections.get(row.path) == DROP and row.labels not in found:
            row.labels = ()
    return rows, notes + uncertain


def _unify_cells(file: Path, rows: list[Row], classes: tuple[str, ...] | None) -> list[str]:
    """Empty cells with a word for a missing value, remove `.0`, and return notes."""
    words = Counter()
    whole = set()
    decimal = Counter()
    commas = _have_decimal_commas(rows)
    for row in rows:
        cells = []
        for cell in row.cells:
            if is_missing(cell):
                words[cell] += 1
                cell = ""
            elif classes is None or cell not in classes:
                changed = number(cell) if commas or "," not in cell else cell
                if changed != cell:
                    decimal[changed] += 1
                else:
                    whole.add(cell)
                cell = changed
            cells.append(cell)
        row.cells = tuple(cells)
    notes = missing_words(file, words, "label", "no label")
    both = sum(count for text, count in decimal.items() if text in whole)
    if both:
        notes.append(
            f"{counted(both, 'label is', 'labels are')} written with .0 in {file.name}, and"
            " elsewhere without it: these are one class."
        )
    return notes


def _have_decimal_commas(rows: list[Row]) -> bool:
    """Return whether `1,0` in a column of labels is the number 1.

    In a single column, it may also be the list of 1 and 0, unless all labels are written so.
    """
    cells = {cell for row in rows for cell in row.cells if not is_missing(cell)}
    several = any(len(row.cells) > 1 for row in rows)
    return several or all("," in cell and number(cell) != cell for cell in cells)


def missing_words(file: Path, words: Counter, kind: str, meaning: str) -> list[str]:
    """Return a note on cells that are not empty, but contain a word for a missing value."""
    shares = [f"'{shown(word)}'" for word in words if word]
    count = sum(count for word, count in words.items() if word)
    if not count:
        return []
    cells = counted(count, f"{kind} is", f"{kind}s are")
    return [f"{cells} {first_ten(shares)} in {file.name}, which counts as {meaning}."]


def _without_uncertain(
    file: Path,
    rows: list[Row],
    how: Reading,
    classes: tuple[str, ...] | None,
    corrections: dict[str, str],
) -> tuple[list[Row], list[str]]:
    """Return (the rows without those that are uncertain and dropped, notes)."""
    if _UNCERTAIN in (classes or ()):
        return rows, []
    doubtful = [row for row in rows if _UNCERTAIN in row.cells]
    open_rows = [row for row in doubtful if row.path not in corrections]
    number = len(distinct(open_rows))
    if open_rows and how.uncertain is None:
        raise Problem(
            f"{counted(number, 'row has', 'rows have')} the uncertain label -1 in '{file}':"
            f" {_listed(open_rows)}. Use --uncertain drop to leave them out, or --uncertain 0 or"
            " --uncertain 1 to read them so."
        )
    if how.uncertain == "drop":
        places = set(map(id, open_rows))
        rows = [row for row in rows if id(row) not in places]
        count = counted(number, "row", "rows")
        text = f"--uncertain drop left out {count} of {file.name} with the label -1."
    else:
        if open_rows:
            _check_numbers(file, rows, how)
        count = counted(number, "row", "rows")
        text = f"--uncertain {how.uncertain}: the label -1 of {count} of {file.name} was read so."
    for row in doubtful:
        # The label of a row that is corrected does not matter.
        row.cells = tuple(_certain(cell, how.uncertain) for cell in row.cells)
    return rows, [] if how.uncertain is None else [text]


def _certain(cell: str, uncertain: str | None) -> str:
    if cell != _UNCERTAIN:
        return cell
    return uncertain if uncertain in ("0", "1") else ""


def _check_numbers(file: Path, rows: list[Row], how: Reading) -> None:
    """Raise Problem if a single column has other labels than 0 and 1 beside -1."""
    others = {cell for row in rows for cell in row.cells} - {"", "0", "1", _UNCERTAIN}
    if others and len(rows[0].cells) == 1:
        labels = first_ten([f"'{shown(label)}'" for label in sorted(others)])
        raise Problem(
            f"--uncertain {how.uncertain} is not valid: the labels of '{file}' are not only 0, 1"
            f" and -1, but also {labels}. Use --uncertain drop."
        )


def _set_from_columns(file: Path, rows: list[Row], names: tuple[str, ...]) -> None:
    """Set labels from one column of 0 and 1 for each class.

    A row with empty cells only is unlabelled. Raises Problem for other values.
    """
    faults = []
    for row in rows:
        cells = [_YES_AND_NO.get(cell.lower(), cell) for cell in row.cells]
        for name, cell in zip(names, cells, strict=True):
            if cell not in ("", "0", "1"):
                faults.append(f"{row.where} ('{shown(cell)}' in column '{shown(name)}')")
        row.labels = tuple(name for name, cell in zip(names, cells, strict=True) if cell == "1")
        if not row.labels and any(cells):
            row.labels = None
    if faults:
        raise Problem(
            f"Rows of '{file}' cannot be used, because columns of classes have values other than 0"
            f" and 1: {first_names(faults)}. Name other columns with --columns, or fix them."
        )


def _set_from_texts(rows: list[Row], classes: tuple[str, ...] | None) -> None:
    """Set labels from a single column, whose texts may be lists of labels."""
    known = {cell for row in rows for cell in row.cells}
    parts = {}
    for text in known:
        is_class = classes is not None and text in classes
        parts[text] = (text,) if is_class else _parts(text, known)
    for row in rows:
        row.labels = parts[row.cells[0]] if row.cells and row.cells[0] else ()


def _parts(text: str, known: set[str]) -> tuple[str, ...]:
    """Return the labels that a text lists, or the text itself.

    A list is separated by |, or by other marks if its parts are also labels on their own.
    """
    if "|" in text:
        return tuple(part.strip() for part in text.split("|"))
    for mark, enough in ((";", any), (",", all)):
        found = tuple(part.strip() for part in text.split(mark))
        if len(found) > 1 and enough(part in known for part in found if part):
            return found
    for mark in "/+":  # names like HER2+ are no lists
        found = tuple(part.strip() for part in text.split(mark))
        if len(found) > 1 and all(part and part in known for part in found):
            return found
    if re.fullmatch(r"\[.*,.*\]", text):  # as Python writes a list
        return tuple(part.strip(" '\"") for part in text[1:-1].split(","))
    return (text,)


def _correct(
    rows: list[Row],
    names: tuple[str, ...],
    classes: tuple[str, ...] | None,
    corrections: dict[str, str],
) -> None:
    """Give rows the labels of their corrections.

    A label that the table does not know is not used: it is refused when corrections are applied.
    """
    known = set(classes or ())
    if len(names) > 1:
        known.update(names)
    for row in rows:
        known.update(row.labels or ())
    for row in rows:
        label = corrections.get(row.path)
        if label is not None and label != DROP:
            row.labels = (label,) if label in known else (row.labels or ())[:1]


def _refuse_none(file: Path, rows: list[Row], names: tuple[str, ...]) -> None:
    none = distinct([row for row in rows if row.labels is None])
    if none:
        raise Problem(
            f"{counted(len(none), 'row has', 'rows have')} no 1 in the columns"
            f" {first_ten([shown(name) for name in names])} of '{file}': {_listed(none)}. Add the"
            " column of their class to --columns label=A+B+C, or exclude these images by --errata"
            " FILE with the label drop."
        )


def _refuse_several(file: Path, rows: list[Row]) -> None:
    several = distinct([row for row in rows if row.labels and len(row.labels) > 1])
    if several:
        texts = [f"{row.where} ({' and '.join(map(shown, row.labels))})" for row in several]
        raise Problem(
            f"{counted(len(several), 'row has', 'rows have')} several labels in '{file}', but an"
            f" image has one class: {first_names(texts)}. Exclude these images by --errata FILE"
            " with the label drop, or give them one label there. Or choose a column of 0 and 1 with"
            " --columns label=NAME."
        )


def _refuse_spellings(file: Path, rows: list[Row]) -> None:
    """Raise Problem for labels that differ only as `plain` says, for example in case."""
    counts = Counter(row.label for row in distinct(rows) if row.label)
    spellings = {}
    for label in sorted(counts):
        spellings.setdefault(plain(label), []).append(label)
    faults = []
    for labels in spellings.values():
        if len(labels) > 1:
            parts = []
            for label in labels:
                parts.append(f"'{shown(label)}' ({counted(counts[label], 'row', 'rows')})")
            faults.append(" = ".join(parts))
    if faults:
        raise Problem(
            f"Labels of '{file}' differ only in case, blanks, Unicode form or leading zeros:"
            f" {first_ten(faults)}. Write each class in one way, or correct the labels by --errata"
            " FILE."
        )


def _refuse_synonyms(file: Path, rows: list[Row]) -> None:
    """Raise Problem if all labels mean yes or no, but one of these is written in several ways."""
    counts = Counter(row.label for row in distinct(rows) if row.label)
    if not all(label.casefold() in _YES | _NO for label in counts):
        return
    faults = []
    for words in (_YES, _NO):
        labels = sorted(label for label in counts if label.casefold() in words)
        if len(labels) > 1:
            texts = [f"'{label}' ({counted(counts[label], 'row', 'rows')})" for label in labels]
            faults.append(" = ".join(texts))
    if faults:
        raise Problem(
            f"Labels of '{file}' are different words for yes and no: {first_ten(faults)}. Write"
            " each class in one way, or correct the labels by --errata FILE."
        )


def _listed(rows: list[Row]) -> str:
    return first_names([row.where for row in distinct(rows)])
