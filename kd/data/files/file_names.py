"""Find files by their names, with or without an extension."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable

from kd.data.files.find import IMAGE_EXTENSIONS, NO_EXTENSION, extension_of

# Extensions that the name of an image may have lost when the image was converted.
_CONVERTED = frozenset((*IMAGE_EXTENSIONS, ".dcm", ".dicom", ".dic", ".ima"))


def composed(name: str) -> str:
    """Return a name in the one Unicode form (NFC) in which names are compared.

    A name with umlauts has another form on macOS than on most other systems.
    """
    return unicodedata.normalize("NFC", name)


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
            name = composed(path.rpartition("/")[2])
            self._by_name[name].append(path)
            self._by_stem[stem_of(name)].append(path)
        self.are_unique = all(len(paths) == 1 for paths in self._by_stem.values())

    def find(self, name: str) -> list[str]:
        """Return the paths of all files with a name.

        If there are none, the name is taken for one without an extension, and then for one with the
        wrong extension (of an image that was converted). Unicode forms do not matter.
        """
        name = composed(name)
        if name in self._by_name:
            return self._by_name[name]
        if name in self._by_stem:
            return self._by_stem[name]
        return self._by_stem.get(stem_of(name), []) if extension_of(name) in _CONVERTED else []
