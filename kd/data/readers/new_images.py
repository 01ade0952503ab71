"""Read a tree of new images for a trained network, whose classes its folders may be or not."""

from collections import Counter
from pathlib import Path

from kd.data.files.find import Found, find_images, natural_key, runs_among, split_name
from kd.data.readers.tree import (
    Contents,
    check_masks,
    check_shared,
    check_spelling,
    folders_text,
    folders_without_images,
    masks_among,
    other_notes,
    row_of,
)
from kd.data.tables.spelling import plain
from kd.system.errors import Problem, counted, first_names, first_ten
from kd.system.names import Note


def read_new_images(root: Path, classes: tuple[str, ...]) -> Contents:
    """Return all images of a tree of any structure, for a network with these classes.

    The tree is labelled if all top folders with images are classes of the network, or if all of
    them are splits and the folders in them are classes. Images outside of these folders have no
    label. In any other tree no image has a label, and a note says so. Splits do not matter.

    What cannot be read is in `lost`. Images in runs of this program are left out with a note.
    Raises Problem if some folders are classes and others are not, if a name may be another spelling
    of a class, and for a labelled tree with masks, or with a folder that links put into two
    classes: labels would be wrong.
    """
    lost = {}
    found, notes = _without_runs(root, find_images(root, lost))
    depth = _class_depth(root, found.paths, classes)
    rows = []
    for path in found.paths:
        rows.append(row_of(path, _folder_at(path, depth)))
    if depth:
        check_masks(root, found.paths)
        check_shared(root, found, depth)
        notes += _labelled(root, rows)
    elif rows:
        notes += _unlabelled(root, found.paths, classes) + _masks(found.paths)
    notes += other_notes(found) + folders_without_images(found, depth == 2)
    return Contents(rows, notes, found.skipped, found.others, lost)


def _without_runs(root: Path, found: Found) -> tuple[Found, list[str]]:
    """Return (what was found without the figures of this program's own runs, a note on them)."""
    runs = runs_among(root, found.paths)
    inside = tuple("" if run == "." else f"{run}/" for run in runs)
    if not runs:
        return found, []
    paths = [path for path in found.paths if not path.startswith(inside)]
    figures = counted(len(found.paths) - len(paths), "image is", "images are")
    note = f"{figures} left out, in folders that are runs of this program: {first_names(runs)}."
    return found._replace(paths=paths), [Note(note)]


def _folder_at(path: str, depth: int) -> str:
    """Return the name of the folder at a depth, 1 at the top; empty if there is none."""
    folders = path.split("/")[:-1]
    return folders[depth - 1] if 0 < depth <= len(folders) else ""


def _class_depth(root: Path, paths: list[str], classes: tuple[str, ...]) -> int:
    """Return the depth of the folders that are classes: 1, 2 below splits, 0 if there are none.

    Raises Problem if some folders are classes and others are not, or if they are in another
    spelling.
    """
    names_at = {1: Counter(_folder_at(path, 1) for path in paths)}
    if paths and all(split_name(name) for name in names_at[1]):
        names_at[2] = Counter(_folder_at(path, 2) for path in paths)
    for names in names_at.values():
        del names[""]  # images that are in no folder of this depth
    for depth, names in names_at.items():
        if names and names.keys() <= set(classes):
            return depth
    for names in names_at.values():
        _refuse_unclear(root, names, classes)
    return 0


def _refuse_unclear(root: Path, names: Counter, classes: tuple[str, ...]) -> None:
    """Raise Problem if some folders, but not all, are classes, or all in another spelling.

    names  {name of a folder: number of its images}, not all of which are classes
    """
    spellings = set(map(plain, classes))
    alike = Counter({name: count for name, count in names.items() if plain(name) in spellings})
    known = names.keys() & set(classes)
    if known or len(alike) == len(names):
        check_spelling(root, alike, classes)
    if not known:
        return
    unknown = sorted(names.keys() - known, key=natural_key)
    images = counted(sum(names[name] for name in unknown), "image", "images")
    raise Problem(
        f"{folders_text(unknown)} in {root} ({images}) {'is' if len(unknown) == 1 else 'are'}"
        f" unknown to the network: its classes are {first_ten(list(classes))}. Rename what is"
        " unknown, or move it out of the folder. To predict all images without labels, list them in"
        " a table with the column path."
    )


def _labelled(root: Path, rows: list[dict]) -> list[str]:
    """Return a note on the folders that the labels are taken from."""
    images = Counter(row["label"] for row in rows)
    outside = images.pop("", 0)
    names = [f"{name} {images[name]}" for name in sorted(images, key=natural_key)]
    note = f"Labels are taken from the class folders in {root}: {first_ten(names)}."
    if outside:
        note += f" {counted(outside, 'image', 'images')} outside of them are unlabelled."
    return [note]


def _unlabelled(root: Path, paths: list[str], classes: tuple[str, ...]) -> list[str]:
    """Return a note that no folder is a class, and one if folders below them may be classes."""
    tops = sorted({_folder_at(path, 1) for path in paths} - {""}, key=natural_key)
    images = f"All {len(paths)} images are" if len(paths) > 1 else "The image is"
    folders = f" ({first_names(tops)})" if tops else ""
    notes = [Note(f"{images} unlabelled: no folder in {root} is a class of the network{folders}.")]
    below = {name for path in paths for name in path.split("/")[1:-1]}
    lower = [name for name in classes if name in below]
    if lower:
        notes.append(
            f"Folders at a lower level are named like classes of the network"
            f" ({first_ten(lower)}), but are not read as such: to use these labels, set --data-dir"
            " to a folder that directly contains the class folders."
        )
    return notes


def _masks(paths: list[str]) -> list[str]:
    """Return a note if unlabelled images are named as masks or annotations of others."""
    masks = masks_among(paths)
    if not masks:
        return []
    images = counted(masks.total(), "image is", "images are")
    return [
        Note(
            f"{images} predicted like all others, although the names call masks or annotations of"
            f" other images: {first_names(sorted(masks, key=natural_key))}."
        )
    ]
