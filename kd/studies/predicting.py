"""New images that a finished run predicts: those that can be read, and a list of the others."""

import csv
import functools
import io
from dataclasses import dataclass

import numpy as np

from kd.config.evaluate_settings import Judging
from kd.data import ranges
from kd.data.files.find import natural_key
from kd.data.index import Index, digest
from kd.data.partial import PartialStore
from kd.studies.images import other_images
from kd.system.console import log
from kd.system.errors import Problem, counted, first_names, printable
from kd.teachers.model_file import Trained

_UNREADABLE_COLUMNS = ("path", "reason")


class Incomplete(Problem):
    """Some images could not be read. It is raised after all others are predicted and written."""


@dataclass(frozen=True)
class NewImages:
    """Images that are not those of a run.

    index       all images that were found
    store       the images of `rows`, decoded as those of the run
    rows        the rows of the index that can be read
    unreadable  {path: reason} of all that cannot be read, in the index or not
    remarks     what the user should know, already printed
    """

    index: Index
    store: PartialStore
    rows: np.ndarray
    unreadable: dict[str, str]
    remarks: list[str]

    @property
    def all_of(self) -> int:
        """How many images there are, readable or not."""
        return len(self.rows) + len(self.unreadable)

    @functools.cached_property
    def content(self) -> str:
        """A hash of the paths, labels, patients and bytes of all images, and of what is unreadable.

        It differs for folders with equal names of files, and if a damaged file is replaced.
        """
        lines = []
        for row in self.rows:
            lines.append(f"{self.index.identity(row)}\t{self.store.hashes[row].tobytes().hex()}")
        lines += [f"{path}\t{why}" for path, why in self.unreadable.items()]
        return digest(lines)[:6]


def open_new_images(how: Judging, report: dict, model: Trained) -> NewImages:
    """Read and decode the images of --dataset, and print what the user should know about them.

    Raises Problem if none of them can be read, if labels do not fit the classes of the run, and if
    the values of images with more than 8 bits do not fit its range; a few of these are unreadable.
    """
    index = other_images(how, report)
    store = _store(index, report, model, how)
    whose = f"--bits {how.bits}" if how.bits else "the run's own images"
    limits = ranges.words(store.ranges)
    for row in ranges.exceptions(store, _readable(store)):
        store.unreadable[int(row)] = f"many values outside the range of {whose} ({limits})"
    rows = _readable(store)
    faults = dict(index.lost)
    for row, why in store.unreadable.items():
        faults[index.samples[row].path] = why
    unreadable = {path: faults[path] for path in sorted(faults, key=natural_key)}
    if not len(rows):
        faults = [f"{path} ({why})" for path, why in unreadable.items()]
        images = counted(len(faults), "image", "images")
        raise Problem(
            f"None of {images} in '{index.root}' can be read: {first_names(faults)}. Check"
            " --data-dir and the files."
        )
    where = f"--data-dir '{index.root}'"
    remarks = [
        *index.notes,
        *ranges.remarks(store, rows),
        *ranges.check_other(store, rows, where, whose, has_bits=True),
    ]
    for remark in remarks:
        log(f"note: {remark}")
    return NewImages(index, store, rows, unreadable, remarks)


def _readable(store: PartialStore) -> np.ndarray:
    return store.readable(np.arange(len(store.index.samples)))


def _store(index: Index, report: dict, model: Trained, how: Judging) -> PartialStore:
    """Return all images of an index that can be read, decoded with the settings of a run.

    Images with more than 8 bits have the range of the run's own images, unless --bits says
    otherwise.
    """
    settings = report["settings"]
    data = report["data"]
    own = {}
    for kind, one in ranges.from_plain(model.about["input"]["ranges"]).items():
        own[kind] = one._replace(rule="as in the training of the run")
    store = PartialStore(
        index,
        how.cache_dir,
        settings["image_size"],
        settings["resize"],
        data["channels"],
        data["crop"],
        own | ranges.given(how.bits),
    )
    rows = np.arange(len(index.samples))
    return ranges.open_store(store, how.cache_dir, rows, ("these images", rows))


def unreadable_csv(unreadable: dict[str, str]) -> str:
    """Return CSV text with the path of each image that cannot be read, and the reason."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_UNREADABLE_COLUMNS)
    for path, why in unreadable.items():
        writer.writerow([printable(path), printable(why)])
    return text.getvalue()
