"""The images that finished runs are judged on, and the answers to them."""

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
    """The data that a run was trained on, where `how` says they are now."""
    settings = read_settings(run, report, TeacherSettings)
    data_dir = how.data_dir or settings.data.data_dir
    data = parsing.replace(settings, cache_dir=how.cache_dir, data_dir=data_dir).data
    return open_dataset(data, read_index(data))


def other_images(how: Judging, classes: tuple[str, ...]) -> Index:
    """The images of --dataset, in the classes that a network knows.

    Raises Problem where they are of others.
    """
    if how.dataset == "folder":
        return folder_reader.read(how.data_dir, classes)
    index = read_index(
        Data(dataset=how.dataset, data_dir=how.data_dir, label=how.label, errata=how.errata)
    )
    if index.classes != classes:
        raise Problem(
            f"dataset '{how.dataset}' in --dataset: its classes are {list(index.classes)}, the"
            f" network knows {list(classes)}; give one of the same scale"
        )
    return index


def check_finite(logits: np.ndarray, model: Path) -> np.ndarray:
    """The logits themselves. Raises Problem (4) where some are not finite."""
    if not np.isfinite(logits).all():
        raise Problem(
            f"model '{model}': its logits are not finite, so its weights are damaged; restore it",
            BAD_CHECKPOINT,
        )
    return logits
