"""Which files are the same, byte for byte."""

import contextlib
import hashlib
import os
import stat
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path


def groups(keys: Iterable[Hashable | None]) -> list[list[int]]:
    """The positions of equal keys: one list for each key that occurs more than once.

    Lists are in the order of their first positions, positions are ascending. None equals no key.
    """
    positions = defaultdict(list)
    for position, key in enumerate(keys):
        if key is not None:
            positions[key].append(position)
    return [group for group in positions.values() if len(group) > 1]


def identical_files(root: Path, paths: Sequence[str]) -> list[list[int]]:
    """The positions of paths whose files are the same, byte for byte; in groups.

    Only files whose size occurs more than once are read. What is not a file, is empty or cannot be
    read belongs to no group: it is reported when it is decoded, with all other bad images.
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
    """All positions but the first of each group: what is left out to keep one of each."""
    left_out = []
    for group in groups_of_equals:
        left_out += group[1:]
    return left_out


def _size(file: Path) -> int | None:
    """The size of a regular file that is not empty; otherwise None."""
    with contextlib.suppress(OSError):
        status = os.stat(file)
        if stat.S_ISREG(status.st_mode) and status.st_size:
            return status.st_size
    return None


def _content_hash(file: Path) -> bytes | None:
    with contextlib.suppress(OSError), open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").digest()
    return None
