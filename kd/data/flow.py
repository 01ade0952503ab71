"""What became of the files of a data set, step by step, as a flow diagram shows it."""

import numpy as np

from kd.data.index import UNLABELED, Index
from kd.data.splits import WORDS, Splits

WITHOUT_LABEL = "without a label, used only in modes that use images without labels"
MORE_THAN_ONCE = "counted again above, because they are in more than one split"


def flow_of(index: Index, splits: Splits) -> list[dict]:
    """Return the steps from the files that were found to the images of each split.

    Each step is {"step", "images", "patients"}: what the images are, their number, and the number
    of their known patients. A step in which images are excluded has a negative number of images,
    and no patients. Images that repeat within a split count once. Images in several splits (--split
    thesis) count in each, and the step MORE_THAN_ONCE says how many counts too many these are. The
    files that were found, without the excluded ones, are as many as the images of all other steps
    without those of MORE_THAN_ONCE. Files that are not images, and hidden files, are not counted.

    index   with the labels that are withheld
    splits  of the same index
    """
    rows = np.arange(len(index.samples))
    copies = index.copies
    steps = [_step(index, "image files found", rows) | {"images": len(rows) + copies}]
    if copies:
        steps.append(_excluded("identical to another file", copies))
    for why, own in splits.excluded.items():
        if len(own):
            steps.append(_excluded(why, len(own)))
    unlabelled = splits.pool[index.labels[splits.pool] == UNLABELED]
    if len(unlabelled):
        steps.append(_step(index, WITHOUT_LABEL, unlabelled))
    parts = [np.unique(own) for _, own in splits.items()]
    for name, own in zip(WORDS.values(), parts):
        steps.append(_step(index, f"{name} split, with labels", own))
    several, counts = np.unique(np.concatenate(parts), return_counts=True)
    again = int((counts - 1).sum())
    if again:
        steps.append(_step(index, MORE_THAN_ONCE, several[counts > 1]) | {"images": again})
    for why, own in splits.withheld.items():
        steps.append(_step(index, f"train split, {why}", own))
    return steps


def _step(index: Index, what: str, rows: np.ndarray) -> dict:
    patients = {index.samples[row].patient for row in rows if index.has_patient(row)}
    return {"step": what, "images": len(rows), "patients": len(patients)}


def _excluded(why: str, images: int) -> dict:
    return {"step": f"excluded: {why}", "images": -images, "patients": None}
