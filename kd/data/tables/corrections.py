"""Apply corrections of labels to the index of any data set (--errata)."""

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

from kd.data.files.file_names import FileNames, composed
from kd.data.index import Index
from kd.data.tables.grades import DROP, corrections_in, number
from kd.system.errors import Problem, counted, first_names, first_ten, printable


class _Images:
    """The images of a data set, which corrections name."""

    def __init__(self, root: Path, paths: list[str]):
        self._root = root
        # A path is found as it is written, or in another Unicode form.
        self._paths = {composed(path): path for path in paths} | {path: path for path in paths}
        self._names = FileNames(set(paths))

    def find(self, name: str) -> tuple[str, str]:
        """Return (the path of the image that `name` names, ""), or ("", why there is none).

        The name is a path, also with \\ or with the name of the root before it, or the name of one
        file with or without its extension.
        """
        slashes = name.replace("\\", "/")
        for text in (name, slashes, composed(slashes)):
            path = os.path.normpath(text)
            if path in self._paths:
                return self._paths[path], ""
            for base in (f"{os.path.abspath(self._root)}/", f"{self._root.resolve().name}/"):
                if path.removeprefix(base) in self._paths:
                    return self._paths[path.removeprefix(base)], ""
        matches = [] if "/" in path else self._names.find(path)
        if not matches:
            return "", "the data set has no such image"
        if len(matches) > 1:
            return "", f"{len(matches)} images have this name: {first_ten(sorted(matches))}"
        return matches[0], ""


def corrected(index: Index, errata: str) -> Index:
    """Return an index with the corrections of the CSV `errata`, and a note that counts them.

    The CSV has the columns image,label. An image is named by its path, or by its file name with or
    without extension if no other image has it. The label is one of the classes, or `drop` to
    exclude the image. Unlabelled images may get a label.

    Raises Problem if images are drawn, not read, and for rows that name an unknown image, one that
    another row names, more than one, or an unknown label.
    """
    if index.root is None:
        raise Problem(
            f"--errata '{errata}' is not valid for the data set '{index.name}': its images are"
            " drawn, and have no names. Remove --errata."
        )
    labels = _checked(index, errata)
    samples = list(index.samples)
    kept = []
    for row, sample in enumerate(samples):
        label = labels.get(sample.path)
        if label is not None and label != DROP:
            samples[row] = sample._replace(label=index.classes.index(label))
        if label != DROP:
            kept.append(row)
    if not kept:
        raise Problem(f"--errata '{errata}' drops all images. Keep at least one of each class.")
    dropped = len(samples) - len(kept)
    images = counted(dropped, "image", "images")
    changes = counted(len(labels) - dropped, "label", "labels")
    note = f"--errata '{Path(errata).name}' set {changes} and dropped {images}."
    result = replace(index, samples=tuple(samples)).only(kept, note)
    return replace(result, notes=(*result.notes, *_emptied(index, result)))


def labels_by_path(root: Path, paths: list[str], errata: str) -> dict[str, str]:
    """Return {path: label or DROP} for the corrections of images that are among `paths`.

    Rows that name no image, or not clearly, are ignored here: `corrected` refuses them. Raises
    Problem if the CSV cannot be read.
    """
    images = _Images(root, paths)
    found = {}
    for _, name, label in corrections_in(errata):
        path, fault = images.find(name)
        if not fault:
            found[path] = number(label)
    return found


def _checked(index: Index, errata: str) -> dict[str, str]:
    """Return {path: class or DROP}. Raises Problem for rows that cannot be used."""
    images = _Images(index.root, [sample.path for sample in index.samples])
    labels = {}
    rows = {}
    faults = []
    for where, name, label in corrections_in(errata):
        path, fault = images.find(name)
        if not fault and path in rows:
            fault = f"already named in {rows[path]}"
        if label not in index.classes:
            label = number(label)
        if not fault and label not in index.classes and label != DROP:
            classes = first_ten([printable(one) for one in index.classes])
            fault = f"label '{printable(label)}' is neither {DROP} nor one of {classes}"
        if fault:
            faults.append(f"{where} ({fault})")
            continue
        rows[path] = where
        labels[path] = label
    if faults:
        raise Problem(
            f"--errata '{errata}' has {counted(len(faults), 'row', 'rows')} that cannot be used:"
            f" {first_names(faults)}. Fix them; images are named by their path, as in"
            " predictions.csv."
        )
    return labels


def _emptied(before: Index, after: Index) -> list[str]:
    """Return a note on classes that had images before the corrections and have none now."""
    had = Counter(sample.label for sample in before.samples)
    have = Counter(sample.label for sample in after.samples)
    names = []
    for label, name in enumerate(before.classes):
        if had[label] and not have[label]:
            names.append(printable(name))
    if not names:
        return []
    return [f"After the corrections, no image is left of {first_ten(names)}."]
