"""What became of the files of a data set, step by step, as a flow diagram shows it."""

import numpy as np

from kd.data.index import UNLABELED, Index
from kd.data.splits import WORDS, Splits


def flow_of(index: Index, splits: Splits) -> list[dict]:
    """Return the steps from the files that were found to the images of each split.

    Each step is {"step", "images", "patients"}: what the images are, their number, and the number
    of their known patients. A step in which images are excluded has a negative number of images,
    and no patients. Images that repeat within a split count once. Files that are not images, and
    hidden files, are not counted here.

    index   with the labels that --labeled-fraction withholds
    splits  of the same index
    """
    rows = np.arange(len(index.samples))
    copies = index.copies
    steps = [_step(index, "image files found", rows) | {"images": len(rows) + copies}]
    if copies:
        steps.append(_excluded("identical to another file", copies))
    used = np.unique(np.concatenate([splits.pool, *(own for _, own in splits.items())]))
    left_out = len(rows) - len(used)
    if left_out:
        steps.append(_excluded("in no split, because of its size or a patient", left_out))
    labels = index.labels
    unlabelled = used[labels[used] == UNLABELED]
    if len(unlabelled):
        steps.append(_step(index, "without a label, used only by --mode unlabeled", unlabelled))
    for name, own in splits.items():
        steps.append(_step(index, f"{WORDS[name]} split, with labels", np.unique(own)))
    withheld = np.setdiff1d(splits.pool, splits.train)
    withheld = withheld[labels[withheld] != UNLABELED]
    if len(withheld):
        what = "train split, whose labels --labeled-fraction withholds"
        steps.append(_step(index, what, withheld))
    return steps


def _step(index: Index, what: str, rows: np.ndarray) -> dict:
    patients = {index.samples[row].patient for row in rows if index.has_patient(row)}
    return {"step": what, "images": len(rows), "patients": len(patients)}


def _excluded(why: str, images: int) -> dict:
    return {"step": f"excluded: {why}", "images": -images, "patients": None}
