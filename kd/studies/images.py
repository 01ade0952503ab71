"""Images that finished runs are evaluated on, and a check of the logits for them."""

from pathlib import Path

import numpy as np

from kd.config import parsing
from kd.config.evaluate_settings import Judging
from kd.config.settings import Data, TeacherSettings
from kd.data import folder as folder_reader
from kd.data.dataset import Dataset, open_dataset, read_index
from kd.data.index import Index
from kd.studies.runs import read_settings
from kd.system.errors import BAD_CHECKPOINT, Problem


def own_dataset(run: Path, report: dict, how: Judging) -> Dataset:
    """Open the data set that a run was trained on.

    `how` specifies the cache and, if the data set has moved, its new folder.
    """
    settings = read_settings(run, report, TeacherSettings)
    data_dir = how.data_dir or settings.data.data_dir
    data = parsing.replace(settings, cache_dir=how.cache_dir, data_dir=data_dir).data
    return open_dataset(data, read_index(data))


def other_images(how: Judging, classes: tuple[str, ...]) -> Index:
    """Read the images of --dataset, with the classes of a network.

    Raises Problem if the data set has other classes.
    """
    if how.dataset == "folder":
        return folder_reader.read(how.data_dir, classes)
    index = read_index(
        Data(dataset=how.dataset, data_dir=how.data_dir, label=how.label, errata=how.errata)
    )
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
