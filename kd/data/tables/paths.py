"""Find the files of the images that a table names: by path, by name, or by DICOM identifier."""

import os
import stat
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from kd.data.files.file_names import FileNames, composed
from kd.data.files.find import IMAGE_EXTENSIONS, NO_EXTENSION, extension_of, find_images
from kd.data.tables.columns import has_lost_digits, shown
from kd.data.tables.grades import number
from kd.system.errors import counted, first_names
from kd.system.names import Note

_FOUND = "found"
_ABSENT = "absent"
_PREFIXES = 20  # how many paths are tried in search of folders that may be left out
_NAMED = 3  # files that a message on an ambiguous name lists


class Located(NamedTuple):
    """The files that the texts of a table name.

    paths   {text: paths of its images, relative to the root with / if they are below it}
    faults  {text: why it names no image, or not clearly}
    notes   how images were found that are not where the table says
    """

    paths: dict[str, list[str]]
    faults: dict[str, str]
    notes: list[str]


def locate(root: Path, table: Path, texts: Iterable[str]) -> Located:
    """Find the images that a table names by `texts`.

    A text is, in this order: a path relative to root, or absolute, with / or \\, in any Unicode
    form; such a path below leading folders that do not exist here; the name of one file below root,
    with its extension, without it or with another one; a SOPInstanceUID; an AccessionNumber, which
    names all images of that study. A name without an extension must not also be an identifier of
    other files. Paths of ASCII characters with an extension need no search below root.

    Raises Problem if the folders below root cannot be read.
    """
    search = _Search(root, table)
    for text in dict.fromkeys(texts):
        search.try_as_written(text)
    if not all(text.isascii() for text in search.missing):
        search.try_unicode_forms(find_images(root).paths)
    search.try_without_folders()
    if search.missing or search.doubtful():
        images = find_images(root).paths
        search.try_names(FileNames(images))
        search.try_identifiers(images)
    search.check_claims()
    for text in search.missing:
        search.faults.setdefault(text, _why_missing(text))
    return Located(search.paths, search.faults, search.notes())


class _Search:
    """A search for the images that texts name; `missing` maps the others to normalised paths."""

    def __init__(self, root: Path, table: Path):
        self.root = root
        self.table = table
        self.paths = {}
        self.faults = {}
        self.missing = {}
        self._bases = []
        for base in dict.fromkeys((os.path.abspath(root), os.path.realpath(root))):
            self._bases.append(base.rstrip("/") + "/")
        self._how = Counter()  # how often each of the ways below was successful
        self._left_out = Counter()  # folders that were left out
        self._searched = set()  # texts that are not simply the path of their file

    def try_as_written(self, text: str) -> None:
        """Look for the file that a text names as a path."""
        if not text:
            self.faults[text] = "no path"
            return
        path = self._normalised(text)
        state = self._state(path)
        if state == _ABSENT and "\\" in text:
            path = self._normalised(text.replace("\\", "/"))
            state = self._state(path)
            self._how["backslash"] += state == _FOUND
        if state == _FOUND:
            self.paths[text] = [path]
        elif state == _ABSENT:
            self.missing[text] = path
        else:
            self.faults[text] = state

    def try_unicode_forms(self, images: list[str]) -> None:
        """Look for missing paths that differ from those of images only in their Unicode form."""
        by_form = defaultdict(list)
        for path in images:
            by_form[composed(path)].append(path)
        for text, path in list(self.missing.items()):
            matches = by_form.get(composed(path.replace("\\", "/")), [])
            if len(matches) == 1:
                self._found(text, matches)
                self._how["form"] += 1
            elif matches:
                self._refuse(text, "several files differ only in the Unicode form", matches)

    def doubtful(self) -> list[str]:
        """Return the texts that were found as names of files, but may be identifiers of others."""
        texts = []
        for text in self.paths:
            if not {"/", "\\"} & set(text) and extension_of(text) == NO_EXTENSION:
                texts.append(text)
        return texts

    def try_without_folders(self) -> None:
        """Leave out leading folders of missing paths if the rest exists.

        Where one path with such folders exists without them, all others must. Folders that other
        paths really contain are not left out.
        """
        for text in list(self.missing)[:_PREFIXES]:
            prefix = self._prefix(self.missing[text]) if text in self.missing else None
            if prefix is None or any(path.startswith(prefix) for [path] in self.paths.values()):
                continue
            for other, path in list(self.missing.items()):
                if not path.startswith(prefix):
                    continue
                rest = path.removeprefix(prefix)
                if self._state(rest) == _FOUND:
                    self._found(other, [rest])
                    self._left_out[prefix] += 1
                else:
                    self.faults[other] = f"no such file, not even without '{shown(prefix)}'"
                    del self.missing[other]

    def try_names(self, names: FileNames) -> None:
        """Look for files with the names of missing texts, in any folder.

        The folder of a path is ignored only if it does not exist, and if names alone identify all
        files.
        """
        for text, path in list(self.missing.items()):
            folder, _, name = path.rpartition("/")
            matches = names.find(name) or names.find(number(name))
            if folder and os.path.isdir(os.path.join(self.root, folder)):
                matches = [match for match in matches if match.startswith(f"{folder}/")]
            elif folder and not names.are_unique:
                continue
            if len(matches) == 1:
                found = composed(matches[0].rpartition("/")[2])
                name = composed(name)
                self._found(text, matches)
                kind = "name" if name == found else "stem" if found.startswith(name) else "other"
                self._how[kind] += 1
            elif matches:
                self._refuse(text, f"{len(matches)} files have this name", matches)

    def try_identifiers(self, images: list[str]) -> None:
        """Look for DICOM files whose SOPInstanceUID or AccessionNumber is a missing text.

        Doubtful texts that are also identifiers of other files are refused. Files with the
        extension of another format are not opened.
        """
        files = [path for path in images if extension_of(path) not in IMAGE_EXTENSIONS]
        # If all texts are paths as they are written, they are no identifiers.
        doubtful = self.doubtful() if self._searched or self.missing else []
        if not files or (not doubtful and all("/" in path for path in self.missing.values())):
            return
        instances = defaultdict(list)
        accessions = defaultdict(list)
        patients = defaultdict(set)
        for path, header in zip(files, _headers(self.root, files), strict=True):
            if header is not None:
                instances[header.instance.strip()].append(path)
                accession = header.accession.strip()
                accessions[accession].append(path)
                patients[accession].add((header.issuer.strip(), header.patient.strip()))
        for text in doubtful:
            others = instances.get(text) or accessions.get(number(text)) or self.paths[text]
            if others != self.paths[text]:
                self._refuse_doubtful(text, others)
        for text in list(self.missing):
            accession = number(text)
            if len(instances.get(text, ())) > 1:
                self._refuse(text, "several files have this SOPInstanceUID", instances[text])
            elif text in instances:
                self._found(text, instances[text])
                self._how["instance"] += 1
            elif len(patients.get(accession, ())) > 1:
                several = "images of several patients have this AccessionNumber"
                self._refuse(text, several, accessions[accession])
            elif accession in accessions:
                self._found(text, accessions[accession])
                self._how["accession"] += 1
                self._how["images"] += len(accessions[accession])

    def check_claims(self) -> None:
        """Refuse texts that name the same file in different ways."""
        owners = {}
        for text, paths in list(self.paths.items()):
            for path in paths:
                owner = owners.setdefault(path, text)
                if owner != text and not self._searched.isdisjoint((owner, text)):
                    self.faults[text] = f"the same file as '{shown(owner)}': {shown(path)}"

    def notes(self) -> list[str]:
        """Return how images were found that are not where the table says."""
        name = self.table.name
        notes = []
        if self._left_out:
            folders = first_names([f"'{shown(folder)}'" for folder in self._left_out])
            paths = counted(self._left_out.total(), "path", "paths")
            notes.append(
                Note(
                    f"{paths} of {name} begin with folders that do not exist in {self.root}, and"
                    f" were read without them: {folders}."
                )
            )
        for paths in self.paths.values():
            self._how["outside"] += sum(path.startswith(("/", "../")) for path in paths)
        images = counted(self._how["images"], "image", "images")
        texts = {
            "form": ("path", "written in another Unicode form than its file"),
            "backslash": ("path", "written with \\, which was read as /"),
            "name": ("image", "found by its file name alone"),
            "stem": ("image", "found by its file name without extension"),
            "other": ("image", "found by its file name with another extension"),
            "instance": ("image", "found by its SOPInstanceUID"),
            "accession": ("row", f"found by the AccessionNumber of a study: {images}"),
            "outside": ("image", f"outside {self.root}"),
        }
        for key, (noun, text) in texts.items():
            count = self._how[key]
            if count > 1:
                text = text.replace("its file", "their files").replace("files name", "file names")
                text = text.replace("its ", "their ")
            if count:
                be = "is" if count == 1 else "are"
                notes.append(f"{counted(count, noun, noun + 's')} of {name} {be} {text}.")
        return notes

    def _normalised(self, text: str) -> str:
        """Return a path without `.` and `..`, and relative to the root if it is below it."""
        path = os.path.normpath(text)
        if path.startswith("../"):  # it may lead back into the root
            full = os.path.normpath(os.path.join(self._bases[0], path))
            return full.removeprefix(self._bases[0]) if full.startswith(self._bases[0]) else path
        for base in self._bases:
            if path.startswith(base):
                return path[len(base) :]
        return path

    def _state(self, path: str) -> str:
        """Return _FOUND for a file, _ABSENT for nothing or a folder, or what is wrong."""
        try:
            mode = os.stat(os.path.join(self.root, path)).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return _ABSENT
        except (OSError, ValueError) as error:  # a name that is too long, or a loop of links
            return f"not a file: {getattr(error, 'strerror', None) or error}"
        if stat.S_ISREG(mode):
            return _FOUND
        # A folder may be called like the AccessionNumber of the images in it.
        return _ABSENT if stat.S_ISDIR(mode) else "not a file: a pipe, a socket or a device"

    def _prefix(self, path: str) -> str | None:
        """Return the fewest leading folders, with a final /, without which a path exists."""
        parts = path.split("/")
        for count in range(1, len(parts)):
            if self._state("/".join(parts[count:])) == _FOUND:
                return "/".join(parts[:count]) + "/"
        return None

    def _found(self, text: str, paths: list[str]) -> None:
        self.paths[text] = list(paths)
        self._searched.add(text)
        del self.missing[text]

    def _refuse(self, text: str, why: str, paths: list[str]) -> None:
        listed = ", ".join(shown(path) for path in paths[:_NAMED])
        more = ", ..." if len(paths) > _NAMED else ""
        self.faults[text] = f"{why}: {listed}{more}"
        del self.missing[text]

    def _refuse_doubtful(self, text: str, others: list[str]) -> None:
        [path] = self.paths.pop(text)
        self.missing[text] = text
        why = f"the name of {shown(path)}, but also an identifier in the header of other files"
        self._refuse(text, f"{why}, so write paths", others)


def _why_missing(text: str) -> str:
    """Return why no image is found for a text."""
    if has_lost_digits(text):
        return "a number without its last digits: export the table with this column as text"
    has_digits = any(letter.isdigit() for letter in text)
    if has_digits and "/" not in text and extension_of(text) == NO_EXTENSION:
        return "no such file, nor a SOPInstanceUID or AccessionNumber"
    return "no such file"


def _headers(root: Path, paths: list[str]) -> list:
    """Return the header of each DICOM file, or None if it is damaged."""
    from kd.data.images import dicom  # here, because most tables need no DICOM file

    def header(path: str):
        try:
            return dicom.read_header(root / path)
        except (OSError, ValueError):
            return None

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return list(threads.map(header, paths))
