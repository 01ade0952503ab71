"""Find files by their names, with or without an extension."""

from collections import defaultdict
from collections.abc import Iterable

from kd.data.files.find import NO_EXTENSION, extension_of


def stem_of(path: str) -> str:
    """Return a file's name without its folders and its extension.

    The last number of a name like `1.2.840.10008` is not an extension.
    """
    name = path.rpartition("/")[2]
    extension = extension_of(name)
    return name if extension == NO_EXTENSION else name[: -len(extension)]


class FileNames:
    """The names of files, of which `paths` are the paths.

    are_unique  whether no two files have the same name, even without their extensions
    """

    def __init__(self, paths: Iterable[str]):
        self._by_name = defaultdict(list)
        self._by_stem = defaultdict(list)
        for path in paths:
            self._by_name[path.rpartition("/")[2]].append(path)
            self._by_stem[stem_of(path)].append(path)
        self.are_unique = all(len(paths) == 1 for paths in self._by_stem.values())

    def find(self, name: str) -> list[str]:
        """Return the paths of all files with a name.

        If there are none, the name is taken for one without an extension, and then for one with the
        wrong extension (of a file that was converted).
        """
        if name in self._by_name:
            return self._by_name[name]
        if name in self._by_stem:
            return self._by_stem[name]
        return self._by_stem.get(stem_of(name), [])
