"""Which labels of the train split are kept, and how often their images are used."""

import math
from typing import NamedTuple

import numpy as np

from kd.data.draws import balanced, draw_patients
from kd.system.errors import counted
from kd.system.seeds import random_stream

_KEPT = 12  # key of `random_stream`; those of other draws are in `kd.data.splits`
BY_FRACTION = "whose labels --labeled-fraction withholds"


class Kept(NamedTuple):
    """Which labels of the train split are kept, and how often their images are used.

    fraction  fraction of each class to keep. At least one patient per class is drawn, and whole
              patients are added until they hold this fraction. The draw uses all labels, but
              nothing after it does. The images repeat, so that an epoch is as long as with all
              labels
    seed      seed of this draw
    balance   with `draw`, images of rare classes have more slots, until all classes have equally
              many
    """

    fraction: float = 1.0
    seed: int = 0
    balance: str = "none"


class Train(NamedTuple):
    """The images of the train split.

    rows      [n], one for each slot
    shown     number of slots that each epoch uses, None for all
    withheld  {why their labels are not used: other rows of the split}, each row once
    notes     what a user should know
    """

    rows: np.ndarray
    shown: int | None
    withheld: dict[str, np.ndarray]
    notes: tuple[str, ...] = ()


class Whole(NamedTuple):
    """The train split with all labels.

    rows       of all its images
    used       [n], those that are used, one for each slot
    per_class  images of each class in `used`; None for all
    of_used    whether a fraction of the labels is one of those in `used`. Otherwise, it is one of
               `rows`, as always if `per_class` is a property of the data set
    """

    rows: np.ndarray
    used: np.ndarray
    per_class: int | None
    of_used: bool


def size_of(per_class: int) -> str:
    """Return the size of a split in words."""
    return f"{counted(per_class, 'image', 'images')} per class"


def keep(whole: Whole, labels, patients, kept: Kept) -> Train:
    """Return the train split if only some labels are kept, or rare classes are drawn more often.

    A random stream of its own keeps the other splits the same whatever is kept. A larger fraction
    includes a smaller one, and all labels include both.

    labels, patients  of each row of the index: int64 [N]
    """
    if kept.fraction == 1 and kept.balance != "draw":
        return Train(whole.used, None, _withheld(whole, whole.used))
    among = whole.rows
    if whole.of_used and kept.fraction < 1:
        all_labels = keep(whole, labels, patients, kept._replace(fraction=1.0))
        among = np.unique(all_labels.rows)
    random = random_stream(kept.seed, _KEPT)
    chosen = among
    if kept.fraction < 1:
        chosen = draw_patients(among, labels, patients, None, random, kept.fraction)
    rows = _slots(chosen, len(whole.used), labels, whole.per_class, kept, random)
    notes = []
    if kept.fraction < 1:
        few, every = (len(np.unique(patients[own])) for own in (chosen, among))
        notes.append(
            f"Labels of {len(chosen)} of {len(among)} train images are kept"
            f" ({100 * len(chosen) / len(among):.1f} %; {few} of {every} patients, at least one per"
            f" class).{_use(whole, len(chosen), len(np.unique(rows)))}"
        )
    withheld = _withheld(whole, rows, np.setdiff1d(among, chosen))
    shown = len(whole.used) if len(whole.used) < len(rows) else None
    return Train(rows, shown, withheld, tuple(notes))


def _slots(rows, slots: int, labels, per_class: int | None, kept: Kept, random) -> np.ndarray:
    """Return rows for at least `slots` slots, as `per_class` and the balance say."""
    if per_class is None and kept.balance != "draw":
        return np.resize(random.permutation(rows), slots)
    if not per_class:
        counts = np.bincount(labels[rows])
        # At least as many as in the largest class, and enough to fill all slots.
        per_class = max(counts.max(), math.ceil(slots / np.count_nonzero(counts)))
    return balanced(rows, labels, per_class, random)


def _use(whole: Whole, kept: int, used: int) -> str:
    """Return what becomes of the images whose labels are kept, with a blank in front.

    kept, used  numbers of these images, and of those that have slots
    """
    text = ""
    if used < kept:
        text = (
            f" At most {whole.per_class} images per class are used, {used} of these; for a fraction"
            " of the images that are used, set --train-per-class."
        )
    if used < len(whole.used):
        text += " Images repeat, so that the steps per epoch stay the same."
    return text


def _withheld(whole: Whole, used, by_fraction=()) -> dict[str, np.ndarray]:
    """Return `Train.withheld`.

    used         rows that are used
    by_fraction  rows that are not, because of --labeled-fraction
    """
    by_size = np.setdiff1d(whole.rows, [*used, *by_fraction])
    found = {BY_FRACTION: by_fraction} if len(by_fraction) else {}
    if len(by_size):  # only with a size
        why = f"whose labels are not used because of its size of {size_of(whole.per_class)}"
        found[why] = by_size
    return found
