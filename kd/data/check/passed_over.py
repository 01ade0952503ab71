"""Find files that may be images but are not read, and classes that have no images."""

import os
import re
from collections import Counter
from pathlib import Path

from kd.data.files.find import IMAGE_EXTENSIONS, NO_EXTENSION, extension_of, walk
from kd.data.images import dicom
from kd.data.index import Index
from kd.data.readers.folder import TABLE
from kd.system.errors import counted, printable

# Extensions of images, and of volumes and slides, that the readers do not accept. Text without an
# extension (LICENSE, README) is no image.
UNREAD = frozenset(
    (
        ".acq .arw .avif .bif .cr2 .czi .dcm .dcm30 .dib .dic .dicom .dng .eps .exr .heic"
        " .heif .ima .img .j2c .j2k .jfif .jif .jls .jp2 .jpc .jpe .jpf .jpx .jxl .jxr .lif"
        " .mha .mhd .mrxs .nef .ndpi .nii .nrrd .pbm .pcx .pgm .pnm .ppm .psd .raw .scn .svs"
        " .tga .vms .wdp"
    ).split()
)
_COMPRESSED = (".bz2", ".gz", ".lz4", ".xz", ".zst")
# What programs add to the name of a file: `film.png (1)`, `film.png~`, `archive.zip.001`. The name
# of a DICOM file may also end with numbers: `MR.1.2.840.10008`.
_ADDED = re.compile(r"(\.[0-9]+| ?\([0-9]+\)|~)+$")
_HEAD_BYTES = 1024
# Names of DICOM files without an extension: IM000123, MR.1.2.840.10008, 1.2.840.10008.
_LIKE_DICOM = re.compile(r"[A-Z]{0,4}[-_.]?[0-9][0-9._-]*")


def passed_over(index: Index) -> dict[str, list[str]]:
    """Search the folder of an index for what its reader passed over.

    The result is `{"passed_over": paths of files that may be images, "classes_without_images":
    texts for folders beside the class folders that are empty or contain such files, "broken_links":
    paths of links that lead nowhere, "linked_twice": texts for class folders that were not read,
    because their files are also in another}`.
    """
    used = {sample.path for sample in index.samples}
    files = []
    broken = []
    folders = {}
    repeated = {}
    for folder in walk(index.root):
        inside = "/".join(folder.inside)
        if folder.same_as is not None:
            repeated[inside] = folder.same_as
            continue
        folders[inside] = len(folder.files)
        for name in folder.files:
            path = f"{inside}/{name}" if inside else name
            if path in used:  # if it cannot be read, this is reported with all others
                continue
            if _leads_nowhere(index.root / path):
                broken.append(path)
            elif _may_be_image(index.root / path):
                files.append(path)
    return {
        "passed_over": list(map(printable, files)),
        "classes_without_images": _classes_without_images(index, folders, files),
        "broken_links": list(map(printable, broken)),
        "linked_twice": _in_two_classes(index, repeated),
    }


def by_extension(paths: list[str]) -> str:
    """Return how many paths have each extension: `40 .dcm, 2 without an extension`."""
    texts = []
    for extension, count in Counter(map(_kind, paths)).most_common():
        kind = "without an extension" if extension == NO_EXTENSION else extension
        texts.append(f"{count} {kind}")
    return ", ".join(texts)


def _kind(path: str) -> str:
    """Return the extension of a file, without what was added to it, or two: `.nii.gz`."""
    extension = extension_of(path)
    if extension == NO_EXTENSION:
        return extension_of(_ADDED.sub("", path))
    if extension in _COMPRESSED:
        inner = extension_of(path[: -len(extension)])
        return extension if inner == NO_EXTENSION else inner + extension
    return extension


def _leads_nowhere(path: Path) -> bool:
    return path.is_symlink() and not os.path.exists(path)


def _may_be_image(path: Path) -> bool:
    """Return whether a file that is not used may be an image that the program does not read."""
    if extension_of(path.name) in IMAGE_EXTENSIONS:  # left out by the table, which the reader says
        return False
    kind = _kind(path.name)
    first = f".{kind.split('.')[1]}" if kind != NO_EXTENSION else kind
    if first not in (NO_EXTENSION, *IMAGE_EXTENSIONS, *UNREAD):
        return False
    try:
        if not path.is_file():  # a pipe would block
            return False
        with path.open("rb") as file:
            head = file.read(max(_HEAD_BYTES, dicom.HEAD_BYTES))
    except OSError:
        return True
    if dicom.is_dicom(head):  # an image that the table does not list, which the reader reports
        return False
    if kind == NO_EXTENSION and not head:  # a copy that failed, or a mark of a program: _SUCCESS
        return _LIKE_DICOM.fullmatch(path.name) is not None
    return kind != NO_EXTENSION or not _is_text(head[:_HEAD_BYTES])


def _is_text(head: bytes) -> bool:
    """Return whether a file is text in UTF-8, UTF-16 or Windows-1252, from its first bytes."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return True
    return not any(byte < 32 and byte not in b"\t\n\f\r" for byte in head)


def _in_two_classes(index: Index, repeated: dict[str, str]) -> list[str]:
    """Return texts for folders that were not read, because they are also in another class.

    `repeated` is {path of a folder that was not read: path of the same folder}.
    """
    depth = _depth_of_classes(index)
    texts = []
    for path, same in repeated.items():
        if depth is not None and _upper(f"{path}/", depth) != _upper(f"{same}/", depth):
            texts.append(printable(f"{path} = {same}"))
    return texts


def _classes_without_images(index: Index, folders: dict[str, int], files: list[str]) -> list[str]:
    """Return texts for folders at the place of class folders that have no image of the index.

    A folder that contains only documents is no class, and a class may have no images in one split.
    `folders` is {path: number of files in it}.
    """
    depth = _depth_of_classes(index)
    if depth is None:
        return []
    with_images = {_upper(sample.path, depth) for sample in index.samples}
    classes = {_name(folder) for folder in with_images}
    splits = {_parent(folder) for folder in with_images}
    filled = {_upper(f"{folder}/", depth) for folder, count in folders.items() if count}
    unread = Counter(_upper(path, depth) for path in files)
    texts = []
    for folder in folders:
        is_beside = folder and folder.count("/") == depth - 1 and _parent(folder) in splits
        if not is_beside or folder in with_images:
            continue
        if unread[folder]:
            number = counted(unread[folder], "file", "files")
            texts.append(f"{printable(folder)} ({number} passed over)")
        elif folder not in filled and _name(folder) not in classes:
            texts.append(f"{printable(folder)} (empty)")
    return texts


def _depth_of_classes(index: Index) -> int | None:
    """Return 1 if the top folders are the classes, 2 if those below them are, otherwise None."""
    if (index.root / TABLE).is_file() or (index.labels < 0).any():
        return None
    for depth in (1, 2):
        folders = {(_upper(sample.path, depth), sample.label) for sample in index.samples}
        if all(_name(folder) == index.classes[label] for folder, label in folders):
            return depth
    return None


def _upper(path: str, depth: int) -> str:
    """Return the path of the folder that a file is in, at most `depth` levels down."""
    return "/".join(path.split("/")[:-1][:depth])


def _name(folder: str) -> str:
    return folder.rpartition("/")[2]


def _parent(folder: str) -> str:
    return folder.rpartition("/")[0]
