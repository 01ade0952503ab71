"""Find out which patient an image belongs to.

The first of these that knows the patient counts: the table, --patient-pattern, the DICOM header.
"""

import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from kd.config.settings import Reading
from kd.data.files.find import IMAGE_EXTENSIONS, extension_of
from kd.data.images import dicom
from kd.data.index import Index, at_site
from kd.system.console import progress
from kd.system.errors import Problem, counted, first_names, first_ten, printable
from kd.system.messages import first_line
from kd.system.names import Note, named

# What people and machines write where they do not know the patient, or do not tell: without case,
# blanks and marks.
UNKNOWN_PATIENTS = frozenset(
    (
        " anon anonym anonymous anonymouspatient anonymized anonymizedpatient anonymised"
        " anonymisedpatient deidentified deidentifiedpatient pseudonymized pseudonymised removed"
        " redacted deleted hidden na nan nil none null notavailable unknown unknownpatient test"
        " testpatient patient patientid patientname anonymisiert anonymisierterpatient"
        " pseudonymisiert entfernt unbekannt unbekannterpatient"
    ).split(" ")
)
MANY = 10  # one patient with more than half of so few images is no surprise
# Names that often stand before the number of a patient, the longest first.
_WORDS = ("patient", "subject", "person", "case", "pat", "sub", "p")
_EYES = "left|right|od|os|l|r"


class _Guess(NamedTuple):
    """A pattern that may find patients in paths.

    pattern   regular expression
    images    number of images in whose paths it finds a patient
    patients  number of patients that they would have, which is smaller
    examples  paths of two images of one patient
    """

    pattern: str
    images: int
    patients: int
    examples: list[str]


def is_unknown(text: str) -> bool:
    """Return whether `text` does not name a patient: it is empty, `nan`, `xxx`, ..."""
    word = re.sub(r"[\W_]+", "", text.casefold())
    return word in UNKNOWN_PATIENTS or text.strip() == "-1" or bool(re.fullmatch("xx+", word))


def identified(
    root: Path, rows: list[dict], how: Reading, strict: bool = True
) -> tuple[list[dict], list[str]]:
    """Return (rows with their patients and studies, notes on them).

    A row's site becomes a part of its patient, `SITE::PATIENT`, if both are known. It is the first
    of these that is known: the row's own site, the issuer in the DICOM header (of the header's
    own patient), the only issuer in other rows of the patient, --site, the only site in other rows
    of the patient. Raises Problem for a pattern that is invalid or matches no image, and for
    patients with several sites and rows without one; unless `strict`, these rows have no site.
    """
    rows = [row | {"issuer": ""} for row in rows]
    notes = []
    if how.patient_pattern is not None:
        notes += _apply_pattern(rows, how.patient_pattern)
    _read_headers(root, rows)
    notes += _complete_sites(rows, how.site.strip(), strict)
    for row in rows:
        if row["patient"]:
            row["patient"] = at_site(row["site"], row["patient"])
    if how.patient_pattern is None:
        notes += _patients_in_names(rows)
    return rows, notes + _dominant_patient(rows) + _unused_site(rows, how.site)


def compiled(pattern: str) -> re.Pattern:
    """Return --patient-pattern as a regular expression. Raises Problem if it is not one."""
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise Problem(
            f"--patient-pattern '{pattern}' is not a regular expression: {first_line(error)}."
            " Use for example --patient-pattern 'patient[0-9]+'."
        ) from None


def patient_in(path: str, pattern: re.Pattern) -> str:
    """Return what `pattern` finds in a path, or an empty string.

    This is its group `patient`, otherwise its first group, otherwise all that it matches. A path as
    a whole is not the name of a patient.
    """
    found = pattern.search(path)
    if found is None:
        return ""
    group = "patient" if "patient" in pattern.groupindex else min(pattern.groups, 1)
    patient = (found[group] or "").strip()
    return "" if is_unknown(patient) or patient == path else patient


def _apply_pattern(rows: list[dict], text: str) -> list[str]:
    """Set the patients of rows without one, and return a note if there are none or some remain."""
    pattern = compiled(text)
    unknown = [row for row in rows if not row["patient"]]
    if not unknown:
        return ["--patient-pattern was not used, because every image has a patient already."]
    for row in unknown:
        row["patient"] = patient_in(row["path"], pattern)
    missed = [row["path"] for row in unknown if not row["patient"]]
    if len(missed) == len(unknown):
        raise Problem(
            f"--patient-pattern '{text}' finds a patient in none of"
            f" {counted(len(unknown), 'path', 'paths')}, for example {named(missed[0])}. Change it,"
            " or list the patients in a table."
        )
    if not missed:
        return []
    return [
        Note(
            f"--patient-pattern finds no patient in {len(missed)} of {len(unknown)} paths:"
            f" {first_names(missed)}."
        )
    ]


def _read_headers(root: Path, rows: list[dict]) -> None:
    """Add the patient, its issuer and the study of DICOM files to rows that lack them.

    Files with the extension of another format may be DICOM, too. They are opened if their patient
    is not known.
    """
    wanted = []
    for row in rows:
        is_named_otherwise = extension_of(row["path"]) in IMAGE_EXTENSIONS
        if not row["patient"] or not (row["study"] or is_named_otherwise):
            wanted.append(row)
    if not wanted:
        return
    paths = [root / row["path"] for row in wanted]
    with (
        ThreadPoolExecutor(os.cpu_count()) as threads,
        progress(len(paths), "headers", "files") as shown,
    ):
        for row, header in zip(wanted, threads.map(_header, paths), strict=True):
            shown.update()
            if header is not None:
                _add_header(row, header)


def _header(path: Path):
    """Return the header of a DICOM file; None for other files and for damaged ones.

    A damaged file is reported when it is decoded.
    """
    try:
        if not path.is_file() or not path.stat().st_size:  # a pipe or /proc/kmsg would block
            return None
        with open(path, "rb") as file:
            if not dicom.is_dicom(file.read(dicom.HEAD_BYTES)):
                return None
        return dicom.read_header(path)
    except (OSError, ValueError):
        return None


def _add_header(row: dict, header) -> None:
    patient = "" if is_unknown(header.patient) else header.patient.strip()
    row["patient"] = row["patient"] or patient
    row["study"] = row["study"] or header.study
    if patient and row["patient"] == patient:
        row["issuer"] = header.issuer.strip()


def _complete_sites(rows: list[dict], site: str, strict: bool) -> list[str]:
    """Set the site of each row as `identified` says, and return a note on what was concluded."""
    sites = {row["patient"]: set() for row in rows}
    issuers = {row["patient"]: set() for row in rows}
    for row in rows:
        issuers[row["patient"]] |= {row["issuer"]} - {""}
        row["site"] = row["site"] or row["issuer"]
        sites[row["patient"]] |= {row["site"]} - {""}
    concluded = Counter()
    unclear = Counter()
    for row in rows:
        patient = row["patient"]
        if not patient or row["site"]:
            continue
        if len(sites[patient]) == 1 and (issuers[patient] or not site):
            row["site"] = min(sites[patient])
            concluded[at_site(row["site"], patient)] += 1
        elif site:
            row["site"] = site
        elif sites[patient]:
            unclear[f"'{printable(patient)}' ({first_ten(sorted(sites[patient]))})"] += 1
    if unclear and strict:
        images = counted(unclear.total(), "image has", "images have")
        raise Problem(
            f"{images} no site, although the patient has several: {first_names(sorted(unclear))}."
            " Name the site of each image in a column site of a table, or that of all images"
            " without one by --site NAME."
        )
    if not concluded:
        return []
    images = counted(concluded.total(), "image has", "images have")
    names = first_names(sorted(map(printable, concluded)))
    return [
        Note(f"{images} no site, and that of other images of the same patient is used: {names}.")
    ]


def unknown_patients(index: Index) -> list[str]:
    """Return a note if images have no patient."""
    unknown = sum(sample.known_patient is None for sample in index.samples)
    if not unknown:
        return []
    return [
        (
            f"{unknown} of {len(index.samples)} images have no patient: each counts as a patient"
            " of its own."
            " Specify the patients in a table (path,label,patient), or by --patient-pattern, if"
            " they are known."
        )
    ]


def _patients_in_names(rows: list[dict]) -> list[str]:
    """Return a warning if the names of images without a patient look as if they held one."""
    unknown = [row for row in rows if not row["patient"]]
    guesses = []
    for general, particular in _candidates(unknown):
        guess = _guess(general, unknown)
        if guess is not None:
            shorter = _guess(particular, unknown)
            is_same = shorter is not None and shorter[1:] == guess[1:]
            guesses.append(shorter if is_same else guess)
    if not guesses:
        return []
    best = max(guesses, key=lambda guess: guess.images)
    return [
        Note(
            f"The names of {best.images} of {len(rows)} images look as if they named"
            f" {best.patients} patients, for example the same one in"
            f" {named(' and '.join(best.examples))}, but no patient is read from names: if these"
            f" are patients, add --patient-pattern '{best.pattern}'."
        )
    ]


def _candidates(rows: list[dict]) -> list[tuple[str, str]]:
    """Return [(pattern for any spelling of a word, pattern for the spelling found first)]."""
    candidates = []
    for word in _WORDS:
        general = f"(?i)(?<![a-z]){word}[-_ ]?[0-9]+"
        for row in rows:
            found = re.search(general, row["path"])
            if found:
                candidates.append((general, re.sub("[0-9]+$", "[0-9]+", found[0])))
                break
    eyes = f"(?i)(?:^|/)([0-9]+)_(?:{_EYES})(?![a-z])"
    candidates.append((eyes, "([0-9]+)_(?:left|right)"))
    candidates += [(pattern, pattern) for pattern in _pattern_of_folders(rows)]
    return candidates


def _pattern_of_folders(rows: list[dict]) -> list[str]:
    """Return a pattern for the folders below the class folders if these may be patients.

    All images are in such folders, of which most are in one class only.
    """
    upper = Counter()
    places = set()
    for row in rows:
        folders = row["path"].split("/")[:-1]
        depth = 1 + (row["label"] in folders[1:2] and row["label"] not in folders[:1])
        if row["label"] not in folders[:depth] or len(folders) <= depth:
            return []
        places.add((row["label"], folders[depth]))
        upper[depth] += 1
    names = {name for _, name in places}
    classes = {label for label, _ in places}
    if len(upper) != 1 or len(places) < 2 * len(classes) or 2 * len(names) <= len(places):
        return []
    [depth] = upper
    return ["^" + "[^/]+/" * depth + "([^/]+)/"] if len(rows) >= 2 * len(names) else []


def _guess(text: str, rows: list[dict]) -> _Guess | None:
    """Return which images would share a patient; None if this does not look like patients.

    The numbers may also be those of class folders, or there may be only one of them.
    """
    pattern = re.compile(text)
    found = []
    for row in rows:
        match = pattern.search(row["path"])
        if match is None:
            continue
        start = row["path"].rfind("/", 0, match.start(match.re.groups)) + 1
        if row["path"][start:].partition("/")[0] == row["label"]:
            return None
        found.append((patient_in(row["path"], pattern), row["path"]))
    images = Counter(patient for patient, _ in found)
    if len(images) < 2 or len(images) == len(found):
        return None
    shared = images.most_common(1)[0][0]
    examples = [path for patient, path in found if patient == shared][:2]
    return _Guess(text, len(found), len(images), examples)


def _dominant_patient(rows: list[dict]) -> list[str]:
    """Return a note if more than half of the images, and more than MANY, have the same patient."""
    known = Counter(row["patient"] for row in rows if row["patient"])
    if not known:
        return []
    patient, count = known.most_common(1)[0]
    if count <= MANY or 2 * count <= len(rows):
        return []
    return [
        Note(
            f"{count} of {len(rows)} images have the same patient, '{named(printable(patient))}':"
            " all of them are in one split, so check that this is the name of a patient."
        )
    ]


def _unused_site(rows: list[dict], site: str) -> list[str]:
    if not site.strip() or any(row["patient"] for row in rows):
        return []
    return [f"--site {site} has no effect, because no image has a known patient."]
