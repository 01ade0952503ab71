"""model.pt: a trained network with its preprocessing and a record of the data it has seen."""

import hashlib
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from kd import models
from kd.data.dataset import Dataset
from kd.data.images.decoded import FLOAT, INTEGER
from kd.data.pool import Pool
from kd.data.ranges import as_plain
from kd.data.readers.retinopathy import SPACES
from kd.models import Classifier
from kd.system import checkpoint, weights
from kd.system.errors import BAD_CHECKPOINT, Problem, counted
from kd.system.hub_networks import is_external
from kd.system.timm_layouts import head_keys
from kd.teachers.hashed_patients import ROW_BYTES, hashed, salt_of

# The content of model.pt, as a schema for `checkpoint.fault`.
SCHEMA = {
    "kind": str,
    "name": str,
    "architecture": str,
    "classes": list,
    "epoch": int,
    "state_dict": dict,
    "input": {
        "image_size": int,
        "resize": str,
        "crop": str,
        "ranges": dict,
        "mean": list,
        "std": list,
    },
    "data": {
        "name": str,
        "space": str,
        "split": str,
        "split_seed": int,
        "split_hash": str,
        "content_hash": str,
        "inherited": list,
        "salt": str,
        "patients": {"train": torch.Tensor, "valid": torch.Tensor},
        "files": {"train": torch.Tensor, "valid": torch.Tensor},
        "test_files": torch.Tensor,
    },
}
INHERITED = {key: SCHEMA["data"][key] for key in ("name", "space", "salt", "patients", "files")}
# The spaces of patients' names (see `Index.space`) by the names of data sets, and the extensions of
# images, for files from before a model.pt contained its space.
_SPACES = SPACES | {"mura_abnormal": "mura", "synthetic": "synthetic"}
_EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif")


@dataclass(frozen=True)
class Trained:
    """A trained network that was loaded from a file.

    network  the network with its weights
    about    the content of model.pt without the weights, or None for a plain state_dict
    hash     `state_hash` of the weights
    """

    network: Classifier
    about: dict | None
    hash: str


class Weights(NamedTuple):
    """The weights of a network after an epoch, and their `state_hash`."""

    state: dict[str, torch.Tensor]
    hash: str
    epoch: int


def pack(
    kind: str,
    network: Classifier,
    weights: Weights,
    dataset: Dataset,
    pool: Pool | None,
    taught_by: list[Trained],
) -> dict:
    """Return the content of model.pt.

    The weights can be loaded strictly into
    `timm.create_model(architecture, num_classes=len(classes))`.
    """
    return {
        "kind": kind,
        "name": network.name,
        "architecture": network.architecture,
        "classes": list(network.classes),
        "input": _input(network, dataset, pool),
        "state_dict": weights.state,
        "epoch": weights.epoch,
        "data": _data(dataset, pool, taught_by, weights.hash),
    }


def _data(dataset: Dataset, pool: Pool | None, taught_by: list[Trained], weights: str) -> dict:
    """Return what a network, whose weights have the hash `weights`, has seen.

    The known patients and the files of the train and validation splits are included, so that
    neither the network nor its students are evaluated on data that it has seen. Patients are
    hashed, see `hashed_patients`. `space` is that of the patients' names, see `Index.space`. Images
    that it has seen without labels count as part of the train split. `inherited` lists what its
    teachers from other data have seen, and their teachers in turn, each with the salt and the
    hashes that it came with, and the patients without labels whose names have another space.
    `test_files` are the hashes of the test images in their order, uint8 [n, 16], so that the run is
    evaluated on the same images when the data set grows.
    """
    space = dataset.index.space
    salt = salt_of(weights, dataset.split_hash, dataset.content_hash)
    patients = {split: known_patients(dataset, split) for split in ("train", "valid")}
    files = {split: dataset.files(split) for split in ("train", "valid")}
    inherited = []
    for teacher in taught_by:
        inherited += _other_data(teacher, dataset)
    if pool is not None:
        patients["train"] = sorted({*patients["train"], *pool.patients.get(space, [])})
        inherited += _of_other_spaces(pool, space, salt)
        files["train"] = torch.unique(torch.cat([files["train"], pool.files()]), dim=0)
    return {
        "name": dataset.index.name,
        "space": space,
        "split": dataset.settings.split,
        "split_seed": dataset.settings.split_seed,
        "split_hash": dataset.split_hash,
        "content_hash": dataset.content_hash,
        "inherited": inherited,
        "salt": salt,
        "patients": {split: hashed(names, salt) for split, names in patients.items()},
        "files": files,
        "test_files": torch.from_numpy(dataset.store.hashes[dataset.splits.test]),
    }


def known_patients(dataset: Dataset, split: str) -> list[str]:
    """Return the sorted known patients of a split: those who can be recognised in other data."""
    known = set()
    for row in getattr(dataset.splits, split):
        known.add(dataset.index.samples[row].known_patient)
    return sorted(known - {None})


def _of_other_spaces(pool: Pool, space: str, salt: str) -> list[dict]:
    """Return the patients of a pool whose names have another space, as entries of `inherited`.

    Their files are among those of the train split.
    """
    none = torch.zeros(0, 16, dtype=torch.uint8)
    entries = []
    for other, patients in pool.patients.items():
        if other != space:
            entries.append(
                {
                    "name": pool.summary["name"],
                    "space": other,
                    "salt": salt,
                    "patients": {"train": hashed(patients, salt), "valid": hashed((), salt)},
                    "files": {"train": none, "valid": none},
                }
            )
    return entries


def _input(network: Classifier, dataset: Dataset, pool: Pool | None) -> dict:
    """Return how images are prepared for a network."""
    ranges = {} if pool is None else pool.store.ranges
    return {
        "image_size": dataset.settings.image_size,
        "resize": dataset.settings.resize,
        "crop": dataset.store.crop,
        "ranges": as_plain(ranges | dataset.store.ranges),
        "mean": network.mean.flatten().tolist(),
        "std": network.std.flatten().tolist(),
    }


def _other_data(teacher: Trained, dataset: Dataset) -> list[dict]:
    """Return what a teacher and its own teachers have seen of other data than this data set."""
    if teacher.about is None:
        return []
    own = teacher.about["data"]
    here = (dataset.split_hash, dataset.content_hash)
    seen = []
    if (own["split_hash"], own["content_hash"]) != here:
        seen.append({key: own[key] for key in INHERITED})
    return seen + own["inherited"]


def state_hash(state: dict[str, torch.Tensor]) -> str:
    """Return the first 16 hex digits of the SHA-256 of all names, dtypes, shapes and values."""
    sha = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        sha.update(value.reshape(-1).view(torch.uint8).numpy())
    return sha.hexdigest()[:16]


def load(path: Path) -> Trained:
    """Load a model.pt. Raises Problem (4) for a missing or damaged file or one of another kind."""
    return _unpack(checkpoint.load(path, "model"), path)


def load_any(path: Path, name: str, classes: tuple[str, ...]) -> Trained:
    """Load a model.pt, or weights of the network `name` for these classes by another program.

    Raises Problem (4) if the file does not fit the network or the classes.
    """
    content = weights.read(path, "teacher checkpoint")
    if SCHEMA.keys() <= content.keys():
        trained = _unpack(content, path)
        if trained.network.architecture != models.architecture_of(name):
            raise Problem(
                f"Teacher checkpoint '{path}' contains {trained.network.architecture}, but"
                f" --teacher names {models.architecture_of(name)}. Set --teacher to the network"
                " in the file.",
                BAD_CHECKPOINT,
            )
        return trained
    network = models.build(name, classes, empty=True)
    state, notes = weights.fitted(network.module, content, path, network.architecture)
    _check_outputs(network, state, path)
    models.load_state(network.module, state, path, network.architecture)
    network.notes = weights.in_words(path, notes)
    return Trained(network, None, state_hash(network.module.state_dict()))


def _check_outputs(network: Classifier, state: dict[str, torch.Tensor], path: Path) -> None:
    for key in head_keys(network.module):
        outputs = len(state[key]) if state[key].ndim else 0
        if outputs != len(network.classes):
            raise Problem(
                f"Teacher checkpoint '{path}' has {counted(outputs, 'class', 'classes')}, but the"
                f" data set has {len(network.classes)} ({', '.join(network.classes)}). Train it on"
                " these classes.",
                BAD_CHECKPOINT,
            )


def _unpack(content: dict, path: Path) -> Trained:
    _add_defaults(content)
    _hash_patients(content)
    own = {key: value for key, value in content.items() if key != "format"}
    fault = checkpoint.fault(own, SCHEMA, "its content") or _odd(content)
    if fault:
        raise Problem(f"Model '{path}': {fault}. Is it a model.pt of this project?", BAD_CHECKPOINT)
    # A network from the hub or a folder is timm's of that architecture, wherever it came from.
    external = is_external(content["name"])
    name = content["architecture"] if external else content["name"]
    network = models.build(name, tuple(content["classes"]), empty=True)
    if network.architecture != content["architecture"]:
        network = models.build(content["architecture"], tuple(content["classes"]), empty=True)
    network.name = content["name"]
    models.load_state(network.module, content["state_dict"], path, network.architecture)
    network.mean = torch.tensor(content["input"]["mean"]).view(1, 3, 1, 1)
    network.std = torch.tensor(content["input"]["std"]).view(1, 3, 1, 1)
    about = {key: value for key, value in content.items() if key != "state_dict"}
    return Trained(network, about, state_hash(content["state_dict"]))


def _add_defaults(content: dict) -> None:
    """Add what older files lack, in place. Damaged values are left as they are."""
    if isinstance(content.get("input"), dict):
        content["input"].setdefault("crop", "none")  # files from before there were crops
        content["input"].setdefault("ranges", {})  # and before images had more than 8 bits
    data = content.get("data")
    if not isinstance(data, dict):
        return
    data.setdefault("inherited", [])  # files from before there were teachers from other data
    data.setdefault("test_files", torch.zeros(0, 16, dtype=torch.uint8))
    if isinstance(data["inherited"], list):
        for seen in (data, *data["inherited"]):
            if isinstance(seen, dict) and "space" not in seen:
                _add_space(seen)


def _add_space(seen: dict) -> None:
    """Add the space of the patients' names to data of an older file, in place.

    These files contain the paths of images of unknown patients. They are removed, because equal
    paths do not mean equal patients.
    """
    seen["space"] = _SPACES.get(str(seen.get("name")), "")
    patients = seen.get("patients")
    if not isinstance(patients, dict):
        return
    for split, names in patients.items():
        if isinstance(names, list):
            patients[split] = [
                name for name in names if not str(name).lower().endswith(_EXTENSIONS)
            ]


def _hash_patients(content: dict) -> None:
    """Hash the patients of a file of an earlier version, which names them, in place.

    A student that such a teacher has taught therefore inherits hashes. Damaged values are left as
    they are.
    """
    data, state = content.get("data"), content.get("state_dict")
    if not isinstance(data, dict) or not isinstance(state, dict):
        return
    inherited = data["inherited"] if isinstance(data["inherited"], list) else []
    older = [seen for seen in (data, *inherited) if _names_patients(seen)]
    if not older or not all(isinstance(value, torch.Tensor) for value in state.values()):
        return
    salt = salt_of(state_hash(state), str(data.get("split_hash")), str(data.get("content_hash")))
    for seen in older:
        if "salt" not in seen:  # the same object may be in the list twice
            seen["salt"] = salt
            # Nor is the dictionary changed, which may be that of several entries.
            named = seen["patients"].items()
            seen["patients"] = {split: hashed(names, salt) for split, names in named}


def _names_patients(seen) -> bool:
    """Return whether data of a model.pt contain the names of patients, as in earlier versions."""
    if not isinstance(seen, dict) or "salt" in seen or not isinstance(seen.get("patients"), dict):
        return False
    return all(
        isinstance(names, list) and all(isinstance(name, str) for name in names)
        for names in seen["patients"].values()
    )


def _odd(content: dict) -> str:
    """Describe invalid values in a model.pt that has all its keys; return "" if there are none."""
    if len(content["classes"]) < 2 or not all(isinstance(name, str) for name in content["classes"]):
        return f"its classes are {str(content['classes'])[:100]}, not two or more names"
    for key in ("mean", "std"):
        values = content["input"][key]
        if len(values) != 3 or not all(
            type(value) is float and math.isfinite(value) for value in values
        ):
            return f"its input.{key} is {str(values)[:100]}, not three numbers"
    if min(content["input"]["std"]) <= 0:
        return f"its input.std is {content['input']['std']}, not above 0"
    if not _are_ranges(content["input"]["ranges"]):
        return f"its input.ranges are {str(content['input']['ranges'])[:100]}"
    if not _are_hashes(content["data"]["test_files"]):
        return "its data.test_files are not hashes"
    if not all(isinstance(value, torch.Tensor) for value in content["state_dict"].values()):
        return "its state_dict contains values that are not tensors"
    faults = (
        checkpoint.fault(seen, INHERITED, "its data.inherited")
        for seen in content["data"]["inherited"]
    )
    found = next((fault for fault in faults if fault), "")
    if found:
        return found
    for seen, split in itertools.product(
        (content["data"], *content["data"]["inherited"]), ("train", "valid")
    ):
        files, patients = seen["files"][split], seen["patients"][split]
        if files.ndim != 2 or files.dtype != torch.uint8 or not _are_hashes(patients, ROW_BYTES):
            return f"its data.files.{split} or data.patients.{split} are not hashes"
    return ""


def _are_hashes(value: torch.Tensor, width: int = 16) -> bool:
    return value.ndim == 2 and value.shape[1] == width and value.dtype == torch.uint8


def _are_ranges(values: dict) -> bool:
    """Return whether `values` are {kind: [low, high, rule]}, as `ranges.as_plain` writes them."""
    for kind, one in values.items():
        if kind not in (INTEGER, FLOAT) or not isinstance(one, list) or len(one) != 3:
            return False
        *ends, rule = one
        if not isinstance(rule, str) or not all(type(end) is float for end in ends):
            return False
        if not all(map(math.isfinite, ends)):
            return False
    return True
