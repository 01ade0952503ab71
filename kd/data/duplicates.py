"""Find files that are identical, byte for byte."""

import contextlib
import hashlib
import os
import stat
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path


def groups(keys: Iterable[Hashable | None]) -> list[list[int]]:
    """Return the positions of equal keys: one list for each key that occurs more than once.

    The lists are ordered by their first position, and the positions in a list are ascending. A key
    of None is not equal to any key.
    """
    positions = defaultdict(list)
    for position, key in enumerate(keys):
        if key is not None:
            positions[key].append(position)
    return [group for group in positions.values() if len(group) > 1]


def identical_files(root: Path, paths: Sequence[str]) -> list[list[int]]:
    """Return the positions of paths with identical files, one list for each group.

    Only files whose size occurs more than once are read. A path belongs to no group if it is not a
    file, is empty or cannot be read: it is reported with all other bad images when it is decoded.
    """
    candidates = []
    for group in groups(_size(root / path) for path in paths):
        candidates += group
    hashes = [_content_hash(root / paths[position]) for position in candidates]
    found = []
    for group in groups(hashes):
        found.append([candidates[place] for place in group])
    return found


def repeats(groups_of_equals: Iterable[list[int]]) -> list[int]:
    """Return all positions except the first of each group: those to exclude to keep one of each."""
    excluded = []
    for group in groups_of_equals:
        excluded += group[1:]
    return excluded


def _size(file: Path) -> int | None:
    """Return the size of a regular file that is not empty, otherwise None."""
    with contextlib.suppress(OSError):
        status = os.stat(file)
        if stat.S_ISREG(status.st_mode) and status.st_size:
            return status.st_size
    return None


def _content_hash(file: Path) -> bytes | None:
    with contextlib.suppress(OSError), open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").digest()
    return None
