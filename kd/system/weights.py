"""Weights from files of this and of other programs: found, taken out of wrappers, compared."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from kd.system import checkpoint
from kd.system.errors import BAD_CHECKPOINT, Problem, counted
from kd.system.messages import first_line
from kd.system.timm_layouts import (
    WRAPPERS,
    adapted,
    converted,
    head_keys,
    library_of,
    timm_filter,
)

SAVE = "torch.save(network.state_dict(), 'weights.pt')"
# Files of other kinds, by their suffix, and who writes them.
_OTHER_FILES = {
    ".npz": "NumPy",
    ".npy": "NumPy",
    ".h5": "Keras",
    ".hdf5": "Keras",
    ".keras": "Keras",
    ".onnx": "ONNX",
    ".pb": "TensorFlow",
    ".tflite": "TensorFlow",
}
# Parts of the names of averaged weights, and of tensors by name that are no weights.
_AVERAGED = {"ema", "averaged", "swa"}
_NO_WEIGHTS = {"optimizer", "optim", "opt", "optimizers", "scheduler", "grads", "momentum"}
_DEPTH = 4  # of dictionaries in dictionaries


@dataclass(frozen=True)
class _Place:
    """Tensors in a file.

    names   keys of the dictionaries around them, joined by dots; "" for the file itself
    prefix  what their names begin with
    state   the tensors, without the prefix
    beside  names of other tensors of the same dictionary
    fit     the network's state and notes, if they fit the network
    """

    names: str
    prefix: str
    state: dict
    beside: list[str] = field(default_factory=list)
    fit: tuple[dict, list[str]] | None = None

    @property
    def averaged(self) -> bool:
        return not _AVERAGED.isdisjoint(self.names.replace(".", "_").split("_"))

    def __str__(self) -> str:
        return f"'{self.names}{'.' if self.names and self.prefix else ''}{self.prefix}'"


def read(path: Path, what: str = "weights") -> dict:
    """Read a file of weights (.safetensors, or of torch.save, with whatever is beside them).

    Raises Problem (4) if the file is missing, damaged or of another kind.
    """
    if path.suffix == ".safetensors":
        content = _read_safetensors(path, what)
    elif path.suffix.lower() in _OTHER_FILES and path.is_file():
        raise Problem(
            f"{what.capitalize()} '{path}': this is a file of {_OTHER_FILES[path.suffix.lower()]},"
            f" not of PyTorch. Load it there, and save the weights of timm's network: {SAVE}.",
            BAD_CHECKPOINT,
        )
    else:
        content = checkpoint.load(path, what, foreign=True)
    if not _states(content):
        raise Problem(
            f"{what.capitalize()} '{path}': the file is not a state_dict (tensors by name); it"
            f" contains {_listed([str(key) for key in content]) or 'nothing'}. Save the weights:"
            f" {SAVE}.",
            BAD_CHECKPOINT,
        )
    return content


def _read_safetensors(path: Path, what: str) -> dict[str, torch.Tensor]:
    what = what.capitalize()
    if not os.path.isfile(path):
        raise Problem(f"{what} '{path}': no such file. Use another file.", BAD_CHECKPOINT)
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:
        raise Problem(
            f"{what} '{path}': the file is damaged or is not a safetensors file"
            f" ({first_line(error)}). Use another file.",
            BAD_CHECKPOINT,
        ) from None


def _states(content: dict, names: str = "", depth: int = _DEPTH) -> dict[str, dict]:
    """Return every dictionary of tensors in nested dictionaries, by its keys joined by dots."""
    found = {}
    tensors = {}
    for key, value in content.items():
        if not isinstance(key, str):
            continue
        if isinstance(value, torch.Tensor):
            tensors[key] = value
        elif isinstance(value, dict) and depth > 1 and key.lower() not in _NO_WEIGHTS:
            found |= _states(value, f"{names}.{key}".lstrip("."), depth - 1)
    return ({names: tensors} if tensors else {}) | found


def fitted(
    module: nn.Module, content: dict, path: Path, architecture: str
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return the weights in the content of a file by a network's own names, and notes.

    Only the classifier may have other shapes. The notes, parts of a sentence, say what was taken
    and changed. Raises Problem (4) if nothing fits, or if two different sets of weights do.
    """
    body = [value.numel() for key, value in module.state_dict().items()]
    heads = [module.state_dict()[key].numel() for key in head_keys(module)]
    places = []
    for names, state in _states(content).items():
        places += _places(names, state, (sum(body) - sum(heads)) / 4)
    found = [_fitting(module, place, adapted) for place in places]
    if not any(found):
        convert = timm_filter(architecture)
        if convert is not None:
            found = [_fitting(module, place, converted, convert) for place in places]
    found = _different([place for place in found if place is not None])
    if not found:
        raise _misfit(module, content, places, path, architecture)
    chosen = _chosen(found, path, architecture)
    return chosen.fit[0], _notes(chosen, found)


def _places(names: str, state: dict, least: float) -> list[_Place]:
    """Return the tensors of a dictionary below each prefix that has at least `least` values."""
    sizes = {"": 0}
    for key, value in state.items():
        sizes[""] += value.numel()
        place = key.find(".")
        while place >= 0:
            prefix = key[: place + 1]
            sizes[prefix] = sizes.get(prefix, 0) + value.numel()
            place = key.find(".", place + 1)
    found = []
    for prefix, size in sizes.items():
        below = {key[len(prefix) :]: state[key] for key in state if key.startswith(prefix)}
        first = {key.partition(".")[0] for key in below}
        # If all names go on with the same wrapper, then the longer prefix is the one to name.
        if size >= least and not (len(first) == 1 and first <= WRAPPERS):
            beside = [key for key in state if not key.startswith(prefix)]
            found.append(_Place(names, prefix, below, beside))
    return found


def _fitting(module: nn.Module, place: _Place, change, *options) -> _Place | None:
    """Return a place with what `change` makes of its tensors; None if they do not fit."""
    fit = change(module, place.state, *options)
    if fit is None:
        return None
    return _Place(place.names, place.prefix, place.state, place.beside, fit)


def _different(found: list[_Place]) -> list[_Place]:
    """Return the places without those whose weights are equal to those of an earlier place."""
    kept = []
    for place in found:
        if not any(_equal(place.fit[0], other.fit[0]) for other in kept):
            kept.append(place)
    return kept


def _equal(first: dict, second: dict) -> bool:
    for key, value in first.items():
        other = second[key]
        if value.shape != other.shape or value.dtype != other.dtype:
            return False
        if value.data_ptr() != other.data_ptr() and not torch.equal(value, other):
            return False
    return True


def _chosen(found: list[_Place], path: Path, architecture: str) -> _Place:
    """Return the only place, or the only one of averaged weights."""
    averaged = [place for place in found if place.averaged]
    candidates = averaged or found
    if len(candidates) == 1:
        return candidates[0]
    raise Problem(
        f"Weights '{path}' contain weights for {architecture} more than once, below"
        f" {' and '.join(map(str, candidates[:4]))}, and they differ. Save those to use alone:"
        f" {SAVE}.",
        BAD_CHECKPOINT,
    )


def _notes(chosen: _Place, found: list[_Place]) -> list[str]:
    """Return what the user should know about the weights that were chosen."""
    notes = []
    if len(found) > 1:
        others = [str(place) for place in found if place is not chosen]
        notes.append(f"the averaged weights in {chosen} are used, not those in {others[0]}")
    elif chosen.names not in ("", "state_dict"):
        notes.append(f"the weights in '{chosen.names}' are used")
    if chosen.prefix:
        notes.append(f"the prefix '{chosen.prefix}' was removed from the names")
    notes += chosen.fit[1]
    if chosen.beside:
        several = counted(len(chosen.beside), "other tensor is", "other tensors are")
        notes.append(f"{several} not used ({_listed(chosen.beside)})")
    return notes


def in_words(path: Path, notes: list[str]) -> tuple[str, ...]:
    """Return the notes on a file as one sentence without its full stop, or none without notes."""
    return (f"weights '{path.name}': {'; '.join(notes)}",) if notes else ()


def _misfit(module, content: dict, places: list[_Place], path: Path, architecture: str) -> Problem:
    """Return the problem to raise if no tensors of a file fit: what they lack, or what they are."""
    own = module.state_dict()
    if not places:
        places = [_Place(names, "", state) for names, state in _states(content).items()]
    best = max(places, key=lambda place: sum(key in own for key in place.state))
    where = f" below {best}" if best.names or best.prefix else ""
    if 2 * sum(key in own for key in best.state) >= len(own):
        text = "; ".join(differences(module, best.state))
        return Problem(
            f"Weights '{path}' do not fit {architecture} ({text[:400]}){where}. Choose the network"
            " that they belong to.",
            BAD_CHECKPOINT,
        )
    library = library_of(best.state)
    cure = "Choose the network that they belong to, named as in timm."
    if library:
        cure = f"timm does not convert them: use weights of timm's own network, saved by {SAVE}."
    last = next(reversed(best.state))
    return Problem(
        f"Weights '{path}' do not fit {architecture}: the file has {len(best.state)}"
        f" tensors{where}{f' in the layout of {library}' if library else ''}"
        f" ({_listed(list(best.state))}; the last is {last} {tuple(best.state[last].shape)}), but"
        f" the network has {len(own)} ({_listed(list(own))}). {cure}",
        BAD_CHECKPOINT,
    )


def differences(module: nn.Module, state: dict[str, torch.Tensor]) -> list[str]:
    """Return how a state differs from a network's own; the list is empty if it fits."""
    own, wrong, missing = module.state_dict(), [], []
    for key, value in own.items():
        if key not in state:
            missing.append(key)
        elif value.shape != state[key].shape:
            found = tuple(state[key].shape)
            expected = tuple(value.shape)
            wrong.append(f"{key}: file has {found}, network has {expected}")
    extra = [key for key in state if key not in own]
    found = []
    for what, keys in (("different shapes:", wrong), ("missing:", missing), ("unknown:", extra)):
        if keys:
            found.append(f"{what} {_listed(keys)}")
    return found


def _listed(names: list[str]) -> str:
    """Return the first three names of a list, with the total number if there are more."""
    more = f", ... ({len(names)} in all)" if len(names) > 3 else ""
    return ", ".join(name[:80] for name in names[:3]) + more
