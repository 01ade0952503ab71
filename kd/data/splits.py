"""Split an index into train, validation and test, by default with no patient in two splits.

A split that is drawn by fraction, from a data set that may grow, depends on each patient alone: see
`_by_number`. Otherwise, it is drawn from all patients together.
"""

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace

import numpy as np

from kd.data.draws import FRACTION, at_most, balanced, draw_patients
from kd.data.index import Index, digest, name_of
from kd.data.kept import Kept, Whole, keep, size_of
from kd.system.errors import Problem, counted, first_ten, printable
from kd.system.names import named
from kd.system.seeds import random_stream

NAMES = ("train", "valid", "test")
WORDS = {"train": "train", "valid": "validation", "test": "test"}
FLAGS = {"train": "--train-per-class", "valid": "--valid-per-class", "test": "--test-per-class"}
_DRAWS = 11  # key of `random_stream`; that of the kept labels is in `kd.data.kept`
# These sizes follow from the thesis's own figures: 13,866 / 1,575 / 1,715 of 7 x 2,451 images (see
# kd/studies/README.md).
THESIS_TRAIN = 2201
THESIS_VALID = 250
_ENOUGH = 1000  # images per class with which --split thesis has all classes


@dataclass(frozen=True)
class Splits:
    """Rows of the index, one for each slot: `train` [n], `valid` [n], `test` [n].

    A repeated image has several slots.

    Each row of the index is in a split, in the pool, or among the excluded.

    pool      [m], each row once: the images that may be used without a label, including those of
              the train split
    shown     number of `train` slots that each epoch uses, drawn again for each epoch; None for all
    leaks     whether images of one patient may be in several splits
    notes     what a user should know before training
    withheld  {why: rows}, each row once: the images of the pool with labels that are not used
    excluded  {why: rows}, each row once: the images in no split and not in the pool
    """

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    pool: np.ndarray
    shown: int | None = None
    leaks: bool = False
    notes: tuple[str, ...] = field(default=())
    withheld: dict[str, np.ndarray] = field(default_factory=dict)
    excluded: dict[str, np.ndarray] = field(default_factory=dict)

    def items(self) -> list[tuple[str, np.ndarray]]:
        """Return (name, rows) of the three splits."""
        return [(name, getattr(self, name)) for name in NAMES]

    def hash(self, index: Index) -> str:
        """Return a hash of the images, classes and patients in their slots."""
        lines = []
        for name, rows in self.items():
            lines += [f"{name}\t{index.identity(row)}" for row in rows]
        if self.shown is not None:
            lines.append(f"shown\t{self.shown}")
        return digest(lines)


def split(
    index: Index,
    how: str,
    seed: int,
    sizes: tuple[int | None, int | None, int | None],
    kept: Kept = Kept(),
) -> Splits:
    """Return the splits of an index.

    Images without a label are only in the pool. `kept` changes only the train split.

    how    `patient`: no patient is in two splits. A split that the data set specifies is kept
           (patients of the test split are removed from the others, and those of the validation
           split from the train split). A missing split is drawn from the patients of the train
           split, first test and then validation. `thesis`: images are drawn at random from a
           balanced pool with repeats, which puts patients and even copies into several splits.
           `given`: as the data set specifies, whatever the patients; a missing split is drawn as
           with `patient`, and a note says so.
    seed   determines what is drawn, and nothing else.
    sizes  images per class for train, valid and test; None takes all images (15 % of the patients
           if the split must be drawn, see `_draw_missing`). With a size for train, a fraction of
           the labels (`kept`) is one of the images that are used with all labels; with a size that
           is a property of the data set (`Index.sizes`), it is one of all images for training.

    Raises Problem if the train split has no images of a class, or another split has no images.
    """
    if how == "thesis":
        _check_thesis(index, sizes, kept)
    own_sizes = index.sizes or (None, None, None)
    of_used = sizes[0] is not None
    sizes = tuple(own if given is None else given for given, own in zip(sizes, own_sizes))

    def drawn(sizes) -> Splits:
        if how == "thesis":
            return _by_image(index, random_stream(seed, _DRAWS), sizes)
        return _by_patient(index, how, seed, sizes, kept, of_used)

    splits = drawn(sizes)
    fault = _without_images(index, splits)
    if fault:
        raise Problem(_no_images(index, how, fault, sizes, drawn))
    return replace(splits, notes=(*splits.notes, *_lacking(index, splits, sizes)))


def _check_thesis(index: Index, sizes, kept: Kept) -> None:
    """Raise Problem for settings that do not fit the thesis's split."""
    train, valid, test = sizes
    one_is_missing = (train is None) != (valid is None) and index.sizes is None
    if test is not None or one_is_missing:
        raise Problem(
            "--split thesis does not accept these sizes: its test split is a tenth of the pool."
            " Set --train-per-class and --valid-per-class together, or neither, and do not set"
            " --test-per-class."
        )
    if kept.fraction < 1 or kept.balance == "draw":
        raise Problem(
            "--labeled-fraction and --balance draw are not valid with --split thesis: it balances"
            " its images anyway, and has patients in more than one split. Use --split patient."
        )


def _without_images(index: Index, splits: Splits) -> tuple[str, list[str]] | None:
    """Return (split, classes) if the train split lacks classes, or another split has no images."""
    for name, rows in splits.items():
        present = set(index.labels[rows].tolist())
        absent = [word for label, word in enumerate(index.classes) if label not in present]
        if absent and (name == "train" or not len(rows)):
            return name, absent
    return None


def _no_images(index: Index, how: str, fault: tuple[str, list[str]], sizes, drawn) -> str:
    """Return the message on a fault of `_without_images`, which names the sizes that cause it.

    drawn  function that returns the splits of other sizes
    """
    name, absent = fault
    lacks = (
        f"leaves the {WORDS[name]} split of '{index.name}' without images of {first_ten(absent)}"
    )
    causes = _causes(index, how, sizes, drawn)
    if not causes:
        hint = "" if how == "thesis" else _doubtful_patients(index)
        return f"--split {how} {lacks}.{hint} Add images or patients, or use another --split."
    given = " and ".join(f"{FLAGS[cause]} {sizes[NAMES.index(cause)]}" for cause in causes)
    flags = " and ".join(FLAGS[cause] for cause in causes)
    change = "Increase" if how == "thesis" else "Decrease"
    return f"--split {how} with {given} {lacks}. {change} {flags}, or add images or patients."


def _causes(index: Index, how: str, sizes, drawn) -> tuple[str, ...]:
    """Return the splits whose sizes are the cause of a fault: with others, there is none.

    Sizes are too small for `thesis`, and too large for the others, where the validation and the
    test split are drawn from the train split.
    """
    if how == "thesis":
        tried = [("train", "valid")]
    else:
        tried = [("valid",), ("test",), ("valid", "test")]
    for names in tried:
        other = list(sizes)
        for place, name in enumerate(NAMES):
            if name in names and sizes[place] is not None:
                other[place] = max(sizes[place], _ENOUGH) if how == "thesis" else 1
        if other != list(sizes) and _without_images(index, drawn(other)) is None:
            return tuple(name for place, name in enumerate(NAMES) if other[place] != sizes[place])
    return ()


def _doubtful_patients(index: Index) -> str:
    """Return a sentence with a blank in front if the patients are probably none, or nothing."""
    held = _images_of_patients(index, np.flatnonzero(index.labels >= 0))
    images = sum(held.values(), Counter())
    if len(images) > 1 and all(len(patients) == 1 for patients in held.values()):
        return (
            " Each class has only one patient: check that the classes are not patients themselves."
        )
    [(patient, count)] = images.most_common(1) or [("", 0)]
    if count < 2 or 2 * count <= images.total():
        return ""
    return (
        f" {count} of {images.total()} images have the same patient, '{named(printable(patient))}':"
        " if this is not one person, name the patients in a table or by --patient-pattern."
    )


def _lacking(index: Index, splits: Splits, sizes) -> list[str]:
    """Return a note on the classes of which the validation or the test split has no images.

    `_short` reports the classes of splits whose size is set.
    """
    texts = []
    for name, size in (("valid", sizes[1]), ("test", sizes[2])):
        present = set(index.labels[getattr(splits, name)].tolist())
        absent = [word for label, word in enumerate(index.classes) if label not in present]
        if absent and size is None:
            texts.append(f"the {WORDS[name]} split has no images of {first_ten(absent)}")
    if not texts:
        return []
    text = "; ".join(texts)
    return [f"{text[0].upper()}{text[1:]}."]


def _by_image(index: Index, random, sizes) -> Splits:
    """Return the thesis's split.

    It has 10 % of all images for test, and the rest in proportion to the sizes.
    """
    train = sizes[0] or THESIS_TRAIN
    valid = sizes[1] or THESIS_VALID
    drawn_from = np.flatnonzero(index.labels >= 0)
    if sizes[0] is not None and sizes[1] is not None:
        drawn_from = balanced(drawn_from, index.labels, train + valid, random)
    order = random.permutation(drawn_from)
    n_test = len(order) // 10
    n_valid = round(0.9 * len(order) * valid / (train + valid))
    n_train = int(0.9 * len(order) * train / (train + valid))
    train_rows = np.sort(order[n_test + n_valid : n_test + n_valid + n_train])
    rest = np.setdiff1d(np.flatnonzero(index.labels >= 0), order[: n_test + n_valid + n_train])
    return Splits(
        train_rows,
        np.sort(order[n_test : n_test + n_valid]),
        np.sort(order[:n_test]),
        np.union1d(train_rows, np.flatnonzero(index.labels < 0)),
        leaks=True,
        notes=("--split thesis draws by image: it LEAKS patients and copies between splits.",),
        excluded={"not drawn by --split thesis": rest},
    )


def _by_patient(
    index: Index, how: str, seed: int, sizes, kept: Kept, of_used: bool = False
) -> Splits:
    """Return the splits for `patient` and `given`. The order of draws from `random` is fixed.

    of_used  see `Whole`
    """
    random = random_stream(seed, _DRAWS)
    labels = index.labels
    units = [index.unit(row) for row in range(len(index.samples))]
    patients = np.unique(units, return_inverse=True)[1]
    given = np.array([sample.split or "train" for sample in index.samples])
    rows = {name: np.flatnonzero((given == name) & (labels >= 0)) for name in NAMES}
    outside = np.flatnonzero((given != "train") & (labels < 0))
    excluded = {"without a label, in a validation or test split of the data set": outside}
    if how == "patient":
        notes = _separate(rows, patients, excluded)
    else:
        notes = _not_given(index, rows)
    _draw_missing(index, rows, patients, sizes, seed, random)
    pool = np.union1d(rows["train"], np.flatnonzero((given == "train") & (labels < 0)))
    used = everything = rows["train"]
    if sizes[0] is not None:
        used = balanced(everything, labels, sizes[0], random)
    train = keep(Whole(everything, used, sizes[0], of_used), labels, patients, kept)
    notes += [*train.notes, *_cut(index, rows, sizes, random, excluded)]
    return Splits(
        np.sort(train.rows),
        np.sort(rows["valid"]),
        np.sort(rows["test"]),
        pool,
        train.shown,
        notes=tuple(notes),
        withheld=train.withheld,
        excluded=excluded,
    )


def _draw_missing(index: Index, rows: dict, patients, sizes, seed: int, random) -> None:
    """Move patients of the train split to the test and the validation split if these are empty.

    A split whose size is set is drawn from all patients together (`_draw_patients`), and so is
    every split of a data set that does not grow. Otherwise, 15 % of the patients are drawn by their
    numbers (`_by_number`).

    If only one of the two has a size, each is drawn in its own way, test first. A patient who
    enters or leaves a test split of a set size then leaves or enters the others, but all other
    patients keep their places in a validation split that is drawn by numbers.
    """
    for name, size in (("test", sizes[2]), ("valid", sizes[1])):
        if not len(rows[name]):
            if size is None and index.grows:
                drawn = _by_number(index, rows["train"], seed, name)
            else:
                drawn = draw_patients(rows["train"], index.labels, patients, size, random)
            moved = np.isin(patients[rows["train"]], patients[drawn])
            rows["train"] = rows["train"][~moved]
            rows[name] = drawn


def number_of(patient: str, seed: int, name: str) -> float:
    """Return the number of a patient in the draw of the split `name`, at least 0 and below 1.

    It is a pure function of the three arguments, and the same on every machine.
    """
    text = f"{seed}\n{name}\n{patient}".encode("utf-8", "surrogateescape")
    # 53 bits are the most that a float holds, so that no number is rounded up to 1.
    return (int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 11) / 2**53


def _by_number(index: Index, rows, seed: int, name: str) -> np.ndarray:
    """Return the rows of the patients who are drawn from `rows` for the split `name`.

    A patient is drawn if `number_of` the patient is below FRACTION. This depends on nothing else,
    so that patients keep their places when others are added or removed. An image without a patient
    is a patient of its own whose name is its path, so it keeps its place until it is renamed or
    moved to another folder.

    There are three exceptions, for classes with few patients:
    - A patient with more than half of the images of a class in `rows` is not drawn.
    - If all patients with images of a class would be drawn, the one with the highest number is not.
    - If no patient with images of a class would be drawn, the one with the lowest number is, unless
      a class would be left without other patients, or the first exception applies; then the next.

    Only the exceptions depend on other patients. Growth can therefore move only a patient who falls
    under one of them, before or after: a patient who held more than half of a class, or who stands
    in for a class until a new patient of it has a lower (or higher) number. With 30 patients in
    each class, the chance that a class needs the third exception at all is 0.85^30, below 1 %.
    """
    held = _images_of_patients(index, rows)
    numbers = {}
    for row in rows:
        patient = index.unit(row)
        if patient not in numbers:
            # Without the site, so that a patient keeps his place when his site becomes known.
            numbers[patient] = number_of(name_of(patient), seed, name)
    staying = _dominant(held)
    drawn = {patient for patient, number in numbers.items() if number < FRACTION} - staying
    for patients in held.values():
        if drawn.issuperset(patients):
            drawn.remove(max(patients, key=lambda patient: (numbers[patient], patient)))
    for patients in held.values():
        if drawn.isdisjoint(patients):
            for patient in sorted(patients, key=lambda patient: (numbers[patient], patient)):
                if patient not in staying and _may_leave(patient, held, drawn):
                    drawn.add(patient)
                    break
    chosen = [row for row in rows if index.unit(row) in drawn]
    return np.array(chosen, dtype=np.int64)


def _images_of_patients(index: Index, rows) -> dict[int, Counter]:
    """Return the number of images of each patient in each class: {label: {patient: images}}."""
    held = defaultdict(Counter)
    for row in rows:
        held[index.samples[row].label][index.unit(row)] += 1
    return dict(sorted(held.items()))


def _dominant(held: dict[int, Counter]) -> set[str]:
    """Return the patients with more than half of the images of a class."""
    found = set()
    for patients in held.values():
        [(patient, images)] = patients.most_common(1)
        if 2 * images > patients.total():
            found.add(patient)
    return found


def _may_leave(patient: str, held: dict[int, Counter], drawn: set[str]) -> bool:
    """Return whether each class of a patient has other patients who are not drawn."""
    for patients in held.values():
        if patient in patients and drawn.issuperset(patients.keys() - {patient}):
            return False
    return True


def _cut(index: Index, rows: dict, sizes, random, excluded: dict) -> list[str]:
    """Cut validation and test to their sizes; return notes on classes that have fewer images.

    The rows that are cut off are added to `excluded`.
    """
    labels = index.labels
    notes = []
    for name, size in (("valid", sizes[1]), ("test", sizes[2])):
        if size is not None:
            own = rows[name]
            rows[name] = at_most(own, labels, size, random)
            why = f"from the {WORDS[name]} split, because of its size of {size_of(size)}"
            excluded[why] = np.setdiff1d(own, rows[name])
            notes += _short(index, name, labels[rows[name]], size)
    return notes


def _not_given(index: Index, rows: dict) -> list[str]:
    """Return a note on the splits that --split given draws, because the data set has none."""
    missing = [WORDS[name] for name in ("valid", "test") if not len(rows[name])]
    if not missing:
        return []
    if any(sample.split for sample in index.samples):
        what = f"no images with labels for the {' and the '.join(missing)} split"
    else:
        what = "no splits"
    them = "it" if len(missing) == 1 else "them"
    return [f"The data set specifies {what}: --split given draws {them} at random, by patient."]


def _separate(rows: dict, patients, excluded: dict) -> list[str]:
    """Keep each patient in one split: in test before validation, and in validation before train.

    The rows that leave a split are added to `excluded`. Return notes.
    """
    notes = []
    for first, name in (("test", "valid"), ("test", "train"), ("valid", "train")):
        shared = np.isin(patients[rows[name]], patients[rows[first]])
        if shared.any():
            images = counted(int(shared.sum()), "image was", "images were")
            why = (
                f"from the {WORDS[name]} split because of patients who are in the {WORDS[first]}"
                " split"
            )
            notes.append(f"{images} excluded {why}.")
            excluded[why] = rows[name][shared]
            rows[name] = rows[name][~shared]
    return notes


def _short(index: Index, name: str, labels, size: int) -> list[str]:
    """Return notes on classes of which a split has fewer images than requested."""
    counts = np.bincount(labels, minlength=len(index.classes))
    notes = []
    for count, word in zip(counts, index.classes):
        if count < size:
            images = counted(count, "image", "images")
            notes.append(
                f"The {WORDS[name]} split has {images} of {word}, fewer than the {size} requested."
            )
    return notes


def overlaps(index: Index, splits: Splits, hashes: np.ndarray) -> dict[str, int]:
    """Return how many patients, and how many identical files, are in more than one split.

    Studies of unknown patients count as patients. An image of which neither is known can only be in
    several splits as an identical file. hashes: uint8 [N, 16].
    """
    patients = []
    files = []
    for _, rows in splits.items():
        patients.append({index.unit(row) for row in rows if _names_more(index, row)})
        files.append({hashes[row].tobytes() for row in rows})
    return {"patients": _in_several(patients), "files": _in_several(files)}


def _names_more(index: Index, row: int) -> bool:
    """Return whether the patient or the study of an image is known."""
    return index.has_patient(row) or index.samples[row].known_study is not None


def _in_several(sets: list[set]) -> int:
    """Return how many keys are in more than one of the sets."""
    counts = Counter()
    for keys in sets:
        counts.update(keys)
    return sum(count > 1 for count in counts.values())
