"""Texts that name images, folders or patients, and what a run keeps of them.

Messages and notes on the console name the files that are meant. The files of a run must not:
reports and weights are passed on, and a path may contain the patient. A name is therefore marked
where it is put into a text. The marks are removed when the text is shown, and the names when it is
stored.
"""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

# Code points that Unicode reserves for such marks: they are no characters of any text.
_START, _END = "\ufdd0", "\ufdd1"
_NAME = re.compile(f"{_START}[^{_START}{_END}]*{_END}")
NOT_STORED = "[names are not stored]"
# Absolute paths: in quotes, where they may contain blanks, or of two parts at least.
_QUOTED_PATH = re.compile(r"(['\"])~?/[^'\"\n]*\1")
_PATH = re.compile(r"(?<![\w./~])~?(?:/[^\s/'\"|;,()]+){2,}/?")


def named(text: str) -> str:
    """Return a text that is, or lists, names of images, folders or patients, with marks around it.

    The marks are understood by `Problem` and `Note`, which are what such texts are made for.
    """
    return f"{_START}{text}{_END}"


def with_names(text: str) -> str:
    """Return a text as it is shown: with its names, without the marks."""
    return text.replace(_START, "").replace(_END, "")


def without_names(text: str) -> str:
    """Return a text as it is stored: without its marked names."""
    before = None
    while text != before:  # a list of names may contain marked names
        before, text = text, _NAME.sub(NOT_STORED, text)
    return with_names(text)


class Note(str):
    """A note on a data set for the console, in which names are marked by `named`.

    stored  the note without the names, for the files of a run
    """

    stored: str

    def __new__(cls, text: str):
        note = super().__new__(cls, with_names(text))
        note.stored = without_names(text)
        return note


def stored(notes: Iterable[str]) -> list[str]:
    """Return notes as the files of a run contain them."""
    return [note.stored if isinstance(note, Note) else note for note in notes]


def without_paths(text: str) -> str:
    """Return a text in which absolute paths are replaced by their last part: `.../runs`.

    A text that is passed on must not say where the folders of a machine are, or whose they are.
    Relative paths, links of the web and text such as `train / test` stay as they are.
    """
    text = _QUOTED_PATH.sub(lambda found: f"{found[1]}{_last(found[0][1:-1])}{found[1]}", text)
    return _PATH.sub(lambda found: _last(found[0]), text)


def _last(path: str) -> str:
    return f".../{PurePosixPath(path).name}"
