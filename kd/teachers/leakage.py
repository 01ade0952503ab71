"""Who may teach whom: what a trained network has seen, against what a student is judged on."""

import numpy as np
import torch

from kd.data.dataset import Dataset
from kd.data.index import Index
from kd.system.errors import BAD_CHECKPOINT, Problem
from kd.teachers.model_file import Trained


def differences(trained: Trained, dataset: Dataset) -> list[str]:
    """How a network's data differ from these, in words: set, parts, picture size.

    Empty where all agree.

    Raises Problem (4) for other classes or another order of them.
    """
    about = trained.about
    if about is None:
        return ["its training data are unknown"]
    ours, theirs = dataset.index.classes, tuple(about["classes"])
    if theirs != ours:
        raise Problem(
            f"teacher '{about['name']}': its classes are {list(theirs)}, those of the data"
            f" {list(ours)}; both must have the same names in the same order",
            BAD_CHECKPOINT,
        )
    settings = dataset.settings
    pairs = (
        [("data set", about["data"]["name"], dataset.index.name)]
        if not foreign(trained, dataset)
        else []
    )
    pairs += [
        ("image_size", about["input"]["image_size"], settings.image_size),
        ("resize", about["input"]["resize"], settings.resize),
        ("crop", about["input"]["crop"], dataset.store.crop),
    ]
    return foreign(trained, dataset) + _unlike(pairs)


def foreign(trained: Trained, dataset: Dataset) -> list[str]:
    """In what a network's data set, parts and pictures are others than these, in words; empty where
    nothing is known of them.

    The same parts of the same pictures are the same data, whatever their folder is called now.
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
                "parts",
                f"{seen['split']} {seen['split_hash']}",
                f"{dataset.settings.split} {dataset.split_hash}",
            ),
            ("pictures", seen["content_hash"], dataset.content_hash),
        ]
    )


def _unlike(pairs: list[tuple]) -> list[str]:
    return [
        f"{what}: teacher {theirs}, student {ours}"
        for what, theirs, ours in pairs
        if theirs != ours
    ]


def seen_by(trained: Trained, index: Index, hashes: np.ndarray) -> np.ndarray:
    """Which pictures of an index a network was trained or chosen on, by file or (in the same data
    set) by patient: bool [N].

    hashes: uint8 [N, 16], of the files' content.
    """
    files, patients = set(), set()
    for seen in _all_seen(trained):
        for part in ("train", "valid"):
            files |= _bytes(seen["files"][part])
            patients |= set(seen["patients"][part]) if seen["name"] == index.name else set()
    return np.array(
        [
            row.tobytes() in files or sample.patient in patients
            for row, sample in zip(hashes, index.samples)
        ],
        bool,
    )


def _all_seen(trained: Trained) -> list[dict]:
    """What a network has seen, and after it what its teachers of other data have."""
    return [trained.about["data"], *trained.about["data"]["inherited"]] if trained.about else []


def _bytes(hashes: torch.Tensor) -> set[bytes]:
    return {row.tobytes() for row in hashes.numpy()}


def refuse_overlap(trained: Trained, dataset: Dataset) -> None:
    """Raise Problem (4) where the teacher, or a teacher of it, was trained or chosen on what the
    student will be judged on.

    Patients are compared within one data set, files everywhere. The very same parts are no overlap:
    what leaks there is the split's doing, and reported as such.
    """
    for number, seen in enumerate(_all_seen(trained)):
        if number == 0 and (seen["split_hash"], seen["content_hash"]) == (
            dataset.split_hash,
            dataset.content_hash,
        ):
            continue
        for theirs, ours in (("train", "valid"), ("train", "test"), ("valid", "test")):
            patients = set(seen["patients"][theirs]) & set(
                dataset.patients(ours) if seen["name"] == dataset.index.name else ()
            )
            files = _bytes(seen["files"][theirs]) & _bytes(dataset.files(ours))
            if patients or files:
                whose = "its" if number == 0 else "a teacher of it, whose"
                raise Problem(
                    f"teacher '{trained.about['name']}': {whose} {theirs} part holds"
                    f" {len(patients)} patients and {len(files)} pictures of the student's {ours}"
                    " part; train it on the same parts (same --split, --split-seed and sizes), or"
                    " give the pair a --tag and let it be trained",
                    BAD_CHECKPOINT,
                )
