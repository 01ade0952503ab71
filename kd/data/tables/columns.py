"""Find out what the columns of a table mean, by their names or by --columns."""

import re
import shlex
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from kd.data.tables.table import Table
from kd.system.errors import Problem, counted, first_names, first_ten, printable
from kd.system.names import named

KEYS = ("path", "label", "patient", "study", "split", "site")
_NEARLY = 0.8  # similarity from which the name of a column is taken for a misspelt key
_LONGEST = 100  # characters of a text from a table in messages
# Other names of the column of patients, in lower case and without blanks and marks.
_PATIENTS = re.compile(
    "mrn|pid|(pat|patient|patients|subject)(id|no|nr|num|number|nummer|code|key)"
)
# What names like PatientSex end with: such a column does not say who the patient is.
_NO_PATIENTS = re.compile(".*(sex|gender|age|birthdate|dob|weight|size|height|position|history)")


class Columns(NamedTuple):
    """What the columns of a table mean.

    places  {key of KEYS: places of its columns}. `label` may have several, all others have one or
            none
    labels  names of the columns of `label`
    extra   {name of a further column: its place}
    """

    places: dict[str, tuple[int, ...]]
    labels: tuple[str, ...]
    extra: dict[str, int]


@dataclass
class Row:
    """A row of a table, or a part of it: a row may name several images.

    number  line of the file, for messages
    name    what the table has as the path
    cells   one text for each column of the label
    labels  the labels that the cells mean: none if the image is unlabelled, and None if no column
            of several has a 1
    """

    number: int
    name: str
    cells: tuple[str, ...] = ()
    path: str = ""
    patient: str = ""
    study: str = ""
    split: str | None = ""
    site: str = ""
    extra: dict[str, str] = field(default_factory=dict)
    labels: tuple[str, ...] | None = ()

    @property
    def where(self) -> str:
        """The row for messages: `row 3 'a/1.png'`."""
        return f"row {self.number} '{shown(self.name)}'"

    @property
    def label(self) -> str:
        """The label, or an empty string if the image is unlabelled."""
        return self.labels[0] if self.labels else ""


def shown(text: str) -> str:
    """Return a text of a table for messages: on one line, and not too long."""
    text = printable(text)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."


def choose(
    file: Path, columns: list[str], wanted: list[str], ignored: tuple[str, ...] = ()
) -> Columns:
    """Return what the columns of the table in `file` mean.

    `wanted` is --columns: texts `KEY=NAME`. Keys that it does not mention have the column of their
    own name, in any case of its letters. Keys in `ignored` are not looked for; without labels,
    further columns are not kept, because they may contain the labels.

    Raises Problem for unknown keys and absent columns, for names that two columns have, if there is
    no column of paths, and for further columns that look like a misspelt key.
    """
    asked = _parsed(wanted)
    places = dict.fromkeys(KEYS, ())
    labels = ()
    for key in KEYS:
        if key in ignored:
            continue
        if asked.get(key) is None:
            places[key] = _by_own_name(file, columns, key)
        elif asked[key]:
            names = _names(columns, asked[key]) if key == "label" else [asked[key]]
            places[key] = tuple(_place(file, columns, key, name) for name in names)
        if key == "label":
            labels = tuple(columns[place] for place in places[key])
    extra = _extra(columns, places)
    _refuse_misspelt(file, extra, [key for key in KEYS if not places[key]], asked, ignored)
    if not places["path"]:
        raise Problem(
            f"'{file}' has an invalid header '{named(shown(','.join(columns)))}': the column path"
            " is missing. Name the column that identifies the images with --columns path=NAME, or"
            " remove the lines above the header if this is not it."
        )
    return Columns(places, labels, {} if "label" in ignored else extra)


def rows_of(table: Table, columns: Columns) -> tuple[list[Row], list[str]]:
    """Return (the rows of a table with stripped texts, faults of rows that cannot be read)."""
    rows = []
    faults = []
    single = [key for key in KEYS if key != "label"]
    for number, fields in table.rows:
        texts = [text.strip() for text in fields]
        if len(texts) != len(table.columns):
            name = "".join(texts[place] for place in columns.places["path"] if place < len(texts))
            numbers = f"{len(texts)}, not {len(table.columns)}"
            faults.append(
                f"{Row(number, name).where} (number of fields differs from the header: {numbers})"
            )
            continue
        found = {}
        for key in single:
            found[key] = "".join(texts[place] for place in columns.places[key])
        row = Row(number, found.pop("path"), **found)
        row.cells = tuple(texts[place] for place in columns.places["label"])
        row.extra = {name: texts[place] for name, place in columns.extra.items()}
        rows.append(row)
    return rows, faults


def note_on_extra(file: Path, columns: Columns) -> list[str]:
    """Return a note that names the further columns, if there are any."""
    if not columns.extra:
        return []
    names = first_ten([f"'{shown(name)}'" for name in columns.extra])
    be = "is" if len(columns.extra) == 1 else "are"
    number = counted(len(columns.extra), "further column", "further columns")
    return [f"{number} of {file.name} {be} kept, but not used in training: {names}."]


def _parsed(wanted: list[str]) -> dict[str, str]:
    """Return {key: name of its column} of --columns."""
    asked = {}
    for text in wanted:
        key, equals, name = text.partition("=")
        key = key.strip().lower()
        if not equals or key not in KEYS:
            near = get_close_matches(key, KEYS, 1)
            meant = f" The nearest key is {near[0]}." if near and equals else ""
            raise Problem(
                f"--columns '{shown(text)}' is not valid: it must be KEY=NAME with one of the keys"
                f" {', '.join(KEYS)}.{meant} Use for example --columns path=Path label=Finding."
            )
        if key in asked:
            raise Problem(f"--columns names {key} twice. Keep one of them.")
        asked[key] = name.strip()
    return asked


def _by_own_name(file: Path, columns: list[str], key: str) -> tuple[int, ...]:
    """Return the place of the column that is called like a key, or nothing."""
    places = tuple(place for place, name in enumerate(columns) if name.lower() == key)
    if len(places) > 1:
        names = first_names([f"'{columns[place]}'" for place in places])
        raise Problem(
            f"'{file}' has an invalid header '{named(shown(','.join(columns)))}': '{key}' appears"
            f" twice ({names}). Rename one of these columns, or choose one with --columns"
            f" {key}=NAME if their names differ."
        )
    return places


def _names(columns: list[str], text: str) -> list[str]:
    """Return the names of columns that are joined by + in a text.

    The name of a column may itself contain +: of all ways to read the text from its start, the one
    with the longest names counts.
    """
    pieces = text.split("+")
    names = []
    start = 0
    while start < len(pieces):
        for end in range(len(pieces), start, -1):
            name = "+".join(pieces[start:end]).strip()
            if name in columns or end == start + 1:
                break
        names.append(name)
        start = end
    return names


def _place(file: Path, columns: list[str], key: str, name: str) -> int:
    """Return the place of the column that --columns names for a key."""
    places = [place for place, other in enumerate(columns) if other == name]
    if len(places) > 1:
        raise Problem(
            f"--columns {key}={shown(name)} is ambiguous: {len(places)} columns of '{file}' have"
            " this name. Rename all but one of them."
        )
    if places:
        return places[0]
    by_lower_case = {other.lower(): other for other in reversed(columns)}
    near = get_close_matches(name.lower(), by_lower_case, 1)
    nearest = f" The nearest is '{named(by_lower_case[near[0]])}'." if near else ""
    names = first_names([f"'{shown(other)}'" for other in columns])
    raise Problem(
        f"--columns {key}={shown(name)} is not valid: '{file}' has no column '{shown(name)}'. Its"
        f" columns are {names}.{nearest}"
    )


def _extra(columns: list[str], places: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """Return {name: place} of the columns that no key has.

    A column without a name, for example the row numbers of pandas, is called by its place.
    """
    used = {place for key in KEYS for place in places[key]}
    extra = {}
    for place, name in enumerate(columns):
        if place in used:
            continue
        name = name or f"column {place + 1}"
        while name in extra:
            name = f"{name} (column {place + 1})"
        extra[name] = place
    return extra


def _refuse_misspelt(
    file: Path,
    extra: dict[str, int],
    absent: list[str],
    asked: dict[str, str],
    ignored: tuple[str, ...],
) -> None:
    """Raise Problem for further columns that are nearly called like a key without a column.

    `--columns KEY=` states that there is no such column.
    """
    open_keys = [key for key in absent if key not in asked and key not in ignored]
    found = {}
    for name in extra:
        key = _nearest_key(name, open_keys)
        if key:
            found.setdefault(key, []).append(name)
    if found:
        names = []
        best = {}
        for key, near in found.items():
            near.sort(key=lambda name: not _PATIENTS.fullmatch(_letters(name)))  # a stable order
            names += [f"'{shown(name)}' ({key})" for name in near]
            best[key] = near[0]
        cure = " ".join(shlex.quote(f"{key}={name}") for key, name in best.items())
        none = " ".join(f"{key}=" for key in found)
        raise Problem(
            f"Columns of '{file}' are nearly called like columns that it lacks:"
            f" {first_ten(names)}. Use --columns {cure} if they are these, or --columns {none} if"
            " they are not."
        )


def _nearest_key(name: str, keys: list[str]) -> str:
    """Return the key that the name of a column probably means, or an empty string."""
    letters = _letters(name)
    if "patient" in keys and _PATIENTS.fullmatch(letters):
        return "patient"
    near = get_close_matches(name.lower(), keys, 1, _NEARLY)
    if not near or (near[0] == "patient" and _NO_PATIENTS.fullmatch(letters)):
        return ""
    return near[0]


def _letters(name: str) -> str:
    """Return the letters and digits of a name in lower case."""
    return re.sub(r"[\W_]", "", name.lower())


def distinct(rows: list[Row]) -> list[Row]:
    """Return one of the rows for each row of the table, which may name several images."""
    return list({row.where: row for row in rows}.values())


def has_lost_digits(text: str) -> bool:
    """Return whether a text is a long number as spreadsheets write it: 1.23457E+15."""
    return re.fullmatch(r"-?[0-9]+([.,][0-9]*)?[eE]\+[0-9]+", text) is not None
