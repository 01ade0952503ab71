"""Read the images of a tree of class folders, and refuse trees whose classes are not clear."""

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from kd.data.files.file_names import stem_of
from kd.data.files.find import (
    DICOM_EXTENSIONS,
    NO_EXTENSION,
    Found,
    find_images,
    is_common,
    natural_key,
    runs_among,
    split_name,
)
from kd.data.tables.spelling import plain
from kd.system.errors import Problem, counted, first_names, first_ten
from kd.system.names import Note, named

TABLE = "images.csv"
_MASKS = "masks?|segmentations?|annotations?|ground[ _-]?truths?"
# Also `lung masks`, but not the class `with_mask`.
_MASK_FOLDER = re.compile(rf"(?:(?!with).*[ _-])?(?:{_MASKS})|labels?")
_MASK_FILE = re.compile(rf"(.+?)[ _-]+(?:{_MASKS}|labels?)(?:[ _-]*[0-9]+)?", re.IGNORECASE)


class Contents(NamedTuple):
    """What a folder or a table contains.

    rows     one dictionary for each image, with the keys path, label, patient, study, split, site
             and extra
    notes    what the user should know
    skipped  see `Index`
    others   see `Index`
    lost     see `Index`
    """

    rows: list[dict]
    notes: list[str]
    skipped: int = 0
    others: dict[str, int] = {}
    lost: dict[str, str] = {}


def read_classes(root: Path, lenient: bool = False) -> Contents:
    """Return the images in class folders or in split folders of class folders.

    Every folder with images is a class. Raises Problem for a tree whose classes or splits are not
    clear, for folders of masks, and for folders that are lost; with `lenient`, only if it is not
    clear which folders are splits.
    """
    found = _images(root, lenient)
    has_splits = _has_splits(root, found.paths)
    rows = []
    for path in found.paths:
        folders = path.split("/")[:-1]
        split = split_name(folders.pop(0)) if has_splits else None
        rows.append(row_of(path, folders[0] if folders else "", split))
    depth = 2 if has_splits else 1  # of the class folders
    notes = other_notes(found) + folders_without_images(found, has_splits)
    if not lenient:
        _check_spelling(root, rows)
        _check_broken(root, found, depth)
        check_shared(root, found, depth)
        if len({row["label"] for row in rows}) > 1:
            _check_lower_splits(root, found.paths, depth)
        if not has_splits:
            notes += _equal_folders(found.paths)
    return Contents(rows, notes, found.skipped, found.others)


def read_any_tree(root: Path) -> Contents:
    """Return the images of a tree of any structure. Raises Problem for folders of masks."""
    found = _images(root)
    rows = [row_of(path) for path in found.paths]
    return Contents(rows, other_notes(found), found.skipped, found.others)


def _images(root: Path, lenient: bool = False) -> Found:
    """Return the images below root, none of which is a mask or a figure of this program."""
    found = find_images(root)
    if not lenient:
        _check_runs(root, found.paths)
        check_masks(root, found.paths)
    return found


def _check_runs(root: Path, paths: list[str]) -> None:
    runs = runs_among(root, paths)
    if runs:
        raise Problem(
            f"Folders in {root} are runs of this program, not data: {first_names(runs)}. Move them"
            " out of the folder, or use another one."
        )


def masks_among(paths: list[str]) -> Counter:
    """Return how many images are named as masks or annotations of others, by folder or path.

    These are the images in folders like `masks` below class folders, those in class folders of such
    names with the names of other images, and image_mask.png beside image.png.
    """
    stems = {f"{path.rpartition('/')[0]}/{stem_of(path)}" for path in paths}
    folders_of = {path: _mask_folder(path) for path in paths}
    named = {_without_mask(path) for path in paths if not folders_of[path]}
    masks = Counter()
    for path, folder in folders_of.items():
        if folder and (not _is_class(folder) or _without_mask(path) in named):
            masks[folder] += 1
        elif _without_mask(path) != stem_of(path):
            if f"{path.rpartition('/')[0]}/{_without_mask(path)}" in stems:
                masks[path] += 1
    return masks


def check_masks(root: Path, paths: list[str]) -> None:
    """Raise Problem for images that are named as masks or annotations of others."""
    masks = masks_among(paths)
    if masks:
        images = counted(masks.total(), "image", "images")
        raise Problem(
            f"{images} in {root} would be used that the names call masks or annotations of other"
            f" images: {first_names(sorted(masks, key=natural_key))}. Move them out of the folder,"
            " rename them if they are images to classify, or list the images in a table."
        )


def _mask_folder(path: str) -> str:
    """Return the path of the first folder of an image that is named like one of masks, or ""."""
    folders = path.split("/")[:-1]
    for place, name in enumerate(folders, 1):
        if _MASK_FOLDER.fullmatch(name.casefold()):
            return "/".join(folders[:place])
    return ""


def _is_class(folder: str) -> bool:
    """Return whether a folder is at the place of a class: at the top, or in a split."""
    upper, _, name = folder.rpartition("/")
    return not upper or (bool(name) and split_name(upper) is not None)


def _without_mask(path: str) -> str:
    """Return the stem of an image without `_mask` and the like."""
    file = _MASK_FILE.fullmatch(stem_of(path))
    return file[1] if file else stem_of(path)


def _check_broken(root: Path, found: Found, depth: int) -> None:
    """Raise Problem if a link to nothing takes away a class, of a split if there are splits.

    `depth` is the number of folders down to a class.
    """
    broken = [path for path in found.broken if path.count("/") < depth]
    if broken:
        raise Problem(
            f"Links beside the class folders of {root} lead to nothing that can be reached:"
            f" {first_names(broken)}. Restore what they lead to, for example mount its disk, or"
            " remove them."
        )


def check_shared(root: Path, found: Found, depth: int) -> None:
    """Raise Problem if a link leads to a folder that another class or split already has.

    `depth` is the number of folders down to a class.
    """
    shared = []
    for path, other in found.repeated.items():
        if path.split("/")[:depth] != other.split("/")[:depth]:
            shared.append(f"{path} = {other}")
    if shared:
        raise Problem(
            f"Folders in {root} are the same by links: {first_names(shared)}. An image has only one"
            " class and split, so remove one of the two, or list the images in a table."
        )


def _check_lower_splits(root: Path, paths: list[str], depth: int) -> None:
    """Raise Problem for split folders below class folders: they would be ignored."""
    splits = set()
    for path in paths:
        folders = path.split("/")[:-1]
        for place in range(depth, len(folders)):
            if split_name(folders[place]):
                splits.add("/".join(folders[: place + 1]))
    if splits:
        raise Problem(
            f"{folders_text(sorted(splits, key=natural_key))} of {root}"
            f" {'is a split' if len(splits) == 1 else 'are splits'} below class folders, so that"
            " images of all splits would be mixed. Make the splits the upper folders (SPLIT/CLASS),"
            " list all images in a table with the columns path, label and split, or rename these"
            " folders if they are no splits."
        )


def _has_splits(root: Path, paths: list[str]) -> bool:
    """Return whether the top folders that contain images are splits, not classes.

    Raises Problem if some are splits and some are not, and if two are the same split.
    """
    tops = sorted({path.partition("/")[0] for path in paths if "/" in path}, key=natural_key)
    splits = [name for name in tops if split_name(name)]
    if not splits:
        return False
    rest = [name for name in tops if not split_name(name)]
    if any("/" not in path for path in paths):
        rest.append("the folder itself")
    if rest:
        be = "is a split" if len(splits) == 1 else "are splits"
        raise Problem(
            f"{folders_text(splits)} of {root} {be}, but this is not so for {first_names(rest)},"
            " and all contain images. Move one kind out, rename a class that is named like a"
            f" split, or list the images in {TABLE}."
        )
    _check_splits(root, splits)
    return True


def _check_splits(root: Path, names: list[str]) -> None:
    """Raise Problem if two folders are the same split."""
    first = {}
    for name in names:
        split = split_name(name)
        other = first.setdefault(split, name)
        if other != name:
            raise Problem(
                f"Folders {other} and {name} of {root} are both the {split} split. Put their"
                " images into one folder, or move one of them out."
            )


def _check_spelling(root: Path, rows: list[dict]) -> None:
    """Raise Problem for names of classes that differ only as `plain` says, for example in case."""
    check_spelling(root, Counter(row["label"] for row in rows if row["label"]))


def check_spelling(root: Path, counts: Counter, classes: tuple[str, ...] = ()) -> None:
    """Raise Problem for folders that differ from each other or from classes only as `plain` says.

    counts   {name of a class folder: number of its images}
    classes  those of a network
    """
    spellings = {}
    for name in sorted(counts.keys() | set(classes), key=natural_key):
        spellings.setdefault(plain(name), []).append(name)
    faults = []
    for names in spellings.values():
        if len(names) > 1 and any(name in counts and name not in classes for name in names):
            faults.append(" = ".join(f"'{name}' ({_holders(name, counts)})" for name in names))
    if faults:
        raise Problem(
            f"Classes in {root} differ only in case, blanks or leading zeros: {first_ten(faults)}."
            " Rename their folders, so that each class has one name."
        )


def _holders(name: str, counts: Counter) -> str:
    """Return how many images a class has, for messages; classes of a network may have none."""
    return counted(counts[name], "image", "images") if name in counts else "of the network"


def _equal_folders(paths: list[str]) -> list[str]:
    """Return a note if all top folders contain the same folders, two or more.

    The lower folders may be the classes, and the upper ones hospitals.
    """
    below = {}
    for path in paths:
        folders = path.split("/")[:-1]
        if folders:
            below.setdefault(folders[0], set()).update(folders[1:2])
    shared = set.intersection(*below.values()) if below else set()
    if len(below) < 2 or len(shared) < 2:
        return []
    names = sorted(shared, key=natural_key)
    return [
        Note(
            f"Folders {first_names(sorted(below, key=natural_key))} all contain the folders"
            f" {first_names(names)}, and the class is taken from the upper folder: if the lower"
            " ones are the classes, list all images in a table (--table FILE) with the columns"
            " path, label and site, or use one upper folder as --data-dir."
        )
    ]


def folders_without_images(found: Found, has_splits: bool) -> list[str]:
    """Return a note that names folders that would be splits or classes if they had images.

    A class that has images in one split may have none in another.
    """
    used = {upper for path in found.paths for upper in _upper_folders(path)}
    files = Counter()
    for folder, count in found.folders.items():
        for upper in _upper_folders(folder + "/"):
            files[upper] += count
    classes = {folder.partition("/")[2] for folder in used}
    without = []
    for folder in sorted(found.folders.keys() - used - {""}, key=natural_key):
        upper, _, lower = folder.partition("/")
        is_class = has_splits and upper in used and "/" not in lower
        if lower and (not is_class or (not files[folder] and lower in classes)):
            continue
        others = counted(files[folder], "other file", "other files") if files[folder] else "empty"
        without.append(f"{folder} ({others})")
    if not without:
        return []
    have = counted(len(without), "folder has", "folders have")
    return [Note(f"{have} no images: {first_names(without)}.")]


def _upper_folders(path: str) -> list[str]:
    """Return the paths of all folders that a file is in: a and a/b for a/b/c."""
    return [path[:place] for place, letter in enumerate(path) if letter == "/"]


def other_notes(found: Found) -> list[str]:
    """Return notes on files that are not images, and on links that add no images."""
    notes = other_files(found.others)
    if found.broken:
        links = counted(len(found.broken), "link leads", "links lead")
        notes.append(
            Note(
                f"{links} to nothing that can be reached, so images may be missing:"
                f" {first_names(found.broken)}."
            )
        )
    if found.repeated:
        folders = counted(len(found.repeated), "folder is", "folders are")
        names = [f"{path} = {other}" for path, other in found.repeated.items()]
        listed = first_names(names)
        notes.append(Note(f"{folders} the same as another by links, and used once: {listed}."))
    return notes


def other_files(others: dict[str, int]) -> list[str]:
    """Return a note that counts the files that are not images."""
    if not others:
        return []
    kinds = []
    for extension, count in others.items():
        if extension == NO_EXTENSION:
            kinds.append(f"{count} without an extension")
        elif extension in DICOM_EXTENSIONS:
            kinds.append(f"{count} {extension} (no DICOM image)")
        else:
            name = extension if is_common(extension) else named(extension)
            kinds.append(f"{count} {name}")
    total = sum(others.values())
    files = counted(total, "file is not an image and was", "files are not images and were")
    return [Note(f"{files} skipped: {first_ten(kinds)}.")]


def folders_text(names: list[str]) -> str:
    """Return `Folder a` or `Folders a, b` for a message."""
    return f"{'Folder' if len(names) == 1 else 'Folders'} {first_names(names)}"


def row_of(path: str, label: str = "", split: str | None = None) -> dict:
    """Return a row as of a table for an image that was found in a folder."""
    row = {"path": path, "label": label, "patient": "", "study": "", "split": split}
    return row | {"site": "", "extra": {}}
