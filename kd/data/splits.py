"""Index -> train, validation and test parts. Patient-disjoint unless told otherwise."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from kd.data.index import Index, digest
from kd.system.errors import Problem
from kd.system.seeds import random_stream

NAMES = ("train", "valid", "test")
FRACTION = 0.15
# What the thesis's own figures imply: 13,866 / 1,575 / 1,715 of 7 x 2,451 images (see the README).
THESIS_TRAIN, THESIS_VALID = 2201, 250


class Kept(NamedTuple):
    """Which labels of the train part are kept, and how often their images are shown.

    fraction  of each class: whole patients are drawn by `seed` until they hold it, at least one.
              The draw itself looks at all labels; nothing after it does. Their images repeat until
              an epoch is as long as with all labels
    balance   `draw`: images of rare classes have more slots, until no class has fewer than another
    """

    fraction: float = 1.0
    seed: int = 0
    balance: str = "none"


@dataclass(frozen=True)
class Parts:
    """Rows of the index, one for each slot: `train` [n], `valid` [n], `test` [n]; a repeated image
    has several slots.

    pool   [m], each row once: what may be trained on without a label, the images of the train part
           among it
    shown  slots of `train` that an epoch shows, drawn anew in each; None for all
    """

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    pool: np.ndarray
    shown: int | None = None
    leaks: bool = False
    notes: tuple[str, ...] = field(default=())

    def items(self):
        return ((name, getattr(self, name)) for name in NAMES)

    def hash(self, index: Index) -> str:
        """A name for exactly these images, classes and patients in exactly these slots."""
        lines = [f"{name}\t{index.identity(row)}" for name, rows in self.items() for row in rows]
        return digest(lines if self.shown is None else [*lines, f"shown\t{self.shown}"])


def split(
    index: Index,
    how: str,
    seed: int,
    sizes: tuple[int | None, int | None, int | None],
    kept: Kept = Kept(),
) -> Parts:
    """Parts of an index.

    Images without a label stand in the pool alone; which labels are kept moves the train part
    alone.

    how    `patient`: no patient in two parts. A part that the data give is kept (patients of the
           test part leave the others, those of the validation part the train part); a missing one
           is drawn from the train part's patients. `thesis`: images drawn at random from a balanced
           pool with repeats, which puts patients and even copies on both sides. `given`: as the
           data say, patients or not; a missing part is drawn as under `patient`.
    seed   moves what is drawn, nothing else.
    sizes  images a class for train, valid and test; None takes all that is there (15 % where a part
           must be drawn).
    Raises Problem where a class would be left without images.
    """
    if how == "thesis" and (
        sizes[2] is not None or (sizes[0] is None) != (sizes[1] is None) and index.sizes is None
    ):
        raise Problem(
            "sizes under --split thesis: the test part is a tenth of the pool; give"
            " --train-per-class and --valid-per-class together, or neither, and no --test-per-class"
        )
    if how == "thesis" and (kept.fraction < 1 or kept.balance == "draw"):
        raise Problem(
            "--labeled-fraction or --balance draw under --split thesis: it balances its images"
            " anyway, and puts patients in several parts; use --split patient"
        )
    sizes = tuple(
        given if given is not None else own for given, own in zip(sizes, index.sizes or (None,) * 3)
    )
    random = random_stream(seed, 11)
    parts = (
        _by_image(index, random, sizes)
        if how == "thesis"
        else _by_patient(index, how, random, sizes, kept)
    )
    for name, rows in parts.items():
        absent = [
            index.classes[k]
            for k in range(len(index.classes))
            if not (index.labels[rows] == k).any()
        ]
        if absent and (name == "train" or not len(rows)):
            raise Problem(
                f"split '{how}' in --split: the {name} part of '{index.name}' gets no image of "
                f"{', '.join(absent)}; add images or patients, or give another --split"
            )
    return parts


def _by_image(index: Index, random, sizes) -> Parts:
    train, valid = sizes[0] or THESIS_TRAIN, sizes[1] or THESIS_VALID
    drawn_from = np.flatnonzero(index.labels >= 0)
    if sizes[0] is not None and sizes[1] is not None:
        drawn_from = _balanced(drawn_from, index.labels, train + valid, random)
    order = random.permutation(drawn_from)
    n_test = len(order) // 10
    n_valid = round(0.9 * len(order) * valid / (train + valid))
    n_train = int(0.9 * len(order) * train / (train + valid))
    ends = np.cumsum((n_test, n_valid, n_train))
    test, valid_rows, train_rows = (
        np.sort(rows) for rows in np.split(order[: ends[-1]], ends[:-1])
    )
    return Parts(
        train_rows,
        valid_rows,
        test,
        np.union1d(train_rows, np.flatnonzero(index.labels < 0)),
        leaks=True,
        notes=("split 'thesis' draws by image: it LEAKS patients and copies between the parts",),
    )


def _by_patient(index: Index, how: str, random, sizes, kept: Kept) -> Parts:
    labels = index.labels
    patients = np.unique([sample.patient for sample in index.samples], return_inverse=True)[1]
    given = np.array([sample.part or "train" for sample in index.samples])
    rows = {name: np.flatnonzero((given == name) & (labels >= 0)) for name in NAMES}
    notes = []
    if how == "patient":
        notes += _separate(rows, patients)
    for name, size in (("test", sizes[2]), ("valid", sizes[1])):
        if not len(rows[name]):
            drawn = _draw_patients(rows["train"], labels, patients, size, random)
            rows["train"] = rows["train"][~np.isin(patients[rows["train"]], patients[drawn])]
            rows[name] = drawn
    pool = np.union1d(rows["train"], np.flatnonzero((given == "train") & (labels < 0)))
    everything, shown = rows["train"], None
    if sizes[0] is not None:
        rows["train"] = _balanced(everything, labels, sizes[0], random)
    if kept.fraction < 1 or kept.balance == "draw":
        # Random numbers of their own: the other parts are the same whatever is kept.
        shown = len(rows["train"])
        rows["train"], more = _keep(everything, shown, labels, patients, sizes[0], kept)
        notes += more
        shown = shown if shown < len(rows["train"]) else None
    for name, size in (("valid", sizes[1]), ("test", sizes[2])):
        if size is not None:
            rows[name] = _at_most(rows[name], labels, size, random)
            notes += _short(index, name, labels[rows[name]], size)
    return Parts(
        np.sort(rows["train"]),
        np.sort(rows["valid"]),
        np.sort(rows["test"]),
        pool,
        shown,
        notes=tuple(notes),
    )


def _keep(
    rows, slots: int, labels, patients, per_class: int | None, kept: Kept
) -> tuple[np.ndarray, list[str]]:
    """(train rows of the patients whose labels are kept, at least `slots`; what to know about it)."""
    random, notes = random_stream(kept.seed, 12), []
    if kept.fraction < 1:
        chosen = _draw_patients(rows, labels, patients, None, random, kept.fraction)
        few, all_of_them = (len(np.unique(patients[own])) for own in (chosen, rows))
        notes.append(
            f"labels of {len(chosen)} of {len(rows)} train images kept"
            f" ({100 * len(chosen) / len(rows):.1f} %; {few} of {all_of_them} patients, at least"
            " one a class); they repeat, so that an epoch keeps its steps"
        )
        rows = chosen
    counts = np.bincount(labels[rows])
    if per_class is None and kept.balance == "none":
        return np.resize(random.permutation(rows), slots), notes
    per_class = per_class or max(counts.max(), -(-slots // np.count_nonzero(counts)))
    return _balanced(rows, labels, per_class, random), notes


def _separate(rows: dict, patients) -> list[str]:
    """Take patients of the test part out of the other two, and those of the validation part out of
    train.
    """
    notes = []
    for keep, name in (("test", "valid"), ("test", "train"), ("valid", "train")):
        shared = np.isin(patients[rows[name]], patients[rows[keep]])
        if shared.any():
            notes.append(
                f"{int(shared.sum())} {name} images left out: their patients are in the {keep} part"
            )
            rows[name] = rows[name][~shared]
    return notes


def _draw_patients(
    rows, labels, patients, per_class: int | None, random, fraction: float = FRACTION
) -> np.ndarray:
    """Rows of randomly drawn patients that hold `per_class` images of each class (or a fraction of
    each class, at least one).
    """
    classes, counts = np.unique(labels[rows], return_counts=True)
    need = dict(
        zip(
            classes,
            (per_class or np.maximum(1, np.round(counts * fraction)).astype(int))
            * np.ones_like(counts),
        )
    )
    by_patient = {}
    for row in rows:
        by_patient.setdefault(patients[row], []).append(row)
    order = list(by_patient)
    random.shuffle(order)
    drawn = []
    for patient in order:
        if any(need[labels[row]] > 0 for row in by_patient[patient]):
            drawn += by_patient[patient]
            for row in by_patient[patient]:
                need[labels[row]] -= 1
    return np.array(sorted(drawn), dtype=np.int64)


def _balanced(rows, labels, per_class: int, random) -> np.ndarray:
    """`per_class` rows of each class: distinct ones where there are enough, else all of them and
    repeats of some.
    """
    chosen = []
    for label in np.unique(labels[rows]):
        own = random.permutation(rows[labels[rows] == label])
        chosen.append(np.resize(own, per_class))
    return np.concatenate(chosen) if chosen else rows


def _at_most(rows, labels, per_class: int, random) -> np.ndarray:
    chosen = [
        random.permutation(rows[labels[rows] == label])[:per_class]
        for label in np.unique(labels[rows])
    ]
    return np.concatenate(chosen) if chosen else rows


def _short(index: Index, name: str, labels, size: int) -> list[str]:
    """A note where a part that must hold no repeats has fewer images of a class than were asked
    for.
    """
    counts = np.bincount(labels, minlength=len(index.classes))
    return [
        f"the {name} part has {counts[k]} images of {index.classes[k]}, {size} were asked for"
        for k in range(len(index.classes))
        if counts[k] < size
    ]


def overlaps(index: Index, parts: Parts, hashes: np.ndarray) -> dict[str, int]:
    """How many patients, and how many identical files, stand in more than one part. hashes: uint8
    [N, 16].
    """
    patients = {name: {index.samples[row].patient for row in rows} for name, rows in parts.items()}
    files = {name: {hashes[row].tobytes() for row in rows} for name, rows in parts.items()}
    return {
        kind: len(
            {
                key
                for name, keys in sets.items()
                for other, others in sets.items()
                if name != other
                for key in keys & others
            }
        )
        for kind, sets in (("patients", patients), ("files", files))
    }
