"""Images that finished runs are evaluated on, and a check of the logits for them."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from kd.config import parsing
from kd.config.evaluate_settings import Judging, data_settings
from kd.config.settings import TeacherSettings
from kd.data.dataset import Dataset, read_index
from kd.data.images.pixels import file_bytes
from kd.data.index import UNLABELED, Index
from kd.data.ranges import from_plain
from kd.data.splits import Splits
from kd.data.store import Store, content_hash
from kd.reports.predictions import read_predictions
from kd.studies.runs import read_settings
from kd.system.errors import BAD_CHECKPOINT, Problem, counted, first_ten, printable
from kd.teachers.model_file import Trained


def own_test_images(run: Path, report: dict, model: Trained, how: Judging) -> Dataset:
    """Return the data set of a run with nothing but its test split, in the order of the run.

    The images are those whose hashes the run has kept, so the data set may have grown since then,
    and its files may have moved. `how` specifies the cache and, if the data set has moved, its new
    folder.

    Raises Problem if test images are missing, or if their labels are others now.
    """
    settings = read_settings(run, report, TeacherSettings)
    data = parsing.replace(
        settings,
        cache_dir=how.cache_dir,
        data_dir=how.data_dir or settings.data.data_dir,
        table=how.table or settings.data.table,
    ).data
    classes = tuple(report["data"]["classes"])
    index = _with_classes(read_index(data), classes)
    predictions = read_predictions(run)
    hashes = model.about["data"]["test_files"].numpy()
    if len(hashes) not in (0, len(predictions.paths)):
        raise Problem(
            f"'{run}': its predictions.csv has {len(predictions.paths)} test images, but its"
            f" model.pt has {len(hashes)}, so they do not belong together. Restore both files.",
            BAD_CHECKPOINT,
        )
    rows = _rows_of_paths(index, predictions.paths)
    store = _store(index, data, report, model)
    rows = _verified(store, rows, hashes)
    _check_found(run, predictions.paths, rows)
    _check_labels(run, index, rows, predictions.labels)
    none = np.array([], dtype=np.int64)
    splits = Splits(none, none, rows, none)
    return Dataset(data, index, splits, store, report["data"]["split_hash"])


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
        from_plain(model.about["input"]["ranges"]),
    )


def _verified(store: Store, rows: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Return the rows whose files have these hashes, uint8 [n, 16]; -1 where there is none.

    `rows` are where the files were. Where another file is now, all files are searched. A run from
    before hashes were kept has none, and is evaluated on the files at their places.
    """
    store.ensure(rows[rows >= 0])
    if not len(hashes):
        return rows
    found = rows.copy()
    for place, row in enumerate(rows):
        if row >= 0 and store.hashes[row].tobytes() != hashes[place].tobytes():
            found[place] = -1
    lost = np.flatnonzero(found < 0)
    if len(lost) and store.index.root is not None:
        row_of = _rows_of_hashes(store.index)
        found[lost] = [row_of.get(hashes[place].tobytes(), -1) for place in lost]
        store.ensure(found[found >= 0])
    return found


def _rows_of_hashes(index: Index) -> dict[bytes, int]:
    """Return {content hash: row} of all files that can be read; the first row of equal files."""
    row_of = {}
    for row in range(len(index.samples)):
        try:
            content = file_bytes(index.file(row))
        except OSError:
            continue
        row_of.setdefault(content_hash(content), row)
    return row_of


def _check_found(run: Path, paths: np.ndarray, rows: np.ndarray) -> None:
    """Raise Problem for test images that are missing."""
    missing = paths[rows < 0].tolist()
    if missing:
        images = counted(len(missing), "test image", "test images")
        raise Problem(
            f"{images} of run '{run}' (of {len(rows)}) cannot be found, or their content has"
            f" changed since training: {first_ten(missing)}. Restore these files, or set --data-dir"
            " to the folder that contains them."
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
            f"{images} another label than when run '{run}' was trained: {first_ten(changed)}."
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
            f"--dataset {how.dataset} has the classes {list(index.classes)}, but the network has"
            f" {list(classes)}. Use a data set with the same classes."
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
