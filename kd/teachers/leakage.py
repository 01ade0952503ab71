"""Leakage: what a teacher has seen, compared with the data that its student is evaluated on."""

import numpy as np
import torch

from kd.data.dataset import Dataset
from kd.data.index import Index
from kd.data.ranges import as_plain, from_plain, same, words
from kd.data.splits import WORDS
from kd.system.errors import BAD_CHECKPOINT, Problem, counted, first_ten
from kd.teachers.hashed_patients import are_among_hashed
from kd.teachers.model_file import Trained, known_patients


def differences(trained: Trained, dataset: Dataset) -> list[str]:
    """Return how the data of a trained network differ from this data set, as texts.

    The data set, split, images, image size, resizing and crop are compared. The list is empty if
    all of them are equal.

    Raises Problem (4) for other classes or another order of the classes.
    """
    about = trained.about
    if about is None:
        order = [f"{number} = {name}" for number, name in enumerate(dataset.index.classes)]
        return [f"its training data is unknown, and its outputs are taken as {first_ten(order)}"]
    ours, theirs = dataset.index.classes, tuple(about["classes"])
    if theirs != ours:
        raise Problem(
            f"Teacher '{about['name']}' has the classes {list(theirs)}, but the data set has"
            f" {list(ours)}. Both must have the same names in the same order.",
            BAD_CHECKPOINT,
        )
    settings = dataset.settings
    pairs = (
        [("data set", about["data"]["name"], dataset.index.name)]
        if not foreign(trained, dataset)
        else []
    )
    pairs += [
        ("resize", about["input"]["resize"], settings.resize),
        ("crop", about["input"]["crop"], dataset.store.crop),
    ]
    if not same(about["input"]["ranges"], as_plain(dataset.store.ranges)):
        theirs = words(from_plain(about["input"]["ranges"])) or "none"
        pairs.append(("range of values", theirs, words(dataset.store.ranges) or "none"))
    return [*foreign(trained, dataset), *_other_size(trained, dataset), *_unlike(pairs)]


def _other_size(trained: Trained, dataset: Dataset) -> list[str]:
    """Return a text if a network was trained on images of another size, with what to do."""
    theirs, ours = trained.about["input"]["image_size"], dataset.settings.image_size
    if theirs == ours:
        return []
    cure = f"--teacher-image-size {theirs} shows it the images at its own size"
    return [f"image_size {theirs} instead of {ours} ({cure})"]


def foreign(trained: Trained, dataset: Dataset) -> list[str]:
    """Return how the data set, split and images of a network differ from these, as texts.

    The list is empty if all of them are equal, or if nothing is known about the network's data. The
    same split of the same images is the same data, whatever the name of its folder.
    """
    seen = trained.about and trained.about["data"]
    if seen is None or (seen["split_hash"], seen["content_hash"]) == (
        dataset.split_hash,
        dataset.content_hash,
    ):
        return []
    return _unlike(
        [
            ("data set", seen["name"], dataset.index.name),
            (
                "split",
                f"{seen['split']} {seen['split_hash']}",
                f"{dataset.settings.split} {dataset.split_hash}",
            ),
            ("images", seen["content_hash"], dataset.content_hash),
        ]
    )


def _unlike(pairs: list[tuple]) -> list[str]:
    return [f"{what} {theirs} instead of {ours}" for what, theirs, ours in pairs if theirs != ours]


def seen_by(trained: Trained, index: Index, hashes: np.ndarray, guess: bool = False) -> np.ndarray:
    """Return which images of an index a network was trained or selected on: bool [N].

    Images are recognised by their file, or by their patient if the patient is known and the names
    of patients have the same space (`Index.space`), whatever the names of the folders; see
    `index.are_among` for sites and `guess`.

    hashes: uint8 [N, 16], of the files' contents.
    """
    files = set()
    patients = [sample.known_patient for sample in index.samples]
    by_patient = np.zeros(len(patients), bool)
    for seen in _all_seen(trained):
        for split in ("train", "valid"):
            files |= _bytes(seen["files"][split])
            if seen["space"] == index.space:
                theirs = seen["patients"][split]
                by_patient |= are_among_hashed(patients, theirs, seen["salt"], guess)
    by_file = np.array([row.tobytes() in files for row in hashes], bool)
    return by_file | by_patient


def _all_seen(trained: Trained) -> list[dict]:
    """Return what a network has seen, followed by what its teachers from other data have seen."""
    return [trained.about["data"], *trained.about["data"]["inherited"]] if trained.about else []


def _bytes(hashes: torch.Tensor) -> set[bytes]:
    return {row.tobytes() for row in hashes.numpy()}


def refuse_overlap(trained: Trained, dataset: Dataset) -> None:
    """Raise Problem (4) if a teacher has seen images that its student will be evaluated on.

    This covers images that the teacher, or a teacher of it, was trained or selected on. Known
    patients are compared if their names have the same space (`Index.space`), whatever the names of
    the folders, and files always. Images of unknown patients are compared only as files. Exactly
    the same split is not an overlap: leakage within a split is reported as a property of that
    split.
    """
    for number, seen in enumerate(_all_seen(trained)):
        if number == 0 and (seen["split_hash"], seen["content_hash"]) == (
            dataset.split_hash,
            dataset.content_hash,
        ):
            continue
        for theirs, ours in (("train", "valid"), ("train", "test"), ("valid", "test")):
            patients, files = _shared(seen, theirs, dataset, ours)
            if patients or files:
                place = f"its {WORDS[theirs]} split"
                if number:
                    place = (
                        f"the {WORDS[theirs]} split of '{seen['name']}', which it or one of its own"
                        " teachers has used,"
                    )
                raise Problem(
                    f"Teacher '{trained.about['name']}' has seen data that the student is evaluated"
                    f" on: {place} contains {counted(patients, 'patient', 'patients')} and"
                    f" {counted(files, 'image', 'images')} of the student's {WORDS[ours]} split."
                    f" {_cure(seen, dataset, files)}",
                    BAD_CHECKPOINT,
                )


def refuse_leaking_labels(labels: Dataset, dataset: Dataset) -> None:
    """Raise Problem if teachers with other labels than their student could know evaluation images.

    `labels` is the data set with the teachers' labels, `dataset` that of the student. Both have the
    same validation and test splits. If patients or files are in several splits, a teacher may have
    seen those of the test split that its student has not, and the student's report would not show
    it.
    """
    if labels.split_hash == dataset.split_hash:
        return
    shared = labels.describe()["overlaps"]
    if any(shared.values()):
        raise Problem(
            "--teacher-labeled-fraction cannot be used with this split: with the labels of the"
            f" teacher, {counted(shared['patients'], 'patient is', 'patients are')} and"
            f" {counted(shared['files'], 'identical file is', 'identical files are')} in more than"
            " one split. Use --split patient, and --check-data to find identical files.",
            BAD_CHECKPOINT,
        )


def _shared(seen: dict, theirs: str, dataset: Dataset, ours: str) -> tuple[int, int]:
    """Return how many patients and files of our split are in a split that was seen."""
    patients = 0
    if seen["space"] == dataset.index.space:
        # --site says that patients without a site are others; an issuer in the header does not.
        guess = not dataset.settings.site
        own = known_patients(dataset, ours)
        patients = int(are_among_hashed(own, seen["patients"][theirs], seen["salt"], guess).sum())
    files = _bytes(seen["files"][theirs]) & _bytes(dataset.files(ours))
    return patients, len(files)


def _cure(seen: dict, dataset: Dataset, files: int) -> str:
    """Return what to do about patients and `files` identical files that a teacher has seen."""
    cure = (
        "Train the teacher on the same split (same --split, --split-seed and sizes), or use --tag"
        " NAME without --teacher-checkpoint to train a new one."
    )
    # Without identical files, equal names may be a coincidence. Only names of hospitals can be.
    if not files and not dataset.index.space:
        cure += (
            f" If these patients of '{dataset.index.name}' are not those of '{seen['name']}',"
            " because two hospitals use the same names, set --site NAME."
        )
    return cure
