"""Find the images in a folder, and account for every file that is not one.

A file is an image if it has the extension of one, or if its content is DICOM. This module is part
of the script that predicts images without this program (`kd.studies.export.script`).
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from kd.data.images.dicom_head import HEAD_BYTES, is_dicom, states_no_image
from kd.system.errors import Problem, first_names

IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif")
DICOM_EXTENSIONS = (".dcm", ".dicom", ".ima")
NO_EXTENSION = "(none)"
# Files with these extensions are not opened in search of DICOM content.
_OTHER_EXTENSIONS = frozenset(
    (
        ".7z .avi .bat .bz2 .csv .db .dll .doc .docx .exe .gz .h5 .hdf5 .heic .htm .html"
        " .ini .ipynb .jfif .json .jsonl .lnk .log .mat .md .md5 .mha .mhd .mov .mp4 .nii .npy .npz"
        " .nrrd .odt .onnx .parquet .pdf .pkl .ppt .pptx .pt .pth .py .r .rar .rtf .sh .sha256"
        " .sqlite .svg .tar .tfrecord .tgz .toml .tsv .txt .wav .xls .xlsx .xml .xz .yaml .yml .zip"
    ).split()
)
# Folders and files that operating systems, servers and viewers leave behind, in lower case. Those
# that begin with a dot are hidden in any case.
_SYSTEM_FOLDERS = frozenset(
    (
        "__macosx",
        "@eadir",
        "@tmp",
        "@recycle",
        "@snapshot",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "recycler",
        "system volume information",
        "lost+found",
        "thumbnails",
        "_thumbnails",
        "_thumbs",
        "__thumbs",
        "__pycache__",
    )
)
_SYSTEM_FILES = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "dicomdir"))
# Copies of a whole archive: their files are not counted, because there may be very many.
_SNAPSHOTS = frozenset((".snapshot", ".snapshots", "#snapshot", "@snapshot", ".zfs"))
_SPLIT_WORDS = {
    "train": ("train", "training", "trn"),
    "valid": ("val", "valid", "validation", "vali", "dev", "devel", "development"),
    "test": ("test", "testing", "tests", "tst"),
}
_SPLIT_SUFFIXES = (
    "|set|sets|data|dataset|image|images|img|imgs|pictures|photos|scans|samples|cases|split|part"
    "|folder"
).split("|")
_SPLITS = {
    word + suffix: split
    for split, words in _SPLIT_WORDS.items()
    for word in words
    for suffix in _SPLIT_SUFFIXES
}


class Folder(NamedTuple):
    """A folder that `walk` enters.

    inside   names of the folders from the root down to this one
    files    sorted names of its files, without those that are skipped
    skipped  number of hidden files in it, of files of the system, and of files in folders of the
             system
    same_as  the path below the root of the same folder, if a link led there before: this one is not
             entered again, and `files` is empty. Otherwise None
    """

    inside: tuple[str, ...]
    files: list[str]
    skipped: int
    same_as: str | None = None


class Found(NamedTuple):
    """The files below a folder.

    paths    paths of all images relative to the folder, in natural order
    skipped  number of files that were skipped on purpose, see `Folder`
    others   number of all other files by extension in lower case, `(none)` without one
    folders  {path of each folder relative to the root, "" for the root: number of files directly in
             it that are not images}
    repeated {path of a folder that was not entered again: path of the same folder}
    broken   paths of links that lead nowhere, without those named like an image or a document
    """

    paths: list[str]
    skipped: int
    others: dict[str, int]
    folders: dict[str, int]
    repeated: dict[str, str]
    broken: list[str]


def find_images(root: Path, lost: dict[str, str] | None = None) -> Found:
    """Return all images below root, and what was passed over.

    Links are followed, see `walk`. Raises Problem for folders, and for files that may be DICOM,
    that cannot be read.

    lost  collects what may be an image but cannot be read, {path: reason}: no Problem is raised
          then. These are, besides such folders and files, files with an extension of DICOM that
          are not DICOM, and the links of `Found.broken`
    """
    images = []
    uncertain = []
    others = []
    folders = {}
    repeated = {}
    skipped = 0
    for folder in walk(root, lost):
        if folder.same_as is not None:
            repeated["/".join(folder.inside)] = folder.same_as
            continue
        skipped += folder.skipped
        folders["/".join(folder.inside)] = 0
        for name in folder.files:
            path = "/".join((*folder.inside, name))
            extension = extension_of(name)
            if extension in IMAGE_EXTENSIONS:
                images.append(path)
            elif extension in _OTHER_EXTENSIONS:
                others.append(path)
            else:
                uncertain.append(path)
    broken = []
    for path, is_image in zip(uncertain, _have_dicom(root, uncertain, lost), strict=True):
        (images if is_image else others).append(path)
        if not is_image and not os.path.exists(root / path) and os.path.islink(root / path):
            broken.append(path)
    if lost is not None:
        lost |= dict.fromkeys(broken, "a link that leads to nothing that can be reached")
        others = [path for path in others if path not in lost]
    for path in others:
        folders[path.rpartition("/")[0]] += 1
    images.sort(key=natural_key)
    return Found(images, skipped, count_extensions(others), folders, repeated, broken)


def runs_among(root: Path, paths: list[str]) -> list[str]:
    """Return the folders of this program's own runs whose figures are among the images."""
    runs = []
    for path in paths:
        folder, _, name = path.rpartition("/")
        if name == "confusion.png":
            files = [root / folder / other for other in ("report.json", "settings.json")]
            if all(file.is_file() for file in files):
                runs.append(folder or ".")
    return runs


def count_extensions(paths: list[str]) -> dict[str, int]:
    """Return the number of files by extension, see `extension_of`, with the most frequent first."""
    return dict(Counter(map(extension_of, paths)).most_common())


def extension_of(path: str) -> str:
    """Return the extension of a file in lower case, or `(none)`.

    The last number of a name like `1.2.840.10008` is not an extension.
    """
    extension = os.path.splitext(path)[1].lower()
    if re.fullmatch(r"\.(?=.*[^\W\d])\w{1,10}", extension):
        return extension
    return NO_EXTENSION


def is_common(extension: str) -> bool:
    """Return whether an extension is that of a known kind of file, and no part of a name."""
    known = (*IMAGE_EXTENSIONS, *DICOM_EXTENSIONS, NO_EXTENSION)
    return extension in known or extension in _OTHER_EXTENSIONS


def split_name(text: str) -> str | None:
    """Return `train`, `valid` or `test` for any usual name of that split, and None for others.

    Case, blanks, hyphens and underscores do not matter.
    """
    return _SPLITS.get(re.sub(r"[\s_-]", "", text.casefold()))


def natural_key(text: str) -> tuple:
    """Return a key that sorts texts with the numbers in them compared as numbers: a2b, a10b."""
    key = []
    for place, part in enumerate(re.split("([0-9]+)", text)):
        digits = part.lstrip("0")
        key.append((len(digits), digits) if place % 2 else part)
    return tuple(key), text


def walk(root: Path, lost: dict[str, str] | None = None) -> Iterator[Folder]:
    """Yield every folder from root down, in a fixed order.

    Links are followed, and each real folder is entered once: a second link to it is yielded with
    `same_as`, but a link to a folder that it is in itself, which would never end, is not. Hidden
    folders and folders of the system are skipped. Raises Problem, at the end, if folders cannot be
    read: training on the rest would be training on a different data set. With `lost`, they are
    added to it in place of that, {path: reason}.
    """
    entered = {}
    errors = []
    for here, folders, files in os.walk(root, followlinks=True, onerror=errors.append):
        status = os.stat(here)
        identity = (status.st_dev, status.st_ino)
        inside = Path(here).relative_to(root).parts
        if identity in entered:
            folders.clear()
            first = entered[identity]
            if inside[: len(first)] != first:
                yield Folder(inside, [], 0, "/".join(first))
            continue
        entered[identity] = inside
        skipped = 0
        for name in folders:
            skipped += _files_below(Path(here, name)) if _is_system_folder(name) else 0
        folders[:] = sorted(name for name in folders if not _is_system_folder(name))
        shown = sorted(name for name in files if not _is_system_file(name))
        yield Folder(inside, shown, skipped + len(files) - len(shown))
    faults = {os.path.relpath(error.filename, root): error.strerror for error in errors}
    if lost is not None:
        lost |= {path: f"a folder that cannot be read: {why}" for path, why in faults.items()}
    elif faults:
        texts = [f"{path} ({why})" for path, why in faults.items()]
        raise Problem(
            f"Folders in {root} cannot be read: {first_names(texts)}. Change their permissions, or"
            " move them out of the data folder."
        )


def _is_system_folder(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM_FOLDERS


def _is_system_file(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM_FILES


def _files_below(folder: Path) -> int:
    """Return the number of files in a folder that is skipped; 0 for snapshots and links."""
    if folder.name.lower() in _SNAPSHOTS or folder.is_symlink():
        return 0
    return sum(len(files) for _, _, files in os.walk(folder))


def _have_dicom(root: Path, paths: list[str], lost: dict[str, str] | None) -> list[bool]:
    """Return whether each file is a DICOM image by its content.

    Raises Problem for unreadable files; with `lost`, they and those that are DICOM only by their
    names are added to it.
    """
    faults = {}
    misnamed = {}

    def check(path: str) -> bool:
        try:
            if not (root / path).is_file():  # a pipe would block, and a link may point nowhere
                return False
            head = b""
            if (root / path).stat().st_size:  # a file of /proc has no size and may block, too
                with open(root / path, "rb") as file:
                    head = file.read(HEAD_BYTES)
        except OSError as error:
            faults[path] = error.strerror
            return False
        if is_dicom(head):
            return not states_no_image(head)
        if extension_of(path) in DICOM_EXTENSIONS:
            misnamed[path] = "not a DICOM file" if head else "empty"
        return False

    with ThreadPoolExecutor(8) as threads:  # most of the time is spent waiting for a server
        results = list(threads.map(check, paths))
    if lost is not None:
        lost |= dict(sorted((faults | misnamed).items()))
    elif faults:
        texts = [f"{path} ({why})" for path, why in sorted(faults.items())]
        raise Problem(
            f"Files in {root} cannot be read: {first_names(texts)}. Change their"
            " permissions, or move them out of the data folder."
        )
    return results
