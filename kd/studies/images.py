"""Images that finished runs are evaluated on, and a check of the logits for them."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from kd.config import parsing
from kd.config.evaluate_settings import Judging, data_settings
from kd.config.layout import RunPaths
from kd.config.settings import TeacherSettings
from kd.data.dataset import Dataset, read_index
from kd.data.images.decoded import INTEGER
from kd.data.images.pixels import Range, file_bytes, why_unreadable
from kd.data.index import UNLABELED, Index
from kd.data.ranges import from_plain, open_store
from kd.data.splits import Splits
from kd.data.store import Store, content_hash
from kd.reports.predictions import read_predictions
from kd.studies.runs import read_settings
from kd.system.errors import BAD_CHECKPOINT, Problem, counted, first_names, first_ten, printable
from kd.teachers import model_file
from kd.teachers.model_file import Trained

# The range of runs from before it was recorded.
_OLD_RANGES = {INTEGER: Range(0.0, 65535.0, "16 bits")}


def own_test_images(
    run: Path, report: dict, model: Trained, how: Judging, size: int | None = None
) -> Dataset:
    """Return the data set of a run with nothing but its test split, in the order of the run.

    The images are those whose hashes the run has kept, so the data set may have grown since then,
    and its files may have moved. `how` specifies the cache and, if the data set has moved, its new
    folder. `size` is the image size, that of the run by default.

    Raises Problem if test images are missing, or if their labels are others now.
    """
    settings = read_settings(run, report, TeacherSettings)
    data = parsing.replace(
        settings,
        cache_dir=how.cache_dir,
        image_size=size or settings.data.image_size,
        data_dir=how.data_dir or settings.data.data_dir,
        table=how.table or settings.data.table,
        errata=how.errata or settings.data.errata,
    ).data
    classes = tuple(report["data"]["classes"])
    index = _with_classes(read_index(data, lenient=True), classes)
    predictions = read_predictions(run)
    hashes = model.about["data"]["test_files"].numpy()
    if len(hashes) not in (0, len(predictions.paths)):
        raise Problem(
            f"'{run}': its predictions.csv has {len(predictions.paths)} test images, but its"
            f" model.pt has {len(hashes)}, so they do not belong together. Restore both files.",
            BAD_CHECKPOINT,
        )
    places = _rows_of_paths(index, predictions.paths)
    rows = places
    if len(hashes):
        rows = _rows_of_files(index, places, hashes, predictions.labels)
    lost = np.flatnonzero(rows < 0)
    if len(lost):
        _refuse_lost(run, index, predictions.paths[lost], places[lost], len(rows))
    _check_labels(run, index, rows, predictions.labels)
    store = open_store(
        _store(index, data, report, model), data.cache_dir, rows, ("these images", rows)
    )
    none = np.array([], dtype=np.int64)
    splits = Splits(none, none, rows, none)
    return Dataset(data, index, splits, store, report["data"]["split_hash"])


def own_images_by_size(
    run: Path, report: dict, sizes: Iterable[int], how: Judging
) -> dict[int, Dataset]:
    """Return the test split of a run at some image sizes; see `own_test_images`."""
    model = model_file.load(RunPaths(run).model)
    found = {}
    for size in sizes:
        if size not in found:
            found[size] = own_test_images(run, report, model, how, size)
    return found


def trained_rows(index: Index, model: Trained, most: int) -> np.ndarray:
    """Return rows of images in the train split of a run, in a fixed random order, at most `most`.

    The images are recognised by the hashes of their files, wherever they are now.
    """
    seen = {one.tobytes() for one in model.about["data"]["files"]["train"].numpy()}
    found = []
    for row in np.random.default_rng(0).permutation(len(index.samples)):
        if len(found) == most:
            break
        if _hash_of(index, int(row)) in seen:
            found.append(row)
    return np.array(found, dtype=np.int64)


def validation_rows(run: Path, index: Index, model: Trained) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of the validation images of a run, and their labels.

    Images that are missing or have another content now are left out.
    """
    seen = {one.tobytes() for one in model.about["data"]["files"]["valid"].numpy()}
    predictions = read_predictions(run, "valid")
    rows = _rows_of_paths(index, predictions.paths)
    there = [row >= 0 and _hash_of(index, int(row)) in seen for row in rows]
    return rows[there], predictions.labels[there]


def _with_classes(index: Index, classes: tuple[str, ...]) -> Index:
    """Return an index with the classes of a run; images of classes that it lacks are unlabelled."""
    if index.classes == classes:
        return index
    numbers = {name: number for number, name in enumerate(classes)}
    samples = []
    for sample in index.samples:
        name = index.classes[sample.label] if sample.label >= 0 else ""
        samples.append(sample._replace(label=numbers.get(name, UNLABELED)))
    return replace(index, classes=classes, samples=tuple(samples))


def _rows_of_paths(index: Index, paths: np.ndarray) -> np.ndarray:
    """Return the row of each path of predictions.csv, -1 if the index does not have it."""
    row_of = {printable(sample.path): row for row, sample in enumerate(index.samples)}
    return np.array([row_of.get(path, -1) for path in paths], dtype=np.int64)


def _store(index: Index, data, report: dict, model: Trained) -> Store:
    entry = report["data"]
    return Store(
        index,
        data.cache_dir,
        data.image_size,
        data.resize,
        entry["channels"],
        entry["crop"],
        from_plain(model.about["input"]["ranges"]) or _OLD_RANGES,
    )


def _rows_of_files(
    index: Index, rows: np.ndarray, hashes: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """Return the rows whose files have these hashes, uint8 [n, 16]; -1 where there is none.

    `rows` are where the files were. If another file is there now, all files are searched. Of equal
    files, one with the label of the run is preferred.
    """
    found = rows.copy()
    for place, row in enumerate(rows):
        if row >= 0 and _hash_of(index, int(row)) != hashes[place].tobytes():
            found[place] = -1
    lost = np.flatnonzero(found < 0)
    if len(lost) and index.root is not None:
        rows_of = defaultdict(list)
        for row in range(len(index.samples)):
            rows_of[_hash_of(index, row)].append(row)
        for place in lost:
            equal = rows_of.get(hashes[place].tobytes(), [-1])
            with_label = [row for row in equal if index.samples[row].label == labels[place]]
            found[place] = (with_label or equal)[0]
    return found


def _hash_of(index: Index, row: int) -> bytes | None:
    """Return the content hash of an image; None for a file that cannot be read."""
    try:
        return content_hash(_content(index, row))
    except OSError:
        return None


def _content(index: Index, row: int) -> bytes:
    """Return the bytes of an image. Raises OSError for a file that cannot be read."""
    if index.draw is not None:
        return index.draw(row).tobytes()
    return file_bytes(index.file(row))


def _refuse_lost(run: Path, index: Index, paths: np.ndarray, places: np.ndarray, all_of: int):
    """Raise Problem for test images without a file; `places` are the rows of `paths`, or -1."""
    faults = []
    for path, row in zip(paths, places):
        fault = "not in the data set"
        if row >= 0:
            fault = "other content"
            try:
                _content(index, int(row))
            except OSError as error:
                fault = why_unreadable(error)
        faults.append(f"{path} ({fault})")
    images = counted(len(faults), "test image", "test images")
    raise Problem(
        f"{images} of run '{run}' (of {all_of}) cannot be found, or their content has changed since"
        f" training: {first_names(faults)}. Restore these files, or set --data-dir to the folder"
        " that contains them; to predict other images, add --dataset."
    )


def _check_labels(run: Path, index: Index, rows: np.ndarray, labels: np.ndarray) -> None:
    """Raise Problem if labels of the test images are others than in the predictions of the run."""
    changed = []
    for row, label in zip(rows, labels):
        sample = index.samples[row]
        if sample.label != label:
            new = index.classes[sample.label] if sample.label >= 0 else "none"
            changed.append(f"{sample.path} ({index.classes[label]} -> {new})")
    if changed:
        images = counted(len(changed), "test image has", "test images have")
        raise Problem(
            f"{images} another label than when run '{run}' was trained: {first_names(changed)}."
            " Restore the labels, or train again with another --tag."
        )


def other_images(how: Judging, report: dict) -> Index:
    """Read the images of --dataset, with the classes of a run.

    Without --site, patients are taken to be of the same site as those of the run, so that no image
    that was seen in training is overlooked. Raises Problem if the data set has other classes.
    """
    classes = tuple(report["data"]["classes"])
    data = data_settings(how)
    if how.dataset == "folder" and not how.site:
        data = replace(data, site=report["settings"].get("site", ""))
    index = read_index(data, classes)
    if index.classes != classes:
        raise Problem(
            f"--dataset {how.dataset} has the classes {first_ten(list(index.classes))}, but the"
            f" network has {first_ten(list(classes))}. Use a data set with the same classes."
        )
    return index


def check_finite(logits: np.ndarray, model: Path) -> np.ndarray:
    """Return the logits unchanged. Raises Problem (4) if some are not finite."""
    if not np.isfinite(logits).all():
        raise Problem(
            f"Model '{model}' is damaged: its logits are not finite. Restore the file.",
            BAD_CHECKPOINT,
        )
    return logits
