"""The parts of the page of a study: sections with sentences, tables, figures and details."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from kd.system.errors import printable
from kd.system.messages import bounded
from kd.system.names import without_paths

_INTERVAL = re.compile(r"\[[^\]]*\]|\(n = [^)]*\)|\S+ ± \S+")
WIDE = 7  # columns; a table with more of them breaks its intervals on paper


class Grid(NamedTuple):
    """A table: a caption, names of columns, and rows of texts, the first of which is a name."""

    caption: str
    header: list[str]
    rows: list[list[str]]

    @classmethod
    def of(cls, caption: str, header: list[str], rows: list[list[str]]) -> "Grid":
        """Return a table whose texts are `shown`."""
        form = shown if len(header) > WIDE else _cell
        return cls(shown(caption), [*map(shown, header)], [[*map(form, row)] for row in rows])

    @property
    def is_wide(self) -> bool:
        """Whether a column is too narrow on paper for an interval on one line."""
        return len(self.header) > WIDE


class Figure(NamedTuple):
    """A figure: a data URI, its size in pixels, its alternative text, and a caption."""

    source: str
    width: int
    height: int
    alt: str
    caption: str


@dataclass
class Details:
    """What a reader opens if he wants it; it is always open on paper."""

    summary: str
    lines: list[str] = field(default_factory=list)
    items: list[str] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    code: list[str] = field(default_factory=list)
    opened: bool = False


@dataclass
class Section:
    """A section with a heading: warnings, sentences, a list, tables, figures, details, sections.

    after  sentences below the tables
    """

    title: str
    lines: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    items: list[str] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    details: list[Details] = field(default_factory=list)
    sections: list["Section"] = field(default_factory=list)
    slug: str = ""


def slugs(sections: list[Section], taken: set[str] | None = None) -> list[Section]:
    """Give each section, and those inside, a name of its own for links; return the sections."""
    taken = set() if taken is None else taken
    for section in sections:
        base = re.sub(r"[^a-z0-9]+", "-", section.title.lower()).strip("-")[:60] or "section"
        section.slug = base
        number = 1
        while section.slug in taken:
            number += 1
            section.slug = f"{base}-{number}"
        taken.add(section.slug)
        slugs(section.sections, taken)
    return sections


def shown(text: str, root: Path | None = None) -> str:
    """Return a text as the page shows it: on one line, without absolute paths.

    What is in the folder `root` of the study, or beside it, is shown relative to the folder above.
    """
    text = printable(text)
    if root is not None:
        text = text.replace(f"{root.resolve().parent}/", "")
    return without_paths(text)


def _cell(text: str) -> str:
    """Return the text of a cell, in which an interval stays on one line."""
    return _INTERVAL.sub(lambda found: found[0].replace(" ", "\u00a0"), shown(text))


def excerpt(text: str) -> str:
    """Return the text of an error as the page shows it, with bounded length."""
    return bounded(shown(text))
